"""Stores that fail, lie and lose: nothing is deleted or launched on such word."""

from __future__ import annotations

import asyncio
import logging
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from datatask import (
    CallerError,
    FileRepository,
    LogMetadataRepository,
    Repository,
)
from datatask.schema import messages as r
from datatask.testing import memory_log
from tests.integration.store_kit import watched


class Listing(Repository):
    """A repository of the user's own, whose listing can be told to fail."""

    def __init__(self, jobs: list[str]) -> None:
        super().__init__(name="listing")
        self.jobs = jobs
        self.broken = ""

    async def unfiltered_iter(self) -> AsyncIterator[str]:
        """Yield the jobs; half of them, and then the error, when broken."""
        for number, job in enumerate(self.jobs):
            if self.broken and number >= len(self.jobs) // 2:
                raise OSError(self.broken)
            yield job

    async def info(self, job: str) -> Any:
        """No values."""

    async def delete(self, job: str) -> None:
        """Remove the job."""
        self.jobs.remove(job)


async def test_a_listing_that_fails_deletes_nothing_and_holds_only_its_own_task(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The task waits, by name; when the listing works again it goes on."""
    source, log = Listing(["a", "b", "c", "d"]), memory_log()
    first, ran = watched(source, log=log)
    async with first:
        await first.run()
    assert len(ran.jobs) == 4
    source.broken, source.jobs = "the share is gone", ["a", "b", "c", "d", "e"]
    second, ran = watched(source, log=log)
    async with second:
        outcome = await second.run(timeout=100)
        assert outcome.failed == 0
        assert second.state.members("listing") == ["a", "b", "c", "d"]
        assert "the share is gone" in caplog.text
        source.broken = ""
        for _ in range(100):
            await second.run(timeout=100)
            if ran.jobs:
                break
            await asyncio.sleep(0.05)
        assert ran.jobs == [("task", "e")]


async def test_invalid_names_are_told_and_left_out(caplog: pytest.LogCaptureFixture) -> None:
    """Once each."""
    source = Listing(["good", "../evil", "also good"])
    pipeline, ran = watched(source, log=memory_log())
    with caplog.at_level(logging.WARNING):
        async with pipeline:
            await pipeline.run()
            await pipeline.update()
    assert ran.jobs == [("task", "good")]
    assert caplog.text.count("../evil") == 1


async def test_a_mass_loss_awaits_a_persons_word(tmp_path: Path) -> None:
    """300 files gone at once are held, not believed, until somebody accepts it."""
    folder = tmp_path / "in"
    folder.mkdir()
    for number in range(300):
        (folder / f"job{number}").write_text("x")
    log = memory_log()
    first, ran = watched(FileRepository(folder, name="files"), log=log)
    async with first:
        await first.run()
    assert len(ran.jobs) == 300
    for number in range(250):
        (folder / f"job{number}").unlink()
    (folder / "fresh").write_text("x")
    second, ran = watched(FileRepository(folder, name="files"), log=log)
    async with second:
        await second.run()
        assert second.state.leaves["files"].count == 300
        assert "250 of 300 members vanished" in second.state.leaves["files"].held
        assert ran.jobs == []
        reply = await second.request(r.AcceptLoss(id="1", actor="tester", repository="files"))
        assert reply.refusal is None
        await second.engine.observer.sync(["files"])
        await second.run()
        assert second.state.leaves["files"].count == 51
        assert ran.jobs == [("task", "fresh")]


async def test_files_dropped_changed_and_deleted_while_open(tmp_path: Path) -> None:
    """They arrive as observations, and a replaced folder is listed again."""
    folder = tmp_path / "in"
    folder.mkdir()
    pipeline, ran = watched(FileRepository(folder, name="files"), log=memory_log())
    async with pipeline:
        (folder / "one").write_text("1")
        (folder / "two").write_text("2")
        await _until(lambda: pipeline.state.leaves["files"].count == 2)
        (folder / "one").unlink()
        await _until(lambda: pipeline.state.members("files") == ["two"])
        await pipeline.run()
        assert ran.jobs == [("task", "two")]
        shutil.rmtree(folder)
        folder.mkdir()
        (folder / "three").write_text("3")
        await _until(lambda: pipeline.state.members("files") == ["three"])


async def test_vanished_repositories_with_members_stop_the_opening(tmp_path: Path) -> None:
    """The remedy names `was=`; a rename keeps the members."""
    log = memory_log()
    first, _ = watched(LogMetadataRepository("old"), log=log)
    async with first:
        await first.put("task.inp", "a", 1)
        await first.run()
    second, _ = watched(LogMetadataRepository("new"), log=log)
    with pytest.raises(CallerError, match="no longer has the repository old, which has 1 members"):
        await second.open()
    third, ran = watched(LogMetadataRepository("new", was="old"), log=log)
    async with third:
        await third.run()
        assert third.state.members("new") == ["a"]
        assert ran.jobs == []
        assert await third.find("task.inp").info("a") == 1


async def test_a_log_of_another_pipeline_is_refused() -> None:
    """By both names."""
    pipeline, _ = watched(LogMetadataRepository("in"), log=memory_log("other"))
    with pytest.raises(CallerError, match="belongs to the pipeline 'other'"):
        await pipeline.open()


async def _until(condition: Any) -> None:
    async with asyncio.timeout(100):
        while not condition():
            await asyncio.sleep(0.01)
