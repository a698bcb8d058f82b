"""The toy kubelet and its scheduler: in come pods as they are stored, out go their lives, told as the recordings tell them.

Containers are local processes (`containers`). `pace` is the pause between what a real node does one after the other. A
test's hand: `evict`, `lose`, `collect`; images with `absent` or `.invalid` in their names are not to be had.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any

from tests.kube.api import deleting, quantities, resizing, telling, volumes
from tests.kube.api.amounts import of_quota
from tests.kube.api.containers import environment
from tests.kube.api.deleting import PODS
from tests.kube.api.kinds import BY_PATH
from tests.kube.api.lives import Life
from tests.kube.api.server import Server
from tests.kube.api.storage import Change, key_of, now
from tests.kube.api.streams import Log

Object = dict[str, Any]
NODES, EVENTS = BY_PATH["", "v1", "nodes"], BY_PATH["", "v1", "events"]


class Kubelet:
    """One node; `env` is what its containers have besides PATH and HOME."""

    def __init__(
        self,
        server: Server,
        *,
        name: str = "node1",
        cpu: str = "64",
        memory: str = "256Gi",
        pods: str = "5000",
        pace: float = 0.02,
        backoff: float = 10.0,
        env: Mapping[str, str] | None = None,
    ) -> None:
        self.server = server
        self.storage = server.storage
        self.name = name
        self.room = {
            "cpu": quantities.parse(cpu),
            "memory": quantities.parse(memory),
            "pods": quantities.parse(pods),
        }
        server.writer.room = self.room
        self.handlers = {"runc"}
        self.pace = pace
        self.backoff = backoff
        self.env = {"PATH": os.environ.get("PATH", os.defpath), "HOME": "/tmp", **(env or {})}
        self.folder = Path(tempfile.mkdtemp(prefix="kubelet-"))
        self.lives: dict[str, Life] = {}
        self.logs: dict[tuple[str, str], list[Log]] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._waiting: dict[str, tuple[str, str]] = {}
        self._is_lost = False
        self.storage.create(NODES, telling.node_object(name, cpu, memory, pods))
        self.storage.table(PODS).listeners.append(self.see)
        server.node = self
        for pod in list(self.storage.table(PODS).objects.values()):
            self._take(pod)

    # --- what happens to pods -------------------------------------------------------------------

    def see(self, change: Change) -> None:
        """Take notice of a change of a pod."""
        if self._is_lost:
            return
        pod, uid = change.found, change.found["metadata"]["uid"]
        life = self.lives.get(uid)
        if change.type == "DELETED":
            self._waiting.pop(uid, None)
            if uid in self._tasks:
                self._tasks[uid].cancel()
            asyncio.get_running_loop().call_soon(self._forget, uid)
        elif life is not None:
            if pod["metadata"].get("deletionTimestamp"):
                life.delete(pod["metadata"].get("deletionGracePeriodSeconds", 0))
            elif not life.resizes and resizing.is_due(pod):
                life.resizes = True
                asyncio.get_running_loop().call_soon(self._resize, life)
        elif change.type == "ADDED" or (uid in self._waiting or not pod["spec"].get("nodeName")):
            asyncio.get_running_loop().call_soon(self._take_again, key_of(pod), uid)

    def _take_again(self, where: tuple[str, str], uid: str) -> None:
        pod = self.storage.table(PODS).objects.get(where)
        if pod is not None and pod["metadata"]["uid"] == uid and uid not in self.lives and not self._is_lost:
            self._take(pod)

    def _take(self, pod: Object) -> None:
        """Give a pod the node, or say why not."""
        uid, spec = pod["metadata"]["uid"], pod["spec"]
        if spec.get("nodeName", self.name) != self.name or pod["metadata"].get("deletionTimestamp"):
            return
        reason, why = self._refused(pod)
        if why:
            self._waiting[uid] = key_of(pod)
            told = telling.unscheduled(pod, reason, why)
            status = pod.get("status") or {}
            if [one.get("message") for one in status.get("conditions") or ()] != [why]:
                self.storage.update(PODS, {**pod, "status": {**status, "conditions": told}})
                if reason == "Unschedulable":
                    self.tell(pod, "FailedScheduling", why, "Warning")
            return
        self._waiting.pop(uid, None)
        life = self.lives[uid] = Life(self, pod)
        task = self._tasks[uid] = asyncio.create_task(life.run())
        task.add_done_callback(lambda _: self._tasks.pop(uid, None))

    def _refused(self, pod: Object) -> tuple[str, str]:
        spec = pod["spec"]
        if spec.get("schedulingGates"):
            return "SchedulingGated", "Scheduling is blocked due to non-empty scheduling gates"
        nothing = "no new claims to deallocate, preemption: 0/1 nodes are available: 1"
        if any(self._labels().get(key) != value for key, value in (spec.get("nodeSelector") or {}).items()):
            why = f"1 node(s) didn't match Pod's node affinity/selector. {nothing} Preemption is not helpful for scheduling."
            return "Unschedulable", f"0/1 nodes are available: {why}"
        if spec.get("nodeName"):
            return "", ""
        if claim := volumes.unclaimed(self.storage, pod):
            why = f'persistentvolumeclaim "{claim}" not found. not found'
            return "Unschedulable", f"0/1 nodes are available: {why}"
        taken, asked = self._taken(), of_quota(pod)
        for resource, room in self.room.items():
            if taken.get(resource, Decimal()) + asked.get(resource, Decimal()) > room:
                short = "Too many pods" if resource == "pods" else f"Insufficient {resource}"
                why = f"1 {short}. {nothing} No preemption victims found for incoming pod."
                return "Unschedulable", f"0/1 nodes are available: {why}"
        return "", ""

    def _taken(self, without: Life | None = None) -> dict[str, Decimal]:
        """Return what the node's pods take together."""
        taken: dict[str, Decimal] = {}
        for life in self.lives.values():
            for resource, amount in ({} if life.is_over or life is without else life.amounts).items():
                taken[resource] = taken.get(resource, Decimal()) + amount
        return taken

    def _resize(self, life: Life) -> None:
        """Do a resize, or let it wait for room."""

        def lacks(pod: Object) -> str:
            taken, asked = self._taken(life), of_quota(pod)
            for resource in ("cpu", "memory"):
                used, want = taken.get(resource, Decimal()), asked.get(resource, Decimal())
                if used + want > self.room[resource]:
                    return resizing.shortage(resource, want, used, self.room[resource])
            return ""

        if resizing.grant(self.storage, PODS, lambda: self.current(life), lacks):
            life.resizes = life.waits_for_room = False
            if (pod := self.current(life)) is not None:
                life.resized(pod)
        else:
            life.waits_for_room = True

    def _labels(self) -> dict[str, str]:
        node = self.storage.find(NODES, "", self.name)
        return (node or {"metadata": {}})["metadata"].get("labels") or {}

    def ended(self) -> None:
        """See whether there is room now for who waits."""
        for life in list(self.lives.values()):
            if life.waits_for_room:
                life.waits_for_room = False
                asyncio.get_running_loop().call_soon(self._resize, life)
        for uid, where in list(self._waiting.items()):
            self._take_again(where, uid)

    def _forget(self, uid: str) -> None:
        self.lives.pop(uid, None)
        for key in [key for key in self.logs if key[0] == uid]:
            for log in self.logs.pop(key):
                log.remove()
        shutil.rmtree(self.folder / uid, ignore_errors=True)
        self.ended()

    # --- what lives ask -------------------------------------------------------------------------

    def current(self, life: Life) -> Object | None:
        """Return a life's pod as it is stored."""
        pod = self.storage.table(PODS).objects.get(life.where)
        return pod if pod is not None and pod["metadata"]["uid"] == life.uid else None

    def tell(self, pod: Object, reason: str, message: str, kind: str = "Normal", container: str = "") -> None:
        """Record an event."""
        self.storage.create(EVENTS, telling.event(pod, self.name, reason, message, kind, container))

    def tell_again(self, pod: Object, reason: str, message: str) -> None:
        """Record a warning of the node's, or that it has come once more."""
        uid = pod["metadata"]["uid"]
        for event in self.storage.table(EVENTS).objects.values():
            same = (event["involvedObject"]["uid"], event["reason"], event["message"])
            if same == (uid, reason, message):
                self.storage.update(EVENTS, {**event, "count": event["count"] + 1, "lastTimestamp": now()})
                return
        self.tell(pod, reason, message, "Warning")

    def lacking(self, pod: Object) -> tuple[str, str]:
        """Return the event that tells why a pod cannot be made, blank where it can."""
        if why := volumes.missing(self.storage, pod):
            return "FailedMount", why
        name = pod["spec"].get("runtimeClassName")
        kind = BY_PATH["node.k8s.io", "v1", "runtimeclasses"]
        found = self.storage.find(kind, "", name) if name else None
        if found is not None and found["handler"] not in self.handlers:
            why = f'failed to get sandbox runtime: no runtime for "{found["handler"]}" is configured'
            told = f"Failed to create pod sandbox: rpc error: code = Unknown desc = {why}"
            return "FailedCreatePodSandBox", told
        return "", ""

    def keep_log(self, uid: str, name: str, log: Log) -> None:
        """Keep a container's log: the last two."""
        kept = self.logs.setdefault((uid, name), [])
        kept.append(log)
        while len(kept) > 2:
            kept.pop(0).remove()

    def has_image(self, image: str) -> bool:
        """Whether an image is to be had."""
        return "absent" not in image and ".invalid" not in image

    def environment(self, pod: Object, spec: Object) -> dict[str, str]:
        """Return a container's environment."""
        return environment(self.storage, pod, spec, {**self.env, "HOSTNAME": pod["metadata"]["name"]})

    # --- what the server asks -------------------------------------------------------------------

    def log(self, pod: Object, container: str, *, previous: bool) -> Log | None:
        """Return a container's log; of the attempt before only while the last one runs, as a real one has it."""
        kept = self.logs.get((pod["metadata"]["uid"], container)) or []
        if previous and len(kept) > 1 and kept[-1].is_over:
            told = (pod.get("status") or {}).get("containerStatuses") or ()
            if any(one["name"] == container and "waiting" in one["state"] for one in told):
                return kept[-1]  # between two attempts the last one is the previous one, too
            kept[-2].gone = kept[-2].gone or telling.log_is_gone()
        return kept[-2 if previous else -1] if len(kept) > previous else None

    async def execute(self, pod: Object, container: str, command: list[str]) -> asyncio.subprocess.Process:
        """Start a command with a container's environment, in its folder."""
        spec = next(one for one in pod["spec"]["containers"] if one["name"] == container)
        folder = self.folder / pod["metadata"]["uid"] / container
        pipe = asyncio.subprocess.PIPE
        env = self.environment(pod, spec)
        return await asyncio.create_subprocess_exec(
            *command, cwd=folder, env=env, stdin=pipe, stdout=pipe, stderr=pipe, start_new_session=True
        )

    # --- a test's hand --------------------------------------------------------------------------

    def evict(self, name: str, message: str = "The node was low on resource: memory. ") -> None:
        """Evict a pod, as a node does that has too little of something."""
        next(life for life in self.lives.values() if life.where[1] == name).stop("Evicted", message, 0.0)

    def lose_log(self, name: str, container: str = "main", words: str = "") -> None:
        """Let the log of a container's last attempt be gone: there are words in its place."""
        life = next(life for life in self.lives.values() if life.where[1] == name)
        log = self.logs[life.uid, container][-1]
        log.end()
        log.gone = words or telling.log_is_gone()

    async def lose(self) -> None:
        """Lose the node: processes are gone, nobody tells; its pods are marked, and stay until `collect`."""
        self._is_lost = True
        await self._end_all()
        for life in self.lives.values():
            if (pod := self.current(life)) is None or life.is_over:
                continue
            status = dict(pod["status"])
            target = {"type": "DisruptionTarget", "status": "True", "reason": "DeletionByTaintManager"}
            target |= {
                "message": "Taint manager: deleting due to NoExecute taint",
                "lastTransitionTime": now(),
            }
            unready = [
                {**one, "status": "False"} if one["type"] == "Ready" else one
                for one in status.get("conditions") or ()
            ]
            status |= {"conditions": [target, *unready], "reason": "NodeLost"}
            status["message"] = f"Node {self.name} which was running pod {life.where[1]} is unresponsive"
            deleting.delete(self.storage, PODS, self.storage.update(PODS, {**pod, "status": status}), {})

    def collect(self) -> None:
        """Remove the pods of a node that is lost, as the garbage collector does."""
        for life in self.lives.values():
            if (pod := self.current(life)) is None:
                continue
            if not life.is_over:
                pod = self.storage.update(PODS, {**pod, "status": {**pod["status"], "phase": "Failed"}})
            deleting.delete(self.storage, PODS, pod, {"gracePeriodSeconds": 0})

    async def _end_all(self) -> None:
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def close(self) -> None:
        """End every process, and remove every file."""
        self._is_lost = True
        self.storage.table(PODS).listeners.remove(self.see)
        await self._end_all()
        for logs in self.logs.values():
            for log in logs:
                log.remove()
        shutil.rmtree(self.folder, ignore_errors=True)


@contextlib.asynccontextmanager
async def running(server: Server, **how: Any) -> AsyncIterator[Kubelet]:
    """Let a kubelet work while the block lasts."""
    kubelet = Kubelet(server, **how)
    try:
        yield kubelet
    finally:
        await kubelet.close()
