"""`simulate`: what would come of a pipeline or a log under one scenario or many."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from datatask.adapters.cli.commands import command
from datatask.adapters.cli.loading import load, parse_reference
from datatask.adapters.cli.output import Output
from datatask.adapters.cli.progress_bar import SPENT
from datatask.adapters.cli.recorded import opened
from datatask.adapters.cli.settings import Settings
from datatask.adapters.clock import SystemClock, effort
from datatask.adapters.log.locate import locate
from datatask.schema.errors import InvalidValueError, NoLogError
from datatask.schema.units import duration_words, parse_span

if TYPE_CHECKING:
    from datatask.adapters.sim.recording import Recording
    from datatask.adapters.sim.result import Result
    from datatask.adapters.sim.scenario import Scenario
    from datatask.schema.definition import PipelineDef

NOTHING_CAN_PROGRESS = 6
SCENARIOS = ("scenario", "jobs", "replications", "mean", "p50", "p95", "min", "max", "bottleneck")
COMPARED = ("scenario", "p50", "p95", "bottleneck")
LEFT = ("scenario", "jobs", "replications", "p10", "p50", "p90", "done_at", "bottleneck")
COMPARED_LEFT = ("scenario", "p10", "p50", "p90", "done_at")
REPLICATIONS = 20
"""The default where an interval is asked for."""

TASKS = ("scenario", "task", "runs", "wait_p50", "wait_p95", "service_p50")
RESOURCES = ("scenario", "resource", "utilisation")
DURATIONS = frozenset(
    ("mean", "p10", "p50", "p90", "p95", "min", "max", "wait_p50", "wait_p95", "service_p50")
)


def SPAN(text: str) -> float:
    """A length of time: seconds, or such as 90s, 5m, 1h30m."""
    seconds = parse_span(text)
    if seconds is None:
        raise InvalidValueError(
            f"{text!r} is no length of time", remedy="write seconds, or such as 90s, 5m, 2h"
        )
    return seconds


@command(
    "simulate",
    example="datatask simulate --from .datatask/log.db --vary quota.cluster.cpu=8,16,32\n"
    "datatask simulate pipeline.py --jobs 10000 --duration 30s --replications 20 --html future.html\n"
    "datatask simulate --scenarios plans.yaml --json",
)
@click.argument("source", required=False, metavar="[PIPELINE]")
@click.option(
    "--from", "recorded", metavar="LOG", help="Durations, outcomes, outputs and jobs as in this log."
)
@click.option(
    "--scenarios",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Named scenarios in YAML (docs/simulation.md).",
)
@click.option("--vary", multiple=True, metavar="PLACE=A,B", help="Try each, such as quota.NAME.cpu=8,16.")
@click.option("--jobs", type=int, metavar="N", help="So many jobs, in place of those of the log.")
@click.option(
    "--arrivals", metavar="HOW", help="at_once, recorded, even=RATE or poisson=RATE (jobs a second)."
)
@click.option("--duration", type=SPAN, metavar="TIME", help="How long runs take of which nothing else tells.")
@click.option("--until", type=SPAN, metavar="TIME", help="Stop after so much simulated time.")
@click.option("--own", is_flag=True, help="Let each job of the log take as long as it took.")
@click.option(
    "--replications", type=int, metavar="N", help="Simulate each scenario so often, with other chances."
)
@click.option("--seed", type=int, metavar="N", help="Other chances; the same seed gives the same events (0).")
@click.option(
    "--continue",
    "goes_on",
    metavar="LOG",
    help="Go on from where this log stands, and tell when it will be done.",
)
@click.option(
    "--finish-by",
    metavar="WHEN",
    help="Find the cheapest limits with which it is through by then (2h, or a time).",
)
@click.option("--confidence", type=float, default=0.9, help="In this share of the replications (0.9).")
@click.option(
    "--price", multiple=True, metavar="PLACE=X", help="What a unit costs; else what there is now costs 1."
)
@click.option(
    "--html",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Write a report that opens offline.",
)
@click.option(
    "--write-log",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Write the first history as an ordinary log.",
)
def simulate(
    settings: Settings,
    source: str | None,
    recorded: str | None,
    scenarios: Path | None,
    vary: tuple[str, ...],
    html: Path | None,
    write_log: Path | None,
    goes_on: str | None,
    finish_by: str | None,
    confidence: float,
    price: tuple[str, ...],
    **told: Any,
) -> int:
    """Simulate a pipeline, or what a log recorded, before anything is spent: how long, what binds, what if.

    Without PIPELINE the definition is the log's. No code of tasks is run. The exit code is 6 where a simulation could
    not go on; it says which jobs wait for what.
    """
    from datatask.adapters.cli import simulate_capacity
    from datatask.adapters.sim.result import results_json
    from datatask.adapters.sim.simulate import Present, left_json, simulate_inputs

    output = Output(settings)
    definition, recording = _inputs(settings, source, recorded or goes_on)
    present = None if goes_on is None else Present.of(_log(goes_on), SystemClock().now())
    if told["replications"] is None and (goes_on is not None or finish_by is not None) and scenarios is None:
        told["replications"] = REPLICATIONS
    state, now = (None, 0) if present is None else (present.state, present.now)
    run = partial(simulate_inputs, definition, recording, state=state, now=now)
    if finish_by is not None:
        scenario = _one(_scenarios(scenarios, (), told), "--finish-by")
        by = simulate_capacity.seconds_until(finish_by, now or SystemClock().now())
        asked = simulate_capacity.CapacityOptions(
            by, confidence, simulate_capacity.axes(vary), simulate_capacity.prices(price)
        )
        return simulate_capacity.tell(output, settings, definition, scenario, run, asked)
    tried = list(_scenarios(scenarios, vary, told))
    if write_log is not None and len(tried) > 1:
        raise InvalidValueError(
            f"{len(tried)} scenarios have {len(tried)} histories",
            where="--write-log",
            remedy="choose one scenario",
        )
    results: list[Result] = []
    for scenario in tried:
        if effort.is_spent:
            output.say(
                f"the time was over in {settings.budget:g} s: {len(results)} of {len(tried)} scenarios"
            )
            break
        results.append(run(scenario, write_log=write_log))
        for note in results[-1].notes if len(results) == 1 else ():
            output.say(f"note: {note}")
        for line in results[-1].stuck:
            output.say(f"{scenario.name}: cannot go on: {line}")
    if html is not None:
        from datatask.adapters.sim.report import save

        save(html, results, definition, recording)
        output.say(f"note: the report is in {html}")
    found = results_json(results) if present is None else left_json(results, present)
    if output.json and not settings.fields:
        output.document(found)
    else:
        _tables(output, settings, found["scenarios"], SCENARIOS if present is None else LEFT)
    if effort.is_spent:
        return SPENT
    return NOTHING_CAN_PROGRESS if any(result.stuck for result in results) else 0


def _inputs(
    settings: Settings, source: str | None, recorded: str | None
) -> tuple[PipelineDef, Recording | None]:
    """Return the definition and its recording: of PIPELINE and LOG, else of this place's log."""
    from datatask.adapters.sim.simulate import inputs

    pipeline = None
    if source is not None:
        pipeline = load(parse_reference(source)).pipeline
    elif settings.names_pipeline:
        pipeline = settings.load_pipeline()
    if pipeline is not None and recorded is None:
        return inputs(pipeline)
    recording = _recording(settings if recorded is None else replace(settings, log=recorded))
    return recording.definition if pipeline is None else inputs(pipeline)[0], recording


def _recording(settings: Settings) -> Recording:
    from datatask.adapters.log.columns import collector_off
    from datatask.adapters.sim.recording import read

    with opened(settings, events=True) as reader, collector_off():
        return read(reader)


def _log(text: str) -> Path:
    path = locate(text).path
    if path is None:
        raise NoLogError("nothing is left of a log in memory", where=text, remedy="name the file of a log")
    return path


def _one(scenarios: Iterator[Scenario], option: str) -> Scenario:
    found = list(scenarios)
    if len(found) != 1:
        raise InvalidValueError(
            f"there are {len(found)} scenarios", where=option, remedy="choose one of them"
        )
    return found[0]


def _scenarios(file: Path | None, vary: Sequence[str], told: dict[str, Any]) -> Iterator[Scenario]:
    """Yield the file's scenarios, changed by the options, in every combination of the values of --vary."""
    from datatask.adapters.wiring.scenarios import load_scenarios, merged, scenario_of, varied

    over = {name: value for name, value in told.items() if value is not None and value is not False}
    if "duration" in over:
        over["default"] = {"duration": over.pop("duration")}
    if "arrivals" in over:
        how, _, rate = over["arrivals"].partition("=")
        over["arrivals"] = {how: _rate(rate)} if rate else how
    trees = {"as told": {}} if file is None else load_scenarios(file)
    folder = Path() if file is None else file.parent
    complete = {name: merged(tree, over) for name, tree in trees.items()}
    for name, tree in varied(complete, vary).items():
        yield scenario_of(tree, name, folder)


def _rate(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise InvalidValueError(
            f"{text!r} is no rate", where="--arrivals", remedy="write jobs a second, such as poisson=2.5"
        ) from None


# --- tables -----------------------------------------------------------------------------------------


def _tables(
    output: Output, settings: Settings, told: Sequence[dict[str, Any]], columns: Sequence[str]
) -> None:
    many = len(told) > 1
    summaries = [
        {
            "scenario": each["name"],
            **{name: each.get(name) for name in columns[1:]},
            **each["makespan"],
            **each.get("left", {}),
        }
        for each in told
    ]
    drawn = columns[1:] if not many else COMPARED if columns == SCENARIOS else COMPARED_LEFT
    output.rows(_worded(output, summaries), columns, drawn=drawn)
    if settings.fields:
        return
    tasks = [
        {"scenario": each["name"], "task": name, **numbers}
        for each in told
        for name, numbers in each["tasks"].items()
    ]
    resources = [
        {"scenario": each["name"], "resource": name, "utilisation": share}
        for each in told
        for name, share in each["utilisation"].items()
    ]
    for rows, columns in ((tasks, TASKS), (resources, RESOURCES)):
        if rows:
            output.line()
            output.rows(_worded(output, rows), columns, drawn=columns if many else columns[1:])


def _worded(output: Output, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Put durations and shares into words where people read them."""
    if output.json or not (output.draws or output.colored):
        return rows
    return [{name: _word(name, value) for name, value in row.items()} for row in rows]


def _word(name: str, value: Any) -> Any:
    if name in DURATIONS:
        return duration_words(value) if value >= 1 or not value else f"{value * 1000:.3g} ms"
    return f"{value:.1%}" if name == "utilisation" else value
