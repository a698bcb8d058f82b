"""The toy kubelet, with its scheduler: pods of the store run as local processes, and the store is told what becomes of them.

In: pods as they are created and deleted. Out: their lives, see `lives.py`; events; and a node that a test may lose, return or
remove. Everything that was started is ended with it.
"""

from __future__ import annotations

import asyncio
import itertools
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.kube.fake import nodes, statuses
from tests.kube.fake.deleting import delete
from tests.kube.fake.lives import PodLife
from tests.kube.fake.refusals import Refusal
from tests.kube.fake.storing import Change, Object, new_uid

if TYPE_CHECKING:
    from tests.kube.fake.cluster import FakeCluster

TOLERATION_SECONDS = 300.0


class ToyKubelet:
    """Runs pods; `entrypoints` are the commands of images, `has_image` tells which can be pulled."""

    def __init__(self, cluster: FakeCluster) -> None:
        self.cluster, self.pace = cluster, cluster.pace
        self.entrypoints: dict[str, list[str]] = {}
        self.has_image: Callable[[str], bool] = lambda image: "absent" not in image
        self.lost: set[str] = set()
        self.room = asyncio.Event()
        self._lives: dict[str, PodLife] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._later: set[asyncio.Task[None]] = set()
        self._numbers = itertools.count()
        self._directory = Path()

    def begin(self) -> None:
        """Take up pods, those that are there already among them."""
        self._directory = Path(tempfile.mkdtemp(prefix="toy-kubelet-"))
        self.cluster.store.listeners.append(self._changed)
        self.cluster.exec = self._execute
        for pod in self.cluster.store.all("pods"):
            self._take_up(pod)

    async def close(self) -> None:
        """Kill everything."""
        self.cluster.store.listeners.remove(self._changed)
        tasks = [*self._tasks.values(), *self._later]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        shutil.rmtree(self._directory, ignore_errors=True)

    def ring_room(self) -> None:
        """Let pods that found no node look again."""
        room, self.room = self.room, asyncio.Event()
        room.set()

    # --- a test's hands ---------------------------------------------------------------------------

    def evict(self, name: str, message: str, namespace: str = "default") -> None:
        """Evict a pod as a node that runs out of something does."""
        pod = self.cluster.store.get("pods", namespace, name)
        assert pod is not None, name
        life = self._lives[pod["metadata"]["uid"]]
        life.more = {"message": message, "reason": "Evicted"}
        self.tell(pod, "Evicted", message, kind="Warning")
        life.stop("evicted")

    def lose_node(self, name: str = "node-1") -> None:
        """Let a node be silent: its pods go on, nobody hears of them, and after a while they are to be deleted."""
        self.lost.add(name)
        self._set_node(name, "Unknown", "NodeStatusUnknown")
        for pod in self._pods_of(name):
            told = ("Ready", "False", "", "")
            self._put_conditions(pod, told)
        task = asyncio.create_task(self._delete_lost(name))
        self._later.add(task)
        task.add_done_callback(self._later.discard)

    def return_node(self, name: str = "node-1") -> None:
        """Let a lost node be heard again: it tells what happened meanwhile."""
        self.lost.discard(name)
        self._set_node(name, "True", "KubeletReady")
        for pod in self._pods_of(name):
            life = self._lives.get(pod["metadata"]["uid"])
            if life is not None:
                life.report_again()
        self.ring_room()

    def remove_node(self, name: str = "node-1") -> None:
        """Let a node be gone, and its pods with it, as the garbage collector does that."""
        node = self.cluster.store.get("nodes", "", name)
        assert node is not None, name
        self.lost.add(name)
        self.cluster.store.remove("nodes", node)
        for pod in self._pods_of(name):
            told = ("DisruptionTarget", "True", "DeletionByPodGC", "PodGC: node no longer exists")
            pod = self._put_conditions(pod, told, phase="Failed")
            delete(self.cluster.store, "pods", pod, {"gracePeriodSeconds": 0})

    # --- pods -------------------------------------------------------------------------------------

    def _changed(self, change: Change) -> None:
        if change.resource == "nodes":
            self.ring_room()
        if change.resource != "pods":
            return
        metadata = change.object["metadata"]
        life = self._lives.get(metadata["uid"])
        if change.before is None and not change.gone:
            self._take_up(change.object)
        elif life is not None and change.gone:
            life.stop("gone")
            self.ring_room()
        elif life is not None and metadata.get("deletionTimestamp") and life.node not in self.lost:
            if _deletion(change.before) != _deletion(change.object):
                life.stop("deleted")
        elif life is not None and _gates(change.before) != _gates(change.object):
            self.ring_room()

    def _take_up(self, pod: Object) -> None:
        """Begin a pod's life, unless it is another node's."""
        name = pod["spec"].get("nodeName")
        over = (pod.get("status") or {}).get("phase") in ("Succeeded", "Failed")
        if over or (name and self.cluster.store.get("nodes", "", name) is None):
            return
        uid = pod["metadata"]["uid"]
        self._lives[uid] = life = PodLife(self, pod, self._directory / str(next(self._numbers)))
        self._tasks[uid] = task = asyncio.create_task(life.run())
        task.add_done_callback(lambda done: self._over(uid, done))

    def _over(self, uid: str, task: asyncio.Task[None]) -> None:
        del self._lives[uid], self._tasks[uid]
        if not task.cancelled() and (error := task.exception()):
            asyncio.get_running_loop().call_exception_handler(
                {"message": f"the toy kubelet failed with pod {uid}", "exception": error}
            )

    async def _execute(self, pod: Object, container: str, command: list[str]) -> asyncio.subprocess.Process:
        life = self._lives.get(pod["metadata"]["uid"])
        if life is None or container not in life.containers:
            raise Refusal(404, "NotFound", f"container {container} not found")
        return await life.containers[container].execute(command)

    # --- nodes ------------------------------------------------------------------------------------

    async def _delete_lost(self, name: str) -> None:
        await asyncio.sleep(TOLERATION_SECONDS * self.pace)
        if name in self.lost:
            why = "Taint manager: deleting due to NoExecute taint"
            for pod in self._pods_of(name):
                pod = self._put_conditions(pod, ("DisruptionTarget", "True", "DeletionByTaintManager", why))
                delete(self.cluster.store, "pods", pod, {})

    def _pods_of(self, node: str) -> list[Object]:
        return [
            one
            for one in self.cluster.store.all("pods")
            if one["spec"].get("nodeName") == node and one["status"]["phase"] not in ("Succeeded", "Failed")
        ]

    def _put_conditions(self, pod: Object, told: tuple[str, str, str, str], **more: Any) -> Object:
        status = {**pod["status"], **more, "conditions": statuses.with_conditions(pod, [told])}
        return self.cluster.store.put("pods", {**pod, "status": status}).object

    def _set_node(self, name: str, status: str, reason: str) -> None:
        node = self.cluster.store.get("nodes", "", name)
        assert node is not None, name
        self.cluster.store.put("nodes", nodes.with_readiness(node, status, reason))

    # --- events -----------------------------------------------------------------------------------

    def tell(
        self, pod: Object | None, reason: str, message: str, *, kind: str = "Normal", container: str = ""
    ) -> None:
        """Record an event of a pod."""
        if pod is None or self.cluster.store.get("namespaces", "", pod["metadata"]["namespace"]) is None:
            return
        metadata, moment = pod["metadata"], statuses.now()
        about = {
            "kind": "Pod",
            "namespace": metadata["namespace"],
            "name": metadata["name"],
            "uid": metadata["uid"],
        }
        about |= {"apiVersion": "v1", "resourceVersion": metadata["resourceVersion"]}
        if container:
            about["fieldPath"] = f"spec.containers{{{container}}}"
        named = {"name": f"{metadata['name']}.{next(self._numbers):016x}", "namespace": metadata["namespace"]}
        self.cluster.store.put(
            "events",
            {
                "kind": "Event",
                "apiVersion": "v1",
                "metadata": {**named, "uid": new_uid(), "creationTimestamp": moment},
                "involvedObject": about,
                "reason": reason,
                "message": message,
                "source": {"component": "kubelet", "host": pod["spec"].get("nodeName", "")},
                "firstTimestamp": moment,
                "lastTimestamp": moment,
                "count": 1,
                "type": kind,
                "eventTime": None,
                "reportingComponent": "kubelet",
                "reportingInstance": pod["spec"].get("nodeName", ""),
            },
        )


def _deletion(pod: Object | None) -> object:
    return pod and (
        pod["metadata"].get("deletionTimestamp"),
        pod["metadata"].get("deletionGracePeriodSeconds"),
    )


def _gates(pod: Object | None) -> object:
    return pod and pod["spec"].get("schedulingGates")
