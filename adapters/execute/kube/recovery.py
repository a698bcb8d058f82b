"""Runs of an earlier engine: each is matched with its pod, and what no run is open for is told, or removed.

In: open runs, and the pods that the first list told. Out: `Adopted`, or the end of a run whose pod is gone. A run that has no
confirmed pod is begun: its pod's name is fixed, so where an earlier create has arrived, or arrives yet, there is one pod all
the same. No other proof of absence is needed, and a full quota has such a run wait as it has any other.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable

from datatask.adapters.execute.base.endings import stopped_ending
from datatask.adapters.execute.kube import pods
from datatask.adapters.execute.kube.cluster import Shared
from datatask.adapters.execute.kube.connection import RefusedError
from datatask.adapters.execute.kube.pods import Pod
from datatask.adapters.execute.kube.runs import PodRun, PodRuns
from datatask.engine.runtime.services import current
from datatask.schema.events import Ending, ErrorInfo
from datatask.schema.messages import RunSpec

logger = logging.getLogger("datatask.pod_manager")

PAUSE_SECONDS = (0.2, 5.0)


class Recovery:
    """Accounts for the runs and pods of one task; `adopted` is called with each run whose pod is there."""

    def __init__(
        self, shared: Shared, task: str, runs: PodRuns, adopted: Callable[[PodRun, Pod], None]
    ) -> None:
        self._shared, self._task, self._runs = shared, task, runs
        self._adopted = adopted
        self._services = current()
        self._sweeping: asyncio.Task[None] | None = None

    def recover(self, run: PodRun) -> None:
        """Begin to account for a run; `uid` of the pod that an earlier engine had confirmed is in its handle."""
        run.uid = str((run.spec.handle or {}).get("uid", ""))
        if not run.uid:
            run.unanswered = time.monotonic()
        run.work = asyncio.get_running_loop().create_task(self._recover(run))
        self._services.mind(run.work, "the recovery of a pod")

    async def _recover(self, run: PodRun) -> None:
        try:
            await self._shared.watch.listed.wait()
            pod = self._shared.watch.known.get(run.name)
            if pod is None and run.uid:
                pod = await self._looked_for(run)
            if pod is not None and run.owns(pod):
                run.uid, run.asked = pod.uid, True
                self._adopted(run, pod)
            elif run.reason is not None:
                self._runs.end(run, stopped_ending(run.reason))
            elif run.uid:
                error = ErrorInfo(type="Lost", message="its pod is gone, and nobody saw how it ended")
                self._runs.end(run, Ending(outcome="lost", error=error))
            else:
                self._runs.resume(run)
        finally:
            if run.work is asyncio.current_task():
                run.work = None

    async def _looked_for(self, run: PodRun) -> Pod | None:
        """Return the pod under the run's name as it is now, as soon as the server answers."""
        pause = PAUSE_SECONDS[0]
        while True:
            try:
                return await self._shared.get(run.name)
            except RefusedError as error:
                await asyncio.sleep(error.refusal.after_seconds or pause)
                pause = min(pause * 2, PAUSE_SECONDS[1])

    def sweep(self, spec: RunSpec, keep: Iterable[str]) -> None:
        """Tell of the task's pods that belong to no run of this log any more, once; those that are over are removed."""
        if self._sweeping is None:
            log = spec.identity.partition(".")[0]
            self._sweeping = asyncio.get_running_loop().create_task(self._sweep(log, frozenset(keep)))
            self._services.mind(self._sweeping, "the sweep of pods")

    async def _sweep(self, log: str, keep: frozenset[str]) -> None:
        await self._shared.watch.listed.wait()
        for pod in list(self._shared.watch.known.values()):
            found = pod.annotation(pods.RUN)
            mine = found.startswith(f"{log}.") and pod.annotation(pods.TASK) == self._task
            if not mine or found in keep or found in self._shared.runs:
                continue
            if pod.is_over or pod.annotation(pods.TOMBSTONE):
                logger.info("pod %s is of run %s, which is over: it is removed", pod.name, found)
                self._shared.discard(pod)
            else:
                logger.warning("pod %s runs for %s, which is no open run; it is left alone", pod.name, found)

    async def close(self) -> None:
        """End."""
        if self._sweeping is not None:
            self._sweeping.cancel()
            await asyncio.gather(self._sweeping, return_exceptions=True)
