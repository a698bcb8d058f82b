"""An event loop for one piece of work, which ends with it, and the garbage collector while engines are open.

In: the coroutine that opens a pipeline, uses it and closes it. Out: what it returns. `asyncio.run` waits for every task
that it has cancelled and for every thread of its pool, for ever where one hangs; here they get a moment, and the process's
`guard` is put off. The collector looks less often: a run in flight has some twenty objects that it counts and never frees;
with thousands in flight that was a fifth of the engine's time. A higher threshold, or a collector switched off, is kept.
"""

from __future__ import annotations

import asyncio
import gc
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from datatask.adapters.clock import SpentError, effort
from datatask.adapters.wiring.last_bound import guard
from datatask.engine.runtime.closing import call_off
from datatask.schema.errors import NotPossibleError

T = TypeVar("T")

THREADS_MAX = 64
"""Made as they are needed; more than the cores, since most of them wait, and some for what is silent."""


def run_in_loop(work: Coroutine[Any, Any, T]) -> T:
    """Run the work in a loop of its own; `SpentError` when the process's effort has no time left for it."""
    pool = ThreadPoolExecutor(THREADS_MAX, "asyncio")
    with asyncio.Runner() as runner:
        runner.get_loop().set_default_executor(pool)
        try:
            return runner.run(_in_time(work))
        finally:
            runner.run(_leave())
            pool.shutdown(wait=False, cancel_futures=True)
            guard.put_off()


def refuse_running_loop() -> None:
    """Raise `CallerError` where a loop is running already, as in a notebook."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return
    raise NotPossibleError(
        "run_sync was called while an event loop is running (a notebook has one)",
        remedy="write `async with pipeline: await pipeline.run()`",
    )


@asynccontextmanager
async def limited(seconds: float | None, late: BaseException) -> AsyncIterator[None]:
    """Raise `late` when the body takes longer."""
    try:
        async with asyncio.timeout(seconds) as limit:
            yield
    except TimeoutError:
        if not limit.expired():
            raise
        raise late from None


async def _in_time(work: Coroutine[Any, Any, T]) -> T:
    async with limited(None if effort.ends is None else effort.ends - time.monotonic(), SpentError()):
        return await work


async def _leave() -> None:
    """Call off what still goes on; the loop then waits for a pool of threads that has none."""
    loop = asyncio.get_running_loop()
    await call_off(*(asyncio.all_tasks(loop) - {asyncio.current_task()}))
    await call_off(asyncio.ensure_future(loop.shutdown_asyncgens()))
    loop.set_default_executor(ThreadPoolExecutor(1))


THRESHOLD = 5_000
"""Python 3.13 has 2,000 as its own."""

_lock = threading.Lock()
_open: set[object] = set()
_before = 0


def collect_seldom() -> Callable[[], None]:
    """Raise the threshold until the returned function is called; calling that again is fine."""
    global _before
    engine = object()
    with _lock:
        first, *others = gc.get_threshold()
        if not _open:
            _before = first
            if 0 < first < THRESHOLD:
                gc.set_threshold(THRESHOLD, *others)
        _open.add(engine)

    def put_back() -> None:
        with _lock:
            first, *others = gc.get_threshold()
            if engine in _open:
                _open.remove(engine)
                if not _open and first == THRESHOLD:
                    gc.set_threshold(_before, *others)

    return put_back
