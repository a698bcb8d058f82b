"""Work beside the turns: what one engine has under way in tasks of its loop and waits for, and its alarm.

In come coroutines, each with what it does in words; out goes the end of each, and an error stops the engine. User
code that decisions rest on is evaluated here too: an error of it is an outcome.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any

from datatask.engine.core.effects import Evaluation
from datatask.engine.ports import Clock
from datatask.engine.runtime.calls import error_info
from datatask.engine.runtime.closing import call_off

STORES = "stores"
"""What is done to stores; told by store (`Followers.under_way`), not by task."""

Evaluate = Callable[[Evaluation], Awaitable[object]]


class Background:
    """The tasks of one engine. `ended` is called when one has ended, `failed` with the error of one that raised."""

    def __init__(self, ended: Callable[[], None], failed: Callable[[BaseException], None]) -> None:
        self._tasks: set[asyncio.Task[None]] = set()
        self._ended = ended
        self._failed = failed

    def __bool__(self) -> bool:
        """Whether anything is under way."""
        return bool(self._tasks)

    def spawn(self, work: Coroutine[Any, Any, None], doing: str = STORES) -> asyncio.Task[None]:
        """Begin something that the engine waits for before it ends."""
        task = asyncio.create_task(work, name=doing)
        self._tasks.add(task)
        task.add_done_callback(self._reaped)
        return task

    def _reaped(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._failed(error)
        else:
            self._ended()

    def under_way(self) -> set[str]:
        """Return what is done."""
        return {task.get_name() for task in self._tasks}

    async def some(self, seconds: float) -> None:
        """Wait until all of it has ended, for so long at most."""
        await asyncio.wait(list(self._tasks), timeout=seconds)

    async def call_off(self) -> None:
        """Cancel what is under way, and wait for its end."""
        await call_off(*self._tasks)


class Alarm:
    """Rings once, at the engine time set last."""

    def __init__(self, clock: Clock, ring: Callable[[], None]) -> None:
        self._clock = clock
        self._ring = ring
        self._at: int | None = None
        self._call_off: Callable[[], None] | None = None

    def set(self, at: int | None) -> None:
        """Ring at this time instead; with None, not at all."""
        if at == self._at:
            return
        if self._call_off is not None:
            self._call_off()
        self._at, self._call_off = at, None if at is None else self._clock.call_at(at, self._rings)

    def _rings(self) -> None:
        self._at = self._call_off = None
        self._ring()


async def evaluate_all(
    evaluate: Evaluate, evaluations: Sequence[Evaluation]
) -> list[tuple[Evaluation, object, str | None]]:
    """Evaluate user code, all at once; return each with its value, and the error of one that raised in words."""
    return await asyncio.gather(*(_evaluate_one(evaluate, evaluation) for evaluation in evaluations))


async def _evaluate_one(evaluate: Evaluate, evaluation: Evaluation) -> tuple[Evaluation, object, str | None]:
    try:
        return evaluation, await evaluate(evaluation), None
    except BaseException as error:  # a filter that calls sys.exit() is a filter that fails
        task = asyncio.current_task()
        if isinstance(error, KeyboardInterrupt) or (task is not None and task.cancelling()):
            raise
        info = error_info(error)
        return evaluation, None, f"{info.type}: {info.message}"[:1024]
