"""The life of one pod on the toy node: scheduled, created, initialized, running, over; or stopped on the way.

In: a pod without a node. Out: its versions in the store, in the order and shapes of the recordings: Pending, ContainerCreating,
Running, Running with a terminated container, and only a second later Succeeded or Failed. Times are the recorded ones, times
the kubelet's pace; grace periods and deadlines are real seconds.
"""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tests.kube.fake import statuses
from tests.kube.fake.containers import NEVER, ConfigError, Container, StartError, environment
from tests.kube.fake.deleting import delete
from tests.kube.fake.nodes import place_for
from tests.kube.fake.storing import Object

if TYPE_CHECKING:
    from tests.kube.fake.kubelet import ToyKubelet

Stop = Literal["deleted", "deadline", "evicted", "gone"]
CREATING, SANDBOX, PULLING, SETTLING, BACKING_OFF = 0.05, 0.1, 0.2, 1.1, 10.0
DEADLINE_TEXT = "Pod was active on the node longer than the specified deadline"
UNKNOWN_TEXT = "The container could not be located when the pod was terminated"


class PodLife:
    """One pod, from its scheduling to its end."""

    def __init__(self, kubelet: ToyKubelet, pod: Object, directory: Path) -> None:
        self.kubelet, self.store, self.pace = kubelet, kubelet.cluster.store, kubelet.pace
        self.key = pod["metadata"]["namespace"], pod["metadata"]["name"]
        self.uid: str = pod["metadata"]["uid"]
        self.directory = directory
        self.containers: dict[str, Container] = {}
        self.told: dict[str, dict[str, Any]] = {}
        self.init_told: dict[str, dict[str, Any]] = {}
        self.node = ""
        self.phase = "Pending"
        self.sandbox, self.initialized = False, not pod["spec"].get("initContainers")
        self.more: dict[str, str] = {}
        self.stopped: asyncio.Future[Stop] = asyncio.get_running_loop().create_future()
        self.hurried = asyncio.Event()

    @property
    def pod(self) -> Object | None:
        """The pod as it is now, or None once it is gone."""
        pod = self.store.get("pods", *self.key)
        return pod if pod is not None and pod["metadata"]["uid"] == self.uid else None

    def stop(self, why: Stop) -> None:
        """Let it end; the first reason counts."""
        if not self.stopped.done():
            self.stopped.set_result(why)
        elif why in ("gone", "deleted"):
            self.hurried.set()

    async def run(self) -> None:
        """Live to the end."""
        work = asyncio.create_task(self._work())
        deadline: asyncio.TimerHandle | None = None
        try:
            if seconds := (self.pod or {"spec": {}})["spec"].get("activeDeadlineSeconds"):
                deadline = asyncio.get_running_loop().call_later(seconds, self.stop, "deadline")
            await asyncio.wait({work, self.stopped}, return_when=asyncio.FIRST_COMPLETED)
            if self.stopped.done() and not work.done():
                work.cancel()
                await asyncio.gather(work, return_exceptions=True)
                await self._stop(self.stopped.result())
            else:
                await work
        finally:
            work.cancel()
            if deadline is not None:
                deadline.cancel()
            await self.kill()
            await asyncio.gather(work, return_exceptions=True)

    async def kill(self) -> None:
        """End all processes at once."""
        for container in self.containers.values():
            container.kill()
        await asyncio.gather(
            *(one.ended for one in self.containers.values() if one.ended), return_exceptions=True
        )

    # --- the usual way ----------------------------------------------------------------------------

    async def _work(self) -> None:
        spec = await self._scheduled()
        for part, told in (("initContainers", self.init_told), ("containers", self.told)):
            for one in spec.get(part) or ():
                waiting = statuses.STARTING if self.initialized else statuses.INITIALIZING
                told[one["name"]] = statuses.container_status(one, waiting)
        await self._pause(CREATING)
        self._report()
        await self._pause(SANDBOX)
        self.sandbox = True
        self._report()
        if await self._initialized(spec):
            await asyncio.gather(*(self._container(one, self.told) for one in spec["containers"]))
        await self._pause(SETTLING)
        self._finish()

    async def _scheduled(self) -> dict[str, Any]:
        """Wait for a node; return the pod's spec."""
        said = ""
        while True:
            room = self.kubelet.room
            pod = self.pod
            assert pod is not None
            self.node = pod["spec"].get("nodeName") or ""
            if self.node:
                return pod["spec"]  # type: ignore[no-any-return]
            if not pod["spec"].get("schedulingGates"):
                self.node, why = place_for(self.store, pod)
                if self.node:
                    pod = self.store.put("pods", statuses.scheduled(pod, self.node)).object
                    text = f"Successfully assigned {'/'.join(self.key)} to {self.node}"
                    self.kubelet.tell(pod, "Scheduled", text)
                    return pod["spec"]  # type: ignore[no-any-return]
                if why != said:
                    pod = self.store.put("pods", statuses.unschedulable(pod, why)).object
                    self.kubelet.tell(pod, "FailedScheduling", why, kind="Warning")
                    said = why
            await room.wait()

    async def _initialized(self, spec: dict[str, Any]) -> bool:
        """Run the init containers, one after the other; sidecars go on."""
        for one in spec.get("initContainers") or ():
            if one.get("restartPolicy") == "Always":
                await self._start(one, self.init_told)
            elif await self._container(one, self.init_told):
                return False
        self.initialized = True
        for told in self.told.values():
            told["state"] = statuses.STARTING
        return True

    async def _container(self, spec: dict[str, Any], told: dict[str, dict[str, Any]]) -> int:
        """Run a container, again where its pod wants that; return its last exit code."""
        restarts, last, wait = 0, None, BACKING_OFF
        while True:
            code = await self._once(spec, told, restarts, last)
            pod = self.pod
            policy = pod["spec"]["restartPolicy"] if pod else "Never"
            again = (policy == "OnFailure" and code) or (policy == "Always" and told is self.told)
            if not again:
                return code
            last, restarts = told[spec["name"]]["state"], restarts + 1
            if restarts > 1:
                why = f"back-off {wait:.0f}s restarting failed container={spec['name']} pod={self.key[1]}"
                self._tell(
                    spec, told, statuses.waiting("CrashLoopBackOff", why), restarts=restarts - 1, last=last
                )
                self._report()
                await self._pause(wait)
                wait = min(2 * wait, 300.0)

    async def _once(
        self, spec: dict[str, Any], told: dict[str, dict[str, Any]], restarts: int, last: Any
    ) -> int:
        container = await self._start(spec, told, restarts, last)
        if container is None:
            return 128
        assert container.ended is not None
        code = await asyncio.shield(container.ended)
        self._over(spec, told, container, code)
        self._report()
        return code

    async def _start(
        self, spec: dict[str, Any], told: dict[str, dict[str, Any]], restarts: int = 0, last: Any = None
    ) -> Container | None:
        """Start a container once its image and its configuration are there; None where its command is not."""
        await self._pulled(spec, told)
        env = await self._configured(spec, told)
        name = spec["name"]
        log = self.kubelet.cluster.logs.begin(self.uid, name)
        container = Container(spec, log, self.directory / f"{name}-{restarts}")
        await self._pause(PULLING)
        self.containers[name] = container
        try:
            await container.start(env, {}, self.kubelet.entrypoints.get(spec["image"], ["sh"]))
        except StartError as error:
            del self.containers[name]
            log.close()
            self.kubelet.tell(self.pod, "Failed", f"Error: {error}", kind="Warning", container=name)
            state = statuses.terminated(
                128, NEVER, reason="StartError", message=str(error), container_id=self._id(name, restarts)
            )
            self._tell(spec, told, state, container_id=self._id(name, restarts), restarts=restarts, last=last)
            self._report()
            return None
        self.kubelet.tell(self.pod, "Started", "Container started", container=name)
        self._tell(
            spec,
            told,
            statuses.running(),
            container_id=self._id(name, restarts),
            restarts=restarts,
            last=last,
        )
        self._report()
        return container

    async def _pulled(self, spec: dict[str, Any], told: dict[str, dict[str, Any]]) -> None:
        image, name = spec["image"], spec["name"]
        wait = BACKING_OFF
        while not self.kubelet.has_image(image):
            await self._pause(PULLING)
            host = image.partition("/")[0]
            why = (
                f'failed to pull and unpack image "{image}": failed to resolve reference "{image}": '
                f'failed to do request: Head "http://{host}/v2/": dial tcp: connect: connection refused'
            )
            self._tell(spec, told, statuses.waiting("ErrImagePull", why))
            self._report()
            self.kubelet.tell(
                self.pod, "Failed", f'Failed to pull image "{image}": {why}', kind="Warning", container=name
            )
            await self._pause(wait)
            back = f'Back-off pulling image "{image}"'
            self._tell(spec, told, statuses.waiting("ImagePullBackOff", f"{back}: ErrImagePull: {why}"))
            self._report()
            self.kubelet.tell(self.pod, "BackOff", back, container=name)
            await self._pause(wait)
            wait = min(2 * wait, 300.0)

    async def _configured(self, spec: dict[str, Any], told: dict[str, dict[str, Any]]) -> dict[str, str]:
        said = ""
        while True:
            try:
                pod = self.pod
                assert pod is not None
                return environment(self.store, pod, spec, self.kubelet.cluster.env)
            except ConfigError as error:
                if str(error) != said:
                    said = str(error)
                    self._tell(spec, told, statuses.waiting("CreateContainerConfigError", said))
                    self._report()
                    self.kubelet.tell(pod, "Failed", f"Error: {said}", kind="Warning", container=spec["name"])
                await self._pause(1.0)

    # --- the other ways ---------------------------------------------------------------------------

    async def _stop(self, why: Stop) -> None:
        pod = self.pod
        if why == "gone" or pod is None:
            return
        if why == "evicted":
            await self.kill()
        else:
            for name in self.containers:
                self.kubelet.tell(pod, "Killing", f"Stopping container {name}", container=name)
            await self._terminate()
        if why == "deadline":
            self.more = {"message": DEADLINE_TEXT, "reason": "DeadlineExceeded"}
        elif why == "deleted":
            self._account(pod)
        self._collect(pod)
        if why == "deleted" and not self.node:
            return
        self._finish(failed=why != "deleted")
        pod = self.pod
        if (
            pod is not None
            and pod["metadata"].get("deletionTimestamp")
            and self.node not in self.kubelet.lost
        ):
            await self._pause(SETTLING / 2)
            if (pod := self.pod) is not None:
                delete(self.store, "pods", pod, {"gracePeriodSeconds": 0})

    async def _terminate(self) -> None:
        """TERM, and KILL when the grace is over, or when somebody shortens it."""
        live = [one for one in self.containers.values() if one.ended and not one.ended.done()]
        for container in live:
            container.terminate()
        loop = asyncio.get_running_loop()
        began = loop.time()
        while waiting := {one.ended for one in live if one.ended and not one.ended.done()}:
            left = began + self._grace() - loop.time()
            if left <= 0:
                break
            self.hurried.clear()
            hurry = asyncio.create_task(self.hurried.wait())
            await asyncio.wait({*waiting, hurry}, timeout=left, return_when=asyncio.FIRST_COMPLETED)
            hurry.cancel()
            await asyncio.gather(hurry, return_exceptions=True)
        await self.kill()

    def _grace(self) -> float:
        pod = self.pod
        if pod is None:
            return 0.0
        told = pod["metadata"].get("deletionGracePeriodSeconds")
        return float(pod["spec"].get("terminationGracePeriodSeconds", 30) if told is None else told)

    def _collect(self, pod: Object) -> None:
        """Tell the ends of containers that were stopped."""
        for part, told in (("initContainers", self.init_told), ("containers", self.told)):
            for spec in pod["spec"].get(part) or ():
                container = self.containers.get(spec["name"])
                if container is None or "running" not in told[spec["name"]]["state"]:
                    continue
                if container.ended is not None and container.ended.done():
                    self._over(spec, told, container, container.ended.result())

    def _account(self, pod: Object) -> None:
        """Tell of containers that never began when their pod was deleted."""
        for spec in pod["spec"]["containers"]:
            name = spec["name"]
            if name in self.told and "waiting" in self.told[name]["state"]:
                state = statuses.terminated(137, "", reason="ContainerStatusUnknown", message=UNKNOWN_TEXT)
                state["terminated"] |= {"startedAt": None, "finishedAt": None}
                self._tell(spec, self.told, state)

    def _finish(self, *, failed: bool = False) -> None:
        """Tell the last status."""
        states = [one["state"].get("terminated") for one in self.told.values()]
        good = bool(states) and all(one and one["exitCode"] == 0 for one in states)
        self.phase = "Succeeded" if good and not failed else "Failed"
        self.sandbox = False
        self._report(final=True)
        self.kubelet.ring_room()

    # --- telling ----------------------------------------------------------------------------------

    def _over(
        self, spec: dict[str, Any], told: dict[str, dict[str, Any]], container: Container, code: int
    ) -> None:
        before = told[spec["name"]]
        state = statuses.terminated(
            code,
            before["state"].get("running", {}).get("startedAt") or statuses.now(),
            reason="OOMKilled" if container.out_of_memory else "",
            message=container.message(code),
            container_id=before["containerID"],
        )
        self._tell(
            spec,
            told,
            state,
            container_id=before["containerID"],
            restarts=before["restartCount"],
            last=before["lastState"],
        )

    @staticmethod
    def _tell(
        spec: dict[str, Any], told: dict[str, dict[str, Any]], state: dict[str, Any], **more: Any
    ) -> None:
        told[spec["name"]] = statuses.container_status(spec, state, **more)

    def _report(self, *, final: bool = False) -> None:
        """Store the status, unless the node is lost or the pod gone."""
        pod = self.pod
        if pod is None or self.node in self.kubelet.lost:
            return
        if not final and any("running" in one["state"] for one in self.told.values()):
            self.phase = "Running"
        after = statuses.reported(
            pod,
            self.phase,
            list(self.told.values()),
            sandbox=self.sandbox,
            initialized=self.initialized,
            init=list(self.init_told.values()),
            ip="10.88.0.8" if self.sandbox else "",
            **self.more,
        )
        if after["status"] != pod.get("status"):
            self.store.put("pods", after)

    def report_again(self) -> None:
        """Tell what happened while the node was lost; go where the pod is to be deleted."""
        self._report(final=self.phase in ("Succeeded", "Failed"))
        if (pod := self.pod) is not None and pod["metadata"].get("deletionTimestamp"):
            self.stop("deleted")

    def _id(self, name: str, restarts: int) -> str:
        return f"containerd://{statuses.image_id(f'{self.uid}/{name}/{restarts}').partition(':')[2]}"

    async def _pause(self, recorded_seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.sleep(recorded_seconds * self.pace)
