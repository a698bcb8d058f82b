"""Signals while a pipeline works: the first Ctrl-C (or SIGTERM) drains, the second abandons, the third cuts off.

Draining launches nothing more, takes back what was only queued, and waits for what runs, up to the pipeline's grace.
Abandoning stops what cannot outlive the engine and leaves the rest running, to be adopted by the next engine. However
full, slow or silent things are, the work ends: what does not hear is left behind, and `guard` ends the process.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Coroutine
from types import FrameType
from typing import Any, Protocol, Self

from datatask.adapters.execute.base import shutdowns
from datatask.adapters.wiring.last_bound import Guard
from datatask.engine.core.state import State
from datatask.engine.runtime.closing import SHARE, Closing
from datatask.engine.runtime.loop import Runtime

SPARE_SECONDS = 1.0
"""What the guard adds to the time that an orderly end takes at most."""
HAND_BACK_SECONDS = 0.5
INTERRUPTED = 130
BLOCKED = "something blocks the engine; the next run goes on from the log"


class Work(Protocol):
    """What interrupts need of a pipeline."""

    grace_seconds: float

    @property
    def is_open(self) -> bool: ...
    @property
    def is_ending(self) -> bool: ...
    @property
    def is_closing(self) -> bool: ...
    @property
    def closing(self) -> Closing | None: ...
    @property
    def state(self) -> State: ...
    @property
    def runtime(self) -> Runtime: ...
    def interrupt(self, why: str) -> None: ...
    def drain(self) -> int: ...
    def abandon(self) -> None: ...
    def hurry(self, seconds: float) -> Closing: ...


class Interrupts:
    """Turns signals into what a pipeline is to do; `count` is how many have come, `given_up` whether the work was cut."""

    def __init__(self, pipeline: Work, say: Callable[[str], None], *, guard: Guard | None = None) -> None:
        self.count = 0
        self.given_up = False
        self._pipeline = pipeline
        self._say = say
        self._guard = guard
        self._before: dict[int, Any] = {}
        self._waiting: asyncio.Task[None] | None = None

    def __enter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        self._work = asyncio.current_task()
        for number in (signal.SIGINT, signal.SIGTERM):
            try:
                self._before[number] = signal.signal(number, self._came)
            except ValueError:
                return self  # not in the main thread: signals stay as they are
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if self._waiting is not None:
            self._waiting.cancel()

    def _came(self, number: int, frame: FrameType | None) -> None:
        """Hear of a signal; called by the interpreter wherever it is, so also where the loop does not turn."""
        if self._guard is not None:
            grace = self._pipeline.grace_seconds
            seconds = 1.5 * grace + SPARE_SECONDS if self.count < 2 else SPARE_SECONDS
            self._guard.sooner(seconds, INTERRUPTED, f"not ended {seconds:g} s after the signal: {BLOCKED}")
        self._loop.call_soon_threadsafe(self._terminate if number == signal.SIGTERM else self._interrupt)

    def _terminate(self) -> None:
        shutdowns.signalled()
        if not self.count:
            self._interrupt()

    def _interrupt(self) -> None:
        self.count += 1
        if (closing := self._pipeline.closing) is not None and self.count < 3:
            self._say(f"letting go, {closing.left:.0f} s at most")
        elif not self._pipeline.is_open:
            self._say("interrupted while it was opened, or closed")
            self._cut()
        elif self.count == 1:
            self._drain()
        elif self.count == 2:
            self._say(f"abandoning {self._running()} that run; once more cuts off")
            self._abandon("abandoned", self._pipeline.grace_seconds)
        else:
            self._cut()

    def _running(self) -> int:
        return len(self._pipeline.state.open_runs)

    def _drain(self) -> None:
        grace = self._pipeline.grace_seconds
        self._pipeline.interrupt("interrupted")
        back = self._pipeline.drain()
        handed = f", handing back {back} that have not begun" if back else ""
        self._say(
            f"interrupted: launching nothing more{handed}, waiting {grace:g} s at most for {self._running() - back} that run;"
            " once more abandons them"
        )
        self._waiting = self._minded(self._wait(grace))

    async def _wait(self, grace: float) -> None:
        """Wait for what runs, and then no longer; what was decided already and has not begun is handed back too."""
        until = self._loop.time() + grace
        while self._loop.time() < until:
            await asyncio.sleep(min(grace, HAND_BACK_SECONDS))
            self._pipeline.drain()
        self._say(f"not ended in {grace:g} s: {self._running()} that run; letting go of them")
        self._abandon("interrupted", grace / 2)

    def _abandon(self, why: str, seconds: float) -> None:
        self._pipeline.interrupt(why)
        self._pipeline.abandon()
        before, self._waiting = self._waiting, self._minded(self._give_up(seconds))
        if before is not None and before is not asyncio.current_task():
            before.cancel()

    def _minded(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = self._loop.create_task(work)
        self._pipeline.runtime.services.mind(task, "the end of the work")
        return task

    async def _give_up(self, seconds: float) -> None:
        """Wait for what ends with the engine, then end the work although others run on.

        Work that has ended by itself meanwhile is followed by `close`, which is not cut: it says goodbye in the log.
        """
        closing = self._pipeline.hurry(seconds)
        until = self._loop.time() + closing.left * SHARE
        while self._pipeline.is_ending and self._loop.time() < until:
            await asyncio.sleep(0.02)
        if not self._pipeline.is_closing:
            self._cut()

    def swallow(self) -> None:
        """Go on after the cancellation that gave the work up; one that others asked for is raised again."""
        if not self.given_up or self._work is None:
            raise asyncio.CancelledError
        self._work.uncancel()

    def _cut(self) -> None:
        self.given_up = True
        if self._work is not None:
            self._work.cancel()
