"""A function task's runs as calls in Dask's workers: they outlive the engine, and the next one adopts them.

In: the task's function and links, the engine's runs. Out: facts. A run travels with its job's values and comes back with what it
wrote (`functions.detached`); what holds at the scheduler is in `cluster`. Dask runs nothing again: a run whose worker died is `lost`,
and so is one that a restarted scheduler has forgotten. Those that were in a worker that died are let in again one at a time, so that
the one that kills workers takes no other with it twice.
"""

from __future__ import annotations

import asyncio
import io
import sys
import sysconfig
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import cloudpickle
import msgspec

from datatask.adapters.execute.base.endings import stopped_ending, unstarted_ending
from datatask.adapters.execute.base.runner import TrackedRuns
from datatask.adapters.execute.functions.dask import worker
from datatask.adapters.execute.functions.dask.cluster import Cluster
from datatask.adapters.execute.functions.dask.runs import DaskRun
from datatask.adapters.execute.functions.detached import ending_of, values_of, writes_of
from datatask.adapters.execute.functions.in_process import FunctionTask
from datatask.engine.ports import Earlier, Sink
from datatask.engine.runtime.calls import error_info, stopped_message, stopped_outcome
from datatask.engine.runtime.services import current
from datatask.schema.errors import NotPossibleError
from datatask.schema.events import Ending, ErrorInfo, StopReason
from datatask.schema.messages import RunSpec
from datatask.schema.units import SECOND
from datatask.schema.version import VERSION

INSTALLED = ("stdlib", "platstdlib", "purelib", "platlib")


class DaskRunner:
    """One task's runs, over the connection that all tasks on a scheduler share."""

    def __init__(self, task: FunctionTask, executor: Any, resources: Mapping[str, float] | None) -> None:
        self._task = task
        self._executor = executor
        self._resources = dict(resources or {}) or None
        self._code = b""

    async def open(self, sink: Sink) -> None:
        """Connect; a scheduler that does not answer now is waited for."""
        self._services = current()
        self._cluster = Cluster.of(self._executor)
        self._runs = TrackedRuns[DaskRun](self._task.name, self, sink)
        self._wants_job, self._names = self._task.parameters()
        self._code = b""
        await self._cluster.attach()

    # --- starting ---------------------------------------------------------------------------------

    def start(self, spec: RunSpec) -> None:
        """Pack the run and hand it over, once per identity."""
        if spec.run not in self._runs:
            self._runs.start(DaskRun(spec, self, self._resources))

    def begin(self, run: DaskRun) -> None:
        """Begin a run."""
        self._runs.prepare(run, self._pack)

    def let_go(self, run: DaskRun) -> None:
        """Watch it no more, and force nothing."""
        if run.timer is not None:
            run.timer.cancel()
        self._cluster.over(run)

    def where(self, run: DaskRun) -> str:
        """Return the worker's name, as far as it is known."""
        return run.worker or "dask"

    def hold_back(self) -> Iterable[int]:
        """Return the runs that are not known to have begun."""
        for run in self._runs:
            run.held = not (run.begun or run.ended)
        return [run.spec.run for run in self._runs if run.held]

    async def _pack(self, run: DaskRun) -> None:
        spec = run.spec
        links = {name: self._task.links[name].repo for name in self._names}
        if not self._code:
            self._code = pickled(self._task.called, links)
        inputs = msgspec.msgpack.encode(await values_of(links, spec.job))
        topic = f"datatask-{spec.identity.partition('.')[0]}"
        run.parcel = cloudpickle.dumps(
            worker.Parcel(
                run.key,
                topic,
                spec.run,
                spec.task,
                spec.job,
                spec.conflicts,
                self._wants_job,
                self._code,
                inputs,
                spec.logs,
                dict(spec.identities),
                dict(spec.variables),
            )
        )
        if run.reason is not None:
            self._runs.end(run, stopped_ending(run.reason))
        else:
            self._cluster.submit(run)

    # --- stopping ---------------------------------------------------------------------------------

    def stop(self, run: int, reason: StopReason, grace: int) -> None:
        """Keep it from being begun; else cancel it, and when its grace is over leave it behind, fenced off."""
        found = self._runs.get(run)
        if found is None or found.reason is not None:
            return
        found.reason = reason
        if self._runs.pressure.withdraw(run) or self._cluster.withdraw(found):
            self._runs.end(found, stopped_ending(reason))
        elif found.work is None:
            self._cluster.spawn(self._stop(found, reason, grace), "the stop of a run in Dask")

    async def _stop(self, run: DaskRun, reason: StopReason, grace: int) -> None:
        if await self._cluster.bar(run):
            self._runs.end(run, stopped_ending(reason))
        elif run.held and not run.ended:
            run.reason = None  # it was to be handed back as not begun, and goes on
        elif not run.ended:
            run.timer = asyncio.get_running_loop().call_later(grace / SECOND, self._force, run, reason)
            await self._cluster.tell(run, worker.cancel)

    def _force(self, run: DaskRun, reason: StopReason) -> None:
        if not run.ended:
            self._cluster.spawn(self._cluster.tell(run, worker.fence), "the fencing of a run in Dask")
            text = stopped_message(reason) + "; the function went on in its worker, fenced off"
            self._runs.end(
                run, Ending(outcome=stopped_outcome(reason), error=ErrorInfo(type="Stopped", message=text))
            )

    # --- what is heard ----------------------------------------------------------------------------

    def _started(self, run: DaskRun) -> None:
        self._runs.reachable(run)
        self._runs.started(run, {"scheduler": run.scheduler, "key": run.key})

    def on_begun(self, run: DaskRun) -> None:
        """A worker has begun the run: its time counts."""
        self._started(run)

    def on_found(self, run: DaskRun) -> None:
        """The scheduler has the run: adopted if it had begun, else it waits there as before."""
        if run.begun or run.spec.handle is not None:
            self._started(run)
        else:
            self._runs.reachable(run)
            self._runs.account(run)

    async def on_missing(self, run: DaskRun) -> None:
        """The scheduler does not know the run: bar it, and say what that proves."""
        never = await self._cluster.bar(run)
        before = str((run.spec.handle or {}).get("scheduler", run.scheduler))
        now, address = self._cluster.scheduler, self._cluster.place.address
        if before and before != now:
            self._lost(
                run,
                f"the Dask scheduler at {address} was restarted ({before} is now {now}): it has forgotten the run",
            )
        elif run.begun or not never or run.spec.handle is not None:
            self._lost(
                run,
                f"the Dask scheduler at {address} has forgotten the run: its workers were restarted, or somebody cancelled it",
            )
        else:
            self._runs.end(run, unstarted_ending())

    def on_silence(self, run: DaskRun, why: str) -> None:
        """The scheduler cannot be reached."""
        self._runs.unreachable(run, why)

    def on_returned(self, run: DaskRun, reply: worker.Reply) -> None:
        """The run is over, or was begun before in a worker that is gone."""
        message = reply.message
        if message is None:
            self._worker_died(
                run, f"the worker{' ' if run.worker else ''}{run.worker} that had begun this is gone"
            )
            return
        run.worker = reply.worker
        self._cluster.suspects.discard((run.spec.task, run.spec.job))
        if not run.ended:
            self._started(run)
        ending = ending_of(message) if run.reason is None else stopped_ending(run.reason)
        self._runs.end(
            run, msgspec.structs.replace(ending, where=run.worker), writes_of(message), message.printed
        )

    async def on_failed(self, run: DaskRun, error: Exception) -> None:
        """Dask could not do it: whose fault it is, is told from the error, and whether it had begun by its lock."""
        if run.ended:
            return
        from distributed import CancelledError, KilledWorker

        if isinstance(error, KilledWorker):
            last = getattr(error.last_worker, "name", "")
            if await self._cluster.bar(run):
                self._runs.end(run, unstarted_ending(f"the worker {last} died before it had begun this"))
            else:
                run.worker = run.worker or str(last)
                self._worker_died(run, f"the worker {run.worker} died while it did this")
        elif isinstance(error, CancelledError):
            await self.on_missing(run)
        elif isinstance(error, ModuleNotFoundError) and (error.name or "").partition(".")[0] == "datatask":
            who = await self._cluster.lacking() or "a worker"
            text = f"{who}: no datatask there, which runs need; install datatask-engine {VERSION} where the workers run"
            self._runs.end(run, Ending(outcome="refused", error=ErrorInfo(type="NoPackage", message=text)))
        elif isinstance(error, OSError | TimeoutError):
            self._runs.end(run, Ending(outcome="lost", error=error_info(error)))
        else:
            self._runs.end(run, Ending(outcome="failed", error=error_info(error)))

    def _worker_died(self, run: DaskRun, why: str) -> None:
        self._cluster.suspects.add((run.spec.task, run.spec.job))
        if run.reason is not None:
            self._runs.end(run, stopped_ending(run.reason))
        else:
            self._lost(
                run,
                f"{why}; the job is run again, with no other that was in a worker that died",
                "WorkerDied",
            )

    def _lost(self, run: DaskRun, why: str, kind: str = "Lost") -> None:
        self._runs.end(run, Ending(outcome="lost", error=ErrorInfo(type=kind, message=why)))

    # --- other engines ----------------------------------------------------------------------------

    async def recover(self, specs: Iterable[RunSpec]) -> None:
        """Adopt what is at the scheduler, running, waiting or ended; bar what never came there."""
        runs = [self._runs.recover(DaskRun(spec, self, self._resources)) for spec in specs]
        await self._cluster.adopt(runs)
        await self._runs.accounted()

    def sweep(self, earlier: Earlier) -> None:
        """Let go of what earlier engines have left at the scheduler, as soon as it answers."""
        self._cluster.sweep(self._task.name, earlier, self)

    def forget(self, run: int) -> None:
        """Let go of the run at the scheduler: its end is durable."""
        if (found := self._runs.forget(run)) is not None:
            self._cluster.forget(found)

    async def close(self, *, abandon: bool = False) -> None:
        """Let go of the scheduler; what runs or waits there goes on."""
        for run in self._runs:
            if run.timer is not None:
                run.timer.cancel()
        await self._runs.close()
        await self._cluster.detach()


def pickled(func: Callable[..., Any] | None, links: Mapping[str, Any]) -> bytes:
    """Return a function and its repositories for a process elsewhere: modules that are no installed package go by value."""
    file = io.BytesIO()
    with _by_value(func):
        try:
            cloudpickle.dump((func, dict(links)), file)
        except Exception as error:
            raise NotPossibleError(
                f"the function or one of its repositories cannot be sent to a worker: {error}",
                remedy="do not refer to open files, locks or connections",
            ) from error
    return file.getvalue()


@contextmanager
def _by_value(func: Any) -> Iterator[None]:
    """Pickle modules beside the function's own by value, unless they are installed: a worker does not have them."""
    own = getattr(sys.modules.get(getattr(func, "__module__", None) or ""), "__file__", None)
    folder = None if own is None else Path(own).resolve().parent
    ours: list[ModuleType] = []
    if folder is not None and not any(folder.is_relative_to(sysconfig.get_path(name)) for name in INSTALLED):
        known = cloudpickle.list_registry_pickle_by_value()
        for name, module in list(sys.modules.items()):
            file = getattr(module, "__file__", None)
            near = file is not None and Path(file).resolve().parent == folder
            if near and name == module.__name__ and name not in known and name != "__main__":
                ours.append(module)
    for module in ours:
        cloudpickle.register_pickle_by_value(module)
    try:
        yield
    finally:
        for module in ours:
            cloudpickle.unregister_pickle_by_value(module)
