"""A Kubernetes task's runs: from a run that was decided to facts about it.

In: a task's recipe, the engine's runs, pods as the watch tells them. Out: facts. A run is one pod whose name follows from
the run's identity, so a create is repeated without harm until somebody says that the pod is there. It has started when a
container runs, and ended when its pod is over and its logs are here; only then, and only when that end is in the log, is
the pod deleted. What the pod's states mean is in `verdicts`, how it is created in `starting`, how logs come in `logs`.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Iterable

from datatask.adapters.execute.base.endings import stopped_ending, unstarted_ending
from datatask.adapters.execute.kube import pods
from datatask.adapters.execute.kube.cluster import Shared
from datatask.adapters.execute.kube.collect import Collecting
from datatask.adapters.execute.kube.connection import RefusedError
from datatask.adapters.execute.kube.logs import PodLogs
from datatask.adapters.execute.kube.manifests import Recipe
from datatask.adapters.execute.kube.pods import Pod
from datatask.adapters.execute.kube.slow_starts import Run
from datatask.adapters.execute.kube.starts import DELAYED_SECONDS
from datatask.adapters.execute.kube.verdicts import (
    containers_over,
    is_running,
    node_is_silent,
    times,
    verdict,
)
from datatask.engine.ports import Sink
from datatask.engine.run_context import RunContext, current_run
from datatask.engine.runtime.calls import error_info
from datatask.engine.runtime.services import current
from datatask.schema.errors import TemporaryError
from datatask.schema.events import ErrorInfo, StopReason
from datatask.schema.messages import Adopted, Reachable, Resized, RunSpec, Started, Unreachable
from datatask.schema.units import SECOND

logger = logging.getLogger("datatask.kube")

GRACE_SECONDS_MIN = 1
TIMEOUT_HANDLER_SECONDS = 60.0
RETRY_SECONDS = (1.0, 30.0)


class KubeRunner(Collecting):
    """One task's runs, over what all of a manager's tasks share."""

    def __init__(self, shared: Shared, recipe: Recipe) -> None:
        super().__init__(shared, recipe)
        self._accounted = asyncio.Event()
        self._swept = False

    async def open(self, sink: Sink) -> None:
        """Connect; a server that does not answer now is waited for, one that turns us away is an error."""
        self._sink = sink
        self._loop = asyncio.get_running_loop()
        self._services = current()
        self._accounted = asyncio.Event()
        self._swept = False
        await self.shared.attach()
        self._prepare()
        self.shared.watch.join(self)

    def _take(self, spec: RunSpec) -> Run:
        name = pods.pod_name(self.shared.app, spec.task, spec.job, spec.identity)
        run = self.runs[spec.run] = self.by_name[name] = Run(spec, name)
        self.shared.runs.add(spec.identity)
        self.shared.watch.own(name, self)
        return run

    # --- starting and stopping --------------------------------------------------------------------

    def start(self, spec: RunSpec) -> None:
        """Render, create; once per identity."""
        if spec.run in self.runs:
            return
        self._sweep(spec, ())
        run = self._take(spec)
        run.work = self._loop.create_task(self._start(run))
        self._services.mind(run.work, "the start of a pod")

    async def _start(self, run: Run) -> None:
        context = RunContext(run.spec.run, run.spec.task, run.spec.job)
        current_run.set(context)
        try:
            pod = await self.created(run)
        except asyncio.CancelledError:
            return
        except (TemporaryError, OSError) as error:
            self._end(run, self._ending(run, "lost", error_info(error)))
            return
        except Exception as error:
            info = error_info(error)
            where = f"{run.spec.task}[{run.spec.job}]"
            text = info.message if info.message.startswith(where) else f"{where}: {info.message}"
            self._end(run, self._ending(run, "refused", ErrorInfo(type=info.type, message=text)))
            return
        finally:
            run.work = None
        run.reads = context.reads or None
        run.noticed = ""
        self._confirmed(run, pod)

    def _confirmed(self, run: Run, pod: Pod) -> None:
        """The server has the run's pod."""
        if run.told:
            return
        run.uid = run.uid or pod.uid
        self.shared.watch.expect(run.name)
        known = self.shared.watch.known.get(run.name)
        if known is not None:
            self.on_pod(known)
        if run.stop is not None and not run.ended:
            self._stop_pod(run)

    def stop(self, run: int, reason: StopReason, grace: int) -> None:
        """Delete the run's pod, with the grace; its end follows when it is over."""
        found = self.runs.get(run)
        if found is None or found.told or found.ended:
            return
        again, found.stop = found.stop is not None, (reason, grace)
        if found.recovering or (found.asked and not found.uid):
            if found.waiter is not None:
                found.waiter.set()
            return  # as soon as it is known whether there is a pod
        if not found.uid:
            if found.work is not None:
                found.work.cancel()
            self._end(found, stopped_ending(reason))
        elif not again or found.stopping is None:
            self._stop_pod(found)

    def _stop_pod(self, run: Run) -> None:
        if run.stopping is None:
            run.stopping = self._loop.create_task(self._delete(run))
            self._services.mind(run.stopping, "the stop of a pod")

    async def _delete(self, run: Run) -> None:
        """Let the user's code see a pod that is out of time, then delete it, for as often as it takes."""
        assert run.stop is not None
        reason, grace = run.stop
        if reason == "timeout" and self.recipe.handle_timeout is not None:
            await self._handled(run)
        seconds = max(GRACE_SECONDS_MIN, math.ceil(grace / SECOND))
        pause = RETRY_SECONDS[0]
        while not run.ended:
            try:
                await self.shared.delete(run.name, run.uid, seconds)
                return
            except RefusedError as error:
                self.notice(run, "stopping", error.refusal.reason, error.refusal.words)
                await asyncio.sleep(error.refusal.after_seconds or pause)
                pause = min(pause * 2, RETRY_SECONDS[1])

    async def _handled(self, run: Run) -> None:
        assert self.recipe.handle_timeout is not None
        try:
            async with asyncio.timeout(TIMEOUT_HANDLER_SECONDS):
                await self.recipe.handle_timeout(run.name)
        except Exception as error:
            info = error_info(error)
            logger.warning("%s[%s]: handle_timeout failed: %r", run.spec.task, run.spec.job, error)
            self.notice(run, "stopping", "handle_timeout", f"{info.type}: {info.message}")

    def stopped_early(self, run: Run) -> None:
        """End a run that was stopped before it had a pod."""
        assert run.stop is not None
        self._end(run, stopped_ending(run.stop[0]))

    # --- recovering -------------------------------------------------------------------------------

    async def recover(self, specs: Iterable[RunSpec]) -> None:
        """Look for each run's pod; where there is none, its name is taken before it is given up."""
        listed = list(specs)
        if listed:
            self._sweep(listed[0], [spec.identity for spec in listed])
        for spec in listed:
            run = self._take(spec)
            run.recovering = True
            run.uid = str((spec.handle or {}).get("uid", ""))
            run.work = self._loop.create_task(self._recover(run))
            self._services.mind(run.work, "the recovery of a pod")
        while any(run.recovering and not run.silent for run in self.runs.values()):
            self._accounted.clear()
            if self.shared.watch.is_silent:
                self.on_silence(self.shared.watch.message)
                continue
            await self._accounted.wait()

    async def _recover(self, run: Run) -> None:
        try:
            await self.shared.watch.listed.wait()
            pod = self.shared.watch.known.get(run.name)
            known = run.uid
            if pod is None:
                pod = await self.found(run)
            if pod is not None and pods.identity_of(pod) == run.spec.identity and known in ("", pod.uid):
                run.uid = pod.uid
                run.asked = True
                self._adopted(run, pod)
                return
            if run.stop is not None:
                self._end(run, stopped_ending(run.stop[0]))
                return
            if not known:
                self._end(run, unstarted_ending())
                return
            text = "its pod is gone, and nobody saw how it ended"
            self._end(run, self._ending(run, "lost", ErrorInfo(type="Lost", message=text)))
        finally:
            run.work = None

    def _adopted(self, run: Run, pod: Pod) -> None:
        run.recovering = False
        self.shared.watch.expect(run.name)
        if verdict(pod) is None:
            run.started = is_running(pod)
            self._sink(Adopted(run.spec.run, self._handle(pod), pod.spec.node_name or self.shared.where))
        if run.silent:
            self._sink(Reachable(run.spec.run, self.shared.where))
            run.silent = False
        self._accounted.set()
        self._confirmed(run, pod)
        if run.name not in self.shared.watch.known:
            self.on_pod(pod)

    def _sweep(self, spec: RunSpec, keep: Iterable[str]) -> None:
        """Tell of the task's pods that belong to no run of this log any more; those that are over are removed."""
        if self._swept:
            return
        self._swept = True
        self._kept = frozenset(keep)
        self._log = spec.identity.partition(".")[0]
        task = self._loop.create_task(self._swept_later())
        self._services.mind(task, "the sweep of pods")
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    async def _swept_later(self) -> None:
        await self.shared.watch.listed.wait()
        for pod in list(self.shared.watch.known.values()):
            found = pods.identity_of(pod)
            mine = found.startswith(f"{self._log}.") and pod.annotation(pods.TASK) == self.recipe.task
            if not mine or found in self._kept or found in self.shared.runs:
                continue
            if pod.is_over or pod.annotation(pods.TOMBSTONE):
                logger.info("pod %s is of run %s, which is over: it is removed", pod.name, found)
                self.shared.discard(pod)
            else:
                logger.warning("pod %s runs for %s, which is no open run; it is left alone", pod.name, found)

    # --- what the watch says ----------------------------------------------------------------------

    def on_pod(self, pod: Pod) -> None:
        """Turn a pod's state into facts."""
        run = self.by_name.get(pod.name)
        if run is None or run.told or run.recovering or pods.identity_of(pod) != run.spec.identity:
            return
        if run.uid and run.uid != pod.uid:
            return
        if not run.uid:  # the watch was faster than the answer
            run.uid = pod.uid
            if run.waiter is not None:
                run.waiter.set()
        if run.ended:
            return
        if run.logs is None and self._reads_logs():
            run.logs = PodLogs(self.shared.logs, lambda: self._collected(run))
        if run.logs is not None:
            run.logs.see(pod)
        if is_running(pod) and not run.started:
            self._started(run, pod)
        self._count(run, pod)
        deleted = pod.metadata.deletion_timestamp is not None
        orphan = deleted and not pod.spec.node_name  # no kubelet will ever say that it is over
        found = verdict(pod, gone=orphan)
        if found is not None:
            self.over(run, pod, found, gone=orphan)
            return
        run.settled = run.settled or containers_over(pod)
        self._hear(run, pod)
        self.wait_for_start(run, pod)

    def on_gone(self, name: str, last: Pod | None) -> None:
        """The pod's object is gone: what was seen of it has to do."""
        run = self.by_name.get(name)
        self.shared.freed()
        if run is None or run.told or run.recovering:
            return
        if last is not None and run.uid and last.uid != run.uid:
            return
        if run.logs is not None:
            run.logs.give_up()
        if run.ended:
            return
        pod = last or Pod()
        found = verdict(pod, gone=True)
        assert found is not None
        self.over(run, pod, found, gone=True)

    def _started(self, run: Run, pod: Pod) -> None:
        run.started = True
        begun, _ = times(pod)
        self._sink(Started(run.spec.run, self._handle(pod), pod.spec.node_name or self.shared.where, begun))

    def _count(self, run: Run, pod: Pod) -> None:
        """Tell what the pod takes by now: a RuntimeClass, a limit range or a resize in place changes it."""
        if self.recipe.takes is None or pod.is_over:
            return
        takes = self.recipe.takes(pod)
        if takes != run.takes:
            run.takes = takes
            self._sink(Resized(run.spec.run, takes.to_amounts()))

    def _handle(self, pod: Pod) -> dict[str, str | int]:
        return {"pod": pod.name, "uid": pod.uid, "namespace": self.shared.namespace}

    def accounted(self) -> None:
        """A run that was to be recovered is accounted for."""
        self._accounted.set()

    # --- silence ----------------------------------------------------------------------------------

    def on_silence(self, message: str) -> None:
        """Nothing is heard of any run."""
        for run in self.runs.values():
            if not run.told and not run.silent and (run.uid or run.recovering):
                run.silent = True
                self._sink(Unreachable(run.spec.run, self.shared.where, message[:1000]))
        self._accounted.set()

    def on_contact(self) -> None:
        """The server answers again."""
        for run in self.runs.values():
            pod = self.shared.watch.known.get(run.name)
            if not run.told and run.silent and not (pod and node_is_silent(pod)):
                run.silent = False
                self._sink(Reachable(run.spec.run, self.shared.where))

    def _hear(self, run: Run, pod: Pod) -> None:
        """The server answers; the pod's node may not."""
        silent = node_is_silent(pod)
        where = pod.spec.node_name or self.shared.where
        if silent and not run.silent:
            run.silent = True
            message = f"node {where} does not answer: the cluster has not heard of it for a while"
            self._sink(Unreachable(run.spec.run, where, message))
        elif run.silent and not silent and not self.shared.watch.is_silent:
            run.silent = False
            self._sink(Reachable(run.spec.run, where))

    # --- letting go -------------------------------------------------------------------------------

    def forget(self, run: int) -> None:
        """The end is durable: delete the pod, and what was fetched of it."""
        found = self.runs.pop(run, None)
        if found is None:
            return
        self.by_name.pop(found.name, None)
        self.shared.watch.disown(found.name)
        self.shared.runs.discard(found.spec.identity)
        if found.logs is not None:
            found.logs.close()
        pod, late = self.shared.watch.known.get(found.name), self._late(found)
        if pod is not None and pods.identity_of(pod) == found.spec.identity:
            if late > 0:
                self.shared.discard_later(pod, late)
            else:
                self.shared.discard(pod)
        elif found.asked and (found.uid == "" or late > 0):
            self.shared.discard_name(found.name)

    def _late(self, run: Run) -> float:
        """Return for how many seconds a create of ours may still arrive: so long the pod that is over keeps its name."""
        if run.work is not None:
            run.work.cancel()
            return DELAYED_SECONDS
        if run.unanswered is None:
            return 0.0
        return run.unanswered + DELAYED_SECONDS - time.monotonic()

    async def close(self, *, abandon: bool = False) -> None:
        """Let go: what is not handed to the cluster yet is never started, what runs goes on."""
        working = [
            task for run in self.runs.values() for task in (run.work, run.stopping) if task is not None
        ]
        working += self._background
        for task in working:
            task.cancel()
        await asyncio.gather(*working, return_exceptions=True)
        for run in self.runs.values():
            self.calm(run)
            if run.logs is not None:
                run.logs.close()
            self.shared.watch.disown(run.name)
        self.runs.clear()
        self.by_name.clear()
        self.shared.watch.leave(self)
        await self.shared.detach()
