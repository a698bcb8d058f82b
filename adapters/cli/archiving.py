"""`log-archive`: the beginning of a log moves into a compressed file of its own.

In: up to when. Out: an archive beside the log, and a log that stands on the state at the cut. It is maintenance: no
engine may have the log meanwhile.
"""

from __future__ import annotations

from typing import Any

import click

from datatask import __version__
from datatask.adapters.cli.options import WHEN, changing, command
from datatask.adapters.cli.output import Output, shown
from datatask.adapters.cli.settings import Settings
from datatask.adapters.clock import SystemClock
from datatask.adapters.history.states import fold
from datatask.adapters.history.when import When, last_kept
from datatask.adapters.log.cutting import Cut, Who, cut, plan_cut
from datatask.adapters.log.reader import LogReader
from datatask.adapters.wiring.actors import actor

DIFFERENT = 3


@command(
    "log-archive",
    example="datatask log-archive --before -90d\ndatatask log-archive --before 1000000 --dry-run --json",
)
@click.option(
    "--before", type=WHEN, required=True, metavar="WHEN", help="Up to a position, an ISO time, or an age."
)
@changing
def log_archive(settings: Settings, before: When, dry_run: bool, reason: str, exit_code: bool) -> int:
    """Move the events up to WHEN, cut where a batch ends, into an archive beside the log.

    What is still asked for stays: present values, open runs, the definition. Nothing is done where nothing before WHEN
    is left. With --json: {"until", "events", "carried", "archive", "size_before", "size_after", "dry_run"}.
    """
    output, path = Output(settings), settings.log_path()
    with LogReader(path) as reader:
        state = fold(reader, last_kept(reader, before))
        plan = plan_cut(reader, state)
    if dry_run:
        _tell(output, plan, dry_run)
        return DIFFERENT if exit_code and plan.events else 0
    who = Who(actor("datatask log-archive"), reason, SystemClock().now(), __version__)
    _tell(output, cut(path, state, who), dry_run)
    return 0


def _tell(output: Output, done: Cut, dry_run: bool) -> None:
    if output.json:
        archive = None if done.archive is None else str(done.archive)
        shape: dict[str, Any] = {**done._asdict(), "archive": archive, "dry_run": dry_run}
        output.document(shape)
        return
    if done.archive is None:
        output.line(f"nothing to move: the log begins behind position {done.until}")
        return
    verb = "would move" if dry_run else "moved"
    output.line(shown(f"{verb} {done.events:,} events, up to position {done.until}, into {done.archive}"))
    if not dry_run:
        output.line(f"the log has {done.size_after:,} bytes, it had {done.size_before:,}")
