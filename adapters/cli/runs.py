"""`runs` and `lineage`: each attempt at a job, how long it took and how it ended; and which values and runs a value comes from."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import click

from datatask.adapters.cli.commands import JOB, WHEN, command
from datatask.adapters.cli.output import Output
from datatask.adapters.cli.recorded import opened, recorded
from datatask.adapters.cli.settings import Settings
from datatask.adapters.history.lineage import Direction
from datatask.adapters.history.lineage_search import LIMIT, Lineages, start_of
from datatask.adapters.history.moments import When
from datatask.adapters.history.printed import last_lines, printed_by
from datatask.adapters.history.runs import RUN_FIELDS, SORTS, STATES, RunFilter, find_runs, group_runs
from datatask.adapters.history.waits import refuse_unknown
from datatask.adapters.log.reader import LogReader
from datatask.schema.errors import InvalidValueError
from datatask.schema.troubles import shown
from datatask.schema.values import check_job

ENDED_BADLY = ("failed", "timed_out", "cancelled", "lost", "refused", "conflicted")
DRAWN_FIELDS = ("run", "task", "job", "state", "started_at", "duration", "error")


@command(
    "runs",
    example="datatask runs --state failed\ndatatask runs --task resize --sort duration --last 10\n"
    "datatask runs --by task,state\ndatatask runs --where node-7 --active-between 2026-03-03T02:00 2026-03-03T03:00",
)
@click.option("--csv", is_flag=True, help="Print CSV, a header first.")
@click.option("--reverse", is_flag=True, help="The other way round: the newest, the longest … first.")
@click.option("--last", "--limit", type=click.IntRange(1), metavar="N",
              help="Only the last N in that order: the newest, the longest …")  # fmt: skip
@click.option("--sort", metavar="FIELD", help=f"Sort by {', '.join(SORTS)}; groups by one of their columns.")
@click.option(
    "--by", metavar="A,B", help="Group: counts, failures and durations for each task, state, where, day …"
)
@click.option("--at", type=WHEN, metavar="WHEN", help="As known then: what ended later shows as running.")
@click.option("--active-between", "active", type=WHEN, nargs=2, metavar="WHEN WHEN",
              help="Only those that ran at some time between the two.")  # fmt: skip
@click.option("--until", type=WHEN, metavar="WHEN", help="Only those decided up to then.")
@click.option("--since", type=WHEN, metavar="WHEN", help="Only those decided since then.")
@click.option(
    "--where", multiple=True, metavar="PLACE", help="Only those that ran there; * stands for any text."
)
@click.option("--state", multiple=True, type=click.Choice(STATES), help="Only runs in this state.")
@click.option("--job", type=JOB, multiple=True, help="Only this job.")
@click.option("--task", multiple=True, metavar="TASK", help="Only this task.")
def runs(
    settings: Settings,
    task: tuple[str, ...],
    job: tuple[str, ...],
    state: tuple[str, ...],
    where: tuple[str, ...],
    since: When | None,
    until: When | None,
    active: tuple[When, When] | None,
    at: When | None,
    by: str | None,
    sort: str | None,
    last: int | None,
    reverse: bool,
    csv: bool,
) -> None:
    """List runs, oldest first: each attempt at a job, how long it took, and how it ended."""
    output = Output(settings, csv=csv)
    wanted = RunFilter(task, job, state, where, since, until, active, at)
    with opened(settings, events=True) as reader:
        refuse_unknown(reader, task, job)
        if by is None:
            found = find_runs(reader, wanted, sort=sort or "decided", last=last, newest_first=reverse)
            if output.json:
                output.rows(_with_last_lines(reader, found), (*RUN_FIELDS, "last_lines"))
            else:
                output.rows(found, RUN_FIELDS, drawn=DRAWN_FIELDS)
            return
        names = tuple(name.strip() for name in by.split(",") if name.strip())
        columns, rows = group_runs(reader, wanted, by=names, sort=sort, last=last, newest_first=reverse)
    output.rows((dict(zip(columns, row, strict=True)) for row in rows), columns)


def _with_last_lines(reader: LogReader, found: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yield rows with the last lines that runs printed which did not succeed."""
    for row in found:
        run = row["run"] if row["state"] in ENDED_BADLY else None
        printed = {} if run is None else printed_by(reader, [run])
        yield {**row, "last_lines": last_lines(printed[run]) if run in printed else None}


@command(
    "lineage",
    example="datatask lineage cat\ndatatask lineage cat@numbers --down --at 2026-03-03T12:00\n"
    "datatask lineage --position 1042 --up --json\ndatatask lineage cat --dot | dot -Tsvg > cat.svg",
)
@click.argument("what", required=False, metavar="JOB[@REPO]")
@click.option(
    "--position", type=click.IntRange(1), metavar="N", help="The value or run of the event at this position."
)
@click.option("--up", is_flag=True, help="Only what it came from.")
@click.option("--down", is_flag=True, help="Only what came from it.")
@click.option("--depth", type=click.IntRange(0), metavar="N", help="The largest distance, in runs.")
@click.option(
    "--limit",
    type=click.IntRange(1),
    default=LIMIT,
    show_default=True,
    metavar="N",
    help="The largest number of values and runs.",
)
@click.option(
    "--whole/--index",
    "whole",
    default=None,
    help="Look through the log for readers of other jobs, or do not; by default where the log behind is short.",
)
@click.option("--at", type=WHEN, metavar="WHEN", help="As of a position, an ISO time or an age such as -2h.")
@click.option("--dot", is_flag=True, help="Print a Graphviz document.")
def lineage(
    settings: Settings,
    what: str | None,
    position: int | None,
    up: bool,
    down: bool,
    depth: int | None,
    limit: int,
    whole: bool | None,
    at: When | None,
    dot: bool,
) -> None:
    """Show which values runs read and wrote, upstream and downstream, by position and digest.

    JOB: all its runs and values. JOB@REPO: the value that it has in a repository (id or TASK.LINK).
    """
    if position is not None and what is None:
        asked: str | int = position
    elif what is not None and position is None:
        check_job(what.partition("@")[0])
        asked = what
    else:
        raise InvalidValueError("one start is needed", remedy="name JOB, JOB@REPO or --position N")
    direction: Direction = "both" if up == down else "up" if up else "down"
    output = Output(settings)
    with recorded(settings, at, events=True) as log:
        start = start_of(log.reader, log.state, asked)
        found = Lineages(log.reader, log.state).follow(
            start, direction, depth=depth, limit=limit, whole=whole
        )
    if output.json:
        output.document(found.to_json())
        return
    for line in (found.to_dot() if dot else str(found)).splitlines():
        output.line(shown(line))
