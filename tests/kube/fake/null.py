"""A kubelet that runs nothing: pods go through their states by the clock, for measuring what talks to the server.

In: pods as they are created. Out: scheduled, ContainerCreating, Running, a terminated container, Succeeded or Failed, each a
version as a real kubelet makes it. How long and with which code is told by `run_seconds` and `exit_code`, or by a pod's
annotations `fake/run-seconds` and `fake/exit-code`; -1 runs until `end`. `ended_at` says when each end was told.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from tests.kube.fake import statuses
from tests.kube.fake.deleting import delete
from tests.kube.fake.storing import Change, Object

if TYPE_CHECKING:
    from tests.kube.fake.cluster import FakeCluster

Step = Callable[[Object], Object]
TEXT = b"one line of a pod that does nothing\n"


class NullKubelet:
    """Runs pods by the clock."""

    def __init__(self, cluster: FakeCluster) -> None:
        self.cluster, self.store = cluster, cluster.store
        self.start_seconds = 0.0
        self.run_seconds = 0.0
        self.exit_code = 0
        self.says = TEXT
        self.ended_at: dict[str, float] = {}
        self._timers: set[asyncio.TimerHandle] = set()
        self._closed = False

    def begin(self) -> None:
        """Take up pods from now on."""
        self.store.listeners.append(self._changed)

    async def close(self) -> None:
        """Take no more steps."""
        self._closed = True
        for timer in self._timers:
            timer.cancel()
        self._timers.clear()

    def _changed(self, change: Change) -> None:
        if change.resource != "pods" or self._closed or change.gone:
            return
        metadata = change.object["metadata"]
        key = metadata["namespace"], metadata["name"], metadata["uid"]
        if change.before is None and not change.object["spec"].get("schedulingGates"):
            self._later(0, self._schedule, *key)
        elif metadata.get("deletionTimestamp") and metadata.get("deletionGracePeriodSeconds"):
            if not change.before or not change.before["metadata"].get("deletionTimestamp"):
                self._later(0, self._stop, *key)

    def _later(self, seconds: float, step: Callable[..., None], *key: object) -> None:
        loop = asyncio.get_running_loop()
        timer: asyncio.TimerHandle

        def due() -> None:
            self._timers.discard(timer)
            step(*key)

        timer = loop.call_later(seconds, due)
        self._timers.add(timer)

    def _pod(self, namespace: str, name: str, uid: str) -> Object | None:
        pod = self.store.get("pods", namespace, name)
        return pod if pod is not None and pod["metadata"]["uid"] == uid else None

    def _schedule(self, *key: str) -> None:
        if pod := self._pod(*key):
            if not pod["spec"].get("nodeName"):
                pod = self.store.put("pods", statuses.scheduled(pod, "node-1")).object
            told = [statuses.container_status(one, statuses.STARTING) for one in pod["spec"]["containers"]]
            self.store.put("pods", statuses.reported(pod, "Pending", told, sandbox=False))
            self._later(self.start_seconds, self._run, *key)

    def _run(self, *key: str) -> None:
        pod = self._pod(*key)
        if pod is None or pod["metadata"].get("deletionTimestamp"):
            return
        told = []
        for one in pod["spec"]["containers"]:
            self.cluster.logs.begin(key[2], one["name"]).write(self.says)
            told.append(
                statuses.container_status(one, statuses.running(), container_id=f"containerd://{key[2]}")
            )
        self.store.put("pods", statuses.reported(pod, "Running", told, ip="10.88.0.8"))
        annotations = pod["metadata"].get("annotations") or {}
        seconds = float(annotations.get("fake/run-seconds", self.run_seconds))
        if seconds >= 0:
            self._later(seconds, self._finish, *key)

    def _finish(self, *key: str) -> None:
        pod = self._pod(*key)
        if pod is not None:
            annotations = pod["metadata"].get("annotations") or {}
            self.end(key[1], int(annotations.get("fake/exit-code", self.exit_code)), namespace=key[0])

    def end(self, name: str, code: int = 0, *, namespace: str = "default", **more: str) -> None:
        """Let a pod's containers end: first the containers, then the pod, in two versions."""
        pod = self.store.get("pods", namespace, name)
        assert pod is not None, name
        uid = pod["metadata"]["uid"]
        told = []
        for one in pod["spec"]["containers"]:
            if log := self.cluster.logs.of(uid, one["name"]):
                log.close()
            before = next(
                (
                    each["state"].get("running")
                    for each in (pod["status"].get("containerStatuses") or ())
                    if each["name"] == one["name"]
                ),
                None,
            )
            since = (before or {}).get("startedAt") or statuses.now()
            state = statuses.terminated(code, since, container_id=f"containerd://{uid}", **more)
            told.append(statuses.container_status(one, state, container_id=f"containerd://{uid}"))
        pod = self.store.put("pods", statuses.reported(pod, "Running", told)).object
        self.ended_at[name] = time.time()
        self.store.put("pods", statuses.reported(pod, "Failed" if code else "Succeeded", told, sandbox=False))

    def _stop(self, *key: str) -> None:
        pod = self._pod(*key)
        if pod is None:
            return
        if (pod.get("status") or {}).get("phase") == "Running":
            self.end(key[1], 143, namespace=key[0])
        pod = self._pod(*key)
        if pod is not None:
            delete(self.store, "pods", pod, {"gracePeriodSeconds": 0})
