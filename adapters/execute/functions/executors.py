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

from datatask.adapters.execute.base.runner import TrackedRun, TrackedRuns
from datatask.adapters.execute.functions import workers
from datatask.adapters.execute.functions.gateway import EngineGateway, pack
from datatask.adapters.execute.functions.in_process import FunctionTask
from datatask.adapters.execute.functions.pools import Made, Pool
from datatask.engine.api.policies import Retry
from datatask.engine.api.repositories import MetadataRepository, Repository
from datatask.engine.ports import Runner, Sink
from datatask.engine.run_context import RunContext
from datatask.engine.runtime.calls import error_info, stopped_message, stopped_outcome
from datatask.engine.runtime.services import current
from datatask.schema.definition import Conflicts
from datatask.schema.errors import expect
from datatask.schema.events import Ending, ErrorInfo, StopReason
from datatask.schema.messages import Ended, Fact, RunSpec
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


class PoolRun(TrackedRun):
    """One run in the pool: an `Item`."""

    def __init__(self, runner: ExecutorRunner, spec: RunSpec) -> None:
        super().__init__(spec)
        self.runner = runner
        self.key = spec.task, spec.job
        self.call: workers.Call | None = None
        self.pid = 0
        self.started_at = 0
        self.timer: asyncio.TimerHandle | None = None
        self.given_up = False
        self.held = False

    def submit(self, executor: Executor) -> Future[Any]:
        """Submit the call, in the form that the executor's workers need."""
        future = self.runner.submit(self, executor)
        if not self.started_at:
            self.started_at = time.time_ns()  # noqa: TID251 - the runner's clock
            self.runner.started(self)
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
        self._pool = Pool.of(self._task.executor)
        self._pool.attach()
        self._open = True
        self._runs = TrackedRuns[PoolRun](self._task.name, self, self._tell)
        self._packed = self._arguments = None

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

    def started(self, run: PoolRun) -> None:
        """The executor has taken a run."""
        self._runs.started(run, {}, run.started_at)

    def let_go(self, run: PoolRun) -> None:
        """Force no run that has ended."""
        if run.timer is not None:
            run.timer.cancel()

    def where(self, run: PoolRun) -> str:
        """Return what the workers are."""
        return self._where

    def submit(self, run: PoolRun, executor: Executor) -> Future[Any]:
        """Submit a run; raises what keeps it from being sent."""
        wants_job, names = self._task.parameters()
        func: Callable[..., Any] = self._task.func  # type: ignore[assignment]  # parameters() has seen it
        spec = run.spec
        if self._pool.threads:
            self._where = "thread"
            if self._arguments is None:
                links = self._task.links
                self._arguments = {name: workers.for_thread(links[name].repo, self._loop) for name in names}
            run.call = workers.Call(RunContext(spec.run, spec.task, spec.job, spec.conflicts))
            given = {"job": spec.job, **self._arguments} if wants_job else self._arguments
            try:
                return executor.submit(run.call.make, func, given)
            except (
                Exception
            ):  # what cannot start a thread for it has it in its queue, and another thread may have it
                if (outcome := run.call.take_back()) is None:
                    raise
                return outcome
        self._where = "executor"
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

    def finished(self, run: PoolRun, future: Future[Any]) -> None:
        """Turn what the executor gave back into the run's end."""
        if run.given_up:
            self._pool.returned()
        if run.ended:
            return
        failure = future.exception()
        if failure is None and isinstance(outcome := future.result(), workers.Outcome):
            self._finish(run, outcome)
        elif run.reason is not None:
            self._runs.end(run, self._stopped(run, run.reason))
        elif isinstance(failure, BrokenExecutor):
            self._runs.end(run, Ending(outcome="lost", error=self._blame(run), started_at=run.started_at))
        else:
            error = ErrorInfo(type="Executor", message="the executor gave back something of its own")
            if failure is not None:
                error = error_info(failure)
            self._runs.end(run, Ending(outcome="failed", error=error, started_at=run.started_at))

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
        self._runs.end(run, ending, outcome.writes)

    def _blame(self, run: PoolRun) -> ErrorInfo:
        others = self._pool.others(run)
        alone = "" if others else "; nothing else was running in the pool"
        text = f"a worker process of the pool died while this ran{alone}; the pool is made anew, the job runs again alone"
        return ErrorInfo(type="WorkerDied", message=text)

    def not_begun(self, run: PoolRun, error: BaseException) -> None:
        """The executor did not take a run."""
        self._runs.failed(run, error)

    def _stopped(self, run: PoolRun, reason: StopReason, more: str = "") -> Ending:
        error = ErrorInfo(type="Stopped", message=stopped_message(reason) + more)
        return Ending(outcome=stopped_outcome(reason), error=error, started_at=run.started_at or None)

    def hold_back(self) -> list[int]:
        """Begin nothing more; what the executor has only queued is taken out of it."""
        for run in self._runs:
            if not run.ended:
                withdrawn = self._runs.pressure.withdraw(run.spec.run)
                run.held = withdrawn or (not run.pid and self._pool.hold(run))
        return [run.spec.run for run in self._runs if run.held and not run.ended]

    def stop(self, run: int, reason: StopReason, grace: int) -> None:
        """Withdraw, or cancel, and when the grace is over kill the worker process or leave the thread behind."""
        open_run = self._runs.get(run)
        if open_run is None or open_run.reason is not None:
            return
        open_run.reason = reason
        if (
            open_run.held
            or self._runs.pressure.withdraw(run)
            or (not open_run.pid and self._pool.withdraw(open_run))
        ):
            self._runs.end(open_run, self._stopped(open_run, reason))
            return
        if open_run.call is not None:
            open_run.call.cancel()
        elif open_run.pid and self._gateway is not None:
            self._gateway.cancel(run, open_run.pid)
        open_run.timer = self._loop.call_later(grace / SECOND, self._force, open_run, reason)

    def _force(self, run: PoolRun, reason: StopReason) -> None:
        if run.ended:
            return
        if run.pid and run.pid != os.getpid():
            self._pool.will_break()
            with contextlib.suppress(ProcessLookupError):
                os.kill(run.pid, signal.SIGKILL)
            return  # the pool tells that it broke, which ends this run and the others
        logger.warning("%s[%s] cannot be stopped; its thread is left behind", *run.key)
        writes = run.call.context.fence() if run.call is not None else ()
        run.given_up = True
        self._runs.end(run, self._stopped(run, reason, "; the function went on, fenced off"), writes)
        self._pool.give_up(run)

    async def recover(self, specs: Iterable[RunSpec]) -> None:
        """End each run of an earlier engine as lost: its worker ended with that engine."""
        for spec in specs:
            error = ErrorInfo(
                type="Lost", message="the function's worker ended with the engine; the job will be run again"
            )
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
            if not run.pid and self._pool.withdraw(run):
                continue
            if run.call is not None:
                run.call.context.fence()
                run.call.cancel()
            elif run.pid and run.pid != os.getpid():
                self._pool.will_break()
                with contextlib.suppress(ProcessLookupError):
                    os.kill(run.pid, signal.SIGKILL)
        await self._runs.close()
        self._pool.detach()
        if self._gateway is not None:
            self._gateway.close()
            self._gateway = None
