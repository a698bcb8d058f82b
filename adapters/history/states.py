"""A log's state at a batch boundary: from the nearest checkpoint before it, and the events in between.

In: a reader, and how far. Out: a `State`. Where the way is long, `fold` leaves checkpoints on it for the next question:
rungs, a quarter of a second of folding apart, in `<log>.checkpoints/past/`, or where that is not the user's to write in
`$XDG_CACHE_HOME/datatask/<uuid>/`, and else nowhere. A rung is bound to the log's uuid, its position, the chain there and
the fold's version, by a code that only the log can make; one that does not fit, or cannot be read or written, is passed
over. Rungs are thinned out evenly: at most `RUNGS_MAX`, and no more bytes than the log has.
"""

from __future__ import annotations

import logging
import os
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from datatask.adapters.log.checkpoints import (
    ChangedError,
    Found,
    checkpoints_in,
    code,
    read_checkpoint,
    tell_changed,
    vouching,
    write_checkpoint,
)
from datatask.adapters.log.columns import Follower
from datatask.adapters.log.columns import collector_off as collector_off
from datatask.adapters.log.faults import archived, damaged
from datatask.adapters.log.locate import checkpoints_path, user_cache
from datatask.adapters.log.reader import LogReader
from datatask.adapters.trust import UnsafePlaceError, check_above
from datatask.engine.core import checkpoints
from datatask.engine.core.state import FOLD_VERSION, State
from datatask.engine.ports import Checkpoint, Filters
from datatask.schema.errors import DatataskError, LogDamagedError, TemporaryError
from datatask.schema.events import PayloadRedacted

logger = logging.getLogger("datatask.log")

RUNGS_MAX = 128
BYTES_MIN = 64 << 20
"""Rungs may take as many bytes as the log's file, and at least this number."""

STEP_SECONDS = 0.25
"""What folding from one rung to the next should take; longer where writing a rung takes longer."""

FIRST_STEP = 32_768
"""Events of the first step; a way that is not longer leaves no rung."""

PACKED_MAX = 32 << 20
"""Larger bodies are not compressed: unpacking them would take longer than folding does."""

FREE_MIN = 512 << 20
"""Bytes that stay free on the disk: a full one would stop the engine."""

LOGS_MAX = 16
"""Logs that have rungs in the user's cache."""

T = TypeVar("T")

PROGRESS_EVENTS = 250_000

CUTS_MAX = 5

Progress = Callable[[int, int], None]
"""Called with (events done, events in all)."""


def fold(reader: LogReader, until: int) -> State:
    """Return the state at the batch boundary `until`."""

    def work() -> State:
        cache = CheckpointCache(reader)
        state = cache.nearest(until) or _begun(reader, cache)
        _refuse_archived(reader, state, until)
        return cache.fold_to(state, until)

    with collector_off():
        return uncut(reader, work)


def refold(reader: LogReader, until: int | None = None, progress: Progress | None = None) -> State:
    """Return the state at the batch boundary `until` (the head) from the log's beginning, without any checkpoint.

    `progress` is called every `PROGRESS_EVENTS`.
    """
    last = reader.head if until is None else until

    def work() -> State:
        state = beginning(reader)
        _refuse_archived(reader, state, last)
        following = Follower(reader)
        while progress is not None and last - state.position > 2 * PROGRESS_EVENTS:
            following.follow(state, reader.end_of_batch(state.position + PROGRESS_EVENTS))
            progress(state.position, last)
        return following.follow(state, last)

    with collector_off():
        return uncut(reader, work)


def follow(reader: LogReader, state: State, until: int | None = None) -> State:
    """Fold what was appended behind the state, and return it."""
    last = reader.head if until is None else until
    return Follower(reader).follow(state, last) if last > state.position else state


def beginning(reader: LogReader) -> State:
    """Return the state before the log's first event: empty, or the base where the beginning was archived."""
    body = reader.base_state()
    try:
        return State() if body is None else checkpoints.load(body)
    except LogDamagedError as error:
        what = f"the state that the log stands on cannot be read: {error.what}"
        raise damaged(what, reader.path, reader.header.base) from error


def uncut(reader: LogReader, work: Callable[[], T], sound: Callable[[T], bool] = lambda _: True) -> T:
    """Run `work`, which reads many pages of a log, again where the log's beginning was archived meanwhile.

    A result that then looks like damage, or is not `sound`, is none: a cut removes rows between two pages.
    """
    for _ in range(CUTS_MAX):
        base = reader.header.base
        try:
            done = work()
        except (LogDamagedError, TemporaryError):
            if reader.header.base == base:
                raise
        else:
            if sound(done) or reader.header.base == base:
                return done
    raise TemporaryError("the log is cut all the time", where=str(reader.path), remedy="ask again")


def _refuse_archived(reader: LogReader, state: State, until: int) -> None:
    if until < state.position:
        raise archived(reader.path, state.position, f"the state at position {until}", max(until, 1))


def _begun(reader: LogReader, cache: CheckpointCache) -> State:
    """Return the beginning; one that had to be folded anew, since another fold had made it, is kept as a rung."""
    state = beginning(reader)
    if state.position and reader.base_stored()[0] != FOLD_VERSION:
        cache.keep(state)
    return state


# --- the cache --------------------------------------------------------------------------------------


class CheckpointCache:
    """The rungs of one log, for one reader."""

    def __init__(self, reader: LogReader, *, cache: Path | None = None) -> None:
        """Take the reader; `cache` is where to keep what may not stay beside the log (the user's cache)."""
        self.reader = reader
        self.beside = checkpoints_path(reader.path) / "past"
        root = cache if cache is not None else _user_cache()
        self.spare = None if root is None else root / reader.uuid
        self._folder: Path | None = self.beside if _is_own(reader.path) else self.spare
        self._written = 0.0
        self._began = reader.head
        self._vouch = vouching(reader)

    def nearest(self, until: int) -> State | None:
        """Return the state of the last usable checkpoint at or before `until`, the engine's own included."""
        for found in self._candidates(until):
            try:
                checkpoint = read_checkpoint(found, self.reader.uuid, self._chain_at, self._vouch)
            except ChangedError as error:
                tell_changed(error)
                continue
            if checkpoint is None:
                continue
            try:
                state = checkpoints.load(checkpoint.body)
            except DatataskError:
                continue
            if (state.position, state.log) == (found.position, self.reader.uuid):
                return state
        return None

    def fold_to(self, state: State, until: int) -> State:
        """Fold a state up to the batch boundary `until`, leaving rungs on a long way."""
        following, start, step = Follower(self.reader), state.position, FIRST_STEP
        least = -(-(until - start) // RUNGS_MAX)
        while state.position < until:
            began, before = time.perf_counter(), state.position
            ahead = max(step, least)
            aim = until if until - before < 1.5 * ahead else self.reader.end_of_batch(before + ahead)
            state = following.follow(state, aim)
            seconds = time.perf_counter() - began
            if state.position <= before:
                break
            if until - start > FIRST_STEP and seconds > STEP_SECONDS / 3:
                self.keep(state)
            goal = max(STEP_SECONDS, self._written)
            rate = (state.position - before) / max(seconds, 1e-6)
            step = int(min(max(rate * goal, step / 4, 1000), step * 8))
        return state

    def remove(self) -> None:
        """Remove the rungs, which may still hold what is taken out of the log; none is no error."""
        for folder in (self.beside, self.spare):
            if folder is not None:
                shutil.rmtree(folder, ignore_errors=True)

    def keep(self, state: State) -> None:
        """Keep a state as a rung, if there is a folder for it."""
        chain = self._chain_at(state.position)
        if self._folder is None or chain is None or self._redacted():
            return
        began = time.perf_counter()
        body = checkpoints.dump(state)
        checkpoint = Checkpoint(state.position, chain, FOLD_VERSION, body)
        while self._folder is not None:
            try:
                self._write(self._folder, checkpoint)
                break
            except OSError:
                self._folder = self.spare if self._folder == self.beside else None
        self._written = time.perf_counter() - began

    def _redacted(self) -> bool:
        """Whether a payload was removed meanwhile: a state folded before may still hold it."""
        filters = Filters(kinds=(PayloadRedacted.__name__,))
        return any(True for _ in self.reader.read(self._began, filters=filters))

    # --- files --------------------------------------------------------------------------------------

    def rungs(self) -> list[Found]:
        """Return the rungs, beside the log and in the user's cache."""
        folders = [self.beside, *([self.spare] if self.spare is not None else [])]
        return [
            one for folder in folders for one in checkpoints_in(folder) if one.fold_version == FOLD_VERSION
        ]

    def _candidates(self, until: int) -> list[Found]:
        own = [one for one in checkpoints_in(self.beside.parent) if one.fold_version == FOLD_VERSION]
        found = [one for one in own + self.rungs() if one.position <= until]
        return sorted(found, key=lambda one: one.position, reverse=True)

    def _chain_at(self, position: int) -> bytes | None:
        try:
            return self.reader.chain_at(position)
        except DatataskError:
            return None

    def _write(self, folder: Path, checkpoint: Checkpoint) -> None:
        home = folder if folder.is_dir() else next(above for above in folder.parents if above.is_dir())
        if shutil.disk_usage(home).free < FREE_MIN + len(checkpoint.body):
            raise OSError("the disk is nearly full")
        if folder == self.spare:
            _keep_few(folder)
        mac = code(self.reader, checkpoint.position, checkpoint.fold_version, checkpoint.body)
        packed = len(checkpoint.body) <= PACKED_MAX
        write_checkpoint(folder, self.reader.uuid, checkpoint, packed=packed, mac=mac)
        most = max(BYTES_MIN, os.stat(self.reader.path).st_size)
        for rung in superfluous(checkpoints_in(folder), RUNGS_MAX, most):
            with suppress(OSError):
                rung.path.unlink()


def superfluous(rungs: list[Found], count_max: int, bytes_max: int) -> list[Found]:
    """Return the rungs to remove: those of other fold versions first, then where they stand closest together."""
    dropped = []
    kept = sorted(rungs, key=lambda rung: (rung.fold_version == FOLD_VERSION, rung.position))
    total = sum(rung.size for rung in kept)
    while kept and (len(kept) > count_max or total > bytes_max):
        if kept[0].fold_version != FOLD_VERSION:
            place = 0
        else:
            places = range(len(kept))
            place = min(places, key=lambda number: _gap(kept, number))
        total -= kept[place].size
        dropped.append(kept.pop(place))
    return dropped


def _gap(kept: list[Found], number: int) -> int:
    """Return how many events would lie between two rungs without the one between them."""
    before = kept[number - 1].position if number else 0
    if number + 1 == len(kept):
        return 2 * (kept[number].position - before)  # nothing is known of what will follow
    return kept[number + 1].position - before


def _is_own(path: Path) -> bool:
    """Whether the log's file belongs to this user: what others leave beside it, its owner could not replace."""
    try:
        return os.stat(path).st_uid == os.geteuid()
    except OSError:
        return False


def _user_cache() -> Path | None:
    """Return where rungs may lie apart from their log: nowhere without a home of this user, or where others may fill it."""
    root = user_cache()
    try:
        if root is not None:
            check_above(root)
    except UnsafePlaceError as error:
        logger.warning("no states are kept there: %s", error)
        return None
    except OSError:  # a home that this user may not enter, as HOME is after `setpriv`
        return None
    return root


def _keep_few(folder: Path) -> None:
    """Make room for a log's folder in the user's cache: those used longest ago go."""
    if folder.is_dir():
        return
    try:
        others = sorted(
            (other for other in folder.parent.iterdir() if other.is_dir()),
            key=lambda other: other.stat().st_mtime,
        )
    except OSError:
        return
    for other in others[: max(0, len(others) - LOGS_MAX + 1)]:
        shutil.rmtree(other, ignore_errors=True)
