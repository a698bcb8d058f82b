"""`why`: what holds a job back, and the smallest set of changes that would let it run; from the log alone."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile
from typing import TYPE_CHECKING, Any

import click

from datatask.adapters.cli.options import JOB, WHEN, command
from datatask.adapters.cli.output import Output
from datatask.adapters.cli.recorded import Recorded, recorded
from datatask.adapters.cli.settings import Settings
from datatask.adapters.history import shapes
from datatask.adapters.history.moments import When
from datatask.schema.troubles import shown
from datatask.schema.units import iso

if TYPE_CHECKING:
    from datatask.engine.explain.explanations import Group

PAST_RUNS_MAX = 200
"""How many past runs of a job are looked at."""


@command(
    "why", example="datatask why resize cat\ndatatask why resize\ndatatask why resize cat --at -2h --json"
)
@click.argument("task")
@click.argument("job", required=False, type=JOB)
@click.option("--at", type=WHEN, metavar="WHEN", help="As of a position, an ISO time or an age such as -2h.")
def why(settings: Settings, task: str, job: str | None, at: When | None) -> None:
    """Explain why a job runs or does not: all that holds it back, and the least that would change it.

    Each reason comes with the event that made it so: position, kind, who, when. Without JOB all waiting jobs of the task,
    by reason. With --json as documented in docs/cli.md.
    """
    from datatask.adapters.history.explain import surroundings, with_events
    from datatask.engine.explain.explanations import lines
    from datatask.engine.explain.why import explain, explain_all

    output = Output(settings)
    with recorded(settings, at) as log:
        shapes.find_task(log.state, task)
        around = surroundings(log.reader, log.state, past=at is not None)._asdict()
        if job is None:
            _print_groups(output, log, task, explain_all(log.state, task, **around))
            return
        found = explain(log.state, task, job, **around)
        found = with_events(log.reader, log.state, found)
        if output.json:
            output.document(found.to_json())
            return
        for line in lines(found, *_last_run(log, task, job)):
            output.line(shown(line))


def _print_groups(output: Output, log: Recorded, task: str, groups: list[Group]) -> None:
    if output.json:
        import msgspec

        plain = msgspec.to_builtins(groups)
        output.document({"task": task, "at_position": log.state.position, "groups": plain})
        return
    for group in groups:
        sample = ", ".join(group.sample) + (", …" if group.count > len(group.sample) else "")
        output.line(shown(f"{group.count} held by {group.what}: {group.explain} ({sample})"))
    if not groups:
        output.line(f"no job waits for {task}")


def _last_run(log: Recorded, task: str, job: str) -> list[str]:
    sql = "SELECT run, state, exit_code, error_type, error, ended_at FROM runs WHERE job = ? AND task = ?"
    rows = log.reader.query(
        f"{sql} AND run <= ? ORDER BY run DESC LIMIT {PAST_RUNS_MAX}", (job, task, log.state.position)
    ).rows
    if not rows:
        archived = _last_launch(log, task, job)
        if archived:
            return [f"last run {archived}: it was archived; ask again with --with-archives"]
        return ["it has never been run"]
    run, state, exit_code, kind, error, ended_at = rows[0]
    detail = f", exit code {exit_code}" if exit_code is not None else ""
    detail += f": {kind}: {error}" if error is not None else ""
    when = f" at {iso(ended_at)}" if ended_at else ""
    return [f"last run {run}: {state}{when}{detail}", *_conflicts(rows[1:])]


def _conflicts(before: Sequence[tuple[Any, ...]]) -> list[str]:
    """Return a line about the conflicts right before the last run; `before` begins with the latest."""
    found = [
        row for row in takewhile(lambda row: row[1] in ("conflicted", "lost"), before) if row[1] != "lost"
    ]
    if not found:
        return []
    run, *_, error, _ = found[0]
    return [f"{len(found)} of its runs before were in conflict, the latest is run {run}: {error}"]


def _last_launch(log: Recorded, task: str, job: str) -> int:
    """Return the last run by the state, 0 for none: its event may be in an archive."""
    index = log.state.job_index.get(job)
    runs = log.state.tasks[task].last_run
    return runs[index] if index is not None and index < len(runs) else 0
