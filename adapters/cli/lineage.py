"""`lineage`: where values came from, and what came from them."""

from __future__ import annotations

import click

from datatask.adapters.cli.options import WHEN, command
from datatask.adapters.cli.output import Output
from datatask.adapters.cli.recorded import recorded
from datatask.adapters.cli.settings import Settings
from datatask.adapters.history.lineage import Direction
from datatask.adapters.history.lineage_search import LIMIT, Lineages, start_of
from datatask.adapters.history.moments import When
from datatask.schema.errors import InvalidValueError
from datatask.schema.troubles import shown
from datatask.schema.values import check_job


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
@click.option("--depth", type=click.IntRange(0), metavar="N", help="At most so many runs away.")
@click.option(
    "--limit",
    type=click.IntRange(1),
    default=LIMIT,
    show_default=True,
    metavar="N",
    help="At most so many values and runs.",
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
