"""Runs that are calls in a `concurrent.futures` executor: threads, processes, or something else.

In: a task with its function, and its executor. Out: facts. A thread, or a worker process that
others use too, cannot be killed: when its time and grace are over its run ends and its writes are fenced off. A
worker process of ours alone is killed. Anything but a `ThreadPoolExecutor` gets pickled functions (`workers`,
`gateway`), which is right wherever it runs them: each asks before it begins, and may once.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import BrokenExecutor, Executor, Future
from functools import partial
from pathlib import Path
from typing import Any

from datatask.adapters.execute.base.pressure import EXECUTOR_AWAY, is_momentary
from datatask.adapters.execute.base.runner import TrackedRun, TrackedRuns
from datatask.adapters.execute.functions import remote, workers
from datatask.adapters.execute.functions.gateway import EngineGateway, pack
from datatask.adapters.execute.functions.in_process import FunctionTask
from datatask.adapters.execute.functions.making import Made, failure_of
from datatask.adapters.execute.functions.pools import Pool
from datatask.engine import capture
from datatask.engine.ports import Sink
from datatask.engine.run_context import RunContext, current_capture
from datatask.engine.runtime.calls import error_info, printed_by, stopped_message, stopped_outcome
from datatask.engine.runtime.services import current
from datatask.schema.events import Ending, ErrorInfo, StopReason
from datatask.schema.messages import Ended, Fact, Noticed, Printed, RunSpec, Unusable
from datatask.schema.units import SECOND

logger = logging.getLogger("datatask.task")

MISSING = "No module named 'datatask'"
QUEUED_SECONDS = 10.0
"""After so long it is told that the executor has a run and has not begun it."""
KILLED_SECONDS = 5.0
"""So long an executor may take to tell that a worker process of its was killed."""
LOST_SECONDS = 10.0
"""So long it may take to tell of a worker process that has ended; and a function, to end when its call is lost."""


class PoolRun(TrackedRun):
    """One run in the pool: an `Item`."""

    def __init__(self, runner: ExecutorRunner, spec: RunSpec) -> None:
        super().__init__(spec)
        self.runner = runner
        self.key = spec.task, spec.job
        self.call: workers.Call | None = None
        self.send: Callable[[Executor], Future[Any]] | None = None
        self.pid = 0
        self.place = (0, 0)
        self.ours = False
        self.started_at = 0
        self.timer: asyncio.TimerHandle | None = None
        self.lost: Ending | None = None
        self.begun = self.given_up = self.held = False

    def prepare(self) -> None:
        """Make what is submitted."""
        self.call = None
        self.send = self.runner.prepare(self)

    def submit(self, executor: Executor) -> Future[Any]:
        """Submit the call, in the form that the executor's workers need."""
        assert self.send is not None
        future = self.send(executor)
        if not callable(getattr(future, "add_done_callback", None)):
            raise TypeError(f"submit returned a {type(future).__name__}, which is no future")
        self.runner.submitted(self)
        return future

    def done(self, future: Future[Any]) -> None:
        """Take the outcome."""
        self.runner.finished(self, future)

    def failed(self, error: BaseException) -> None:
        """Nothing was begun."""
        self.runner.not_begun(self, error)

    def refused(self, error: BaseException) -> None:
        """Nothing was begun, and may be later."""
        self.runner.refused(self, error)

    def unusable(self, why: str) -> None:
        """Nothing was begun, and nothing will be."""
        self.call = None
        self.runner.unusable(why)


class ExecutorRunner:
    """One task's runs in a pool that it may share."""

    def __init__(self, task: FunctionTask, executor: Made) -> None:
        self._task, self._source = task, executor
        self._spooled: dict[int, list[Path]] = {}
        self._gateway: EngineGateway | None = None
        self._packed: tuple[bytes, str] | None = None
        self._arguments: dict[str, Any] | None = None
        self._where = ""

    async def open(self, sink: Sink) -> None:
        """Take part in the pool."""
        self._sink = sink
        self._loop = asyncio.get_running_loop()
        self._services = current()
        self._pool = Pool.of(self._source)
        self._pool.attach()
        capture.begin(current_capture)
        self._open, self._usable = True, True
        self._runs = TrackedRuns[PoolRun](self._task.name, self, self._tell)
        self._packed = self._arguments = None
        self._owned: dict[int, bool] = {}

    def _tell(self, fact: Fact) -> None:
        if self._open:
            self._sink(fact)

    def start(self, spec: RunSpec) -> None:
        """Put the run into the pool's queue, unless it is there."""
        if spec.run not in self._runs:
            self._runs.start(PoolRun(self, spec))

    def begin(self, run: PoolRun) -> None:
        """Have the pool take a run when it has a slot."""
        self._pool.put(run)

    def let_go(self, run: PoolRun) -> None:
        """Force no run that has ended."""
        if run.timer is not None:
            run.timer.cancel()
            run.timer = None

    def where(self, run: PoolRun) -> str:
        """Return what the workers are."""
        return self._where

    # --- begins -----------------------------------------------------------------------------------

    def prepare(self, run: PoolRun) -> Callable[[Executor], Future[Any]]:
        """Return what submits a run; raises what keeps it from being sent."""
        wants_job, names = self._task.parameters()
        func = self._task.called
        spec = run.spec
        if self._pool.threads:
            self._where = "thread"
            if self._arguments is None:
                links = self._task.links
                self._arguments = {name: workers.for_thread(links[name].repo, self._loop) for name in names}
            context = RunContext(spec.run, spec.task, spec.job, spec.conflicts, spec.logs)
            context.identities = spec.identities
            run.call = workers.Call(context, begun=partial(self._begun_in_thread, run))
            given = {"job": spec.job, **self._arguments} if wants_job else self._arguments
            return partial(_submit_to_threads, run.call, func, given)
        self._where = "executor"
        if self._gateway is None:
            self._gateway = EngineGateway(self._begins, self._gone, self._services)
        if self._packed is None:
            arguments = {name: self._task.links[name].repo for name in names}
            self._packed = pack(func, arguments, self._gateway)
        data, digest = self._packed
        parcel = workers.Parcel(
            data,
            digest,
            wants_job,
            spec.run,
            spec.task,
            spec.job,
            self._gateway.address,
            spec.conflicts,
            spec.logs,
            dict(spec.identities),
            dict(spec.variables),
        )
        return lambda executor: executor.submit(workers.work, parcel)

    def submitted(self, run: PoolRun) -> None:
        """The executor has a run, and has begun it or not."""
        self._runs.pressure.accepted(run.spec.run)
        if not run.begun and run.timer is None:
            run.timer = self._loop.call_later(QUEUED_SECONDS, self._still_queued, run)

    def _still_queued(self, run: PoolRun) -> None:
        text = f"the executor has it for {QUEUED_SECONDS:g} s and has not begun it"
        self._tell(Noticed(run.spec.run, "pending", "Queued", text))

    def _begun_in_thread(self, run: PoolRun) -> None:
        now = time.time_ns()  # noqa: TID251 - the runner's clock
        with contextlib.suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(self._begun, run, now, (os.getpid(), threading.get_ident()))

    def _begins(self, run_id: int, pid: int, thread: int, alone: bool) -> remote.Permit:
        """Say whether a call may begin: once, of a run that is still wanted, wherever the executor has it run."""
        run = self._runs.get(run_id)
        if run is None or run.reason is not None or run.held or run.begun or not self._open:
            return "no"
        if alone and pid not in self._owned:
            self._owned[pid] = pid != os.getpid() and self._pool.owns(pid)
        run.pid, run.ours = pid, alone and self._owned[pid]
        self._begun(run, time.time_ns(), (pid, thread))  # noqa: TID251 - the runner's clock
        return "ours" if run.ours else "shared"

    def _begun(self, run: PoolRun, now: int, place: tuple[int, int]) -> None:
        if not run.ended and self._open:
            if run.reason is None:
                self.let_go(run)
            run.started_at = now
            self._runs.started(run, {}, now)
        self._pool.begun(run, place)

    def not_begun(self, run: PoolRun, error: BaseException) -> None:
        """A run cannot be sent."""
        self._runs.failed(run, error)

    def refused(self, run: PoolRun, error: BaseException) -> None:
        """The executor does not take a run for the moment."""
        info = error_info(error)
        if is_momentary(error):
            self._runs.no_room(run, info.message)
        else:
            self._runs.no_room(run, f"{info.type}: {info.message}", EXECUTOR_AWAY)

    def unusable(self, why: str) -> None:
        """The executor takes nothing any more: jobs wait until the pipeline is opened with another one."""
        if self._usable:
            self._usable = False
            logger.error("%s: %s; its jobs wait", self._task.name, why)
        self._tell(Unusable(0, self._task.name, why))

    # --- ends -------------------------------------------------------------------------------------

    def finished(self, run: PoolRun, future: Future[Any]) -> None:
        """Turn what the executor gave back into the run's end."""
        if run.given_up:
            self._pool.returned()
        if run.ended:
            return
        failure = failure_of(future)
        outcome = None if failure is not None else future.result()
        if isinstance(outcome, workers.Outcome):
            self._finish(run, outcome)
        elif run.reason is not None:
            self._runs.end(run, self._stopped(run, run.reason))
        elif isinstance(outcome, workers.NotBegun) and outcome.why:
            self._refuse(run, outcome.why)
        elif failure is not None and MISSING in (words := error_info(failure)).traceback + words.message:
            self._refuse(
                run, "its worker cannot import datatask; install datatask-engine where the workers run"
            )
        else:
            self._lose(run, failure)

    def _finish(self, run: PoolRun, outcome: workers.Outcome) -> None:
        self._spooled[run.spec.run] = [write.source for write in outcome.writes if write.source is not None]
        if run.reason is not None:
            ending = self._stopped(run, run.reason)
        else:
            ending = Ending(
                outcome="succeeded" if outcome.error is None else "failed",
                error=outcome.error,
                detail=outcome.detail,
                started_at=outcome.started_at,
                ended_at=outcome.ended_at,
                usage={"cpu_seconds": outcome.cpu_seconds},
                reads=outcome.reads or None,
                where=self._where,
            )
        self._runs.end(run, ending, outcome.writes, outcome.printed)

    def _refuse(self, run: PoolRun, why: str) -> None:
        error = ErrorInfo(type="NotPossible", message=f"{run.spec.task}[{run.spec.job}]: {why}")
        self._runs.end(run, Ending(outcome="refused", error=error))

    def _lose(self, run: PoolRun, failure: BaseException | None) -> None:
        """The executor has no outcome of a call: end the run, when it is certain that its function has ended too."""
        ending = Ending(outcome="lost", error=self._blame(run, failure), started_at=run.started_at or None)
        if run.pid and self._gateway is not None and self._gateway.reaches(run.pid):
            run.lost = ending
            self._gateway.stop(run.spec.run, run.pid, "drop")
            if run.ours:
                self._kill(run)
            self.let_go(run)
            run.timer = self._loop.call_later(LOST_SECONDS, self._runs.end, run, ending)
        else:
            self._runs.end(run, ending)

    def _blame(self, run: PoolRun, failure: BaseException | None) -> ErrorInfo:
        if isinstance(failure, BrokenExecutor):
            others = self._pool.others(run)
            alone = "" if others else "; nothing else was running in the pool"
            again = "; the pool is made anew, the job runs again alone" if self._pool.remakes else ""
            text = f"a worker process of the pool died while this ran{alone}{again}"
            return ErrorInfo(type="WorkerDied", message=text)
        if failure is None:
            return ErrorInfo(
                type="WorkerDied", message="the executor began it again elsewhere, without an end"
            )
        info = error_info(failure)
        message = f"the executor lost it: {info.type}: {info.message}".rstrip(": ")
        return ErrorInfo(type="WorkerDied", message=message, traceback=info.traceback)

    def _gone(self, pid: int) -> None:
        """A worker process has let go: what it did has ended, and the executor tells of it soon, or never."""
        self._owned.pop(pid, None)
        self._pool.gone(pid)
        for run in self._runs:
            if run.pid != pid or run.ended:
                continue
            if run.lost is not None:
                self._runs.end(run, run.lost)
            elif run.reason is None:
                run.timer = self._loop.call_later(LOST_SECONDS, self._not_told, run)

    def _not_told(self, run: PoolRun) -> None:
        if not run.ended and run.reason is None:
            text = f"its worker process has ended, and the executor has not told of it in {LOST_SECONDS:g} s"
            error = ErrorInfo(type="WorkerDied", message=text)
            self._runs.end(run, Ending(outcome="lost", error=error, started_at=run.started_at or None))
            self._pool.give_up(run, gone=True)

    def _stopped(self, run: PoolRun, reason: StopReason, more: str = "") -> Ending:
        error = ErrorInfo(type="Stopped", message=stopped_message(reason) + more)
        return Ending(outcome=stopped_outcome(reason), error=error, started_at=run.started_at or None)

    # --- stops ------------------------------------------------------------------------------------

    def hold_back(self) -> list[int]:
        """Begin nothing more; what the executor has only queued does not begin."""
        self._pool.close()
        for run in self._runs:
            if not run.ended:
                run.held = self._withdraw(run)
        return [run.spec.run for run in self._runs if run.held and not run.ended]

    def _withdraw(self, run: PoolRun) -> bool:
        """Keep a run from beginning; whether it had not. A call that the executor keeps asks first, and hears no."""
        if run.begun:
            return False
        return self._runs.pressure.withdraw(run.spec.run) or self._pool.withdraw(run) or run.call is None

    def stop(self, run: int, reason: StopReason, grace: int) -> None:
        """Withdraw, or cancel, and when the grace is over kill the worker process or leave the call behind."""
        open_run = self._runs.get(run)
        if open_run is None or open_run.reason is not None:
            return
        open_run.reason = reason
        if open_run.held or self._withdraw(open_run):
            self._runs.end(open_run, self._stopped(open_run, reason))
            return
        if open_run.call is not None:
            open_run.call.cancel()
        elif self._gateway is not None:
            self._gateway.stop(run, open_run.pid, "cancel")
        self.let_go(open_run)
        open_run.timer = self._loop.call_later(grace / SECOND, self._force, open_run, reason)

    def _force(self, run: PoolRun, reason: StopReason) -> None:
        if run.ended:
            return
        if run.ours:
            self._kill(run)  # the executor tells of it, which ends this run and what else that breaks
            run.timer = self._loop.call_later(KILLED_SECONDS, self._killed, run, reason)
            return
        logger.warning("%s[%s] cannot be stopped; its %s is left behind", *run.key, self._where)
        writes: tuple[Any, ...] = ()
        if run.call is not None:
            writes = run.call.context.fence()
        elif self._gateway is not None:
            self._gateway.stop(run.spec.run, run.pid, "drop")
        run.given_up = True
        printed = () if run.call is None else printed_by(run.call.context)
        self._runs.end(run, self._stopped(run, reason, "; the function went on, fenced off"), writes, printed)
        self._pool.give_up(run)

    def _kill(self, run: PoolRun) -> None:
        if self._gateway is not None and self._gateway.reaches(run.pid):  # else it has ended
            self._pool.will_break()
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(run.pid, signal.SIGKILL)

    def _killed(self, run: PoolRun, reason: StopReason) -> None:
        if not run.ended:
            self._runs.end(run, self._stopped(run, reason))
            self._pool.give_up(run, gone=True)

    def printing(self) -> list[tuple[int, tuple[Printed, ...]]]:
        """Return what the open runs in threads have printed so far; processes tell with their ends."""
        calls = [(run.spec.run, run.call) for run in self._runs if run.call is not None and not run.ended]
        return [(number, found) for number, call in calls if (found := printed_by(call.context))]

    async def recover(self, specs: Iterable[RunSpec]) -> None:
        """End each run of an earlier engine as lost: its worker ended with that engine."""
        for spec in specs:
            text = "the function's worker ended with the engine, or is fenced off where others use it too; the job will be run again"
            error = ErrorInfo(type="Lost", message=text)
            self._tell(Ended(spec.run, Ending(outcome="lost", error=error)))

    def forget(self, run: int) -> None:
        """Remove the files that carried the run's large values."""
        self._runs.forget(run)
        for path in self._spooled.pop(run, ()):
            path.unlink(missing_ok=True)

    async def close(self, *, abandon: bool = False) -> None:
        """Withdraw what waits and kill the workers of what runs; its ends are not told."""
        self._open = False
        for run in self._runs:
            if run.ended:
                continue
            run.ended = True
            if run.timer is not None:
                run.timer.cancel()
            if self._pool.withdraw(run):
                continue
            if run.call is not None:
                run.call.context.fence()
                run.call.cancel()
            elif run.ours:
                self._kill(run)
        await self._runs.close()
        if self._gateway is not None:
            self._gateway.close()
            self._gateway = None
        await self._pool.detach()
        capture.end()


def _submit_to_threads(
    call: workers.Call, func: Callable[..., Any], given: dict[str, Any], executor: Executor
) -> Future[Any]:
    try:
        return executor.submit(call.make, func, given)
    except Exception:  # what cannot start a thread for it has it in its queue, and another thread may have it
        if (outcome := call.take_back()) is None:
            raise
        return outcome
