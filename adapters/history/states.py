"""A log's state at a batch boundary: from the nearest checkpoint before it, and the events in between."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

from datatask.adapters.log.checkpoints import FileCheckpoints
from datatask.adapters.log.locate import checkpoints_path
from datatask.adapters.log.reader import LogReader
from datatask.engine.core import checkpoints
from datatask.engine.core.fold import apply_all
from datatask.engine.core.state import FOLD_VERSION, State
from datatask.engine.ports import Checkpoint
from datatask.schema.errors import DatataskError


def fold(reader: LogReader, until: int) -> State:
    """Return the state at the batch boundary `until`."""
    with collector_off():
        state = _newest(reader, until) or State()
        return follow(reader, state, until)


def follow(reader: LogReader, state: State, until: int | None = None) -> State:
    """Fold what was appended behind the state, and return it."""
    last = reader.head if until is None else until
    if last > state.position:
        for batch in reader.batches(state.position, last):
            apply_all(state, batch.first, batch.events)
    return state


@contextmanager
def collector_off() -> Iterator[None]:
    """Keep the garbage collector from looking through a large state, all of which lives, again and again."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()


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
