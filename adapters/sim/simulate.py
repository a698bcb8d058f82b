"""The library's entry to simulation: `simulate(pipeline_or_log, scenario) -> Result`, also from where a log stands now.

In: a pipeline (its definition only: no task's code runs), a definition, or a log (its definition, jobs and runs); a
`Scenario`; for a pipeline also a log to take durations from. Out: a `Result`, and the time that is left, with an
interval. `recording` reads the log, `modelling` makes a model for each replication, `quick` or `logged` steps it, `summary`
sums up. Replications are spread over processes; the same seed gives the same events, whatever their number.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from os import cpu_count
from pathlib import Path
from time import perf_counter
from typing import Any

from datatask.adapters.clock import SpentError, effort
from datatask.adapters.history.history import History
from datatask.adapters.log.columns import collector_off
from datatask.adapters.log.reader import LogReader
from datatask.adapters.sim.logged import free_place
from datatask.adapters.sim.model import BEGINNING
from datatask.adapters.sim.modelling import changed
from datatask.adapters.sim.recording import Recording, read
from datatask.adapters.sim.replication import Setup, replicate
from datatask.adapters.sim.result import Result, quantile, results_json
from datatask.adapters.sim.scenario import Scenario
from datatask.adapters.sim.worker import replicate_in_processes
from datatask.engine.core.checkpoints import dump
from datatask.engine.core.state import State
from datatask.schema.definition import PipelineDef
from datatask.schema.errors import InvalidValueError, NoLogError, NotPossibleError
from datatask.schema.units import SECOND, iso

WORTH_SECONDS = 4.0
"""Less work than this is done before other processes would have begun."""


def simulate(
    source: Any,
    scenario: Scenario | None = None,
    *,
    log: str | Path | History | None = None,
    write_log: str | Path | None = None,
    processes: int | None = None,
    keep_runs: bool = True,
    present: bool = False,
) -> Result:
    """Simulate a pipeline, a definition, or what a log recorded, under a scenario.

    With `present`, go on from where the log that is `source` stands: its waiting jobs and open runs, and no others but
    those of the scenario. `log` has the durations where `source` is a pipeline. `write_log` writes the history of the
    first replication as an ordinary log, which must not exist yet. `processes` is the most at once (None: one a core). A
    fault of the scenario, such as a task without a duration, is a `CallerError`; jobs that could not go on are in
    `Result.stuck`.
    """
    scenario = scenario or Scenario()
    definition, recording = inputs(source, log)
    state = _state(source) if present else None
    return simulate_inputs(
        definition,
        recording,
        scenario,
        write_log=write_log,
        processes=processes,
        keep_runs=keep_runs,
        state=state,
    )


def _state(source: Any) -> State:
    """Return the state at the head of a log."""
    if isinstance(source, History):
        return source.state()
    if not isinstance(source, str | Path):
        raise NoLogError("only a log has a present", remedy="give the place of a log")
    with History(source) as history:
        return history.state()


def inputs(source: Any, log: str | Path | History | None = None) -> tuple[PipelineDef, Recording | None]:
    """Return what a simulation starts from; read once, it serves any number of scenarios."""
    recording = None if log is None else _recording(log)
    if isinstance(source, str | Path | History):
        recording = recording or _recording(source)
        return recording.definition, recording
    if isinstance(source, PipelineDef):
        return source, recording
    if not hasattr(source, "declare"):
        raise InvalidValueError(
            f"{type(source).__name__} is nothing to simulate", remedy="give a pipeline, or the place of a log"
        )
    definition: PipelineDef = source.declare().definition
    return definition, recording


def _recording(place: str | Path | History) -> Recording:
    with collector_off():
        if isinstance(place, History):
            return read(place.reader)
        with LogReader(place) as reader:
            return read(reader)


def simulate_inputs(
    definition: PipelineDef,
    recording: Recording | None,
    scenario: Scenario,
    *,
    write_log: str | Path | None = None,
    processes: int | None = None,
    keep_runs: bool = True,
    state: State | None = None,
    now: int = 0,
) -> Result:
    """Simulate under a scenario what `inputs` returned.

    With `state`, go on from there, from `now` on (nanoseconds; at the earliest the time of its last event): its makespan
    is the time that is left. The state is not changed.
    """
    if state is not None and write_log is not None:
        raise NotPossibleError(
            "a history that continues a log cannot be written", remedy="leave write_log out"
        )
    setup = Setup(definition, recording, scenario, BEGINNING, None)
    if state is not None:
        setup = setup._replace(begin=max(now, state.at), present=dump(state))
    return _replicated(setup, write_log, processes, keep_runs)


def _replicated(setup: Setup, write_log: str | Path | None, processes: int | None, keep_runs: bool) -> Result:
    definition, recording, scenario = setup[:3]
    place = None if write_log is None else free_place(write_log)
    definition = changed(definition, scenario)
    setup = setup._replace(definition=definition)
    begun = perf_counter()
    effort.at(f"the first replication of {scenario.name}")
    first = replicate(setup, 0, place)
    took = perf_counter() - begun
    result = Result(scenario, definition, setup.begin, [first.summary], notes=_notes(recording, scenario))
    if keep_runs:
        result.records, result.names = first.records, first.names
    rest = range(1, scenario.replications)
    workers = min(processes if processes is not None else cpu_count() or 1, len(rest))
    effort.at(f"replications of {scenario.name}", 1, scenario.replications)
    try:
        if workers > 1 and (processes is not None or took * len(rest) >= WORTH_SECONDS):
            result.summaries += replicate_in_processes(setup, rest, workers)
        else:
            for replication in rest:
                result.summaries.append(replicate(setup, replication).summary)
                effort.at(effort.stage, replication + 1, scenario.replications)
    except SpentError:
        pass
    if len(result.summaries) < scenario.replications:
        result.notes.append(
            f"{len(result.summaries)} of {scenario.replications} replications: the time was over"
        )
    return result


def _notes(recording: Recording | None, scenario: Scenario) -> list[str]:
    """Return the source of durations where there was a choice."""
    if recording is None:
        return []
    notes = []
    for name, record in sorted(recording.tasks.items()):
        if scenario.of(name).duration is not None or not record.runs:
            continue
        fit = record.fit
        if fit is not None and not isinstance(scenario.jobs, int) and not scenario.own:
            notes.append(
                f"{name}: durations follow the size of what a run reads ({fit.explained:.0%} explained): "
                f"{fit.intercept:.3g} s and {fit.slope:.3g} s for each unit of size"
            )
        else:
            notes.append(f"{name}: durations are those of {record.runs} recorded runs")
    return notes


LOW, MIDDLE, HIGH = 0.1, 0.5, 0.9


@dataclass(frozen=True)
class Present:
    """A state, and when it is (UTC nanoseconds): now, or at the log's last event where the clock says less."""

    state: State
    now: int

    @classmethod
    def of(cls, log: str | Path, now: int) -> Present:
        """Return where a log stands."""
        with History(log) as history:
            state = history.state()
        return cls(state, max(now, state.at))


@dataclass(frozen=True)
class Left:
    """The seconds until all is done: of the replications a tenth need less than `p10`, half `p50`, a tenth more than `p90`."""

    p10: float
    p50: float
    p90: float


def left(result: Result) -> Left:
    """Return how long it still takes."""
    spans = sorted(each.makespan for each in result.summaries)
    return Left(quantile(spans, LOW), quantile(spans, MIDDLE), quantile(spans, HIGH))


def left_json(results: Sequence[Result], present: Present) -> dict[str, Any]:
    """Return the object of `simulate --continue --json`: each scenario also has `left` and `done_at`."""
    found = results_json(results)
    for summary, result in zip(found["scenarios"], results, strict=True):
        time = left(result)
        summary["left"] = {"p10": time.p10, "p50": time.p50, "p90": time.p90}
        summary["done_at"] = iso(present.now + round(time.p50 * SECOND))
    return found
