"""The runners of one engine: each opened once, asked for the runs of earlier engines, and closed within its time.

In come the runners by task, and the runs that the log has open. Out goes, for each runner that has accounted for its
own, that its tasks may launch again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence

from datatask.engine.ports import Runner, Sink
from datatask.engine.runtime.background import Background
from datatask.engine.runtime.closing import Closing
from datatask.schema.messages import RunSpec

Recovered = Callable[[Iterable[str], Iterable[int]], None]
"""Hears the tasks of a runner, and the runs that it has accounted for."""


class Runners:
    """Several tasks may share a runner."""

    def __init__(self, by_task: Mapping[str, Runner], background: Background, recovered: Recovered) -> None:
        self.tasks = by_task.keys()
        self._tasks_of: dict[Runner, list[str]] = {}
        for task, runner in by_task.items():
            self._tasks_of.setdefault(runner, []).append(task)
        self._background = background
        self._recovered = recovered
        self._recoveries: dict[Runner, asyncio.Task[None]] = {}

    async def open(self, sink: Sink) -> None:
        """Let each get ready."""
        for runner in self._tasks_of:
            await runner.open(sink)

    def recover(self, specs: Mapping[str, Sequence[RunSpec]]) -> set[str]:
        """Begin to account for the runs of earlier engines; return the tasks that are to wait for it."""
        waiting: set[str] = set()
        for runner, tasks in self._tasks_of.items():
            mine = [spec for task in tasks for spec in specs.get(task, ())]
            if mine:
                waiting.update(tasks)
                work = self._recover(runner, mine)
                self._recoveries[runner] = self._background.spawn(work, "runs of before")
        return waiting

    async def _recover(self, runner: Runner, specs: Sequence[RunSpec]) -> None:
        await runner.recover(specs)
        self._recovered(self._tasks_of[runner], [spec.run for spec in specs])

    async def close(self, closing: Closing, *, abandon: bool) -> None:
        """Let them go, all at once; with `abandon` without what they run."""
        await asyncio.gather(*(self._close(runner, closing, abandon) for runner in self._tasks_of))

    async def _close(self, runner: Runner, closing: Closing, abandon: bool) -> None:
        tasks = ", ".join(self._tasks_of[runner])
        try:
            await closing.step(f"what runs {tasks}", runner.close(abandon=abandon))
        finally:
            if (recovery := self._recoveries.pop(runner, None)) is not None:
                recovery.cancel()  # no runner answers it any more
