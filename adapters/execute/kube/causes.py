"""Why pods that have a node do not start: a missing volume, secret or runtime is told in events alone.

In: pods whose containers are still being made. Out: the warning that the cluster has recorded about each, if there is one. The
events of the namespace are listed once for all of these pods, soon after they got their nodes, then later and later;
while no pod waits nothing is asked.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from datatask.adapters.execute.kube.connection import Cluster, RefusedError, path_of
from datatask.adapters.execute.kube.pods import Pod, PodEvent, decode_pod_events
from datatask.engine.runtime.services import current

PAUSE_SECONDS = (1.0, 64.0)
"""The first look at a pod's events comes so soon, each further one after twice the time, none after the longest."""
BETWEEN_SECONDS = 1.0
REFUSED_SECONDS = 60.0
PAGE = 500
PAGES_MAX = 10
MAKING = frozenset({"ContainerCreating", "PodInitializing"})
SCHEDULING = "FailedScheduling"

Tell = Callable[[PodEvent], None]


def is_being_made(pod: Pod) -> bool:
    """Whether the pod has a node, and none of its containers has begun or says why not."""
    told = pod.statuses()
    return bool(pod.spec.node_name) and all(
        one.state.waiting is not None and one.state.waiting.reason in MAKING for one in told
    )


class Causes:
    """The events of one namespace, looked at while pods wait for their start."""

    def __init__(self, cluster: Cluster, namespace: str) -> None:
        self.cluster, self.namespace = cluster, namespace
        self._services = current()
        self._asked: dict[str, tuple[float, float, Tell]] = {}
        self._told: set[str] = set()
        self._work: asyncio.Task[None] | None = None
        self._open_at = 0.0

    def ask(self, uid: str, tell: Tell) -> None:
        """Tell of the pod's last warning, once, as soon as there is one, until `drop`."""
        if uid in self._asked or uid in self._told:
            return
        self._asked[uid] = (time.monotonic() + PAUSE_SECONDS[0], PAUSE_SECONDS[0], tell)
        if self._work is None or self._work.done():
            self._work = self._services.keep(
                "the look at events of pods", lambda _: self._look_on(), ends=True
            )

    def drop(self, uid: str) -> None:
        """The pod has started, or is over."""
        self._asked.pop(uid, None)
        self._told.discard(uid)

    async def close(self) -> None:
        """Ask nothing more."""
        self._asked.clear()
        if self._work is not None:
            self._work.cancel()
            await asyncio.gather(self._work, return_exceptions=True)

    async def _look_on(self) -> None:
        while self._asked:
            due = max(min(due for due, _, _ in self._asked.values()), self._open_at)
            wait = due - time.monotonic()
            if wait > 0:
                await asyncio.sleep(wait)
                continue  # some may have started meanwhile
            await self._look()

    async def _look(self) -> None:
        now = time.monotonic()
        self._open_at = now + BETWEEN_SECONDS
        try:
            warnings = await self._warnings()
        except RefusedError as error:
            warnings = {}
            if error.refusal.again in ("limited", "never"):  # without this right they are told at the limit
                self._open_at = now + REFUSED_SECONDS
        for uid, (due, pause, tell) in list(self._asked.items()):
            found = warnings.get(uid)
            if found is not None:
                self._told.add(uid)
                tell(found)
            if found is not None or (due <= now and pause >= PAUSE_SECONDS[1]):
                self._asked.pop(uid, None)
                self._told.add(uid)
            elif due <= now:
                self._asked[uid] = (now + 2 * pause, 2 * pause, tell)

    async def _warnings(self) -> dict[str, PodEvent]:
        """Return the last warning about each pod that is asked for, by uid; those of the scheduler are in the pod."""
        query: dict[str, str | int] = {"fieldSelector": "involvedObject.kind=Pod,type=Warning", "limit": PAGE}
        found: dict[str, PodEvent] = {}
        for _ in range(PAGES_MAX):
            path = path_of(self.namespace, kind="events")
            page = decode_pod_events(await self.cluster.ask("GET", path, query))
            for event in page.items:
                uid = event.involved_object.uid
                if uid in self._asked and event.reason != SCHEDULING:
                    known = found.get(uid)
                    if known is None or event.at >= known.at:
                        found[uid] = event
            if not page.metadata.continue_:
                break
            query["continue"] = page.metadata.continue_
        return found
