"""Tasks whose runs are calls in a `concurrent.futures` executor: threads, processes, or something else.

In: a plain or async function and the executor, or what makes one. Out: facts. A thread cannot be killed: when
its time and grace are over its run ends, its writes are fenced off and its slot is replaced; Python waits for
it when the program ends. A worker process is killed instead, and the pool is made anew. Anything but a
`ThreadPoolExecutor` gets pickled functions (`workers`, `gateway`), which is right wherever it runs them.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import logging
import os
import signal
import time
from collections.abc import Callable, Iterable
from concurrent.futures import BrokenExecutor, Executor, Future
from pathlib import Path
from typing import Any

from datatask.adapters.execute.base.pressure import Pressure, is_momentary
from datatask.adapters.execute.functions import workers
from datatask.adapters.execute.functions.gateway import EngineGateway, pack
from datatask.adapters.execute.functions.in_process import FunctionTask
from datatask.adapters.execute.functions.pools import Made, Pool
from datatask.engine.api.repositories import MetadataRepository, Repository
from datatask.engine.api.tasks import Retry
from datatask.engine.ports import Runner, Sink
from datatask.engine.run_context import RunContext
from datatask.engine.runtime.calls import error_info, stopped_message, stopped_outcome
from datatask.engine.runtime.services import current
from datatask.schema.definition import Conflicts
from datatask.schema.errors import TemporaryError, expect
from datatask.schema.events import Ending, ErrorInfo, StopReason
from datatask.schema.messages import Ended, Fact, RunSpec, Started, Write
from datatask.schema.units import SECOND

logger = logging.getLogger("datatask.executors")

CONCURRENCY = 32


class ExecutorTask(FunctionTask):
    """A task that runs a function in an executor.

    Links `live` (status, inhibits_start, inhibits_output; deleting from it cancels) and `done` (status,
    inhibits_start, required_for_output). `concurrency` is twice the executor's workers by default, 32 where
    they are not known. An executor made by the given function is shut down with the pipeline.
    """

    def __init__(
        self,
        name: str,
        executor: Made,
        done: MetadataRepository,
        ready: Repository | None = None,
        func: Callable[..., Any] | None = None,
        *,
        disabled: bool = False,
        retry: Retry | None = None,
        timeout: float | dt.timedelta | None = None,
        grace: float | dt.timedelta = 10.0,
        concurrency: int | None = None,
        repeat: bool = False,
        was: str | None = None,
        conflicts: Conflicts = "rerun",
    ) -> None:
        pool = Pool.of(executor)
        if concurrency is None:
            known = pool.slots if isinstance(executor, Executor) else None
            concurrency = CONCURRENCY if known is None else 2 * known
        super().__init__(
            name,
            ready,
            func,
            disabled=disabled,
            retry=retry,
            timeout=timeout,
            grace=grace,
            concurrency=concurrency,
            repeat=repeat,
            was=was,
            conflicts=conflicts,
        )
        expect(self, Repository, done=done)
        self.executor = executor
        self.done = done
        self.link("live", self.live, is_status=True, inhibits_start=True, inhibits_output=True)
        self.link("done", done, is_status=True, inhibits_start=True, required_for_output=True)

    def _make_runner(self) -> Runner:
        return ExecutorRunner(self)


class _Run:
    """One run in the pool: an `Item`."""

    def __init__(self, runner: ExecutorRunner, spec: RunSpec) -> None:
        self.runner = runner
        self.spec = spec
        self.key = spec.task, spec.job
        self.call: workers.Call | None = None
        self.pid = 0
        self.started_at = 0
        self.reason: StopReason | None = None
        self.timer: asyncio.TimerHandle | None = None
        self.told = False
        self.given_up = False
        self.held = False

    def submit(self, executor: Executor) -> Future[Any]:
        """Submit the call, in the form that the executor's workers need."""
        future = self.runner.submit(self, executor)
        if not self.started_at:
            self.started_at = time.time_ns()  # noqa: TID251 - the runner's clock
            self.runner.accepted(self.spec.run)
            self.runner.tell(Started(self.spec.run, {}, self.runner.where, self.started_at))
        return future

    def done(self, future: Future[Any]) -> None:
        """Take the outcome."""
        self.runner.finished(self, future)

    def failed(self, error: BaseException) -> None:
        """Nothing was begun."""
        self.runner.not_begun(self, error)


class ExecutorRunner:
    """One task's runs in a pool that it may share."""

    def __init__(self, task: ExecutorTask) -> None:
        self._task = task
        self._runs: dict[int, _Run] = {}
        self._spooled: dict[int, list[Path]] = {}
        self._gateway: EngineGateway | None = None
        self._packed: tuple[bytes, str] | None = None
        self._arguments: dict[str, Any] | None = None
        self.where = ""

    async def open(self, sink: Sink) -> None:
        """Take part in the pool."""
        self._sink = sink
        self._loop = asyncio.get_running_loop()
        self._services = current()
        self._pool = Pool.of(self._task.executor)
        self._pool.attach()
        self._open = True
        self._pressure = Pressure(self._task.name, self.tell)
        self._packed = self._arguments = None

    def tell(self, fact: Fact) -> None:
        """Hand a fact to the engine."""
        if self._open:
            self._sink(fact)

    def accepted(self, run: int) -> None:
        """The executor has taken a run."""
        self._pressure.accepted(run)

    def start(self, spec: RunSpec) -> None:
        """Put the run into the pool's queue, unless it is there."""
        if spec.run not in self._runs:
            run = self._runs[spec.run] = _Run(self, spec)
            self._pressure.admit(spec.run, lambda: self._pool.put(run))

    def submit(self, run: _Run, executor: Executor) -> Future[Any]:
        """Submit a run; raises what keeps it from being sent."""
        wants_job, names = self._task.parameters()
        func: Callable[..., Any] = self._task.func  # type: ignore[assignment]  # parameters() has seen it
        spec = run.spec
        if self._pool.threads:
            self.where = "thread"
            if self._arguments is None:
                links = self._task.links
                self._arguments = {name: workers.for_thread(links[name].repo, self._loop) for name in names}
            run.call = workers.Call(RunContext(spec.run, spec.task, spec.job, spec.conflicts))
            given = {"job": spec.job, **self._arguments} if wants_job else self._arguments
            return executor.submit(run.call.make, func, given)
        self.where = "executor"
        if self._gateway is None:
            self._gateway = EngineGateway(self._begun, self._services)
        if self._packed is None:
            arguments = {name: self._task.links[name].repo for name in names}
            self._packed = pack(func, arguments, self._gateway)
        data, digest = self._packed
        parcel = workers.Parcel(
            data, digest, wants_job, spec.run, spec.task, spec.job, self._gateway.address, spec.conflicts
        )
        return executor.submit(workers.work, parcel)

    def _begun(self, run_id: int, pid: int) -> None:
        run = self._runs.get(run_id)
        if run is not None:
            run.pid = pid
            if run.reason is not None and self._gateway is not None:
                self._gateway.cancel(run_id, pid)

    # --- ends -------------------------------------------------------------------------------------

    def finished(self, run: _Run, future: Future[Any]) -> None:
        """Turn what the executor gave back into the run's end."""
        if run.given_up:
            self._pool.returned()
        if run.told:
            return
        failure = future.exception()
        if failure is None and isinstance(outcome := future.result(), workers.Outcome):
            self._finish(run, outcome)
        elif run.reason is not None:
            self._end(run, self._stopped(run, run.reason))
        elif isinstance(failure, BrokenExecutor):
            self._end(run, Ending(outcome="lost", error=self._blame(run), started_at=run.started_at))
        else:
            error = ErrorInfo(type="Executor", message="the executor gave back something of its own")
            if failure is not None:
                error = error_info(failure)
            self._end(run, Ending(outcome="failed", error=error, started_at=run.started_at))

    def _finish(self, run: _Run, outcome: workers.Outcome) -> None:
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
                where=self.where,
            )
        self._end(run, ending, outcome.writes)

    def _blame(self, run: _Run) -> ErrorInfo:
        others = self._pool.others(run)
        alone = "" if others else "; nothing else was running in the pool"
        text = f"a worker process of the pool died while this ran{alone}; the pool is made anew, the job runs again alone"
        return ErrorInfo(type="WorkerDied", message=text)

    def not_begun(self, run: _Run, error: BaseException) -> None:
        """End a run that the executor did not take."""
        info = error_info(error)
        if is_momentary(error) and run.reason is None:
            if run.call is not None:
                run.call.cancel()  # an executor that cannot start a thread for it has it in its queue
            self._pressure.refused(run.spec.run, lambda: self._pool.put(run), info.message)
            return
        temporary = isinstance(error, TemporaryError | OSError)
        shown = ErrorInfo(type=info.type, message=f"{run.spec.task}[{run.spec.job}]: {info.message}")
        self._end(run, Ending(outcome="lost" if temporary else "refused", error=shown))

    def _stopped(self, run: _Run, reason: StopReason, more: str = "") -> Ending:
        error = ErrorInfo(type="Stopped", message=stopped_message(reason) + more)
        return Ending(outcome=stopped_outcome(reason), error=error, started_at=run.started_at or None)

    def _end(self, run: _Run, ending: Ending, writes: tuple[Write, ...] = ()) -> None:
        run.told = True
        self._runs.pop(run.spec.run, None)
        self._pressure.accepted(run.spec.run)
        self._pressure.freed()
        if run.timer is not None:
            run.timer.cancel()
        if ending.ended_at is None:
            ending = Ending(
                outcome=ending.outcome,
                error=ending.error,
                started_at=ending.started_at,
                ended_at=time.time_ns(),  # noqa: TID251 - the runner's clock
                where=self.where,
            )
        self.tell(Ended(run.spec.run, ending, writes))

    def hold_back(self) -> list[int]:
        """Begin nothing more; what the executor has only queued is taken out of it."""
        for id, run in self._runs.items():
            run.held = self._pressure.withdraw(id) or (not run.told and not run.pid and self._pool.hold(run))
        return [id for id, run in self._runs.items() if run.held]

    def stop(self, run: int, reason: StopReason, grace: int) -> None:
        """Withdraw, or cancel, and when the grace is over kill the worker process or leave the thread behind."""
        open_run = self._runs.get(run)
        if open_run is None or open_run.reason is not None:
            return
        open_run.reason = reason
        if (
            open_run.held
            or self._pressure.withdraw(run)
            or (not open_run.pid and self._pool.withdraw(open_run))
        ):
            self._end(open_run, self._stopped(open_run, reason))
            return
        if open_run.call is not None:
            open_run.call.cancel()
        elif open_run.pid and self._gateway is not None:
            self._gateway.cancel(run, open_run.pid)
        open_run.timer = self._loop.call_later(grace / SECOND, self._force, open_run, reason)

    def _force(self, run: _Run, reason: StopReason) -> None:
        if run.told:
            return
        if run.pid and run.pid != os.getpid():
            self._pool.will_break()
            with contextlib.suppress(ProcessLookupError):
                os.kill(run.pid, signal.SIGKILL)
            return  # the pool tells that it broke, which ends this run and the others
        logger.warning("%s[%s] cannot be stopped; its thread is left behind", *run.key)
        writes = run.call.context.fence() if run.call is not None else ()
        run.given_up = True
        self._end(run, self._stopped(run, reason, "; the function went on, fenced off"), writes)
        self._pool.give_up(run)

    async def recover(self, specs: Iterable[RunSpec]) -> None:
        """End each run of an earlier engine as lost: its worker ended with that engine."""
        for spec in specs:
            error = ErrorInfo(
                type="Lost", message="the function's worker ended with the engine; the job will be run again"
            )
            self.tell(Ended(spec.run, Ending(outcome="lost", error=error)))

    def forget(self, run: int) -> None:
        """Remove the files that carried the run's large values."""
        for path in self._spooled.pop(run, ()):
            path.unlink(missing_ok=True)

    async def close(self, *, abandon: bool = False) -> None:
        """Withdraw what waits and kill the workers of what runs; its ends are not told."""
        self._open = False
        self._pressure.close()
        for run in list(self._runs.values()):
            run.told = True
            if run.timer is not None:
                run.timer.cancel()
            if not run.pid and self._pool.withdraw(run):
                continue
            if run.call is not None:
                run.call.context.fence()
                run.call.cancel()
            elif run.pid and run.pid != os.getpid():
                self._pool.will_break()
                with contextlib.suppress(ProcessLookupError):
                    os.kill(run.pid, signal.SIGKILL)
        self._runs.clear()
        self._pool.detach()
        if self._gateway is not None:
            self._gateway.close()
            self._gateway = None
