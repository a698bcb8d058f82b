"""`waiting`: where the time of jobs went, in sums or interval by interval."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import click

from datatask.adapters.cli.options import WHEN, command
from datatask.adapters.cli.output import Output
from datatask.adapters.cli.recorded import opened
from datatask.adapters.cli.settings import Settings
from datatask.adapters.history import waits
from datatask.adapters.history.moments import When
from datatask.schema.errors import UnknownNameError
from datatask.schema.units import duration_words, iso
from datatask.schema.values import check_job

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
            output.rows(_readable(output, rows), waits.INTERVAL_FIELDS, drawn=DRAWN_INTERVALS)
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
    output.rows(_readable(output, sums.rows), sums.rows.columns, drawn=[*names, *DRAWN_SUMS])
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


def _readable(output: Output, rows: Iterable[Mapping[str, Any]]) -> Iterable[Mapping[str, Any]]:
    """Return rows with durations and shares as text where people read them."""
    if output.json or output.csv or not (output.draws or output.colored):
        return rows
    return [{name: _words(name, value) for name, value in row.items()} for row in rows]


def _words(name: str, value: Any) -> Any:
    if name in DURATIONS:
        return duration_words(value) if value >= 1 or not value else f"{value * 1000:.3g} ms"
    return f"{value:.1%}" if name == "share" else value
