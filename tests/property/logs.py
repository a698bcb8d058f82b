"""Batches of a world as a log in a file."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

from datatask.adapters.log.sqlite import SqliteLog
from datatask.schema import events as e

UUID = "a" * 32


def write_log(path: Path, batches: Sequence[tuple[e.Event, ...]]) -> None:
    """Write batches, the first of which is the log's creation, as an engine of theirs would have."""

    async def write() -> None:
        log = await SqliteLog.open(
            path, pipeline="p", clock_now=1, version="1", host="h", pid=1, durability="process", uuid=UUID
        )
        for batch in batches[1:]:
            log.enqueue(batch)
        await log.close()

    asyncio.run(write())
    epochs = [event.epoch for batch in batches for event in batch if isinstance(event, e.EngineOpened)]
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("UPDATE meta SET value = ? WHERE key = 'epoch'", (max(epochs, default=1),))
        connection.commit()
