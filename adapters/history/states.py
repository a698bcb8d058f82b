"""A log's state at a batch boundary: from the nearest checkpoint before it, and the events in between.

`follow` is where the past is folded; `fold` finds out where to begin (`ladder`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from datatask.adapters.history.ladder import Ladder
from datatask.adapters.log.columns import Follower
from datatask.adapters.log.columns import collector_off as collector_off
from datatask.adapters.log.faults import archived, damaged
from datatask.adapters.log.reader import LogReader
from datatask.engine.core import checkpoints
from datatask.engine.core.state import FOLD_VERSION, State
from datatask.schema.errors import LogDamagedError, TemporaryError

T = TypeVar("T")

TOLD_EVENTS = 250_000

CUTS_MAX = 5

Progress = Callable[[int, int], None]
"""Called with (events done, events in all)."""


def fold(reader: LogReader, until: int) -> State:
    """Return the state at the batch boundary `until`."""

    def work() -> State:
        ladder = Ladder(reader)
        state = ladder.nearest(until) or _begun(reader, ladder)
        _refuse_archived(reader, state, until)
        following = Follower(reader)
        return ladder.climb(state, until, lambda _, state, until: following.follow(state, until))

    with collector_off():
        return uncut(reader, work)


def uncut(reader: LogReader, work: Callable[[], T], sound: Callable[[T], bool] = lambda _: True) -> T:
    """Do what reads many pages of a log, again where its beginning was archived meanwhile.

    What then looks like damage, or is not `sound`, is none: a cut removes rows between one page and the next.
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


def refold(reader: LogReader, until: int | None = None, progress: Progress | None = None) -> State:
    """Return the state at the batch boundary `until` (the head) from the log's beginning, without any checkpoint.

    Somebody who watches is told every `TOLD_EVENTS`.
    """
    last = reader.head if until is None else until

    def work() -> State:
        state = beginning(reader)
        _refuse_archived(reader, state, last)
        following = Follower(reader)
        while progress is not None and last - state.position > 2 * TOLD_EVENTS:
            following.follow(state, reader.end_of_batch(state.position + TOLD_EVENTS))
            progress(state.position, last)
        return following.follow(state, last)

    with collector_off():
        return uncut(reader, work)


def _begun(reader: LogReader, ladder: Ladder) -> State:
    """Return the beginning; one that had to be folded anew, since another fold had made it, is kept as a rung."""
    state = beginning(reader)
    if state.position and reader.base_stored()[0] != FOLD_VERSION:
        ladder.leave(state)
    return state


def beginning(reader: LogReader) -> State:
    """Return the state that the log's first event follows on: empty, or where its beginning was archived the base."""
    body = reader.base_state()
    try:
        return State() if body is None else checkpoints.load(body)
    except LogDamagedError as error:
        what = f"the state that the log stands on cannot be read: {error.what}"
        raise damaged(what, reader.path, reader.header.base) from error


def follow(reader: LogReader, state: State, until: int | None = None) -> State:
    """Fold what was appended behind the state, and return it."""
    last = reader.head if until is None else until
    return Follower(reader).follow(state, last) if last > state.position else state
