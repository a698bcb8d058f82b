"""Echoes of our own writes that come late, over real folders: nothing is deleted, put or launched again on their word."""

from __future__ import annotations

import asyncio
import os
import threading
from pathlib import Path

import pytest

from datatask import FileRepository, InProcessSyncTask, LogMetadataRepository, Pipeline, Session
from datatask.adapters.store.filestore import FileStore
from datatask.engine.ports import Appeared, Listed, Vanished
from datatask.schema import events as e
from datatask.testing import memory_log, recording


async def body(job: str) -> None:
    """Do nothing."""


def over(folder: Path) -> tuple[Pipeline, FileRepository]:
    source = FileRepository(folder, name="files")
    task = InProcessSyncTask("task", LogMetadataRepository("done"), func=body)
    task.link("source", source, is_input=True)
    pipeline = Pipeline([task], Session(), log=memory_log())
    recording(pipeline, "succeeded")
    return pipeline, source


async def write(source: FileRepository, job: str) -> None:
    async with source.open(job, "w") as stream:
        await stream.write("x")


async def told(pipeline: Pipeline) -> list[tuple[str, str | None, str]]:
    assert pipeline.log is not None
    return [
        (type(event).__name__, event.job, event.origin)
        async for _, event in pipeline.log.read()
        if isinstance(event, e.ValuePut | e.ValueDeleted) and event.repository == "files"
    ]


async def test_a_listing_that_begins_before_our_writes_and_ends_after_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It does not know what we wrote since, and still knows what we deleted since."""
    (tmp_path / "old").write_text("x")
    pipeline, source = over(tmp_path)
    async with pipeline:
        scanned, gate = threading.Event(), threading.Event()
        real = FileStore._listed

        def late(store: FileStore) -> list[Listed]:
            found = list(real(store))
            scanned.set()
            gate.wait(100)
            return found

        monkeypatch.setattr(FileStore, "_listed", late)
        pipeline.engine.observer.relist("files")
        await asyncio.to_thread(scanned.wait, 10)
        await write(source, "new")
        await source.delete("old")
        before = await told(pipeline)
        gate.set()
        while pipeline.engine.observer.busy:
            await asyncio.sleep(0.01)
        assert pipeline.state.members("files") == ["new"]
        await pipeline.run(timeout=100)
        assert await told(pipeline) == before


async def test_notices_of_our_own_writes_that_come_late_and_twice(tmp_path: Path) -> None:
    """Of a value that is there they say nothing new; of one that is gone since, the store itself is asked."""
    pipeline, source = over(tmp_path)
    async with pipeline:
        await write(source, "a")
        version = await source.store.version("a")
        before = await told(pipeline)
        for _ in range(3):
            pipeline.engine.observer._tell("files", Appeared("files", "a", version))
            pipeline.engine.observer._tell("files", Vanished("files", "never"))
        await pipeline.run(timeout=100)
        assert await told(pipeline) == before
        assert pipeline.state.members("files") == ["a"]


async def test_a_listing_that_ends_early_without_an_error_is_held_when_it_lacks_much(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(400):
        (tmp_path / f"j{number}").write_text("x")
    pipeline, _ = over(tmp_path)
    async with pipeline:
        await pipeline.run(timeout=100)
        real = FileStore._listed
        monkeypatch.setattr(FileStore, "_listed", lambda store: tuple(real(store))[:150])
        await pipeline.engine.observer.sync(["files"])
        assert pipeline.state.leaves["files"].count == 400
        assert "250 of 400 members vanished" in pipeline.state.leaves["files"].held
        monkeypatch.setattr(FileStore, "_listed", real)
        await pipeline.engine.observer.sync(["files"])
        assert pipeline.state.leaves["files"].held == ""
        assert pipeline.state.leaves["files"].count == 400
        assert {origin for _, _, origin in await told(pipeline)} == {"observed"}
        assert len(await told(pipeline)) == 400


def test_a_value_that_changes_while_it_is_read_is_not_recorded_under_its_old_version(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = FileRepository(tmp_path, record="digest")
    source._id = "files"
    (tmp_path / "a").write_text("one")
    version = FileStore(tmp_path).version_now("a")
    assert source.observed("a", version).size == 3
    (tmp_path / "a").write_text("another")
    found = source.observed("a", version)
    assert (found.version, found.digest, found.size) == (version, None, None)


def test_a_pipe_that_takes_a_files_place_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = FileRepository(tmp_path, record="digest")
    source._id = "files"
    os.mkfifo(tmp_path / "a")
    monkeypatch.setattr(FileStore, "existing", lambda store, job: store.path(job))
    assert source.observed("a", "of before").digest is None
