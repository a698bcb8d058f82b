"""`why` and `waiting`: what holds a job back and the smallest changes that would let it run; where the time of jobs went."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import takewhile
from typing import TYPE_CHECKING, Any

import click

from datatask.adapters.cli.commands import JOB, WHEN, command
from datatask.adapters.cli.output import Output
from datatask.adapters.cli.recorded import Recorded, opened, recorded
from datatask.adapters.cli.settings import Settings
from datatask.adapters.history import shapes, waits
from datatask.adapters.history.moments import When
from datatask.adapters.history.printed import last_lines, printed_by
from datatask.engine.core.staleness import is_accepted
from datatask.engine.ports import Filters
from datatask.schema.errors import UnknownNameError
from datatask.schema.events import REUSED, ResultAccepted, RunEnded
from datatask.schema.troubles import shown
from datatask.schema.units import duration_words, iso
from datatask.schema.values import check_job

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
    from datatask.adapters.cli.advice import advice
    from datatask.adapters.history.explain import surroundings, with_events
    from datatask.adapters.history.stale import causes_of, shape
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
        causes = causes_of(log.reader, log.state, task, job)
        if output.json:
            output.document(found.to_json() | {"stale": shape(causes)})
            return
        outdated = [f"its result is out of date: {cause.text}" for cause in causes]
        for line in lines(found, *_last_run(log, task, job), *_acceptance(log, task, job), *outdated):
            output.line(shown(line))
        for line in () if at is not None else advice(settings, log.state, found):
            output.line(shown(f"  {line}"))


def _acceptance(log: Recorded, task: str, job: str) -> list[str]:
    """Return who accepted the result of a job, and why, where somebody did."""
    index = log.state.job_index.get(job)
    if index is None or not is_accepted(log.state, log.state.tasks[task], index):
        return []
    seen = log.state.accepted[task][index]
    filters = Filters(kinds=("ResultAccepted",), jobs=(job,))
    for position, event in log.reader.read_back(seen, log.state.position, filters):
        if isinstance(event, ResultAccepted) and event.task == task and event.seen == seen:
            return [f"its result was accepted by {event.actor} (position {position}): {event.reason}"]
    return [f"its result was accepted as of position {seen}"]


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
    sql = "SELECT run, state, exit_code, error_type, error, ended_at, end_position FROM runs WHERE job = ? AND task = ?"
    rows = log.reader.query(
        f"{sql} AND run <= ? ORDER BY run DESC LIMIT {PAST_RUNS_MAX}", (job, task, log.state.position)
    ).rows
    if not rows:
        archived = _last_launch(log, task, job)
        if archived:
            return [f"last run {archived}: it was archived; ask again with --with-archives"]
        return ["it has never been run"]
    run, state, exit_code, kind, error, ended_at, end = rows[0]
    detail = f", exit code {exit_code}" if exit_code is not None else ""
    detail += f": {kind}: {error}" if error is not None else ""
    detail += _reused(log, end)
    when = f" at {iso(ended_at)}" if ended_at else ""
    printed = last_lines(printed_by(log.reader, [run]).get(run, [])) if state != "succeeded" else []
    return [
        f"last run {run}: {state}{when}{detail}",
        *(f"  | {line}" for line in printed),
        *_conflicts(rows[1:]),
    ]


def _reused(log: Recorded, end: int | None) -> str:
    """Return that a run took over the outputs of another one, where it did."""
    event = None if end is None else log.reader.fetch([end])[0]
    source = (event.detail or {}).get(REUSED) if isinstance(event, RunEnded) else None
    return "" if source is None else f", its outputs taken over from run {source}"


def _conflicts(before: Sequence[tuple[Any, ...]]) -> list[str]:
    """Return a line about the conflicts right before the last run; `before` begins with the latest."""
    found = [
        row for row in takewhile(lambda row: row[1] in ("conflicted", "lost"), before) if row[1] != "lost"
    ]
    if not found:
        return []
    run, *_, error, _, _ = found[0]
    return [f"{len(found)} of its runs before were in conflict, the latest is run {run}: {error}"]


def _last_launch(log: Recorded, task: str, job: str) -> int:
    """Return the last run by the state, 0 for none: its event may be in an archive."""
    index = log.state.job_index.get(job)
    runs = log.state.tasks[task].last_run
    return runs[index] if index is not None and index < len(runs) else 0


DURATIONS = ("seconds", "waited", "mean", "p50", "p95", "max")
DRAWN_SUMS = ("seconds", "share", "episodes", "p50", "p95", "max")
DRAWN_INTERVALS = ("task", "from", "seconds", "cause", "began", "ended", "detail")


@command(
    "waiting",
    example="datatask waiting\ndatatask waiting resize --by host,cause\ndatatask waiting cat\n"
    "datatask waiting --by day,cause --since -7d --csv",
)
@click.argument("name", required=False, metavar="[TASK|JOB]")
@click.option("--csv", is_flag=True, help="Print CSV, a header first.")
@click.option(
    "--at", "--until", "at", type=WHEN, metavar="WHEN", help="As of then; what goes on counts up to then."
)
@click.option("--since", type=WHEN, metavar="WHEN", help="Leave out what was before.")
@click.option("--by", metavar="A,B", help=f"Sums for each {', '.join(waits.BY)}.")
@click.option("--job", "is_job", is_flag=True, help="The name is a job's, though a task is called so too.")
def waiting(
    settings: Settings,
    name: str | None,
    is_job: bool,
    by: str | None,
    since: When | None,
    at: When | None,
    csv: bool,
) -> None:
    """Tell where the time went that jobs waited: every second has one cause.

    Sums for each task and cause, or for --by; for a JOB its intervals, one after another. docs/cli.md lists the
    causes, and the JSON.
    """
    output = Output(settings, csv=csv)
    with opened(settings, events=True) as reader:
        task, job = _meant(reader, name, is_job)
        asked = waits.WaitQuery(task, job, since, at)
        if job is not None and by is None:
            rows = map(waits.interval_row, waits.find_intervals(reader, asked))
            output.rows(_readable(output, rows), _shown(output, waits.INTERVAL_FIELDS), drawn=DRAWN_INTERVALS)
            return
        names = (
            tuple(part.strip() for part in by.split(",") if part.strip()) if by is not None else waits.USUAL
        )
        sums = waits.sum_up(reader, asked, names)
    if output.json and not settings.fields:
        output.document(
            {
                "at_position": sums.at_position,
                "until": iso(sums.until or None),
                "by": names,
                "rows": list(sums.rows),
                "tasks": {row.pop("task"): row for row in sums.tasks},
            }
        )
        return
    columns = _shown(output, sums.rows.columns)
    output.rows(_readable(output, sums.rows), columns, drawn=[*names, *DRAWN_SUMS])
    if by is None and not csv and not settings.fields:
        output.line()
        output.rows(_readable(output, sums.tasks), sums.tasks.columns)


def _meant(reader: Any, name: str | None, is_job: bool) -> tuple[str | None, str | None]:
    """Return the task, else the job, that a name means."""
    if name is None:
        if is_job:
            raise click.UsageError("--job needs the job's name")
        return None, None
    if not is_job and waits.is_task(reader, name):
        return name, None
    if is_job:
        check_job(name)
    elif not waits.is_job(reader, name):
        raise UnknownNameError(
            f"there is no task and no job {name} in the log", remedy=waits.known_tasks(reader)
        )
    return None, name


def _shown(output: Output, columns: Sequence[str]) -> Sequence[str]:
    """Return the columns without the exact integers where people read them, unless they ask."""
    asked = output.json or output.csv or list(output.chosen(columns)) != list(columns)
    return columns if asked else [name for name in columns if name != "nanoseconds"]


def _readable(output: Output, rows: Iterable[Mapping[str, Any]]) -> Iterable[Mapping[str, Any]]:
    """Return rows with durations and shares as text where people read them."""
    if output.json or output.csv or not (output.draws or output.colored):
        return rows
    return [{name: _words(name, value) for name, value in row.items()} for row in rows]


def _words(name: str, value: Any) -> Any:
    if name in DURATIONS:
        return duration_words(value) if value >= 1 or not value else f"{value * 1000:.3g} ms"
    return f"{value:.1%}" if name == "share" else value
