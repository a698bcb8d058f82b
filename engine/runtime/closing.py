"""Closing in a bounded time, threads that may never return, and guards against user functions that fork or close files.

Each step of closing has a name and gets a part of the time left, so that one that hangs costs the others nothing; the
names of unfinished steps are returned, and the log leaves to the next engine what they did not do. A blocking function
has a thread of its own, which the program's end does not await. A forked copy of the engine exits as soon as it returns
to an event loop or to the call; an engine whose files were closed ends at once with one line.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import threading
import weakref
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from datatask.engine.run_context import current_run
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
                    raise TemporaryError(f"{name}: its thread ended without a result", remedy="do it again")
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
        return f"not ended in {self.seconds - self.left:.2g} s: {', '.join(self.unfinished)}; the next run continues it"


async def within(seconds: float | None, work: Coroutine[Any, Any, T]) -> T:
    """Return what the work returns, or raise what it raises; `TimeoutError` after `seconds`; None is no limit.

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
    """Let the program end without a cancelled task that keeps running; it is not awaited any more."""
    asyncio._unregister_task(task)  # the documented way out for a task
    task._log_destroy_pending = False  # type: ignore[attr-defined]
    task.add_done_callback(_seen)


def _seen(task: asyncio.Task[Any]) -> None:
    """Take what a task that was left behind raises at last: unheard, it would count as a failure of the engine."""
    if not task.cancelled():
        task.exception()


BROKEN = 70
"""The exit code of an engine whose files were closed."""

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_File = tuple[int, int, int]
"""Descriptor, device and inode."""

_engines: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, list[_File]] = weakref.WeakKeyDictionary()
_forking: asyncio.AbstractEventLoop | None = None
_mask: set[int | signal.Signals] | None = None


def guard(loop: asyncio.AbstractEventLoop) -> None:
    """Look after the files of this loop, which an engine runs on, until it is closed."""
    _engines[loop] = [
        file for name in ("_selector", "_ssock", "_csock") if (file := _file(loop, name)) is not None
    ]


def returned(pid: int, who: str) -> None:
    """A function is back that began in process `pid`: end the process if it is a copy, or cannot go on."""
    if os.getpid() != pid:
        os._exit(0)
    for loop, files in tuple(_engines.items()):
        if not loop.is_closed() and not all(map(_is_open, files)):
            message = (
                f"datatask: a function closed files that are not its own, probably {who}: the engine cannot go on;"
                " start it again\n"
            )
            os.write(2, message.encode(errors="replace"))
            os._exit(BROKEN)


def _file(loop: asyncio.AbstractEventLoop, name: str) -> _File | None:
    """Return a file that a loop waits with; None in a loop that is made otherwise."""
    try:
        fd = getattr(loop, name).fileno()
        status = os.fstat(fd)
    except (AttributeError, OSError, ValueError):
        return None
    return fd, status.st_dev, status.st_ino


def _is_open(file: _File) -> bool:
    """Whether the descriptor still stands for that file: another thread may have been given its number meanwhile."""
    try:
        status = os.fstat(file[0])
    except OSError:
        return False
    return (status.st_dev, status.st_ino) == file[1:]


def _before_fork() -> None:
    global _forking, _mask
    _mask = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS) if _engines else None
    _forking = asyncio._get_running_loop() if current_run.get() is not None else None


def _in_parent() -> None:
    if _mask is not None:
        signal.pthread_sigmask(signal.SIG_SETMASK, _mask)


def _in_child() -> None:
    if _mask is not None:
        # The engine's wake-up pipe is the child's too: a signal to the child would be acted on by the engine.
        if signal.set_wakeup_fd(-1) != -1:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, _mask)
    ready = getattr(_forking, "_ready", None)
    if _forking is not None and ready is not None:
        ready.appendleft(asyncio.Handle(os._exit, (0,), _forking))


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_in_parent, after_in_child=_in_child)
