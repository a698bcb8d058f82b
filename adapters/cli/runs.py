"""`runs`: each attempt at a job, sorted or grouped; what ran where and when, how long, and how it ended."""

from __future__ import annotations

import click

from datatask.adapters.cli.options import JOB, WHEN, command
from datatask.adapters.cli.output import Output
from datatask.adapters.cli.recorded import opened
from datatask.adapters.cli.settings import Settings
from datatask.adapters.history.moments import When
from datatask.adapters.history.runs import RUN_FIELDS, SORTS, STATES, RunFilter, find_runs, group_runs

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
        if by is None:
            found = find_runs(reader, wanted, sort=sort or "decided", last=last, newest_first=reverse)
            output.rows(found, RUN_FIELDS, drawn=DRAWN_FIELDS)
            return
        names = tuple(name.strip() for name in by.split(",") if name.strip())
        columns, rows = group_runs(reader, wanted, by=names, sort=sort, last=last, newest_first=reverse)
    output.rows((dict(zip(columns, row, strict=True)) for row in rows), columns)
