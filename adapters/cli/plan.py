"""`plan` and `graph`: what would be launched, how the definition differs from the recorded one, and a drawing of tasks and repositories.

Both change nothing. `plan` answers by the state of the log and the pipeline's definition; `graph` draws the recorded definition, or the
pipeline's where `-p` names one.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from datatask.adapters.cli.commands import WHEN, choosing, command
from datatask.adapters.cli.output import Output
from datatask.adapters.cli.recorded import declared_state, look, recorded, recorded_state
from datatask.adapters.cli.settings import Settings
from datatask.adapters.clock import SystemClock
from datatask.adapters.history import shapes
from datatask.adapters.history.moments import When
from datatask.adapters.history.stale import Learned, Staleness, counts, find_stale, stale_lines
from datatask.adapters.log.lease import probe
from datatask.adapters.log.locate import locate
from datatask.adapters.log.reader import LogReader
from datatask.adapters.wiring.choosing import Choice, check_names
from datatask.adapters.wiring.event_loop import run_in_loop
from datatask.engine.core import decide as deciding
from datatask.engine.core.expressions import set_text
from datatask.engine.core.fold import apply
from datatask.engine.core.state import State
from datatask.engine.ports import Hashable
from datatask.schema import definition as d
from datatask.schema import events as e
from datatask.schema.errors import InvalidValueError
from datatask.schema.troubles import shown
from datatask.schema.units import duration_words

if TYPE_CHECKING:
    from datatask.adapters.wiring.pipeline import Pipeline


DIFFERENT = 3
SHOWN_MAX = 20
REPLICATIONS = 20
_WORDS = {
    "bound": f"a round launches at most {deciding.BOUND}; the next one goes on",
    "limit": "more than --limit",
    "unselected": "not among those chosen",
    "evaluation": "code of the pipeline is to be asked first",
    "concurrency": "the task runs no more at once",
    "paused": "the task is paused",
    "disabled": "the task is disabled",
}


@command(
    "plan",
    example="datatask plan\ndatatask -p pipeline.py plan --exit-code\ndatatask plan --until train --limit 10",
)
@choosing
@click.option("--accept-loss", multiple=True, metavar="REPO",
              help="As for `run`: believe that what vanished from this repository, or with it, is gone.")  # fmt: skip
@click.option(
    "--exit-code", "wanted", is_flag=True, help="Exit with 3 when something would be launched or differs."
)
@click.option(
    "--time",
    "timed",
    is_flag=True,
    help="Simulate how long all of it takes, by the durations that the log has.",
)
def plan(settings: Settings, choice: Choice, accept_loss: tuple[str, ...], wanted: bool, timed: bool) -> int:
    """Show what `run` with the same choice would launch now, what holds the rest back, and how the definition changed.

    What `run` would refuse is refused. Nothing is changed. With --json: {"log", "launches": [{"task", "job", "attempt", "priority", "resources"}],
    "held": {TASK: {"waiting", "constraint"}}, "definition": [{"op", "what", "name", "fields"}], "parameters": [{"name", "value", "default", "help"}],
    "stale": {TASK: {"stale", "unknown"}}, "unfollowed": {TASK: [TEXT]}}; with --time also "left": {"p10", "p50", "p90"} in seconds.
    """
    if timed and choice != Choice():
        raise InvalidValueError("--time tells of all that would run", remedy="leave the choice out")
    pipeline = settings.load_pipeline()
    state, round, differences, stale = foresee(pipeline, choice, accept_loss)
    shape = {
        "log": pipeline.log_location(),
        "launches": [_launch(decision) for decision in round.decisions],
        "held": _held(state, round),
        "definition": differences,
        "stale": stale,
        "unfollowed": {
            task.name: found for task in pipeline.tasks.values() if (found := task.fingerprint().unfollowed)
        },
        "parameters": [_parameter(one) for one in pipeline.declare().definition.parameters],
        **({"left": _left(pipeline, state)} if timed else {}),
    }
    _tell(Output(settings), shape)
    return DIFFERENT if wanted and (round.decisions or differences) else 0


def _left(pipeline: Pipeline, state: State) -> dict[str, float]:
    """Return the seconds until nothing is left to do: of the simulations a tenth need less than `p10`, a tenth more than `p90`."""
    from datatask.adapters.sim.scenario import Scenario
    from datatask.adapters.sim.simulate import inputs, left, simulate_inputs

    path = locate(pipeline.log_location()).path
    definition, recording = inputs(pipeline, path if path is not None and path.exists() else None)
    scenario = Scenario(name="plan", replications=REPLICATIONS)
    result = simulate_inputs(
        definition, recording, scenario, state=state, now=max(SystemClock().now(), state.at)
    )
    return asdict(left(result))


class Foresight(NamedTuple):
    """A copy of the state that has seen the stores, what a round on it decides, how the definition differs, what is stale."""

    state: State
    round: deciding.Round
    differences: list[dict[str, Any]]
    stale: dict[str, dict[str, int]]


def foresee(pipeline: Pipeline, choice: Choice, losses: Iterable[str] = ()) -> Foresight:
    """Return what `run` would find and do first; results that it would compute again are asked for in the copy.

    Raises what `run` would: for a choice, a vanished repository (unless in `losses`), a missing input, a task that is not valid.
    """
    state, recorded = recorded_state(pipeline, losses)
    path = locate(pipeline.log_location()).path
    if path is not None and (holder := probe(path)) is not None:
        sys.stderr.write(f"note: an engine (pid {holder}) holds the log: until it ends, `run` is refused\n")
    differences = list(_differences(recorded, pipeline.declare().definition))
    now = max(SystemClock().now(), state.at)
    selection = choice.selection(state)
    learned = run_in_loop(look(pipeline, state, now))
    if selection is not None:
        check_names(state, selection)
    stale = {}
    if recorded is not None and path is not None:
        with LogReader(path) as reader:
            found = find_stale(reader, state, Learned(learned, _hasher(pipeline)))
        stale = counts(found)
        _ask_again(state, found, now)
    return Foresight(state, deciding.decide(state, now, selection=selection), differences, stale)


def _hasher(pipeline: Pipeline) -> Callable[[str, str, str], str | None]:
    """Return the function that hashes what a store has for a job now, where that is of the version that is asked for."""
    repositories = pipeline.declare().repositories

    def digest(repository: str, job: str, version: str) -> str | None:
        store = repositories[repository].store if repository in repositories else None
        hashed = store.hash_now(job) if isinstance(store, Hashable) else None
        return hashed.digest if hashed is not None and hashed.version == version else None

    return digest


def _ask_again(state: State, found: Staleness, now: int) -> None:
    """Ask in a copy of the state for what an engine would compute again by itself."""
    for name, jobs in found.own.items():
        task = state.tasks[name]
        for index in jobs if task.definition.on_change == "rerun" else ():
            job = state.jobs[index]
            for leaf in deciding.own_entries(state, task, job):
                apply(state, state.position + 1, e.ValueDeleted(at=now, repository=leaf, job=job))
            apply(state, state.position + 1, e.RetryRequested(at=now, task=name, job=job))


def _parameter(one: d.ParameterDef) -> dict[str, Any]:
    return {"name": one.name, "value": one.value, "default": one.default, "help": one.help}


def _launch(decision: e.LaunchDecided) -> dict[str, Any]:
    from datatask.adapters.history.shapes import units

    return {
        "task": decision.task,
        "job": decision.job,
        "attempt": decision.attempt,
        "priority": decision.priority,
        "resources": units(decision.resources),
    }


def _held(state: State, round: deciding.Round) -> dict[str, dict[str, Any]]:
    launched: dict[str, int] = {}
    for decision in round.decisions:
        launched[decision.task or ""] = launched.get(decision.task or "", 0) + 1
    found, recorded = {}, round.recorded
    for task in state.tasks.values():
        waiting = len(task.queue) + len(task.awaiting) - launched.get(task.name, 0)
        if waiting > 0:
            found[task.name] = {
                "waiting": waiting,
                "constraint": recorded.get(task.name, "evaluation"),
            }
    return found


def _differences(before: d.PipelineDef | None, after: d.PipelineDef) -> Iterator[dict[str, Any]]:
    """Yield what was added, removed or changed, by name."""
    nouns = {"tasks": "task", "repositories": "repository", "quotas": "quota", "parameters": "parameter"}
    for what, noun in nouns.items():
        old = _by_name(getattr(before, what)) if before is not None else {}
        new = _by_name(getattr(after, what))
        for name in [*old, *(name for name in new if name not in old)]:
            if name not in new:
                yield {"op": "removed", "what": noun, "name": name, "fields": []}
            elif name not in old:
                yield {"op": "added", "what": noun, "name": name, "fields": []}
            elif old[name] != new[name]:
                fields = [
                    f for f in old[name].__struct_fields__ if getattr(old[name], f) != getattr(new[name], f)
                ]
                yield {"op": "changed", "what": noun, "name": name, "fields": fields}


def _by_name(parts: tuple[Any, ...]) -> dict[str, Any]:
    return {getattr(part, "name", None) or part.id: part for part in parts}


def _tell(output: Output, shape: dict[str, Any]) -> None:
    if output.json:
        output.document(shape)
        return
    for one in shape["parameters"]:
        default = "" if one["value"] == one["default"] else f" (default {one['default']})"
        about = f": {one['help']}" if one["help"] else ""
        output.line(shown(f"parameter {one['name']} = {one['value']}{default}{about}"))
    for found in shape["definition"]:
        fields = f" ({', '.join(found['fields'])})" if found["fields"] else ""
        output.line(shown(f"definition: {found['op']} {found['what']} {found['name']}{fields}"))
    for line in stale_lines(shape["stale"]).items():
        output.line(shown(" ".join(line)))
    for name, found in shape["unfollowed"].items():
        output.line(shown(f"not followed: {name}: {'; '.join(found)}"))
    launches = shape["launches"]
    for launch in launches[:SHOWN_MAX]:
        attempt = f", attempt {launch['attempt']}" if launch["attempt"] > 1 else ""
        output.line(shown(f"launch {launch['task']} {launch['job']}{attempt}"))
    if len(launches) > SHOWN_MAX:
        output.line(f"… and {len(launches) - SHOWN_MAX} more")
    for name, held in shape["held"].items():
        why = _WORDS.get(held["constraint"], held["constraint"])
        output.line(shown(f"held: {name}: {held['waiting']} wait: {why}"))
    if (time := shape.get("left")) is not None:
        low, middle, high = (duration_words(time[name]) for name in ("p10", "p50", "p90"))
        output.line(f"all of it takes about {middle} ({low} to {high})")
    if not (
        any(count["stale"] for count in shape["stale"].values())
        or launches
        or shape["definition"]
        or shape["held"]
    ):
        output.line("nothing to do")


FORMS = ("text", "mermaid", "dot", "json")


class Edge(NamedTuple):
    """One link as an arrow; `needs` is what its membership means for the task's start."""

    task: str
    link: str
    repository: str
    into: bool
    out: bool
    inhibits: bool


@command(
    "graph",
    example="datatask graph\ndatatask graph --format mermaid > pipeline.mmd\ndatatask -p pipeline.py graph\n"
    "datatask graph --at 2026-03-01",
)
@click.option("--at", type=WHEN, metavar="WHEN", help="As of a position, an ISO time or an age such as -2h.")
@click.option(
    "--format", "form", type=click.Choice(FORMS), default="text", show_default=True, help="How to draw."
)
def graph(settings: Settings, form: str, at: When | None) -> None:
    """Draw tasks and repositories.

    The definition is that of the log (with --at: the one in force then), or of the pipeline that -p names, which
    need not have run.
    """
    output = Output(settings)
    if settings.names_pipeline and at is None:
        state = declared_state(settings.load_pipeline())
    else:
        with recorded(settings, at) as log:
            state = log.state
    edges = list(edges_of(state.definition))
    if output.json or form == "json":
        output.document(_document(state, edges))
        return
    for line in {"text": _text, "mermaid": _mermaid, "dot": _dot}[form](state, edges):
        output.line(line)


def edges_of(definition: d.PipelineDef) -> Iterable[Edge]:
    """Yield the links as arrows, in order of declaration."""
    for task in definition.tasks:
        for link in task.links:
            into = link.is_input or link.required_for_start or link.inhibits_start
            out = not into or link.is_output or link.is_status
            yield Edge(task.name, link.name, set_text(link.expr), into, out, link.inhibits_start)


def _document(state: State, edges: list[Edge]) -> dict[str, Any]:
    return {
        "tasks": [{"name": task.name, "kind": task.kind} for task in state.definition.tasks],
        "repositories": [
            {"id": leaf.id, "kind": leaf.kind, "medium": leaf.medium}
            for leaf in state.definition.repositories
        ],
        "links": [
            {
                "task": task.name,
                "link": link.name,
                "repository": set_text(link.expr),
                "kinds": [kind for kind in shapes.KINDS if getattr(link, kind)],
            }
            for task in state.definition.tasks
            for link in task.links
        ],
    }


def _text(state: State, edges: list[Edge]) -> Iterable[str]:
    for task in state.definition.tasks:
        yield shown(f"{task.name} ({task.kind})")
        for edge in edges:
            if edge.task == task.name:
                arrow = "<->" if edge.into and edge.out else "<--" if edge.into else "-->"
                note = " (inhibits)" if edge.inhibits else ""
                yield shown(f"  {arrow} {edge.link}: {edge.repository}{note}")
        yield ""


def _mermaid(state: State, edges: list[Edge]) -> Iterable[str]:
    names = _numbers(edges)
    yield "flowchart LR"
    for number, task in enumerate(state.definition.tasks):
        yield f'  t{number}["{_quoted(task.name)}"]'
    for repository, name in names.items():
        yield f'  {name}[("{_quoted(repository)}")]'
    tasks = {task.name: f"t{number}" for number, task in enumerate(state.definition.tasks)}
    for edge in edges:
        label = _quoted(edge.link)
        arrow = "-.-x" if edge.inhibits else "-->"
        if edge.into:
            yield f'  {names[edge.repository]} {arrow}|"{label}"| {tasks[edge.task]}'
        if edge.out:
            yield f'  {tasks[edge.task]} -->|"{label}"| {names[edge.repository]}'


def _dot(state: State, edges: list[Edge]) -> Iterable[str]:
    names = _numbers(edges)
    yield "digraph pipeline {"
    yield "  rankdir=LR;"
    tasks = {}
    for number, task in enumerate(state.definition.tasks):
        tasks[task.name] = f"t{number}"
        yield f'  t{number} [label="{_escaped(task.name)}", shape=box];'
    for repository, name in names.items():
        yield f'  {name} [label="{_escaped(repository)}", shape=cylinder];'
    for edge in edges:
        style = ", style=dashed" if edge.inhibits else ""
        if edge.into:
            yield f'  {names[edge.repository]} -> {tasks[edge.task]} [label="{_escaped(edge.link)}"{style}];'
        if edge.out:
            yield f'  {tasks[edge.task]} -> {names[edge.repository]} [label="{_escaped(edge.link)}"];'
    yield "}"


def _numbers(edges: list[Edge]) -> dict[str, str]:
    return {
        name: f"r{number}" for number, name in enumerate(dict.fromkeys(edge.repository for edge in edges))
    }


def _quoted(text: str) -> str:
    return shown(text).replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;").replace(">", "&gt;")


def _escaped(text: str) -> str:
    return shown(text).replace("\\", "\\\\").replace('"', '\\"')
