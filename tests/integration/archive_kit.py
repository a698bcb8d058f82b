"""Logs with some work in them, and cuts."""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from datatask import InProcessSyncTask, LogMetadataRepository, Pipeline, Session
from datatask.adapters.history.states import fold
from datatask.adapters.log.maintenance.cut import Cut, Who, cut
from datatask.adapters.log.reader import LogReader

WHO = Who("ada@lab: datatask log-archive", "the disk is small", time.time_ns(), "0.1.0")


def pipeline(path: Path) -> Pipeline:
    """Two tasks that copy a number; odd ones fail in the second."""
    numbers, doubled = LogMetadataRepository("numbers"), LogMetadataRepository("doubled")
    double = InProcessSyncTask("double", LogMetadataRepository("double.done"))
    double.link("n", numbers, is_input=True)
    double.link("doubled", doubled, is_output=True)

    @double
    async def _double(job: str, n: Any, doubled: Any) -> None:
        await asyncio.sleep(0.001)  # it is seen running
        await doubled.dump(job, 2 * await n.info(job))

    check = InProcessSyncTask("check", LogMetadataRepository("check.done"))
    check.link("doubled", doubled, is_input=True)

    @check
    async def _check(job: str, doubled: Any) -> None:
        if await doubled.info(job) % 4:
            raise ValueError("odd")

    return Pipeline([double, check], Session(), log=path)


async def work(path: Path, first: int, last: int) -> None:
    """Put jobs and run them."""
    async with pipeline(path) as pipe:
        for number in range(first, last):
            await pipe.put("numbers", f"j{number}", number)
        await pipe.run(timeout=100)


def twenty_jobs(folder: Path) -> Path:
    """Make a log of twenty jobs, `log.db`, and a copy of it, `before.db`."""
    path = folder / "log.db"
    asyncio.run(work(path, 0, 20))
    shutil.copy(path, folder / "before.db")
    return path


def cut_at(path: Path, at: int, step: Callable[[str], None] = lambda name: None) -> Cut:
    """Cut the log at the batch boundary that holds a position."""
    with LogReader(path) as reader:
        state = fold(reader, reader.end_of_batch(at))
    return cut(path, state, WHO, step)


def file_of(done: Cut) -> Path:
    """Return the archive of a cut that moved something."""
    assert done.archive is not None
    return done.archive
