"""The runners of one engine, and the ends that they report.

In come the runners by task, and the open runs of the log. Each runner is opened once, asked for the runs of earlier
engines, and closed within its time; when it has accounted for those runs, its tasks may launch again. A failure caused
by a damaged value becomes an end of its own kind, and losses by a machine, node or service are logged once.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence

import msgspec

from datatask.engine.core.retry import by_machine
from datatask.engine.core.state import State
from datatask.engine.ports import Earlier, Runner, Sink, Sweeps, hold_back
from datatask.engine.runtime.closing import Closing
from datatask.engine.runtime.services import Background
from datatask.schema import events as e
from datatask.schema.errors import LogDamagedError, ValueDamagedError
from datatask.schema.events import MACHINE
from datatask.schema.messages import Ended, Fact, RunSpec

Recovered = Callable[[Iterable[str], Iterable[int]], None]
"""Hears the tasks of a runner, and the runs that it has accounted for."""


class Runners:
    """Several tasks may share a runner."""

    def __init__(self, by_task: Mapping[str, Runner], background: Background, recovered: Recovered) -> None:
        self.tasks = by_task.keys()
        self._by_task = by_task
        self._tasks_of: dict[Runner, list[str]] = {}
        for task, runner in by_task.items():
            self._tasks_of.setdefault(runner, []).append(task)
        self._background = background
        self._recovered = recovered
        self._recoveries: dict[Runner, asyncio.Task[None]] = {}
        self._opened = 0

    async def open(self, sink: Sink) -> None:
        """Let each get ready."""
        for runner in self._tasks_of:
            await runner.open(sink)

    def recover(self, specs: Mapping[str, Sequence[RunSpec]], state: State) -> set[str]:
        """Begin to account for the runs of earlier engines; return the tasks that are to wait for it."""
        waiting: set[str] = set()
        self._opened = state.position
        for runner, tasks in self._tasks_of.items():
            mine = [spec for task in tasks for spec in specs.get(task, ())]
            if mine:
                waiting.update(tasks)
                work = self._recover(runner, mine, state)
                self._recoveries[runner] = self._background.spawn(work, "runs of before")
            else:
                self._sweep(runner, state)
        return waiting

    async def _recover(self, runner: Runner, specs: Sequence[RunSpec], state: State) -> None:
        await runner.recover(specs)
        self._recovered(self._tasks_of[runner], [spec.run for spec in specs])
        self._sweep(runner, state)

    def _sweep(self, runner: Runner, state: State) -> None:
        """Have a runner let go of what earlier engines have left; what is open it has adopted before."""
        if isinstance(runner, Sweeps) and state.engine is not None:
            others = frozenset(self._by_task) - frozenset(self._tasks_of[runner])
            opened, runs = self._opened, state.open_runs
            over = Earlier(
                state.log, state.engine.epoch, others, lambda run: run < opened and run not in runs
            )
            runner.sweep(over)

    def hold_back(self, task: str) -> Iterable[int]:
        """Have a task's runner begin nothing more; return the runs that it has not begun."""
        return hold_back(self._by_task[task])

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


logger = logging.getLogger("datatask.engine")


class Losses:
    """Knows which losses by the doing of a machine this engine has logged: one line a task and reason, not one a run."""

    def __init__(self, state: State) -> None:
        self._state = state
        self._told: set[tuple[str, str]] = set()

    def see(self, fact: Fact) -> None:
        """Log the first such end of its task, before the state has taken it."""
        if not isinstance(fact, Ended) or not by_machine(fact.ending):
            return
        run, ending = self._state.open_runs.get(fact.run), fact.ending
        what = (run.task if run is not None else "", (ending.detail or {})[MACHINE])
        if run is None or run.stopping is not None or what in self._told:
            return
        self._told.add(what)
        logger.warning(
            "%s: run %d is run again after a pause, which grows, and so are others that end so; they use up no attempt: %s",
            run.task,
            run.run,
            "" if ending.error is None else ending.error.message,
        )


def judged(fact: Ended, *, log_damaged: bool) -> Ended:
    """Take a failure over a damaged value for what it is: no fault of the job's.

    As with an input: `lost` where it is the log that is damaged, and run when that is sound again; else `refused`.
    """
    error = fact.ending.error
    outcome: e.Outcome
    if error is None or fact.ending.outcome not in ("failed", "refused"):
        return fact
    if error.type == LogDamagedError.__name__ and log_damaged:
        outcome = "lost"
    elif error.type == ValueDamagedError.__name__:
        outcome = "refused"
    else:
        return fact
    return fact._replace(ending=msgspec.structs.replace(fact.ending, outcome=outcome))
