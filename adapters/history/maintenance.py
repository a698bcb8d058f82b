"""What keeps a log in order: `redact`, `log-compact` and `backup`, as functions.

In: a log, and what is wished. Out: what was done, or would be. Which blobs have to stay and which intents are still
to be carried out follows from the state, which is folded here; what is done to files is `adapters/log`'s. With an
engine on the log `redact` asks it through its inbox; `compact` needs the lease; `backup` needs neither.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from datatask.adapters.clock import SystemClock
from datatask.adapters.history.states import CheckpointCache, beginning, fold
from datatask.adapters.log.inbox_client import ask
from datatask.adapters.log.integrity.verify import compare, head_anchor
from datatask.adapters.log.kept import forget_kept
from datatask.adapters.log.lease import PAUSE_SECONDS, Patience, probe
from datatask.adapters.log.locate import locate
from datatask.adapters.log.maintenance import redact as redacting
from datatask.adapters.log.maintenance.backup import Backup, copy_log
from datatask.adapters.log.maintenance.garbage import (
    GRACE_SECONDS,
    Compacted,
    Keep,
    compact,
    garbage,
    named_by_events,
    named_by_files,
    report,
)
from datatask.adapters.log.maintenance.offline import Announce, caretaking
from datatask.adapters.log.maintenance.redact import Found
from datatask.adapters.log.reader import LogReader
from datatask.engine.core.redaction import removed
from datatask.engine.core.state import State
from datatask.schema.errors import (
    LeaseHeldError,
    LogDamagedError,
    NoLogError,
    NotPossibleError,
    TemporaryError,
)
from datatask.schema.events import Event, PayloadRedacted
from datatask.schema.messages import Redact, Refusal, Reply, Who
from datatask.schema.units import iso

if TYPE_CHECKING:
    from datatask.adapters.history.verify.verify import LogVerified

ANSWER_SECONDS = 120.0
TRIES_LEAST = 10
Refuse = Callable[[Refusal], Exception]


def _nothing(_: str) -> None:
    """Tests end the process at a step."""


# --- redact -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Redacted:
    """What was removed (`found`), or had been before (`before`), and what became of the blobs (digests).

    `archives` were written anew; `elsewhere` are positions that an archive holds which is not here.
    """

    found: tuple[Found, ...]
    before: tuple[int, ...]
    engine: Literal["running", "opened", "none"]
    position: int | None = None
    blobs: tuple[str, ...] = ()
    blobs_kept: tuple[str, ...] = ()
    wal_emptied: bool = True
    archives: tuple[str, ...] = ()
    elsewhere: tuple[int, ...] = ()


def redact(
    place: str | Path,
    positions: Sequence[int],
    *,
    actor: str,
    reason: str = "",
    dry_run: bool = False,
    refused: Refuse = lambda refusal: NotPossibleError(
        refusal.what, where=refusal.where, remedy=refusal.remedy
    ),
    step: Announce = _nothing,
) -> Redacted:
    """Remove the payloads at these positions; all of them or, where one may not go, none.

    A position that was redacted before is done again as far as files beside the log go: so an interrupted call is
    finished by repeating it. `refused` makes the error for what a running engine refuses.
    """
    path = _file(place)
    if dry_run:
        with LogReader(path) as reader:
            found = redacting.find(reader, positions)
            _announced(reader, found, Who(actor, reason))
            return _result(found, "none")
    patience, tries = Patience(path), 0
    while True:
        try:
            if probe(path) is None:
                return _redact_here(path, positions, Who(actor, reason), step)
            return _redact_there(path, positions, Who(actor, reason), refused)
        except (LeaseHeldError, TemporaryError) as error:
            tries += 1  # one has started, or ended, just now
            pause = PAUSE_SECONDS[0] if tries < TRIES_LEAST else patience.pause(error)
        time.sleep(pause)


def _redact_here(path: Path, positions: Sequence[int], who: Who, step: Announce) -> Redacted:
    with caretaking(path) as caretaker, LogReader(path) as reader:
        found = redacting.find(reader, positions)
        todo = [one for one in found if not one.done]
        who = who._replace(request=str(uuid.uuid4()))
        events = _announced(reader, found, who, caretaker.now(SystemClock().now()))
        redacting.note(path, redacting.digests_of(todo))
        step("noted")
        written = caretaker.append(events, step) if events else None
        by = {event.position: by for by, event in enumerate(events, written.start if written else 0)}
        archives = redacting.rewrite([one._replace(by=by.get(one.position, one.by)) for one in found])
        step("archives")
        result = _result(found, "opened", written.stop - 1 if written else None)
        result = replace(result, archives=tuple(path.name for path in archives))
        return _cleaned(reader, result, alone=True, step=step)


def _redact_there(path: Path, positions: Sequence[int], who: Who, refused: Refuse) -> Redacted:
    with LogReader(path) as reader:
        found = redacting.find(reader, positions)
        todo = [one for one in found if not one.done]
        _refuse_archives(found, path)
        position = None
        if todo:
            _announced(reader, found, who)
            redacting.note(path, redacting.digests_of(todo))
            reply = _ask_engine(path, who, todo)
            if reply.refusal is not None:
                raise refused(reply.refusal)
            position = reply.position
        return _cleaned(reader, _result(found, "running", position), alone=False, step=_nothing)


def _refuse_archives(found: Sequence[Found], path: Path) -> None:
    for one in found:
        if one.archives:
            raise LeaseHeldError(
                f"position {one.position} lives in the archive {one.archives[0].name}, and an engine has the log",
                where=str(path),
                remedy="archives can be rewritten only without an engine: stop the engine, then try again",
            )


def _ask_engine(path: Path, who: Who, todo: list[Found]) -> Reply:
    wanted = tuple(one.position for one in todo)
    request = Redact(id=str(uuid.uuid4()), actor=who.actor, reason=who.reason, positions=wanted)
    return ask(path, request, timeout_seconds=ANSWER_SECONDS)


def _announced(reader: LogReader, found: Sequence[Found], who: Who, now: int = 0) -> list[PayloadRedacted]:
    """Return the events that would remove what is still there; raises where one may not go."""
    todo = [(one.position, one.event) for one in found if not one.done]
    _refuse_based(reader, todo)
    return removed(fold(reader, reader.head), todo, who, now) if todo else []


def _refuse_based(reader: LogReader, todo: Sequence[tuple[int, Event]]) -> None:
    """A state that a log stands on is not changed: what it still tells can go when the log stands on a later one."""
    base = reader.header.base
    early = [(position, event) for position, event in todo if position <= base]
    if not early:
        return
    state = beginning(reader)
    intents = [
        *state.intents.values(),
        *(one for run in state.open_runs.values() for one in run.intents.values()),
    ]
    under_way = {intent.position for intent in intents}
    texts = {text for leaf in state.leaves.values() for text in (leaf.held, leaf.trouble)}
    texts |= {one.error for one in state.pending.values()}
    for position, event in early:
        said = getattr(event, "why", None) or getattr(event, "error", None)
        if position in under_way or (isinstance(said, str) and said in texts):
            raise NotPossibleError(
                f"the state at position {base}, on which the log stands, tells this too",
                where=f"position {position}",
                remedy="archive again up to a later position, then redact it",
            )


def _result(
    found: Sequence[Found], engine: Literal["running", "opened", "none"], position: int | None = None
) -> Redacted:
    fresh = tuple(one for one in found if not one.done)
    return Redacted(
        fresh,
        tuple(one.position for one in found if one.done),
        engine,
        position,
        elsewhere=tuple(one.position for one in found if one.elsewhere),
    )


def _cleaned(reader: LogReader, result: Redacted, *, alone: bool, step: Announce) -> Redacted:
    gone, kept = redacting.settle(reader)
    step("settled")
    CheckpointCache(reader).remove()
    emptied = redacting.scrub(reader.path, SystemClock().now() / 1e9, alone=alone)
    step("scrubbed")
    return replace(result, blobs=tuple(sorted(gone)), blobs_kept=tuple(sorted(kept)), wal_emptied=emptied)


# --- log-compact ------------------------------------------------------------------------------------


def compact_log(
    place: str | Path,
    *,
    actor: str,
    reason: str = "",
    keep: Keep = "all",
    grace_seconds: float = GRACE_SECONDS,
    dry_run: bool = False,
    step: Announce = _nothing,
) -> Compacted:
    """Remove the blobs that nothing needs, and what interrupted writers left; `LeaseHeldError` beside an engine.

    With `keep="current"` goes what runs printed that are not the last of their job and task.
    """
    path = _file(place)
    now = SystemClock().now()
    oldest = now / 1e9 - grace_seconds
    if dry_run:
        with LogReader(path) as reader:
            return report(garbage(path, _needed(reader, keep), oldest), keep, 0, None)
    with caretaking(path) as caretaker:
        with LogReader(path) as reader:
            redacting.settle(reader)
            found = garbage(path, _needed(reader, keep), oldest)
            if keep == "current":
                state = fold(reader, reader.head)
                last = {run for task in state.tasks.values() for run in task.last_run}
                forget_kept(path, below=state.position + 1, keep=last)
        return compact(caretaker, found, keep=keep, now=now, actor=actor, reason=reason, step=step)


def _needed(reader: LogReader, keep: Keep) -> set[str]:
    """Return the digests of the blobs that have to stay."""
    if keep == "all":
        return named_by_events(reader) | named_by_files(reader.path)
    state = fold(reader, reader.head)
    return named_by_events(reader, only=_in_use(state)) | named_by_files(reader.path, archives=False)


def _in_use(state: State) -> set[int]:
    """Return the positions of present values, of intents to be carried out, and of what open runs may read."""
    used = {position for leaf in state.leaves.values() for position in leaf.positions if position > 0}
    used |= {intent.position for intent in state.intents.values()}
    for run in state.open_runs.values():
        used |= {intent.position for intent in run.intents.values()}
        used |= set(run.inputs.values())
    return used


# --- backup -----------------------------------------------------------------------------------------


def backup(place: str | Path, dest: str | Path, *, verify: bool = False) -> Backup:
    """Copy a log, its blobs, archives and checkpoints into the new folder `dest`, while an engine writes or not.

    The copy is a log under its old name: `History(dest / "log.db")`. Its chain and blobs are checked before it appears;
    with `verify` all that `datatask.verify` checks. `CallerError` where `dest` exists.
    """
    return copy_log(place, Path(dest), check=_verified if verify else None)


@dataclass(frozen=True)
class BackupChecked:
    """What `verify` found in a copy, what sets it apart from the log included, and how many events it is `behind`."""

    verified: LogVerified
    behind: int

    @property
    def ok(self) -> bool:
        """Whether it is a whole copy of the log as it was."""
        return self.verified.ok


def check_backup(place: str | Path, dest: str | Path) -> BackupChecked:
    """Check that the folder `dest` holds a copy of this log: all that `verify` does, and that the log has its head.

    Nothing is written. `CallerError` where there is no log in `dest`.
    """
    from datatask.adapters.history.verify.verify import verify_log

    path = _file(place)
    with LogReader(path) as log, LogReader(Path(dest) / path.name) as copy:
        found = verify_log(copy)
        anchor = head_anchor(copy, iso(found.replayed.state.at or None) or "")
        compared = compare(log, [anchor])
        behind = log.head - anchor.position
    wrong = [
        one._replace(
            what=f"the log behind this copy: {one.what}",
            remedy="it is of another log, or the log was rewritten",
        )
        for one in compared.wrong
    ]
    if compared.archived:
        rests = (*found.rests_on, "its own word: what the log had at the copy's head was archived since")
    else:
        rests = found.rests_on
    return BackupChecked(replace(found, divergences=(*found.divergences, *wrong), rests_on=rests), behind)


def _verified(copy: Path) -> None:
    from datatask.adapters.history.verify.verify import verify

    found = verify(copy)
    if not found.ok:
        first = found.divergences[0]
        raise LogDamagedError(
            f"the copy does not verify: {first.what}: expected {first.expected}, recorded {first.recorded}"[
                :500
            ],
            where=f"position {first.position}",
            remedy="see `datatask verify` on the log; without --verify what there is is copied",
        )


def _file(place: str | Path) -> Path:
    path = locate(place).path
    if path is None:
        raise NoLogError("a log in memory has no files", remedy="name a file with --log")
    return path
