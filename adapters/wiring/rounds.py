"""The rounds that an open engine works: until all is quiet, for ever, or one at a time.

In: an engine and its tasks. Out: an `Outcome`. Tasks with `launch` and `update` of their own are asked in each
round; all else the runtime does by itself between two rounds.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from functools import cached_property
from typing import NamedTuple

from datatask.adapters.wiring.engine import Engine
from datatask.engine.api.tasks import Task
from datatask.engine.runtime.closing import within
from datatask.schema.errors import DatataskError, TimeLimitError

BUSY_SECONDS = 0.005
OPAQUE_SECONDS = 1.0
CHECKPOINT_EVERY = 50_000


class Outcome(NamedTuple):
    """How a `run` ended: jobs whose last run failed, ready jobs that nothing can start (by reason), and why."""

    failed: int
    stuck: dict[str, int]
    interrupted: bool = False

    @property
    def exit_code(self) -> int:
        """Return the command line's exit code for it."""
        if self.interrupted:
            return 130
        return 1 if self.failed else 6 if self.stuck else 0


class Rounds:
    """The work of one engine."""

    def __init__(self, engine: Engine, tasks: Mapping[str, Task]) -> None:
        self._engine = engine
        self._tasks = tasks

    async def run(self, forever: bool, timeout: float | None, launch_once: bool) -> Outcome:
        """Work until all is quiet; `TimeLimitError` after `timeout` seconds."""
        work = self._run(forever, launch_once)
        if timeout is None:
            return await work
        try:
            return await within(timeout, work)
        except TimeoutError as error:
            if isinstance(error, DatataskError):
                raise
            self._engine.runtime.launching = False
            self._engine.refuse_damage()
            raise TimeLimitError(
                f"not quiet after {timeout:g} s", remedy="run again: it goes on where it was"
            ) from None

    async def _run(self, forever: bool, launch_once: bool) -> Outcome:
        engine = self._engine
        runtime, observer = engine.runtime, engine.observer
        runtime.launching = not engine.draining
        runtime.mode = "launch-once" if launch_once else "run"
        await observer.sync(observer.unwatched())
        if launch_once and runtime.launching:
            runtime.turn()
            runtime.launching = False
        try:
            while True:
                live = await self._update_opaque()
                await runtime.quiet() if not live else await asyncio.sleep(OPAQUE_SECONDS)
                await engine.checkpoint(CHECKPOINT_EVERY)
                busy = observer.busy and not engine.draining
                if live or busy or not runtime.is_quiet():
                    await asyncio.sleep(BUSY_SECONDS)
                    continue
                if engine.draining or not forever:
                    before = runtime.state.position
                    live = await self._update_opaque()
                    await observer.sync(observer.unwatched())
                    while observer.busy and not engine.draining and runtime.failure is None:
                        await asyncio.sleep(BUSY_SECONDS)
                    if not live and runtime.state.position == before and runtime.is_quiet():
                        engine.refuse_damage()
                        return self.outcome()
                else:
                    await self._next_event()
        finally:
            runtime.launching = False
            runtime.mode = "run"

    async def _next_event(self) -> None:
        """Wait until something is appended, with a look at the quiet now and then."""
        runtime = self._engine.runtime
        before = runtime.state.position
        for _ in range(20):
            await asyncio.sleep(0.05)
            if runtime.state.position != before or self._engine.draining or runtime.failure is not None:
                return
        await self._engine.checkpoint(CHECKPOINT_EVERY)

    @cached_property
    def _opaque(self) -> list[Task]:
        return [task for task in self._tasks.values() if task.opaque]

    async def _update_opaque(self) -> bool:
        live = False
        for task in self._opaque:
            live = await task.update() or live
        return live

    async def round(self, *, look: bool = True, launch: bool = True) -> bool:
        """Look at the world and launch what may start, once; returns whether anything is live or was done."""
        engine = self._engine
        runtime, observer = engine.runtime, engine.observer
        before = runtime.state.position
        live = False
        if look:
            live = await self._update_opaque()
            await observer.sync(observer.unwatched())
        runtime.mode = "update"
        self._launch_now(launch)
        if look and observer.awaited():  # a slow store holds up no task but those that read it
            await observer.known()
            self._launch_now(launch)
        await runtime.flushed()
        await asyncio.sleep(0)
        engine.refuse_damage()
        return live or bool(runtime.state.open_runs) or runtime.state.position != before

    def _launch_now(self, launch: bool) -> None:
        runtime = self._engine.runtime
        runtime.launching = launch and not self._engine.draining
        runtime.turn()
        runtime.launching = False

    def outcome(self) -> Outcome:
        """Return how things stand: failed jobs, and ready jobs that nothing can start, by reason."""
        state, draining = self._engine.runtime.state, self._engine.draining
        stuck: dict[str, int] = {}
        if not draining:
            for task in state.tasks.values():
                if waiting := len(task.queue) + len(task.awaiting):
                    stuck[f"{task.name}: {task.constraint or 'evaluation'}"] = waiting
            for key, pending in state.pending.items():
                if pending.error and key.what in ("filter", "translation"):
                    reason = f"{key.owner}: its {key.what} raises {pending.error:.200}"
                    stuck[reason] = stuck.get(reason, 0) + 1
        return Outcome(sum(task.failed.count for task in state.tasks.values()), stuck, draining)
