"""How an open engine works: until all is quiet, for ever, or one round; and how signals end that.

In: an engine and its tasks; signals. Out: an `Outcome`. Tasks with their own `launch` and `update` are asked in each round. The
first Ctrl-C (or SIGTERM) drains: it launches nothing more, takes back queued runs and waits for open ones, within the grace.
The second abandons: what cannot outlive the engine is stopped, the rest is left to the next engine. The third ends the process,
and so does `guard` where anything hangs.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Coroutine, Mapping
from contextlib import suppress
from functools import cached_property
from types import FrameType
from typing import Any, NamedTuple, Protocol, Self

from datatask.adapters.execute.base import shutdowns
from datatask.adapters.wiring.choosing import Choice, check_names
from datatask.adapters.wiring.engine import Engine
from datatask.adapters.wiring.last_bound import Guard
from datatask.engine.api.tasks import Task
from datatask.engine.core.selection import Chosen
from datatask.engine.core.state import State
from datatask.engine.core.tasks import TaskState
from datatask.engine.runtime.closing import SHARE, Closing, within
from datatask.engine.runtime.loop import Runtime
from datatask.schema.definition import Selection
from datatask.schema.errors import DatataskError, InvalidValueError, TimeLimitError, UnknownNameError

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
        self._chosen: Selection | None = None

    async def run(self, forever: bool, timeout: float | None, launch_once: bool, choice: Choice) -> Outcome:
        """Work until all that is chosen is quiet; `TimeLimitError` after `timeout` seconds."""
        if forever and choice.limit is not None:
            raise InvalidValueError(
                "a run for ever with a limit would wait for nothing", remedy="leave out one of the two"
            )
        self._chosen = choice.selection(self._engine.runtime.state)
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
        runtime.mode = "launch-once" if launch_once else "run"
        runtime.selection = self._chosen
        await self._check_names()
        runtime.launching = not engine.draining
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
                    if not engine.draining:
                        await engine.caught_up()
                    while observer.busy and not engine.draining and runtime.failure is None:
                        await asyncio.sleep(BUSY_SECONDS)
                    if not live and runtime.state.position == before and runtime.is_quiet():
                        engine.refuse_damage()
                        return self.outcome()
                else:
                    await self._next_event()
        finally:
            runtime.launching = False
            runtime.mode, runtime.selection = "run", None

    async def _check_names(self) -> None:
        """Refuse names of jobs that are nowhere, once all stores are known."""
        runtime, observer, chosen = self._engine.runtime, self._engine.observer, self._chosen
        if chosen is None:
            return
        with suppress(UnknownNameError):
            check_names(runtime.state, chosen)
            return
        await observer.sync(observer.unwatched())
        await observer.known()
        check_names(runtime.state, chosen)

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
        """Return how things stand with what was chosen: failed jobs, and ready jobs that nothing can start, by reason."""
        runtime, draining = self._engine.runtime, self._engine.draining
        state, chosen = runtime.state, self._chosen
        jobs = None if chosen is None or chosen.jobs is None else Chosen(state, chosen.jobs)
        tasks = [
            task
            for task in state.tasks.values()
            if chosen is None or not chosen.tasks or task.name in chosen.tasks
        ]
        stuck: dict[str, int] = {}
        if not draining and not (runtime.selection is not None and runtime.selection.left == 0):
            for task in tasks:
                if waiting := _waiting(task, jobs, runtime.now()):
                    stuck[f"{task.name}: {task.constraint or 'evaluation'}"] = waiting
            for key, pending in state.pending.items():
                if pending.error and key.what in ("filter", "translation"):
                    reason = f"{key.owner}: its {key.what} raises {pending.error:.200}"
                    stuck[reason] = stuck.get(reason, 0) + 1
        return Outcome(sum(_failed(state, task, jobs) for task in tasks), stuck, draining)


def _waiting(task: TaskState, jobs: Chosen | None, now: int) -> int:
    due = [job for job, own in task.episodes.items() if not own.run and (own.not_before or now + 1) <= now]
    if jobs is None:
        return len(task.queue) + len(task.awaiting) + len(due)
    return sum(1 for _ in jobs.of(task.queue)) + sum(job in jobs for job in (*task.awaiting, *due))


def _failed(state: State, task: TaskState, jobs: Chosen | None) -> int:
    if jobs is None:
        return task.failed.count
    return sum(job in jobs for job in task.failed.members(state.masks))


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
