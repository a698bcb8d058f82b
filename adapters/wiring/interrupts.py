"""Signals while a pipeline works: the first Ctrl-C (or SIGTERM) drains, the second abandons, the third cuts off.

Draining launches nothing more and lets what runs end. Abandoning stops what cannot outlive the engine and
leaves the rest running, to be adopted by the next engine.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable
from typing import TYPE_CHECKING, Self, TypeVar

if TYPE_CHECKING:
    from datatask.adapters.wiring.pipeline import Pipeline

T = TypeVar("T")
ABANDON_SECONDS = 10.0


class Interrupts:
    """Turns signals into what a pipeline is to do; `count` is how many have come."""

    def __init__(self, pipeline: Pipeline, say: Callable[[str], None]) -> None:
        self.count = 0
        self._pipeline = pipeline
        self._say = say
        self._work: asyncio.Task[object] | None = None
        self._abandoning: asyncio.Task[None] | None = None

    def __enter__(self) -> Self:
        loop = asyncio.get_running_loop()
        for number, call in ((signal.SIGINT, self._interrupt), (signal.SIGTERM, self._terminate)):
            try:
                loop.add_signal_handler(number, call)
            except (ValueError, RuntimeError, NotImplementedError):
                return self  # not in the main thread: signals stay as they are
        self._work = asyncio.current_task()
        return self

    def __exit__(self, *_: object) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            try:
                loop.remove_signal_handler(number)
            except (ValueError, RuntimeError, NotImplementedError):
                return
        if self._abandoning is not None:
            self._abandoning.cancel()

    def _terminate(self) -> None:
        if not self.count:
            self._interrupt()

    def _interrupt(self) -> None:
        self.count += 1
        running = len(self._pipeline.state.open_runs)
        if self.count == 1:
            self._say(
                f"interrupted: launching nothing more, waiting for {running} that run; once more abandons them"
            )
            self._pipeline.interrupt("interrupted")
            self._pipeline.drain()
        elif self.count == 2:
            self._say(f"abandoning {running} that run; once more cuts off")
            self._pipeline.interrupt("abandoned")
            self._pipeline.abandon()
            self._abandoning = asyncio.create_task(self._give_up())
            self._pipeline.runtime.services.mind(self._abandoning, "the end of what was abandoned")
        elif self._work is not None:
            self._work.cancel()

    async def _give_up(self) -> None:
        """Wait for what ends with the engine, then end the work although others run on."""
        tasks = self._pipeline.tasks
        try:
            async with asyncio.timeout(ABANDON_SECONDS):
                while any(
                    run.task in tasks and not tasks[run.task].outlives
                    for run in self._pipeline.state.open_runs.values()
                ):
                    await asyncio.sleep(0.02)
        except TimeoutError:
            self._say("some runs do not stop; the next engine finds them open")
        if self._work is not None:
            self._work.cancel()
