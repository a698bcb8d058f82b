"""A run whose pod is there and does not start: what is told of it, and when it is given up.

In: the pod as the watch tells it. Out: what keeps it from starting, told once a reason, and the end of its run when that
has lasted for longer than the user allows, with the cluster's last word. What is only being made ready (a large image)
is left alone.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from functools import partial

from datatask.adapters.execute.kube.causes import is_being_made
from datatask.adapters.execute.kube.cluster import Shared
from datatask.adapters.execute.kube.connection import RefusedError, path_of
from datatask.adapters.execute.kube.manifests import Recipe
from datatask.adapters.execute.kube.pods import Pod, PodEvent, decode_pod_events
from datatask.adapters.execute.kube.runs import PodRun, PodRuns
from datatask.adapters.execute.kube.verdicts import Verdict, is_running, trouble
from datatask.engine.runtime.services import current
from datatask.schema.units import SECOND

FORCED_SECONDS = 30.0
"""So long after a forced deletion the node has to tell how the pod ended."""
EVENTS_MAX = 50
Over = Callable[[PodRun, Pod, Verdict, bool], None]
"""Called with a run, its pod, the verdict on it, and whether its logs are not to be waited for."""


class SlowStarts:
    """Watches over pods of one task that do not start; `over` ends the run of one that is given up."""

    def __init__(self, shared: Shared, recipe: Recipe, runs: PodRuns, over: Over) -> None:
        self._shared, self._recipe, self._runs = shared, recipe, runs
        self._over = over
        self._loop = asyncio.get_running_loop()
        self._services = current()
        self._background: set[asyncio.Task[None]] = set()

    def see(self, run: PodRun, pod: Pod) -> None:
        """Tell what keeps a pod from starting, and end its run when that lasts for longer than the user allows."""
        forced = (
            pod.metadata.deletion_timestamp is not None and not pod.metadata.deletion_grace_period_seconds
        )
        if forced:
            self._limit(run, "forced", int(FORCED_SECONDS * SECOND))
            return
        if is_running(pod) or pod.status.phase != "Pending" or run.reason is not None:
            self.end(run)
            return
        found = trouble(pod)
        if found is not None:
            self._runs.notice(run, "pending", _group(found.reason), found.message)
        scheduled = bool(pod.spec.node_name) or (found is not None and found.scheduled)
        if scheduled:
            self._limit(run, "start", self._recipe.start_within)
            if found is None and is_being_made(pod):
                self._shared.causes.ask(pod.uid, partial(self._caused, run))
            else:
                self._shared.causes.drop(pod.uid)
        elif found is not None:
            self._limit(run, "schedule", self._recipe.schedule_within)

    def _caused(self, run: PodRun, event: PodEvent) -> None:
        """An event says what the pod lacks."""
        if run.limit is not None:
            self._runs.notice(run, "pending", event.reason, event.message)

    def _limit(self, run: PodRun, key: str, nanoseconds: int | None) -> None:
        if run.limit is not None and run.limit[0] == key:
            return
        self.end(run)
        timer = None
        if nanoseconds is not None:
            timer = self._loop.call_later(nanoseconds / SECOND, self._due, run)
        run.limit = key, time.monotonic(), timer

    def end(self, run: PodRun) -> None:
        """Nothing keeps the pod from starting any more."""
        self._shared.causes.drop(run.uid)
        if run.limit is not None:
            if run.limit[2] is not None:
                run.limit[2].cancel()
            run.limit = None

    def _due(self, run: PodRun) -> None:
        task = self._loop.create_task(self._overdue(run))
        self._services.mind(task, "what is done with a pod that does not start")
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    async def _overdue(self, run: PodRun) -> None:
        """A pod has not started for too long: end its run with the cluster's words, unless it is still being made ready."""
        pod = self._shared.watch.known.get(run.name)
        if pod is None or run.over or run.limit is None:
            return
        key, since, _ = run.limit
        if key == "forced":
            text = "its pod was deleted by force, and the node has not told how it ended"
            self._over(run, pod, Verdict("lost", None, "Deleted", text), True)
            return
        found = trouble(pod)
        kind, reason, text = await self._last_event(pod)
        if run.over or run.limit is None:
            return
        if found is None and kind != "Warning":  # a large image, say
            run.limit = None
            self.see(run, pod)
            return
        words = " — ".join(dict.fromkeys(part for part in (found.message if found else "", text) if part))
        message = f"it did not start within {time.monotonic() - since:.0f} s: {words or pod.status.message}"
        self._over(run, pod, Verdict("refused", None, found.reason if found else reason, message), True)

    async def _last_event(self, pod: Pod) -> tuple[str, str, str]:
        """Return type, reason and text of the last thing that the cluster told of a pod; blank where we may not ask."""
        query: dict[str, str | int] = {"fieldSelector": f"involvedObject.uid={pod.uid}", "limit": EVENTS_MAX}
        path = path_of(self._shared.namespace, kind="events")
        try:
            listed = decode_pod_events(await self._shared.cluster.ask("GET", path, query)).items
        except RefusedError:
            return "", "", ""
        listed.sort(key=lambda event: event.at)
        warnings = [event for event in listed if event.type == "Warning"]
        if not listed:
            return "", "", ""
        last = (warnings or listed)[-1]
        return last.type, last.reason, last.message

    async def close(self) -> None:
        """Give nothing up any more."""
        for task in self._background:
            task.cancel()
        await asyncio.gather(*self._background, return_exceptions=True)


def _group(reason: str) -> str:
    """Return one word for reasons that alternate."""
    return "ErrImagePull" if reason == "ImagePullBackOff" else reason
