"""Tasks on executors."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context
from typing import Any

from datatask import (
    ExecutorTask,
    InProcessMetadataRepository,
    Pipeline,
    Session,
)

SECONDS = 60


SPAWN = get_context("spawn")


class ThreadPerCall(Executor):
    """Somebody's own executor, of which nothing is known."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Run the call in a thread of its own."""
        future: Future[Any] = Future()

        def call() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                future.set_result(fn(*args, **kwargs))
            except BaseException as error:
                future.set_exception(error)

        threading.Thread(target=call).start()
        return future


EXECUTORS: dict[str, Callable[[], Executor]] = {
    "threads": lambda: ThreadPoolExecutor(2),
    "spawned": lambda: ProcessPoolExecutor(2, mp_context=SPAWN),
    "forked": lambda: ProcessPoolExecutor(2, mp_context=get_context("fork")),
    "own": ThreadPerCall,
}


def of_pipeline(*tasks: ExecutorTask) -> Pipeline:
    """Return a pipeline over a log in memory."""
    return Pipeline(tasks, Session(), [], log="memory:")


def simple(executor: Any, func: Callable[..., Any], **more: Any) -> ExecutorTask:
    """Return a task with `inp`, `out` and `done` in this process."""
    task = ExecutorTask("t", executor, InProcessMetadataRepository(), func=func, **more)
    task.link("inp", InProcessMetadataRepository(), is_input=True)
    task.link("out", InProcessMetadataRepository(), is_output=True)
    return task


def given(task: ExecutorTask, *jobs: str) -> dict[str, Any]:
    """Put jobs into the input; return the dict of the done repository."""
    inp: Any = task.links["inp"].repo
    inp.data.update((job, {"job": job}) for job in jobs)
    done: Any = task.links["done"].repo
    data: dict[str, Any] = done.data
    return data


async def run(pipeline: Pipeline) -> None:
    """Open it, and run until all is quiet."""
    async with pipeline:
        await pipeline.run(timeout=SECONDS)
