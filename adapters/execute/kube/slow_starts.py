"""A run whose pod is there and does not start: what is told of it, and when it is given up.

In: the pod as the watch tells it. Out: what keeps it from starting, told once a reason, and the end of its run when that
has lasted for longer than the user allows, with the cluster's last word. What is only being made ready (a large image)
is left alone.
"""

from __future__ import annotations

import asyncio
import time
from functools import partial

from datatask.adapters.execute.kube.causes import is_being_made
from datatask.adapters.execute.kube.cluster import Shared
from datatask.adapters.execute.kube.connection import RefusedError, path_of
from datatask.adapters.execute.kube.logs import PodLogs
from datatask.adapters.execute.kube.manifests import Recipe
from datatask.adapters.execute.kube.pods import Pod, PodEvent, decode_pod_events
from datatask.adapters.execute.kube.verdicts import Verdict, is_running, trouble
from datatask.engine.ports import Sink
from datatask.engine.runtime.services import Services
from datatask.schema.events import StopReason
from datatask.schema.messages import Noticed, RunSpec
from datatask.schema.resources import Resources
from datatask.schema.units import SECOND

FORCED_SECONDS = 30.0
"""So long after a forced deletion the node has to tell how the pod ended."""
EVENTS_MAX = 50


class Run:
    """One run between start and forget. `settled`: its containers had succeeded before anybody deleted the pod."""

    __slots__ = (
        "asked",
        "ended",
        "logs",
        "name",
        "noticed",
        "reads",
        "recovering",
        "settled",
        "silent",
        "spec",
        "started",
        "stop",
        "stopping",
        "takes",
        "told",
        "trouble",
        "uid",
        "unanswered",
        "waiter",
        "work",
    )

    def __init__(self, spec: RunSpec, name: str) -> None:
        self.spec = spec
        self.name = name
        self.uid = ""
        self.work: asyncio.Task[None] | None = None
        self.stopping: asyncio.Task[None] | None = None
        self.stop: tuple[StopReason, int] | None = None
        self.waiter: asyncio.Event | None = None
        self.logs: PodLogs | None = None
        self.reads: dict[str, int] | None = None
        self.trouble: tuple[str, float, asyncio.TimerHandle | None] | None = None
        self.takes: Resources | None = None
        self.noticed = ""
        self.unanswered: float | None = None
        self.asked = self.recovering = self.started = self.settled = False
        self.silent = self.ended = self.told = False


class Waiting:
    """The part of the runner that watches over pods which do not start."""

    def __init__(self, shared: Shared, recipe: Recipe) -> None:
        self.shared, self.recipe = shared, recipe
        self.runs: dict[int, Run] = {}
        self.by_name: dict[str, Run] = {}
        self._background: set[asyncio.Task[None]] = set()
        self._sink: Sink
        self._loop: asyncio.AbstractEventLoop
        self._services: Services

    def wait_for_start(self, run: Run, pod: Pod) -> None:
        """Tell what keeps a pod from starting, and end its run when that lasts for longer than the user allows."""
        forced = (
            pod.metadata.deletion_timestamp is not None and not pod.metadata.deletion_grace_period_seconds
        )
        if forced:
            self._limit(run, "forced", int(FORCED_SECONDS * SECOND))
            return
        if is_running(pod) or pod.status.phase != "Pending" or run.stop is not None:
            self.calm(run)
            return
        found = trouble(pod)
        if found is not None:
            self.notice(run, "pending", _group(found.reason), found.message)
        scheduled = bool(pod.spec.node_name) or (found is not None and found.scheduled)
        if scheduled:
            self._limit(run, "start", self.recipe.start_within)
            if found is None and is_being_made(pod):
                self.shared.causes.ask(pod.uid, partial(self._caused, run))
            else:
                self.shared.causes.drop(pod.uid)
        elif found is not None:
            self._limit(run, "schedule", self.recipe.schedule_within)

    def _caused(self, run: Run, event: PodEvent) -> None:
        """An event says what the pod lacks."""
        if run.trouble is not None:
            self.notice(run, "pending", event.reason, event.message)

    def _limit(self, run: Run, key: str, nanoseconds: int | None) -> None:
        if run.trouble is not None and run.trouble[0] == key:
            return
        self.calm(run)
        timer = None
        if nanoseconds is not None:
            timer = self._loop.call_later(nanoseconds / SECOND, self._due, run)
        run.trouble = key, time.monotonic(), timer

    def calm(self, run: Run) -> None:
        """Nothing keeps the pod from starting any more."""
        self.shared.causes.drop(run.uid)
        if run.trouble is not None:
            if run.trouble[2] is not None:
                run.trouble[2].cancel()
            run.trouble = None

    def _due(self, run: Run) -> None:
        task = self._loop.create_task(self._overdue(run))
        self._services.mind(task, "what is done with a pod that does not start")
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    async def _overdue(self, run: Run) -> None:
        """A pod has not started for too long: end its run with the cluster's words, unless it is still being made ready."""
        pod = self.shared.watch.known.get(run.name)
        if pod is None or run.ended or run.trouble is None:
            return
        key, since, _ = run.trouble
        if key == "forced":
            text = "its pod was deleted by force, and the node has not told how it ended"
            self.over(run, pod, Verdict("lost", None, "Deleted", text), gone=True)
            return
        found = trouble(pod)
        kind, reason, text = await self._last_event(pod)
        if run.ended or run.trouble is None:
            return
        if found is None and kind != "Warning":  # a large image, say
            run.trouble = None
            self.wait_for_start(run, pod)
            return
        words = " — ".join(dict.fromkeys(part for part in (found.message if found else "", text) if part))
        message = f"it did not start within {time.monotonic() - since:.0f} s: {words or pod.status.message}"
        self.over(run, pod, Verdict("refused", None, found.reason if found else reason, message), gone=True)

    async def _last_event(self, pod: Pod) -> tuple[str, str, str]:
        """Return type, reason and text of the last thing that the cluster told of a pod; blank where we may not ask."""
        query: dict[str, str | int] = {"fieldSelector": f"involvedObject.uid={pod.uid}", "limit": EVENTS_MAX}
        path = path_of(self.shared.namespace, kind="events")
        try:
            listed = decode_pod_events(await self.shared.cluster.ask("GET", path, query)).items
        except RefusedError:
            return "", "", ""
        listed.sort(key=lambda event: event.at)
        warnings = [event for event in listed if event.type == "Warning"]
        if not listed:
            return "", "", ""
        last = (warnings or listed)[-1]
        return last.type, last.reason, last.message

    def over(self, run: Run, pod: Pod, found: Verdict, *, gone: bool = False) -> None:
        """End a run by a verdict on its pod."""
        raise NotImplementedError

    def notice(self, run: Run, phase: str, reason: str, message: str) -> None:
        """Tell what is worth telling of a run and its pod, once for each reason in a row."""
        key = f"{phase}:{reason}"
        message = message if run.name in message else f"pod {run.name}: {message}"
        if key != run.noticed and not run.told:
            run.noticed = key
            self._sink(Noticed(run.spec.run, phase, reason, message[:1000]))


def _group(reason: str) -> str:
    """Return one word for reasons that alternate."""
    return "ErrImagePull" if reason == "ImagePullBackOff" else reason
