"""Lives of pods on a node: in comes a pod that has got one, out go its statuses until it is over, and its removal if wanted."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any

from tests.kube.api import deleting, telling
from tests.kube.api.amounts import of_quota
from tests.kube.api.containers import ConfigError, Container
from tests.kube.api.deleting import PODS
from tests.kube.api.storage import key_of, now

if TYPE_CHECKING:
    from tests.kube.api.kubelet import Kubelet

Object = dict[str, Any]


class Life:
    """One pod, from its node to its end."""

    def __init__(self, kubelet: Kubelet, pod: Object) -> None:
        self.kubelet = kubelet
        self.uid = pod["metadata"]["uid"]
        self.where = key_of(pod)
        self.spec = pod["spec"]
        self.amounts = of_quota(pod)
        self.is_over = False
        self.resizes = self.waits_for_room = False
        self._mains_over = asyncio.Event()
        self._sidecars: list[asyncio.Task[None]] = []
        self.inits: dict[str, Object] = {}
        self.mains: dict[str, Object] = {}
        self._sandbox = False
        self._initialized = not self.spec.get("initContainers")
        self._running: dict[str, Container] = {}
        self._why = ("", "")
        self._asked: asyncio.Event = asyncio.Event()
        self._grace = 0.0
        self._deleted = False
        self._stopping: asyncio.Task[None] | None = None
        self._began = ""

    # --- what others want -----------------------------------------------------------------------

    def delete(self, grace: float) -> None:
        """Let the pod end, and be gone then."""
        self._deleted = True
        self.stop("", "", grace)

    def stop(self, reason: str, message: str, grace: float) -> None:
        """Let the containers end: TERM, and KILL after the grace; the pod's status tells the reason."""
        if not self._asked.is_set():
            self._why = (reason, message)
        self._grace = grace
        self._asked.set()
        if self._stopping is not None and grace <= 0:
            for one in self._running.values():
                one.kill()

    def resized(self, pod: Object) -> None:
        """The node has put other amounts in force."""
        self.spec, self.amounts = pod["spec"], of_quota(pod)
        for told in pod["status"]["containerStatuses"]:
            self.mains[told["name"]] = told

    # --- its course -----------------------------------------------------------------------------

    async def run(self) -> None:
        """Live."""
        stopper = asyncio.create_task(self._stop_when_asked())
        deadline = self.spec.get("activeDeadlineSeconds")
        timer = asyncio.get_running_loop().call_later(
            deadline or 1e6, self.stop, "DeadlineExceeded", telling.DEADLINE, 0.0
        )
        try:
            with contextlib.suppress(_Stopped):
                await self._live()
            self._finish()
        finally:
            timer.cancel()
            stopper.cancel()
            for one in self._running.values():
                one.kill()
            for sidecar in self._sidecars:
                sidecar.cancel()
            await asyncio.gather(stopper, *self._sidecars, return_exceptions=True)

    async def _stop_when_asked(self) -> None:
        await self._asked.wait()
        self._stopping = asyncio.current_task()
        pod = self.kubelet.current(self)
        if pod is not None:
            if self._why[0]:
                kind = "Normal" if self._why[0] == "DeadlineExceeded" else "Warning"
                self.kubelet.tell(pod, self._why[0], self._why[1], kind)
            for name in self._running:
                self.kubelet.tell(pod, "Killing", f"Stopping container {name}", container=name)
        await asyncio.gather(*(one.stop(self._grace) for one in list(self._running.values())))

    async def _pause(self, seconds: float | None = None) -> None:
        """Wait a moment, unless it shall end."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self.kubelet.pace if seconds is None else seconds):
                await self._asked.wait()
        if self._asked.is_set():
            raise _Stopped

    async def _live(self) -> None:
        pod = self.kubelet.current(self)
        if pod is None:
            return
        told = {**pod["status"], "conditions": telling.scheduled(pod)}
        pod = self.kubelet.storage.update(
            PODS, {**pod, "spec": {**pod["spec"], "nodeName": self.kubelet.name}, "status": told}
        )
        where = f"{self.where[0]}/{self.where[1]} to {self.kubelet.name}"
        self.kubelet.tell(pod, "Scheduled", f"Successfully assigned {where}")
        self._began = now()
        inits, mains = self.spec.get("initContainers") or [], self.spec["containers"]
        first = telling.INITIALIZING if inits else telling.CREATING
        self.inits = {one["name"]: telling.container(one, telling.waiting(first)) for one in inits}
        self.mains = {one["name"]: telling.container(one, telling.waiting(first)) for one in mains}
        self._tell("Pending")
        await self._pause()
        await self._furnished()
        self._sandbox = True
        self._tell("Pending")
        await self._pause()
        for one in inits:
            if one.get("restartPolicy") == "Always":
                await self._start_beside(one)
                continue
            state = await self._keep_running(one, self.inits)
            if state["terminated"]["exitCode"]:
                return
        self._initialized = True
        await asyncio.gather(*(self._keep_running(one, self.mains) for one in mains))
        await self._end_sidecars()
        if self._asked.is_set():
            return
        self._tell(self._phase())
        await self._pause()

    async def _furnished(self) -> None:
        """Wait for volumes and a runtime; what is missing is told in events alone, again and again."""
        seconds = self.kubelet.backoff / 20
        while (pod := self.kubelet.current(self)) is not None:
            reason, why = self.kubelet.lacking(pod)
            if not reason:
                return
            self.kubelet.tell_again(pod, reason, why)
            await self._pause(seconds)
            seconds = min(2 * seconds, self.kubelet.backoff)

    async def _start_beside(self, spec: Object) -> None:
        """Start a sidecar, and go on when it has begun."""
        begun = asyncio.Event()
        self._sidecars.append(asyncio.create_task(self._run_beside(spec, begun)))
        while not begun.is_set():
            await self._pause()

    async def _run_beside(self, spec: Object, begun: asyncio.Event) -> None:
        restarts = 0
        last: Object = {}
        while not self._mains_over.is_set() and not self._asked.is_set():
            running = asyncio.create_task(self._run_once(spec, self.inits, restarts, last))
            try:
                while spec["name"] not in self._running and not running.done():
                    await asyncio.sleep(0.001)
                begun.set()
                last = await running
            finally:
                running.cancel()
            restarts += 1
            if restarts > 1 and not self._mains_over.is_set():
                text = f"back-off restarting failed container={spec['name']} pod={self.where[1]}"
                self._state(spec, self.inits, telling.waiting("CrashLoopBackOff", text), restarts - 1, last)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self.kubelet.backoff):
                        await self._mains_over.wait()

    async def _end_sidecars(self) -> None:
        """Main containers are over: sidecars get TERM, and KILL after the pod's grace; the phase waits for them."""
        self._mains_over.set()
        grace = float(self.spec.get("terminationGracePeriodSeconds", 30))
        names = {one["name"] for one in self.spec.get("initContainers") or ()}
        running = [one for name, one in self._running.items() if name in names]
        stops = [asyncio.create_task(one.stop(grace)) for one in running]
        try:
            await asyncio.gather(*self._sidecars)
        finally:
            for stop in stops:
                stop.cancel()

    async def _keep_running(self, spec: Object, told: dict[str, Object]) -> Object:
        """Run a container, and again where its pod, itself or a rule of its own wants that; return its last state."""
        policy, restarts = spec.get("restartPolicy") or self.spec.get("restartPolicy", "Always"), 0
        last: Object = {}
        while True:
            state = await self._run_once(spec, told, restarts, last)
            code = state["terminated"]["exitCode"]
            again = policy == "Always" and told is self.mains
            again = again or (policy != "Never" and bool(code)) or _ruled(spec, code)
            if self._asked.is_set() or not again:
                return state
            await self._pause()
            last = state
            if restarts:
                seconds = self.kubelet.backoff * 2 ** (restarts - 1)
                where = f"container={spec['name']} pod={self.where[1]}_{self.where[0]}({self.uid})"
                text = f"back-off {seconds:g}s restarting failed {where}"
                self._state(spec, told, telling.waiting("CrashLoopBackOff", text), restarts, last)
                await self._pause(seconds)
            restarts += 1

    async def _run_once(self, spec: Object, told: dict[str, Object], restarts: int, last: Object) -> Object:
        name, kubelet = spec["name"], self.kubelet
        env = await self._prepared(spec, told, restarts, last)
        folder = kubelet.folder / self.uid / name
        folder.mkdir(parents=True, exist_ok=True)
        container = Container(spec, folder, env)
        kubelet.keep_log(self.uid, name, container.log)
        state = await container.start()
        if state is None:
            self._running[name] = container
            try:
                self._event("Created", "Container created", name)
                self._event("Started", "Container started", name)
                running = {"running": {"startedAt": container.began}}
                self._state(spec, told, running, restarts, last, container.which)
                if self._asked.is_set():
                    container.kill()
                state = await container.finished()
            finally:
                self._running.pop(name, None)
        else:
            self._event("Failed", f"Error: {state['terminated']['message']}", name, "Warning")
        if container.over_storage:
            most = (spec["resources"]["limits"])["ephemeral-storage"]
            text = f"Pod ephemeral local storage usage exceeds the total limit of containers {most}. "
            self.stop("Evicted", text, 0.0)
        self._state(spec, told, state, restarts, last)
        return state

    async def _prepared(
        self, spec: Object, told: dict[str, Object], restarts: int, last: Object
    ) -> dict[str, str]:
        """Return the environment, once image and configuration are there."""
        image, name, kubelet, attempt = spec["image"], spec["name"], self.kubelet, 0
        while not kubelet.has_image(image):
            host = image.partition("/")[0]
            why = f'failed to pull and unpack image "{image}": failed to resolve reference "{image}": failed to do request: '
            why += f'Head "http://{host}/v2/": dial tcp 127.0.0.1:80: connect: connection refused'
            reason, text = "ErrImagePull", why
            if attempt % 2:
                reason, text = "ImagePullBackOff", f'Back-off pulling image "{image}": ErrImagePull: {why}'
                self._event("BackOff", f'Back-off pulling image "{image}"', name)
            else:
                self._event("Pulling", f'Pulling image "{image}"', name)
                self._event("Failed", f'Failed to pull image "{image}": {why}', name, "Warning")
            self._event("Failed", f"Error: {reason}", name, "Warning")
            self._state(spec, told, telling.waiting(reason, text), restarts, last)
            attempt += 1
            await self._pause(kubelet.backoff)
        present = f'Container image "{image}" already present on machine and can be accessed by the pod'
        self._event("Pulled", present, name)
        while True:
            pod = kubelet.current(self)
            if pod is None:
                raise _Stopped
            try:
                return kubelet.environment(pod, spec)
            except ConfigError as error:
                self._event("Failed", f"Error: {error}", name, "Warning")
                self._state(
                    spec, told, telling.waiting("CreateContainerConfigError", str(error)), restarts, last
                )
                await self._pause(kubelet.backoff)

    # --- what is told ---------------------------------------------------------------------------

    def _event(self, reason: str, message: str, container: str, kind: str = "Normal") -> None:
        pod = self.kubelet.current(self)
        if pod is not None:
            self.kubelet.tell(pod, reason, message, kind, container)

    def _state(
        self,
        spec: Object,
        told: dict[str, Object],
        state: Object,
        restarts: int,
        last: Object,
        which: str = "",
    ) -> None:
        every = [*(self.spec.get("initContainers") or ()), *self.spec["containers"]]
        spec = next(one for one in every if one["name"] == spec["name"])  # it may have been resized
        told[spec["name"]] = telling.container(spec, state, restarts, last, which)
        if not self._asked.is_set():  # who shall end tells its end only
            self._tell(self._phase())

    def _phase(self) -> str:
        """Return the phase while containers run or have just ended."""
        states = [one["state"] for one in self.mains.values()]
        begun = any("waiting" not in one["state"] or one["restartCount"] for one in self.mains.values())
        failed = all(state.get("terminated", {}).get("reason") == "StartError" for state in states)
        return "Running" if begun and not failed else "Pending"

    def _tell(self, phase: str, **more: Any) -> None:
        """Store the pod's status."""
        pod = self.kubelet.current(self)
        if pod is None:
            return
        unready = [name for name, one in self.mains.items() if not one["ready"]]
        shown: Object = {"sandbox": self._sandbox, "initialized": self._initialized, "unready": unready}
        status: Object = {
            "observedGeneration": pod["metadata"].get("generation", 1),
            "phase": phase,
            "conditions": telling.conditions(pod, phase, **shown),
            **more,
            "hostIP": "127.0.0.1",
            "hostIPs": [{"ip": "127.0.0.1"}],
            **({"podIP": "10.88.0.8", "podIPs": [{"ip": "10.88.0.8"}]} if self._sandbox else {}),
            "startTime": self._began,
            **telling.whole(pod),
            **({"initContainerStatuses": list(self.inits.values())} if self.inits else {}),
            "containerStatuses": list(self.mains.values()),
            "qosClass": pod["status"].get("qosClass", "BestEffort"),
        }
        self.kubelet.storage.update(PODS, {**pod, "status": status})

    def _finish(self) -> None:
        """Tell the end, and let the pod be gone if that was wanted."""
        reason, message = self._why
        for told, names in (
            (self.inits, self._tried()),
            (self.mains, list(self.mains) if self._has_begun() else []),
        ):
            for name in names:
                one = told[name]
                if told is self.inits and one["state"].get("waiting", {}).get("reason") == "CrashLoopBackOff":
                    continue  # a sidecar that was about to be started again
                if "terminated" not in one["state"] and reason != "Evicted":
                    lost = telling.terminated(137, "ContainerStatusUnknown", message=telling.UNKNOWN)[
                        "terminated"
                    ]
                    lost |= {"startedAt": None, "finishedAt": None}
                    told[name] = {**one, "state": {"terminated": lost}, "ready": False, "started": False}
        beside = {one["name"] for one in self.spec.get("initContainers") or () if "restartPolicy" in one}
        ends = [one for name, one in (self.inits | self.mains).items() if name not in beside]
        codes = [one["state"].get("terminated", {}).get("exitCode", 137) for one in ends]
        failed = bool(reason) or any(codes)
        more = {"message": message, "reason": reason} if reason else {}
        self.is_over = True
        self._tell("Failed" if failed else "Succeeded", **more)
        self.kubelet.ended()
        pod = self.kubelet.current(self)
        if pod is not None and self._deleted:
            deleting.delete(self.kubelet.storage, PODS, pod, {"gracePeriodSeconds": 0})

    def _has_begun(self) -> bool:
        """Whether the main containers had their turn: else an init container's failure says enough, and they stay waiting."""
        begun = any("waiting" not in one["state"] or one["lastState"] for one in self.mains.values())
        last = next(reversed(self.inits.values()), None)
        return begun or last is None or last["state"].get("terminated", {}).get("exitCode") == 0

    def _tried(self) -> list[str]:
        """Return the init containers up to the last that was begun; the first counts as begun."""
        names = list(self.inits)
        while len(names) > 1 and "waiting" in self.inits[names[-1]]["state"]:
            names.pop()
        return names


class _Stopped(Exception):
    """The pod shall end before it ran."""


def _ruled(spec: Object, code: int) -> bool:
    """Whether a container's rules start it again after this exit code; all of a pod's are never started anew here."""
    for rule in spec.get("restartPolicyRules") or ():
        meant = rule["exitCodes"]
        if (code in meant.get("values", ())) is (meant["operator"] == "In"):
            return bool(rule["action"] == "Restart")
    return False
