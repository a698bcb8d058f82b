"""A pipeline whose functions do harm, job by job: on the loop, in threads, in worker processes.

`DATATASK_TEST_KIND` says where. A job's name says what it does; `good…` do nothing wrong. `after` needs what they write.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
import sys
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import datatask
from datatask import (
    ExecutorTask,
    FileRepository,
    InProcessSyncTask,
    LogMetadataRepository,
    Pipeline,
    Retry,
    Session,
)

KIND = os.environ.get("DATATASK_TEST_KIND", "loop")
TIMEOUT = float(os.environ.get("DATATASK_TEST_TIMEOUT", "60"))
MEGABYTES = int(os.environ.get("DATATASK_TEST_MEGABYTES", "64"))

numbers = LogMetadataRepository("numbers")
out = LogMetadataRepository("out")
stray = LogMetadataRepository("stray")
files = FileRepository("files", name="files")  # relative: beside the pipeline, wherever somebody changes to


def prints() -> None:
    for _ in range(MEGABYTES):
        print("x" * (1 << 20))


def forks() -> None:
    """Both return."""
    os.fork()


def closes() -> None:
    os.closerange(3, 1024)


def changes() -> None:
    os.chdir("/")


def clears() -> None:
    os.environ.clear()


def ignores() -> None:
    if KIND != "thread":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)


def dies() -> None:
    os._exit(3)


def crashes() -> None:
    ctypes.string_at(0)


def aborts() -> None:
    os.abort()


def raises() -> None:
    class Local(Exception):
        """Cannot be pickled: nobody finds its class."""

        def __reduce__(self) -> Any:
            raise TypeError("not me")

    raise Local("unpicklable")


def floods() -> None:
    sys.stderr.write("y" * (1 << 22))


def sleeps() -> None:
    time.sleep(1.0)


async def deletes(job: str, numbers: Any, out: Any) -> None:
    await numbers.delete(job)
    await out.dump(job, "without input")


def blocks() -> None:
    time.sleep(6 if KIND == "thread" else 60)  # a thread is waited for when the program ends


async def hangs(job: str, numbers: Any, out: Any) -> None:
    if KIND == "loop":
        await asyncio.sleep(60)
    else:
        blocks()
    await out.dump(job, "late")


async def returns(job: str, numbers: Any, out: Any) -> None:
    """Long after it was cancelled."""
    try:
        await asyncio.sleep(60)
    except asyncio.CancelledError:
        await asyncio.sleep(2)
    await out.dump(job, "late")


ASYNCHRONOUS = {"deletes": deletes, "hangs": hangs, "returns": returns}


async def act(job: str, numbers: Any, out: Any) -> None:
    name = job.rstrip("0123456789")
    if name in ASYNCHRONOUS:
        await ASYNCHRONOUS[name](job, numbers, out)
        return
    if name != "good":
        globals()[name]()
    if name == "sleeps":
        (Path(os.environ.get("TOLD", "/nonexistent")) / job).touch()
    await out.dump(job, await numbers.info(job))


async def after(job: str, out: Any, files: Any) -> None:
    async with files.open(job, "w") as stream:
        await stream.write(str(await out.info(job)))


def _pool() -> ProcessPoolExecutor:
    return ProcessPoolExecutor(2)


RETRY = Retry(infrastructure_attempts=int(os.environ.get("DATATASK_TEST_LOST", "2")))
done = LogMetadataRepository("done")
task: Any
if KIND == "loop":
    task = InProcessSyncTask("act", done, func=act, timeout=TIMEOUT, grace=1, retry=RETRY)
elif KIND == "thread":
    task = ExecutorTask("act", ThreadPoolExecutor(2), done, func=act, timeout=TIMEOUT, grace=1, retry=RETRY)
else:
    task = ExecutorTask("act", _pool, done, func=act, timeout=TIMEOUT, grace=1, retry=RETRY)
task.link("numbers", numbers, is_input=True)
task.link("out", out, is_output=True)
then = InProcessSyncTask("after", LogMetadataRepository("after.done"), func=after)
then.link("out", out, is_input=True)
then.link("files", files, is_output=True)

pipeline = Pipeline([task, then], Session(), [])

if __name__ == "__main__":
    datatask.main(pipeline)
