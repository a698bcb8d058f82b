"""A pipeline of every kind of task over every kind of store, in one folder: the thing that gets killed.

A process copies its input and appends a line to `effects/JOB`; a thread, a worker process and the loop carry the
result on. `jobs` inputs are laid out by `lay_out`.
"""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from datatask import (
    ExecutorTask,
    FileRepository,
    InProcessSyncTask,
    LocalLinuxManager,
    LogBlobRepository,
    LogMetadataRepository,
    Pipeline,
    ProcessTask,
    ResourceManager,
    Resources,
    Retry,
    Session,
    YamlMetadataFileRepository,
)

SCRIPT = "#!/bin/sh\necho {{ job }} >> {{ effects }}/{{ job }}\nsleep 0.03\ncat {{ inp }}\n"
SCRIPT_OF_ONE_THAT_FAILS = "test {{ job }} != j7\n"


async def in_thread(job: str, stdout: Any, counted: Any) -> None:
    """Count the bytes."""
    async with stdout.open(job, "rb") as stream:
        size = len(await stream.read())
    time.sleep(0.002)  # noqa: ASYNC251 - it has a thread of its own
    await counted.dump(job, {"n": size})


async def in_worker(job: str, counted: Any, doubled: Any) -> None:
    """Double the count; one job fails whenever it is tried."""
    if job == "j5":
        raise ValueError("unlucky")
    await doubled.dump(job, {"n": 2 * (await counted.info(job))["n"]})


async def on_the_loop(job: str, doubled: Any, told: Any) -> None:
    """Copy the result into a file."""
    await asyncio.sleep(0.002)
    await told.dump(job, await doubled.info(job))


def lay_out(folder: Path, jobs: int) -> None:
    """Make the folder and the inputs."""
    for name in ("in", "effects", "out", "told"):
        (folder / name).mkdir(parents=True)
    add(folder, jobs)


def inputs(folder: Path) -> int:
    """Return how many inputs there are."""
    return sum(1 for _ in (folder / "in").iterdir())


def add(folder: Path, jobs: int) -> None:
    """Add so many inputs."""
    present = inputs(folder)
    for number in range(present, present + jobs):
        (folder / "in" / f"j{number}").write_text("x" * number)


def _pool() -> ProcessPoolExecutor:
    return ProcessPoolExecutor(1)


def shop(folder: Path) -> Pipeline:
    """Return the pipeline over a folder that was laid out."""
    session = Session()

    @session.resource
    async def manager() -> Any:
        yield LocalLinuxManager("shop", folder / "base")

    quota = ResourceManager(Resources.parse(4, "4Gi"))
    copied = ProcessTask(
        "copy",
        manager,
        quota,
        Resources.parse(1, "1Gi"),
        LogMetadataRepository("copy.pids"),
        SCRIPT.replace("{{ effects }}", str(folder / "effects")) + SCRIPT_OF_ONE_THAT_FAILS,
        stdout=FileRepository(folder / "out", name="out"),
        stderr=LogBlobRepository("copy.stderr"),
        done=YamlMetadataFileRepository(folder / "copied", name="copy.done"),
    )
    copied.link("inp", FileRepository(folder / "in", name="in"), is_input=True)
    counted = ExecutorTask(
        "count", ThreadPoolExecutor(2), LogMetadataRepository("count.done"), func=in_thread
    )
    counted.plug(copied, require_success=True)
    counted.link("counted", LogMetadataRepository("counted"), is_output=True)
    doubled = ExecutorTask(
        "double",
        _pool,
        LogMetadataRepository("double.done"),
        func=in_worker,
        retry=Retry(attempts=2, backoff=0.01),
    )
    doubled.plug(counted)
    doubled.link("doubled", LogMetadataRepository("doubled"), is_output=True)
    told = InProcessSyncTask("tell", LogMetadataRepository("tell.done"), func=on_the_loop)
    told.plug(doubled, require_success=True)
    told.link("told", YamlMetadataFileRepository(folder / "told", name="told"), is_output=True)
    return Pipeline([copied, counted, doubled, told], session, [quota], log=folder / "log.db", name="shop")
