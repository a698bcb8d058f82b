"""An event loop without a world: time is a number that jumps to the next timer, and each step is one callback.

In: coroutines. Out: the same interleaving for the same program. `crash_at` ends the loop between two callbacks, as
SIGKILL ends a process: nothing is awaited, nothing is cleaned up.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Coroutine
from inspect import CORO_CREATED, getcoroutinestate
from types import CoroutineType
from typing import Any


class Crashed(BaseException):
    """The engine's process is gone."""


class Stuck(Exception):
    """Nothing is ready and no timer is set: whoever waits waits for ever."""


class SimLoop(asyncio.BaseEventLoop):
    """Virtual time in seconds; threads, sockets and signals do not exist here."""

    def __init__(self, now: float, crash_at: int | None = None) -> None:
        super().__init__()
        self._now = now
        self._selector = self  # what BaseEventLoop asks for events and for the time to wait
        self.steps = 0
        self.crash_at = crash_at
        self._clock_resolution = 1e-9

    def time(self) -> float:
        """Return virtual time."""
        return self._now

    def select(self, timeout: float | None) -> list[Any]:
        """Wait: time moves on."""
        if timeout is None:
            raise Stuck("nothing is ready and no timer is set")
        self._now += timeout
        return []

    def _process_events(self, event_list: list[Any]) -> None:
        """There are none."""

    def _write_to_self(self) -> None:
        """Nobody else is there to be woken."""

    def _run_once(self) -> None:
        """Run one callback, so that a crash can fall between any two."""
        self.steps += 1
        if self.crash_at is not None and self.steps >= self.crash_at:
            raise Crashed
        ready: deque[Any] = self._ready  # type: ignore[has-type]
        if len(ready) < 2:
            super()._run_once()  # type: ignore[misc]
            return
        first = ready.popleft()
        self._ready = deque((first,))
        try:
            super()._run_once()  # type: ignore[misc]
        finally:
            ready.extend(self._ready)
            self._ready = ready

    async def shutdown_default_executor(self, timeout: float | None = None) -> None:
        """There is none."""


def live(loop: SimLoop, work: Coroutine[Any, Any, Any]) -> bool:
    """Run until the work is over; False when the process died before."""
    asyncio.set_event_loop(loop)
    try:
        loop.run_until_complete(work)
    except Crashed:
        return False
    finally:
        asyncio.set_event_loop(None)
    return True


def bury(loop: SimLoop) -> None:
    """Let what a dead process left behind go, without a last word."""
    for task in asyncio.all_tasks(loop):
        task._log_destroy_pending = False  # type: ignore[attr-defined]
        work = task.get_coro()
        if isinstance(work, CoroutineType) and getcoroutinestate(work) == CORO_CREATED:
            work.close()  # never begun: nothing of it runs, and nobody is told that it was not awaited
    loop._ready.clear()
    loop._scheduled.clear()  # type: ignore[attr-defined]
    loop.close()
