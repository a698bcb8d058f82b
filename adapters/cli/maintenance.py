"""The care of a log: `log-archive`, `redact`, `log-compact` and `backup`.

In: options. Out: what was done, one line a thing, or the documented JSON; `history.maintenance` does it. `log-archive` moves the
beginning of a log into a compressed file beside it; no engine may have the log meanwhile.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from datatask.adapters.cli.commands import WHEN, changing, command
from datatask.adapters.cli.output import Output
from datatask.adapters.cli.settings import Settings
from datatask.adapters.clock import SystemClock
from datatask.adapters.history.moments import When, last_kept
from datatask.adapters.history.states import fold
from datatask.adapters.log.maintenance.cut import Cut, Who, cut, plan_cut
from datatask.adapters.log.reader import LogReader
from datatask.adapters.wiring.opening import actor
from datatask.schema.errors import InvalidValueError
from datatask.schema.troubles import shown
from datatask.schema.units import parse_span
from datatask.schema.version import VERSION

if TYPE_CHECKING:
    from datatask.adapters.history.maintenance import BackupChecked, Redacted


WOULD_CHANGE = DIFFERENT = 3


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
        _tell_cut(output, plan, dry_run)
        return WOULD_CHANGE if exit_code and plan.events else 0
    who = Who(actor("datatask log-archive"), reason, SystemClock().now(), VERSION)
    _tell_cut(output, cut(path, state, who), dry_run)
    return 0


def _tell_cut(output: Output, done: Cut, dry_run: bool) -> None:
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


def DURATION(text: str) -> float:
    """Seconds, or `90s`, `30m`, `2h`, `7d`."""
    found = parse_span(text)
    if found is None:
        raise InvalidValueError(f"{text!r:.80} is no duration", remedy="write 90s, 30m, 2h or 7d")
    return found


@command(
    "redact",
    example="datatask redact 1042 --reason 'personal data'\ndatatask redact 1042 1057 --dry-run",
)
@click.argument("positions", nargs=-1, required=True, type=click.IntRange(min=1), metavar="POSITION...")
@changing
def redact(
    settings: Settings, positions: tuple[int, ...], dry_run: bool, reason: str, exit_code: bool
) -> int:
    """Remove what events hold (values, texts of errors, reasons), and keep the chain.

    What the log needs to be read stays: that there was a value, its size, how a run ended, names. With an engine
    running it is asked, through its inbox. Copies made earlier (backups, exports, files of stores) are not reached.
    """
    from datatask.adapters.cli.errand import refused
    from datatask.adapters.history import maintenance
    from datatask.adapters.wiring.opening import actor

    done = maintenance.redact(
        settings.log_path(),
        positions,
        actor=actor("datatask redact"),
        reason=reason,
        dry_run=dry_run,
        refused=refused,
    )
    output = Output(settings)
    if output.json:
        output.document(_shape(done, dry_run))
    else:
        _tell(output, done, dry_run)
    return WOULD_CHANGE if dry_run and exit_code and done.found else 0


def _shape(done: Redacted, dry_run: bool) -> dict[str, Any]:
    changes = [
        {
            "op": "redact", "task": one.event.task, "repository": one.event.repository, "job": one.event.job,
            "about": f"{one.position} {type(one.event).__name__}",
        }
        for one in done.found
    ]  # fmt: skip
    return {
        "command": "redact", "dry_run": dry_run, "engine": done.engine, "position": done.position,
        "count": len(changes), "changes": changes, "before": list(done.before), "blobs": list(done.blobs),
        "blobs_kept": list(done.blobs_kept), "wal_emptied": done.wal_emptied, "archives": list(done.archives),
        "elsewhere": list(done.elsewhere),
    }  # fmt: skip


def _tell(output: Output, done: Redacted, dry_run: bool) -> None:
    verb = "would redact" if dry_run else "redact"
    for one in done.found:
        event = one.event
        about = " ".join(name for name in (event.task, event.repository, event.job) if name)
        output.line(shown(f"{verb} {one.position} {type(event).__name__} {about}".rstrip()))
    for position in done.before:
        output.line(
            f"{position} was redacted before" + ("" if dry_run else "; files beside the log cleaned again")
        )
    for digest in done.blobs:
        output.line(f"removed blob {digest}")
    for digest in done.blobs_kept:
        output.line(f"kept blob {digest}: other events name it too")
    for name in done.archives:
        output.line(f"wrote the archive {name} anew")
    for position in done.elsewhere:
        output.say(
            f"position {position} also lives in an archive that is not here: once it is, redact {position} again"
        )
    if not done.wal_emptied:
        output.say(
            "a reader keeps the write-ahead log, in which the payload may still be: close it and redact again"
        )


@command(
    "log-compact",
    example="datatask log-compact --dry-run\ndatatask log-compact --keep current --reason 'the disk is full'",
)
@click.option("--keep", type=click.Choice(("all", "current")), default="all", show_default=True,
              help="Which blobs stay: all that any event names, or only those of present values.")  # fmt: skip
@click.option("--grace", type=DURATION, default="1h", show_default=True, metavar="DURATION",
              help="Leave alone what is newer than this.")  # fmt: skip
@changing
def log_compact(
    settings: Settings,
    keep: Literal["all", "current"],
    grace: float,
    dry_run: bool,
    reason: str,
    exit_code: bool,
) -> int:
    """Remove blobs that nothing refers to, and what interrupted writers left; then give free pages back.

    Works only while no engine has the log. What open runs or writes to be carried out name always stays.
    """
    from datatask.adapters.history import maintenance
    from datatask.adapters.wiring.opening import actor

    done = maintenance.compact_log(
        settings.log_path(),
        actor=actor("datatask log-compact"),
        reason=reason,
        keep=keep,
        grace_seconds=grace,
        dry_run=dry_run,
    )
    output = Output(settings)
    if output.json:
        output.document({"command": "log-compact", "dry_run": dry_run, **done.to_json()})
        return WOULD_CHANGE if dry_run and exit_code and (done.blobs or done.leftovers) else 0
    verb = "would remove" if dry_run else "removed"
    for digest in done.blobs:
        output.line(f"{verb} blob {digest}")
    for name in done.leftovers:
        output.line(shown(f"{verb} unfinished {name}"))
    rest = (
        f", {len(done.leftovers)} unfinished files ({done.leftover_bytes:,} bytes)" if done.leftovers else ""
    )
    freed = f"; the file is {done.freed:,} bytes smaller" if done.freed else ""
    output.line(f"{verb} {len(done.blobs)} blobs ({done.blob_bytes:,} bytes){rest}{freed}")
    return WOULD_CHANGE if dry_run and exit_code and (done.blobs or done.leftovers) else 0


@command(
    "backup",
    example="datatask backup /mnt/backups/monday --verify\ndatatask backup /mnt/backups/monday --check",
)
@click.argument("dest", type=click.Path(path_type=Path))
@click.option("--verify", "verified", is_flag=True, help="Also check all that `datatask verify` does.")
@click.option("--check", is_flag=True, help="Copy nothing: check that DEST is a whole copy of this log.")
def backup(settings: Settings, dest: Path, verified: bool, check: bool) -> int:
    """Copy the log, its blobs, archives and checkpoints into the new folder DEST, also while an engine writes.

    The copy is a log as it is: `datatask --log DEST/log.db status`. Nothing is overwritten, and DEST is whole or not there.
    """
    from datatask.adapters.history import maintenance

    output = Output(settings)
    if check:
        return _checked(output, maintenance.check_backup(settings.log_path(), dest))
    done = maintenance.backup(settings.log_path(), dest, verify=verified)
    if output.json:
        output.document(done.to_json())
        return 0
    for folder in done.removed:
        output.say(shown(f"removed {folder}, which an interrupted backup had left"))
    if done.missing:
        output.say(
            f"{done.missing} blobs that values name are not there: `datatask verify` tells whether they should be"
        )
    output.line(shown(f"{done.log}"))
    output.line(
        f"{done.head} events, {done.blobs} blobs, {done.archives} archives, {done.checkpoints} checkpoints,"
        f" {done.size:,} bytes ({done.linked} files linked)"
    )
    output.say(
        "this is the same log twice: let an engine go on with one of the two only, or both do the same work"
    )
    return 0


def _checked(output: Output, found: BackupChecked) -> int:
    told = found.verified
    if output.json:
        output.document({**told.to_json(), "log": str(told.path), "behind": found.behind})
    else:
        for one in told.divergences:
            output.line(shown(f"{told.path} {one}"))
        for line in told.checked:
            output.line(shown(f"checked: {line}"))
        for line in told.rests_on:
            output.line(shown(f"rests on: {line}"))
        verdict = "a whole copy" if found.ok else "no whole copy of this log"
        output.line(shown(f"{told.path}: {verdict}, {max(found.behind, 0)} events behind the log"))
    return 0 if found.ok else DIFFERENT
