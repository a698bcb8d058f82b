"""The state that a log stands on, folded anew from its archives: for a base that another version of the fold made.

In: the log's header. Out: the state at its base as this version's bytes. The archives have to be at hand; they are
checked on the way up to the hash that the log goes on from, so what comes out rests on the chain alone.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from datatask.adapters.log.faults import damaged
from datatask.adapters.log.header import Header
from datatask.adapters.log.maintenance.archives import read_batches, unbroken
from datatask.engine.core import checkpoints
from datatask.engine.core.fold import apply_all
from datatask.engine.core.state import FOLD_VERSION, State
from datatask.schema.codec import Row, decode
from datatask.schema.errors import CallerError
from datatask.schema.events import Event, LaunchDecided


def refolded(path: Path, header: Header, version: int) -> bytes:
    """Return the state at the base; `LogDamagedError` says which archive is missing or damaged."""
    try:
        archives = unbroken(path, header.uuid, header.base, header.base_chain)
    except CallerError as error:
        raise damaged(
            f"the state that the log stands on was made by version {version} of the fold, this is {FOLD_VERSION}, and"
            f" {error.what}",
            path,
            header.base,
            remedy=f"put {error.where} back, or use the datatask version that archived it",
        ) from error
    state = State()
    for archive in archives:
        for first, rows in read_batches(archive):
            apply_all(state, first, [_event(row, first + index, archive) for index, row in enumerate(rows)])
    return checkpoints.dump(state)


def _event(row: Row, position: int, archive: Path) -> Event:
    event = decode(row, where=f"{archive} position {position}")
    if type(event) is LaunchDecided and event.run == position:
        # The column says which run it is about; the event itself was made before it had a position.
        return msgspec.structs.replace(event, run=None)
    return event
