"""An event loop for one piece of work, which ends with it: nothing that was left behind holds it up.

In: the coroutine that opens a pipeline, uses it and closes it. Out: what it returns. `asyncio.run` waits for every task
that it has cancelled and for every thread of its pool, for ever where one hangs; here they get a moment. The process's
`guard`, where one was set, is put off in the end.

Python's garbage collector while engines are open: it looks less often.

In: engines that open and close. Out: the collector's first threshold, raised with the first of them and put back
with the last. A run in flight has some twenty objects that the collector counts, none of which it will ever free:
with thousands in flight it looked through all of them again and again, which was a fifth of the engine's time.
Who has switched the collector off, or set a higher threshold, keeps that.
"""

from __future__ import annotations

import asyncio
import gc
import threading
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from datatask.adapters.effort import SpentError, effort
from datatask.adapters.wiring.last_bound import guard
from datatask.engine.runtime.closing import call_off

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


async def _in_time(work: Coroutine[Any, Any, T]) -> T:
    left = None if effort.ends is None else effort.ends - time.monotonic()
    try:
        async with asyncio.timeout(left) as limit:
            return await work
    except TimeoutError:
        if not limit.expired():
            raise
    raise SpentError


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
