"""The null kubelet: in come thousands of pods, out go their states by the clock, without a process.

For measuring: one task, a heap of times, and parts of statuses that all pods share. `ends` keeps when each pod's end was
stored (time.time()), by uid.
"""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import itertools
import time
from collections.abc import AsyncIterator
from typing import Any

from tests.kube.api import deleting, telling
from tests.kube.api.deleting import PODS
from tests.kube.api.kinds import BY_PATH
from tests.kube.api.server import Server
from tests.kube.api.storage import Change, key_of, now
from tests.kube.api.streams import Log

Object = dict[str, Any]
TICK = 0.005


class NullKubelet:
    """One node: pods run `start_seconds` after they are made, and succeed `run_seconds` later (None: when `end` says)."""

    def __init__(
        self,
        server: Server,
        *,
        name: str = "node1",
        start_seconds: float = 0.0,
        run_seconds: float | None = 0.0,
    ) -> None:
        self.server = server
        self.storage = server.storage
        self.name = name
        self.start_seconds = start_seconds
        self.run_seconds = run_seconds
        self.ends: dict[str, float] = {}
        self._heap: list[tuple[float, int, str, tuple[str, str], str]] = []
        self._count = itertools.count()
        self._more = asyncio.Event()
        self._log = Log()
        self._log.end()
        node = telling.node_object(name, "100k", "100Ti", "100k")
        self.storage.create(BY_PATH["", "v1", "nodes"], node)
        self.storage.table(PODS).listeners.append(self.see)
        server.node = self

    def see(self, change: Change) -> None:
        """Take notice of a change of a pod."""
        metadata = change.found["metadata"]
        if change.type == "ADDED" and not change.found["spec"].get("schedulingGates"):
            self._at(self.start_seconds, "run", change.found)
        elif change.type == "MODIFIED" and metadata.get("deletionTimestamp"):
            if metadata.get("deletionGracePeriodSeconds"):
                self._at(0.0, "delete", change.found)

    def _at(self, seconds: float, what: str, pod: Object) -> None:
        uid = pod["metadata"]["uid"]
        heapq.heappush(self._heap, (time.monotonic() + seconds, next(self._count), what, key_of(pod), uid))
        self._more.set()

    def end(self, seconds_between: float = 0.0) -> int:
        """Let all pods that run end, one after the other; return how many."""
        pods = [pod for pod in self.server.pods() if pod["status"]["phase"] == "Running"]
        for at, pod in enumerate(pods):
            self._at(at * seconds_between, "end", pod)
        return len(pods)

    async def work(self) -> None:
        """Do what is due, for ever."""
        while True:
            if not self._heap:
                self._more.clear()
                await self._more.wait()
            due, done = self._heap[0][0] - time.monotonic(), 0
            if due > 0:
                await asyncio.sleep(max(due, TICK))
            while self._heap and self._heap[0][0] <= time.monotonic() and done < 50:
                _, _, what, where, uid = heapq.heappop(self._heap)
                self._do(what, where, uid)
                done += 1
            await asyncio.sleep(TICK if self._heap else 0)

    def _do(self, what: str, where: tuple[str, str], uid: str) -> None:
        pod = self.storage.table(PODS).objects.get(where)
        if pod is None or pod["metadata"]["uid"] != uid:
            return
        phase = pod["status"]["phase"]
        if what == "run" and phase == "Pending" and not pod["metadata"].get("deletionTimestamp"):
            running = {"running": {"startedAt": now()}}
            pod = {**pod, "spec": {**pod["spec"], "nodeName": self.name}}
            self._put(pod, "Running", running)
            if self.run_seconds is not None:
                self._at(self.run_seconds, "end", pod)
        elif what == "end" and phase == "Running":
            self.ends[uid] = time.time()
            self._put(pod, "Succeeded", telling.terminated(0))
        elif what == "delete":
            if phase == "Running":
                pod = self._put(pod, "Failed", telling.terminated(137))
            deleting.delete(self.storage, PODS, pod, {"gracePeriodSeconds": 0})

    def _put(self, pod: Object, phase: str, state: Object) -> Object:
        told = [telling.container(spec, state) for spec in pod["spec"]["containers"]]
        over = phase != "Running"
        unready = [one["name"] for one in told] if over else []
        status = {
            "phase": phase,
            "conditions": telling.conditions(pod, phase, sandbox=not over, initialized=True, unready=unready),
            "hostIP": "127.0.0.1",
            "podIP": "10.88.0.8",
            "startTime": pod["metadata"]["creationTimestamp"],
            "containerStatuses": told,
            "qosClass": pod["status"].get("qosClass", "BestEffort"),
        }
        return self.storage.update(PODS, {**pod, "status": status})

    def log(self, pod: Object, container: str, *, previous: bool) -> Log | None:
        """Return an empty log."""
        return None if previous or pod["status"]["phase"] == "Pending" else self._log

    async def execute(self, pod: Object, container: str, command: list[str]) -> asyncio.subprocess.Process:
        """There is nothing to run commands in."""
        raise NotImplementedError

    def close(self) -> None:
        """Remove what is left."""
        self.storage.table(PODS).listeners.remove(self.see)
        self._log.remove()


@contextlib.asynccontextmanager
async def running_null(server: Server, **how: Any) -> AsyncIterator[NullKubelet]:
    """Let a null kubelet work while the block lasts."""
    kubelet = NullKubelet(server, **how)
    working = asyncio.create_task(kubelet.work())
    try:
        yield kubelet
    finally:
        working.cancel()
        await asyncio.gather(working, return_exceptions=True)
        kubelet.close()
