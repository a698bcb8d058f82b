"""What a log says, for commands that only read: a reader, and the state folded up to some point.

In: the settings and a WHEN. Out: the state at a batch boundary, from the newest checkpoint that is not behind
it and the events after. Nothing is written, no pipeline is loaded, SQLAlchemy stays out.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

from datatask.adapters.cli.settings import Settings
from datatask.adapters.cli.when import When, iso, position_of
from datatask.adapters.log.checkpoints import FileCheckpoints
from datatask.adapters.log.locate import checkpoints_path
from datatask.adapters.log.reader import LogReader
from datatask.engine.core import checkpoints
from datatask.engine.core.fold import apply_all
from datatask.engine.core.state import FOLD_VERSION, State
from datatask.schema.errors import DatataskError

if TYPE_CHECKING:
    from datatask.engine.ports import Checkpoint


class Recorded(NamedTuple):
    """A state, and the log that it was folded from."""

    reader: LogReader
    state: State

    def about(self) -> dict[str, object]:
        """Return the `log` part of documented shapes: where, how far, as of when."""
        return {"url": self.reader.url, "head": self.state.position, "at": iso(self.state.at or None)}


@contextmanager
def opened(settings: Settings) -> Iterator[LogReader]:
    """Open the log for reading."""
    with LogReader(settings.log_path()) as reader:
        yield reader


@contextmanager
def recorded(settings: Settings, when: When | None = None) -> Iterator[Recorded]:
    """Open the log and fold it up to `when` (the head)."""
    with opened(settings) as reader:
        yield Recorded(reader, fold(reader, position_of(reader, when)))


def fold(reader: LogReader, until: int) -> State:
    """Return the state at the batch boundary `until`."""
    collecting = gc.isenabled()
    gc.disable()  # a large state is many objects that all live: looking through them costs most of the time
    try:
        state = _newest(reader, until) or State()
        return follow(reader, state, until)
    finally:
        if collecting:
            gc.enable()


def follow(reader: LogReader, state: State, until: int | None = None) -> State:
    """Fold what was appended behind the state, and return it."""
    last = reader.head if until is None else until
    if last > state.position:
        for batch in reader.batches(state.position, last):
            apply_all(state, batch.first, batch.events)
    return state


def _newest(reader: LogReader, until: int) -> State | None:
    kept = FileCheckpoints(checkpoints_path(reader.path), reader.uuid)

    def chain_at(position: int) -> bytes | None:
        try:
            return reader.chain_at(position) if position <= until else None
        except DatataskError:
            return None

    found: Checkpoint | None = kept.latest(FOLD_VERSION, chain_at)
    if found is None:
        return None
    try:
        state = checkpoints.load(found.body)
    except DatataskError:
        return None
    return state if (state.position, state.log) == (found.position, reader.uuid) else None


def changed(reader: LogReader, head: int, seconds: float) -> bool:
    """Wait until the head has moved or the time is over; return whether it has moved."""
    deadline = time.monotonic() + seconds
    while reader.head == head:
        if time.monotonic() >= deadline:
            return False
        time.sleep(min(0.1, seconds))
    return True
