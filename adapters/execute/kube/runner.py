"""A Kubernetes task's runs: from a run that was decided to facts about it.

In: a task's recipe, the engine's runs, pods as the watch tells them. Out: facts. A run is one pod whose name follows from
the run's identity. It has started when a container runs, and ended when its pod is over and its logs are here; only then, and
only when that end is in the log, is the pod deleted. How a pod is created is in `starts`, what becomes of an earlier engine's in
`recovery`, of those that do not start in `slow_starts`; what a pod's states mean is in `verdicts`, how a run ends in `collect`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable

from datatask.adapters.execute.base.endings import stopped_ending
from datatask.adapters.execute.kube import pods
from datatask.adapters.execute.kube.cluster import Shared
from datatask.adapters.execute.kube.collect import Collector
from datatask.adapters.execute.kube.manifests import Recipe
from datatask.adapters.execute.kube.pods import Pod
from datatask.adapters.execute.kube.recovery import Recovery
from datatask.adapters.execute.kube.runs import PodRun, PodRuns
from datatask.adapters.execute.kube.slow_starts import SlowStarts
from datatask.adapters.execute.kube.starts import Starter
from datatask.adapters.execute.kube.stops import Stopper
from datatask.adapters.execute.kube.verdicts import (
    Verdict,
    containers_over,
    is_running,
    node_is_silent,
    times,
    verdict,
)
from datatask.engine.ports import Sink
from datatask.schema.events import StopReason
from datatask.schema.messages import Resized, RunSpec


class KubeRunner:
    """One task's runs, over what all of a manager's tasks share."""

    def __init__(self, shared: Shared, recipe: Recipe) -> None:
        self.shared = shared
        self._recipe = recipe

    async def open(self, sink: Sink) -> None:
        """Connect; a server that does not answer now is waited for, one that turns us away is an error."""
        shared, recipe, self._sink = self.shared, self._recipe, sink
        await shared.attach()
        self.by_name: dict[str, PodRun] = {}
        self._runs = runs = PodRuns(recipe.task, self, sink)
        self._starter = Starter(shared, recipe, runs, self._confirmed)
        self._recovery = Recovery(shared, recipe.task, runs, self._adopted)
        self._collector = Collector(shared, recipe, runs)
        self._slow = SlowStarts(shared, recipe, runs, self._over)
        self._stopper = Stopper(shared, recipe, runs)
        shared.pressures.add(runs.pressure)
        shared.watch.join(self)

    def _made(self, spec: RunSpec) -> PodRun:
        name = pods.pod_name(self.shared.app, spec.task, spec.job, spec.identity)
        run = self.by_name[name] = PodRun(spec, name)
        self.shared.runs.add(spec.identity)
        self.shared.watch.own(name, self)
        return run

    # --- starting and stopping --------------------------------------------------------------------

    def start(self, spec: RunSpec) -> None:
        """Render, create; once per identity."""
        if spec.run not in self._runs:
            self._recovery.sweep(spec, ())
            self._runs.start(self._made(spec))

    def begin(self, run: PodRun) -> None:
        """Begin a run."""
        self._runs.prepare(run, self._starter.start)

    def let_go(self, run: PodRun) -> None:
        """Wait no more for a pod to start."""
        self._slow.end(run)

    def where(self, run: PodRun) -> str:
        """Return the pod's node, where it has one, else the namespace."""
        pod = self.shared.watch.known.get(run.name)
        return (pod.spec.node_name if pod is not None else "") or self.shared.where

    def hold_back(self) -> Iterable[int]:
        """Return the runs that the cluster has no room for."""
        return self._runs.pressure.waiting()

    def stop(self, run: int, reason: StopReason, grace: int) -> None:
        """Delete the run's pod, with the grace; its end follows when it is over."""
        found = self._runs.get(run)
        if found is None or found.over:
            return
        found.reason, found.grace = reason, grace
        if found.uid and not found.recovering:
            self._stopper.stop(found)
        elif found.recovering or found.asked:
            if found.waiter is not None:
                found.waiter.set()  # it ends as soon as it is known whether there is a pod
        else:
            self._runs.pressure.withdraw(run)
            if found.work is not None:
                found.work.cancel()
            self._runs.end(found, stopped_ending(reason))

    def _confirmed(self, run: PodRun, pod: Pod) -> None:
        """The server has the run's pod."""
        if run.ended:
            return
        self._runs.pressure.accepted(run.spec.run)
        run.noticed = ""
        run.uid = run.uid or pod.uid
        self.shared.watch.expect(run.name)
        known = self.shared.watch.known.get(run.name)
        if known is not None:
            self.on_pod(known)
        if run.reason is not None and not run.over:
            self._stopper.stop(run)

    # --- recovering -------------------------------------------------------------------------------

    async def recover(self, specs: Iterable[RunSpec]) -> None:
        """Look for each run's pod; a run that has none yet is begun."""
        listed = list(specs)
        if listed:
            self._recovery.sweep(listed[0], [spec.identity for spec in listed])
        for spec in listed:
            self._recovery.recover(self._runs.recover(self._made(spec)))
        if self.shared.watch.is_silent:
            self.on_silence(self.shared.watch.message)
        await self._runs.accounted()

    def _adopted(self, run: PodRun, pod: Pod) -> None:
        if verdict(pod) is None:
            self._runs.started(run, self._handle(pod))
            run.started = is_running(pod)
        else:
            self._runs.account(run)
        self._confirmed(run, pod)
        if run.name not in self.shared.watch.known:
            self.on_pod(pod)

    def _handle(self, pod: Pod) -> dict[str, str | int]:
        return {"pod": pod.name, "uid": pod.uid, "namespace": self.shared.namespace}

    # --- what the watch says ----------------------------------------------------------------------

    def on_pod(self, pod: Pod) -> None:
        """Turn a pod's state into facts."""
        run = self.by_name.get(pod.name)
        if run is None or run.ended or run.recovering or not run.owns(pod):
            return
        if not run.uid:  # the watch was faster than the answer
            run.uid = pod.uid
            if run.waiter is not None:
                run.waiter.set()
            if self._runs.pressure.withdraw(run.spec.run):
                self._confirmed(run, pod)
                return
        if run.over:
            return
        self._collector.see(run, pod)
        if is_running(pod) and not run.started:
            self._runs.started(run, self._handle(pod), times(pod)[0])
        self._count(run, pod)
        deleted = pod.metadata.deletion_timestamp is not None
        run.settled = run.settled or containers_over(pod)
        run.stopped = run.stopped or (deleted and not pod.is_over and not run.settled)
        orphan = deleted and not pod.spec.node_name  # no kubelet will ever say that it is over
        found = verdict(pod, gone=orphan, stopped=run.stopped or None)
        if found is not None:
            self._over(run, pod, found, orphan)
            return
        self._hear(run, pod)
        self._slow.see(run, pod)

    def on_gone(self, name: str, last: Pod | None) -> None:
        """The pod's object is gone: what was seen of it has to do."""
        run = self.by_name.get(name)
        if run is None or run.ended or run.recovering:
            self.shared.freed()
            return
        if last is not None and not run.owns(last):
            return
        if run.logs is not None:
            run.logs.give_up()
        pod = last or Pod()
        found = verdict(pod, gone=True, stopped=run.stopped or None)
        assert found is not None
        self._over(run, pod, found, True)

    def _over(self, run: PodRun, pod: Pod, found: Verdict, gone: bool) -> None:
        """The pod is over: others may have its room, and its end is collected."""
        self._slow.end(run)
        self.shared.freed()
        self._collector.over(run, pod, found, gone)

    def _count(self, run: PodRun, pod: Pod) -> None:
        """Tell what the pod takes by now: a RuntimeClass, a limit range or a resize in place changes it."""
        if self._recipe.takes is None or pod.is_over:
            return
        takes = self._recipe.takes(pod, run.spec)
        if takes != run.takes:
            run.takes = takes
            self._sink(Resized(run.spec.run, takes.to_amounts()))

    # --- silence ----------------------------------------------------------------------------------

    def on_silence(self, message: str) -> None:
        """Nothing is heard of any run."""
        for run in self._runs:
            if run.uid or run.recovering:
                self._runs.unreachable(run, message, self.shared.where)

    def on_contact(self) -> None:
        """The server answers again."""
        for run in self._runs:
            pod = self.shared.watch.known.get(run.name)
            if not (pod and node_is_silent(pod)):
                self._runs.reachable(run, self.shared.where)

    def _hear(self, run: PodRun, pod: Pod) -> None:
        """The server answers; the pod's node may not."""
        if node_is_silent(pod):
            where = self.where(run)
            message = f"node {where} does not answer: the cluster has not heard of it for a while"
            self._runs.unreachable(run, message)
        elif not self.shared.watch.is_silent:
            self._runs.reachable(run)

    # --- letting go -------------------------------------------------------------------------------

    def forget(self, run: int) -> None:
        """The end is durable: delete the pod, and what was fetched of it."""
        found = self._runs.forget(run)
        if found is None:
            return
        self._let_go_of(found)
        if found.work is not None:
            found.work.cancel()
            found.unanswered = time.monotonic()
        pod, late = self.shared.watch.known.get(found.name), found.doubt_seconds()
        if pod is not None and pods.identity_of(pod) == found.spec.identity:
            if (
                late > 0
            ):  # its name is kept for so long, lest a create of ours that is late runs the job again
                self.shared.discard_later(pod, late)
            else:
                self.shared.discard(pod)
        elif late > 0 or (found.asked and not found.uid):
            self.shared.discard_name(found.name)

    def _let_go_of(self, run: PodRun) -> None:
        self.by_name.pop(run.name, None)
        self.shared.watch.disown(run.name)
        self.shared.runs.discard(run.spec.identity)
        if run.logs is not None:
            run.logs.close()

    async def close(self, *, abandon: bool = False) -> None:
        """Let go: what is not handed to the cluster yet is never started, what runs goes on."""
        runs = list(self._runs)
        await self._runs.close()
        working = [task for run in runs for task in (run.stopping, run.collecting) if task is not None]
        for task in working:
            task.cancel()
        await asyncio.gather(*working, return_exceptions=True)
        await self._slow.close()
        await self._recovery.close()
        for run in runs:
            self._slow.end(run)
            self._let_go_of(run)
        self.shared.pressures.discard(self._runs.pressure)
        self.shared.watch.leave(self)
        await self.shared.detach()
