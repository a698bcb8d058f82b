"""A kubelet for the scripted server: a container is a local process, its output is the container's log.

In: pods as they are created. Out: their states, as scheduler and kubelet would tell them: Pending, Running, a terminated
container, Succeeded or Failed; TERM and KILL when a pod is deleted; deadlines, commands that are not there, images `absent`,
missing ConfigMaps, nodes that nobody has. What has no command sleeps. `target()` is such a cluster, or the real one that
DATATASK_TEST_KUBECONFIG names: then in a namespace of its own, with the image DATATASK_TEST_KUBE_IMAGE.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import functools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from datatask import PodManager
from datatask.adapters.execute.kube.connecting import Cluster, Location
from tests.kube.scripted import Api, scripted, terminated

ROOT = Path(__file__).resolve().parents[2]


class Kubelet:
    """One node with room for everything; the first container of a pod is run."""

    def __init__(self, api: Api, env: Mapping[str, str] | None = None) -> None:
        self.api = api
        self.env = dict(env or {})
        self._pods: dict[str, asyncio.Task[None]] = {}
        self._seen: set[str] = set()

    async def work(self) -> None:
        """Watch over all pods, for ever."""
        while True:
            for name, pod in list(self.api.pods.items()):
                uid = pod["metadata"]["uid"]
                if uid not in self._seen and not pod["spec"].get("schedulingGates"):
                    self._seen.add(uid)
                    self._pods[uid] = asyncio.create_task(self._run(name, uid))
            async with self.api._changed:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(0.05):
                        await self.api._changed.wait()

    async def close(self) -> None:
        """Kill everything."""
        for task in self._pods.values():
            task.cancel()
        await asyncio.gather(*self._pods.values(), return_exceptions=True)

    def _pod(self, name: str, uid: str) -> dict[str, Any] | None:
        pod = self.api.pods.get(name)
        return pod if pod is not None and pod["metadata"]["uid"] == uid else None

    async def _run(self, name: str, uid: str) -> None:
        pod = self.api.pods[name]
        container = pod["spec"]["containers"][0]
        if await self._cannot_start(name, pod, container):
            return
        command = [*(container.get("command") or []), *(container.get("args") or [])] or ["sleep", "300"]
        if shutil.which(command[0]) is None:
            text = f'unable to start container process: exec: "{command[0]}": no such file or directory'
            await self.api.end(name, 128, reason="StartError", message=text)
            return
        env = {one["name"]: str(one.get("value", "")) for one in container.get("env") or ()}
        process = await asyncio.create_subprocess_exec(
            *command,
            env={**os.environ, **self.env, **env},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            start_new_session=True,
            limit=1 << 22,
        )
        try:
            await self.api.run(name)
            killing = asyncio.create_task(self._killed_when_deleted(name, uid, process))
            deadline = pod["spec"].get("activeDeadlineSeconds")
            late = asyncio.get_running_loop().call_later(deadline or 1e6, _kill, process)
            began = time.monotonic()
            assert process.stdout is not None
            async for line in process.stdout:
                await self.api.say(name, line.removesuffix(b"\n") + b"\n", container["name"])
            code = await process.wait()
            killing.cancel()
            late.cancel()
            told = {}
            if deadline and time.monotonic() - began >= deadline:
                text = "Pod was active on the node longer than the specified deadline"
                told = {"reason": "DeadlineExceeded", "message": text}
            if self._pod(name, uid) is not None:
                state = terminated(code if code >= 0 else 128 - code)
                await self.api.change(name, "Failed" if code else "Succeeded", state, **told)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()

    async def _cannot_start(self, name: str, pod: dict[str, Any], container: dict[str, Any]) -> bool:
        """Tell of a pod that stays Pending, until it is deleted."""
        if pod["spec"].get("nodeSelector"):
            text = "0/1 nodes are available: 1 node(s) didn't match Pod's node affinity/selector."
            condition = {
                "type": "PodScheduled",
                "status": "False",
                "reason": "Unschedulable",
                "message": text,
            }
            await self.api.change(name, "Pending", conditions=[condition])
            return True
        waiting = {}
        if "absent" in container.get("image", ""):
            waiting = {"reason": "ErrImagePull", "message": f"failed to pull image {container['image']}"}
        elif container.get("envFrom"):
            waiting = {"reason": "CreateContainerConfigError", "message": 'configmap "absent" not found'}
        if waiting:
            pod["spec"]["nodeName"] = "node1"
            await self.api.change(name, "Pending", {"waiting": waiting})
        return bool(waiting)

    async def _killed_when_deleted(self, name: str, uid: str, process: asyncio.subprocess.Process) -> None:
        while (pod := self._pod(name, uid)) is not None and not pod["metadata"].get("deletionTimestamp"):
            await asyncio.sleep(0.02)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
            await asyncio.sleep(
                (pod or {"metadata": {}})["metadata"].get("deletionGracePeriodSeconds") or 0.2
            )
            os.killpg(process.pid, signal.SIGKILL)


def _kill(process: asyncio.subprocess.Process) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


@contextlib.asynccontextmanager
async def toy_cluster(env: Mapping[str, str] | None = None) -> AsyncIterator[Api]:
    """Serve with a kubelet while the block lasts."""
    async with scripted() as api:
        kubelet = Kubelet(api, env)
        working = asyncio.create_task(kubelet.work())
        try:
            yield api
        finally:
            working.cancel()
            await asyncio.gather(working, return_exceptions=True)
            await kubelet.close()


class Target(NamedTuple):
    """A cluster for tests: its kubeconfig as a mapping or a path, a namespace, an image with a shell."""

    config: dict[str, Any] | None
    kubeconfig: str | None
    namespace: str
    image: str

    def manager(self, app: str) -> PodManager:
        """Return a manager of an application there."""
        return PodManager(app, self.namespace, self.config, kubeconfig=self.kubeconfig)

    @property
    def is_real(self) -> bool:
        """Whether nodes are nodes."""
        return self.kubeconfig is not None


REAL = "DATATASK_TEST_KUBECONFIG"


@functools.cache
def target() -> Target:
    """Return the cluster of this test run: a toy in a process of its own, or the real one of the environment."""
    command = [sys.executable, "-m", "tests.kube.toy"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT, text=True, start_new_session=True)
    atexit.register(_end, server)
    assert server.stdout is not None
    return Target(*json.loads(server.stdout.readline()))


def _end(server: subprocess.Popen[str]) -> None:
    server.terminate()
    server.wait()
    if server.stdout is not None:
        server.stdout.close()


async def _serve() -> None:
    if path := os.environ.get(REAL):
        await _serve_real(path)
    async with toy_cluster() as api:
        print(json.dumps(Target(api.config(), None, "space", "any")), flush=True)
        await asyncio.Event().wait()


async def _serve_real(path: str) -> None:
    """Make a namespace, and remove it in the end."""
    name = f"datatask-test-{os.getpid()}"
    cluster = Cluster(Location(kubeconfig=path))
    await cluster.attach()
    await cluster.ask("POST", "/api/v1/namespaces", body={"metadata": {"name": name}})
    try:
        image = os.environ.get("DATATASK_TEST_KUBE_IMAGE", "busybox")
        print(json.dumps(Target(None, path, name, image)), flush=True)
        await asyncio.Event().wait()
    finally:
        await cluster.ask("DELETE", f"/api/v1/namespaces/{name}")
        await cluster.detach()


if __name__ == "__main__":
    loop = asyncio.new_event_loop()
    task = loop.create_task(_serve())
    loop.add_signal_handler(signal.SIGTERM, task.cancel)
    with contextlib.suppress(asyncio.CancelledError):
        loop.run_until_complete(task)
    loop.close()
