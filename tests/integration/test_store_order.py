"""Writes to one job of a foreign store follow each other, however slow the store is."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from datatask import FileRepository, InProcessSyncTask, LogMetadataRepository, Pipeline, Session
from datatask.schema.messages import Write
from datatask.testing import memory_log, recording


class SlowPuts:
    """A store whose puts take a moment, while its deletions do not."""

    def __init__(self, store: Any) -> None:
        self._store = store

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    async def put(self, write: Write) -> str | None:
        """Put, after a moment."""
        await asyncio.sleep(0.1)
        version: str | None = await self._store.put(write)
        return version


async def test_a_deletion_decided_after_a_put_is_done_after_it(tmp_path: Path) -> None:
    """Without the order the put would land last, and the job would stay."""

    async def body(job: str) -> None:
        """Do nothing."""

    (tmp_path / "slow").mkdir()
    slow = FileRepository(tmp_path / "slow", name="slow")
    task = InProcessSyncTask("task", LogMetadataRepository("done"), func=body)
    task.link("slow", slow, is_input=True)
    pipeline = Pipeline([task], Session(), log=memory_log())
    task.disabled = True
    recording(pipeline)
    async with pipeline:
        stores: Any = pipeline.runtime._performer._stores
        stores["slow"] = SlowPuts(stores["slow"])
        put = asyncio.create_task(
            pipeline.engine.values.put("slow", Write(repository="slow", job="a", data=b"1"))
        )
        await asyncio.sleep(0.02)
        await pipeline.engine.values.delete("slow", "a")
        await put
        assert not (tmp_path / "slow" / "a").exists()
        assert pipeline.state.members("slow") == []
