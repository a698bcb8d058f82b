"""Letting go in a bounded time: one deadline for all steps of closing, and threads that may never come back.

In: steps of closing, each with a name; blocking functions. Out: the names of the steps that did not end; what a function
returns. Each step gets a part of the time that is left, so that one that hangs takes nothing from those behind it. A step
that is cut short loses nothing: the log has it open, and the next engine goes on. A blocking function has a thread of its
own: a folder on a dead network takes no place in the loop's pool, and the end of the program does not wait for it.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from datatask.schema.errors import TemporaryError

T = TypeVar("T")
THREAD_LOOK_SECONDS = 1.0
"""So often it is looked whether a thread that is waited for is still there."""


async def in_own_thread(work: Callable[[], T], name: str) -> T:
    """Return what `work()` returns, or raise what it raises; whoever is cancelled leaves it behind.

    A thread may end without a word, where no memory is left even for that: `TemporaryError`, and no wait without an end.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def tell(result: T | None, error: BaseException | None) -> None:
        if future.done():
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(result)  # type: ignore[arg-type]

    def run() -> None:
        result, failed = None, None
        try:
            result = work()
        except BaseException as error:
            failed = error
        with contextlib.suppress(RuntimeError):  # the loop has ended without us
            loop.call_soon_threadsafe(tell, result, failed)

    thread = threading.Thread(target=run, name=name, daemon=True)
    thread.start()
    try:
        while not (await asyncio.wait([future], timeout=THREAD_LOOK_SECONDS))[0]:
            if not thread.is_alive():
                await asyncio.sleep(0)  # the last that it told is in the loop by now
                if not future.done():
                    raise TemporaryError(
                        f"{name}: its thread has ended and told nothing", remedy="do it again"
                    )
        return future.result()
    finally:
        future.cancel()


GRACE_SECONDS = 10.0
"""How long an engine that is to end waits for what runs, and how long it takes to let go at most."""
SHARE = 0.6
"""The part of what is left that a step gets."""
LEAST_SECONDS = 0.1
CALL_OFF_SECONDS = 0.5
"""How long what is called off has to end."""


class Closing:
    """The deadline, in seconds from now, and `unfinished`: what did not end, in words."""

    def __init__(self, seconds: float = GRACE_SECONDS) -> None:
        self.seconds = seconds
        self.unfinished: list[str] = []
        self._ends = asyncio.get_running_loop().time() + seconds

    @property
    def left(self) -> float:
        """The seconds that are left; 0 and not less."""
        return max(self._ends - asyncio.get_running_loop().time(), 0.0)

    async def step(self, name: str, work: Coroutine[Any, Any, object]) -> bool:
        """Do a step in its part of the time; whether it ended in it."""
        task = asyncio.ensure_future(work)
        if not await _ended(task, max(self.left * SHARE, LEAST_SECONDS)):
            self.unfinished.append(name)
            return False
        task.result()
        return True

    async def last_step(self, name: str, work: Coroutine[Any, Any, object]) -> None:
        """Do a step in all the time that is left, and in this asyncio task, which what was opened in it may insist on."""
        try:
            async with asyncio.timeout(max(self.left, LEAST_SECONDS)) as limit:
                await work
        except TimeoutError:
            if not limit.expired():
                raise
        if limit.expired():
            self.unfinished.append(name)

    def __str__(self) -> str:
        return f"not ended in {self.seconds - self.left:.2g} s: {', '.join(self.unfinished)}; the next run goes on with it"


async def within(seconds: float | None, work: Coroutine[Any, Any, T]) -> T:
    """Return what the work returns, or raise what it raises; `TimeoutError` after so many seconds, None being no end.

    Unlike `asyncio.timeout` it does not depend on the work: what goes on although it was cancelled is left behind.
    """
    task = asyncio.ensure_future(work)
    if not await _ended(task, seconds):
        raise TimeoutError
    return task.result()


async def _ended(task: asyncio.Task[Any], seconds: float | None) -> bool:
    try:
        await asyncio.wait({task}, timeout=seconds)
    except asyncio.CancelledError:
        await call_off(task)
        raise
    if task.done():
        return True
    await call_off(task)
    return False


async def call_off(*tasks: asyncio.Task[Any], seconds: float = CALL_OFF_SECONDS) -> bool:
    """Cancel tasks; those that do not end soon are left behind. Whether all have ended."""
    for task in tasks:
        task.cancel()
    going = [task for task in tasks if not task.done()]
    if going:
        await asyncio.wait(going, timeout=seconds)
    for task in going:
        if not task.done():
            leave_behind(task)
        elif not task.cancelled():
            task.exception()  # seen: what it raises while it is called off is no news
    return all(task.done() for task in tasks)


def leave_behind(task: asyncio.Task[Any]) -> None:
    """Let the program end without a task that goes on although it was cancelled: nobody waits for it any more."""
    asyncio._unregister_task(task)  # the documented way out for a task
    task._log_destroy_pending = False  # type: ignore[attr-defined]
    task.add_done_callback(_seen)


def _seen(task: asyncio.Task[Any]) -> None:
    """Take what a task that was left behind raises at last: unheard, it would count as a failure of the engine."""
    if not task.cancelled():
        task.exception()
