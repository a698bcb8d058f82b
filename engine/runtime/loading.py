"""A log's state: its newest checkpoint, else the base that it stands on, and the events behind it."""

from __future__ import annotations

from datatask.engine.core import checkpoints
from datatask.engine.core.state import FOLD_VERSION, State
from datatask.engine.ports import EventLog


async def load_state(log: EventLog) -> State:
    """Return the state at the log's head: the newest checkpoint, and the events behind it."""
    state = None
    found = await log.latest_checkpoint(FOLD_VERSION)
    if found is not None:
        loaded = checkpoints.load(found.body)
        if loaded.position == found.position and loaded.log == log.uuid:
            state = loaded
    if state is None:
        base = await log.base_state()
        state = State() if base is None else checkpoints.load(base)
    return await log.fold(state)
