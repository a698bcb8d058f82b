"""Runs that are calls on the event loop: one asyncio task a run, and nothing that it does gets out.

In: `RunSpec`s from the engine, and the coroutine function that is the run. Out: `Started`, and `Ended` with
what the run wrote through its repositories. A call that is to stop is cancelled; one that is still there when
its grace is over is fenced off and reported as ended all the same. A call that blocks the loop cannot be
stopped from outside: a watchdog thread names it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import sys
import threading
import time
import traceback
import weakref
from collections.abc import Awaitable, Callable, Iterable
from typing import ClassVar

from datatask.engine import capture
from datatask.engine.ports import Sink
from datatask.engine.run_context import RunContext, current_capture, current_run
from datatask.engine.runtime import closing
from datatask.engine.runtime.closing import leave_behind
from datatask.schema.events import Ending, ErrorInfo, Outcome, StopReason
from datatask.schema.messages import Ended, Printed, RunSpec, Started, Write
from datatask.schema.units import SECOND
from datatask.schema.values import storable

logger = logging.getLogger("datatask.task")

BLOCKED_SECONDS = 5.0
MESSAGE_MAX = 4_096
BASES_MAX = 16
TRACE_MAX = 16_384

LISTING = "the listing of "
"""How the tasks are named that list stores; those of users may block the loop too."""

Call = Callable[[RunSpec], Awaitable[object]]


def stopped_outcome(reason: StopReason) -> Outcome:
    """Return how a run ends that was stopped for this reason."""
    return "timed_out" if reason == "timeout" else "cancelled"


def stopped_message(reason: StopReason) -> str:
    """Return the reason in words."""
    words = {
        "timeout": "its time was up",
        "shutdown": "the engine was shut down",
        "deleted": "it was deleted",
    }
    return f"stopped: {words.get(reason, 'it was cancelled')}"


def error_info(error: BaseException, *, skip: int = 0) -> ErrorInfo:
    """Return type, text and trace of an exception, cut to a bounded size; nothing it defines can raise here."""
    try:
        message = str(error)
    except BaseException as second:
        message = f"(its text cannot be had: {type(second).__name__})"
    try:
        trace = error.__traceback__
        for _ in range(skip):
            trace = trace.tb_next if trace is not None and trace.tb_next is not None else trace
        lines = "".join(traceback.format_exception(type(error), error, trace))
    except BaseException:
        lines = ""
    kind = type(error)
    bases = tuple(
        base.__name__ for base in kind.__mro__[1:] if issubclass(base, Exception) and base is not Exception
    )
    return ErrorInfo(
        type=kind.__name__,
        message=message[:MESSAGE_MAX],
        traceback=lines[-TRACE_MAX:],
        bases=bases[:BASES_MAX],
    )


def error_detail(error: BaseException, info: ErrorInfo) -> dict[str, str] | None:
    """Return `{"exception": repr}` where type and text do not give the repr, else None."""
    try:
        shown = storable(repr(error)[:MESSAGE_MAX])
    except BaseException:
        return None
    plain = f"{info.type}({info.message!r})" if info.message else f"{info.type}()"
    return None if shown == plain else {"exception": shown}


def printed_by(context: RunContext) -> tuple[Printed, ...]:
    """Return what a run's function has printed."""
    return () if context.printed is None else context.printed.printed()


class _OpenCall:
    """One run: its asyncio task, and why it is being stopped if it is."""

    __slots__ = ("context", "reason", "started_at", "task", "timer")

    def __init__(self, context: RunContext) -> None:
        self.context = context
        self.started_at = 0
        self.task: asyncio.Task[None] | None = None
        self.reason: StopReason | None = None
        self.timer: asyncio.TimerHandle | None = None


class CallRunner:
    """Runs `call(spec)` for each run; `outcome` is what a normal return means.

    A `contained` run collects its writes, to be recorded with its end; one that is not writes for itself.
    """

    def __init__(
        self,
        name: str,
        call: Call,
        *,
        outcome: Outcome = "succeeded",
        contained: bool = True,
        where: str = "",
    ) -> None:
        self.name = name
        self._call = call
        self._outcome: Outcome = outcome
        self._contained = contained
        self._where = where
        self._runs: dict[int, _OpenCall] = {}
        self._abandoned: set[asyncio.Task[None]] = set()
        self._sink: Sink = _no_sink
        self._closed = False

    async def open(self, sink: Sink) -> None:
        """Take the sink and the running loop."""
        self._sink = sink
        self._loop = asyncio.get_running_loop()
        self._closed = False
        closing.guard(self._loop)
        capture.begin(current_capture)
        _Watchdog.of(self._loop).watch(self)

    def start(self, spec: RunSpec) -> None:
        """Make the run's asyncio task, unless there is one."""
        if spec.run not in self._runs:
            context = RunContext(spec.run, spec.task, spec.job, spec.conflicts, spec.logs)
            context.identities = spec.identities
            run = self._runs[spec.run] = _OpenCall(context)
            run.task = self._loop.create_task(self._run(spec, run))
            run.task.add_done_callback(self._gone)

    def _gone(self, task: asyncio.Task[None]) -> None:
        """Tell of a run that is lost: the function is no longer there, and what was to tell of its end failed itself."""
        error = None if task.cancelled() else task.exception()
        if error is None or self._closed:
            return
        for number, run in self._runs.items():
            if run.task is task:
                del self._runs[number]
                self._sink(Ended(number, self._ending(run, "lost", error_info(error, skip=1))))
                return

    async def _run(self, spec: RunSpec, run: _OpenCall) -> None:
        run.started_at = time.time_ns()  # noqa: TID251 - the runner's clock
        if self._contained:
            current_run.set(run.context)
        self._sink(Started(spec.run, {}, self._where, run.started_at))
        outcome: Outcome = self._outcome
        error: ErrorInfo | None = None
        detail: dict[str, str] | None = None
        writes: tuple[Write, ...] = ()
        pid = os.getpid()
        try:
            try:
                await self._call(spec)
            finally:
                closing.returned(pid, f"{spec.task} {spec.job}")
            writes = await run.context.settle() if self._contained else ()
        except BaseException as caught:
            if self._closed:  # the loop is going down; a later engine will find this run open
                return
            writes = run.context.fence()
            caught = run.context.damage or caught
            outcome, error = "failed", error_info(caught, skip=1)
            detail = error_detail(caught, error)
            if isinstance(caught, asyncio.CancelledError) and run.reason is None and not error.message:
                error = ErrorInfo(type="CancelledError", message="something cancelled the function itself")
                detail = None
        if spec.run not in self._runs:
            return
        if run.reason is not None:
            outcome = stopped_outcome(run.reason)
            trace = error.traceback if error is not None else ""
            error, detail = (
                ErrorInfo(type="Stopped", message=stopped_message(run.reason), traceback=trace),
                None,
            )
        if run.timer is not None:
            run.timer.cancel()
        ended = Ended(spec.run, self._ending(run, outcome, error, detail), writes, printed_by(run.context))
        if run.task is not None:  # the loop has no callback to call then, which costs more than this
            run.task.remove_done_callback(self._gone)
        del self._runs[spec.run]
        self._sink(ended)

    def _ending(
        self, run: _OpenCall, outcome: Outcome, error: ErrorInfo | None, detail: dict[str, str] | None = None
    ) -> Ending:
        return Ending(
            outcome=outcome,
            error=error,
            detail=detail,
            started_at=run.started_at or None,
            ended_at=time.time_ns(),  # noqa: TID251 - the runner's clock
            reads=run.context.reads or None,
            where=self._where,
        )

    def stop(self, run: int, reason: StopReason, grace: int) -> None:
        """Cancel the run's asyncio task; when the grace is over, end the run whether or not it is gone."""
        open_run = self._runs.get(run)
        if open_run is None or open_run.reason is not None or open_run.task is None:
            return
        open_run.reason = reason
        open_run.task.cancel()
        if not open_run.started_at:  # cancelled before its first step, which then never comes
            del self._runs[run]
            error = ErrorInfo(type="Stopped", message=stopped_message(reason))
            self._sink(Ended(run, self._ending(open_run, stopped_outcome(reason), error)))
            return
        open_run.timer = self._loop.call_later(grace / SECOND, self._abandon, run)

    def _abandon(self, run: int) -> None:
        open_run = self._runs.pop(run, None)
        if open_run is None or open_run.reason is None:
            return
        job = open_run.context.job
        if open_run.task is not None:  # asyncio.run waits for all tasks that it knows, for this one for ever
            self._abandoned.add(open_run.task)
            open_run.task.add_done_callback(self._abandoned.discard)
            leave_behind(open_run.task)
        logger.warning("%s[%s] does not end although it was cancelled; it is fenced off", self.name, job)
        message = (
            f"{stopped_message(open_run.reason)}; the function went on, fenced off from its repositories"
        )
        error = ErrorInfo(type="Stopped", message=message)
        writes = open_run.context.fence()
        ending = self._ending(open_run, stopped_outcome(open_run.reason), error)
        self._sink(Ended(run, ending, writes, printed_by(open_run.context)))

    async def recover(self, specs: Iterable[RunSpec]) -> None:
        """End each run of an earlier engine as lost: its function died with that engine's process."""
        for spec in specs:
            error = ErrorInfo(
                type="Lost", message="the function died with the engine's process; the job will be run again"
            )
            self._sink(Ended(spec.run, Ending(outcome="lost", error=error, where=self._where)))

    def forget(self, run: int) -> None:
        """Nothing is kept."""

    async def close(self, *, abandon: bool = False) -> None:
        """Cancel what runs; its ends are not told, so that the next engine accounts for it."""
        self._closed = True
        tasks = [run.task for run in self._runs.values() if run.task is not None]
        for run in self._runs.values():
            run.context.fence()
            if run.timer is not None:
                run.timer.cancel()
        self._runs.clear()
        for task in tasks:
            task.cancel()
        if tasks:
            _, left = await asyncio.wait(tasks, timeout=0.2 if abandon else 1.0)
            for task in left:
                leave_behind(task)
        _Watchdog.of(self._loop).unwatch(self)
        capture.end()

    def printing(self) -> list[tuple[int, tuple[Printed, ...]]]:
        """Return what the open runs have printed so far, where any has."""
        return [(number, found) for number, run in self._runs.items() if (found := printed_by(run.context))]

    def open_calls(self) -> dict[asyncio.Task[None], str]:
        """Return the asyncio tasks of the open runs and what to call them."""
        runs = list(self._runs.values())
        return {run.task: f"{self.name}[{run.context.job}]" for run in runs if run.task is not None}


def _no_sink(fact: object) -> None:
    raise RuntimeError("the runner is not open")


class _Watchdog:
    """A thread that sees whether the loop still turns, and names the run that keeps it from turning."""

    _of: ClassVar[weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, _Watchdog]] = (
        weakref.WeakKeyDictionary()
    )

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = weakref.ref(loop)
        self._loop_thread = threading.get_ident()
        self._runners: set[CallRunner] = set()
        self._beat = time.monotonic()
        self._end = threading.Event()

    @classmethod
    def of(cls, loop: asyncio.AbstractEventLoop) -> _Watchdog:
        """Return the loop's watchdog."""
        return cls._of.setdefault(loop, cls(loop))

    def watch(self, runner: CallRunner) -> None:
        """Watch for this runner too."""
        self._runners.add(runner)
        if len(self._runners) == 1:
            self._end = threading.Event()
            self._beat = time.monotonic()
            threading.Thread(
                target=self._watch, args=(self._end,), name="datatask-watchdog", daemon=True
            ).start()

    def unwatch(self, runner: CallRunner) -> None:
        """End with the last runner."""
        self._runners.discard(runner)
        if not self._runners:
            self._end.set()

    def _turned(self) -> None:
        self._beat = time.monotonic()

    def _watch(self, end: threading.Event) -> None:
        reported = 0.0
        while not end.wait(min(1.0, BLOCKED_SECONDS / 4)):
            loop = self._loop()
            if loop is None or loop.is_closed():
                return
            silent = time.monotonic() - self._beat
            if silent > BLOCKED_SECONDS and self._beat != reported:
                reported = self._beat
                with contextlib.suppress(Exception):  # what it looks at may change meanwhile
                    self._name(loop, silent)
            try:
                loop.call_soon_threadsafe(self._turned)
            except RuntimeError:
                return

    def _name(self, loop: asyncio.AbstractEventLoop, silent: float) -> None:
        current = asyncio.current_task(loop)
        names = [runner.open_calls().get(current) for runner in tuple(self._runners)] if current else []
        name = next((name for name in names if name), None)
        if name is None and current is not None and current.get_name().startswith(LISTING):
            name = current.get_name()
        if name is None:
            return
        frame = sys._current_frames().get(self._loop_thread)
        where = "".join(traceback.format_stack(frame, limit=6)) if frame is not None else ""
        logger.warning(
            "%s has blocked the event loop for %.0f s: nothing else runs, and it cannot be stopped. "
            "Await instead of blocking, or use an ExecutorTask.\n%s",
            name,
            silent,
            where,
        )
