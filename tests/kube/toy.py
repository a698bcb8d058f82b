"""A kubelet for the scripted server: a container is a local process, its output is the container's log.

In: pods as they are created. Out: their states, as a kubelet would tell them: Pending, Running, a terminated container,
Succeeded or Failed; TERM and KILL when a pod is deleted. `image` is not looked at; what has no command sleeps.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import functools
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

from tests.kube.scripted import Api, scripted

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
        command = [*(container.get("command") or []), *(container.get("args") or [])] or ["sleep", "300"]
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
            assert process.stdout is not None
            async for line in process.stdout:
                await self.api.say(name, line.removesuffix(b"\n") + b"\n", container["name"])
            code = await process.wait()
            killing.cancel()
            if self._pod(name, uid) is not None:
                await self.api.end(name, code if code >= 0 else 128 - code)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()

    async def _killed_when_deleted(self, name: str, uid: str, process: asyncio.subprocess.Process) -> None:
        while (pod := self._pod(name, uid)) is not None and not pod["metadata"].get("deletionTimestamp"):
            await asyncio.sleep(0.02)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
            await asyncio.sleep(
                (pod or {"metadata": {}})["metadata"].get("deletionGracePeriodSeconds") or 0.2
            )
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


async def _serve() -> None:
    async with toy_cluster() as api:
        print(json.dumps(api.config()), flush=True)
        await asyncio.Event().wait()


@functools.cache
def cluster() -> dict[str, Any]:
    """Return the kubeconfig of a toy cluster in a process of its own, the same one for all tests."""
    command = [sys.executable, "-m", "tests.kube.toy"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT, text=True, start_new_session=True)
    atexit.register(_end, server)
    assert server.stdout is not None
    config: dict[str, Any] = json.loads(server.stdout.readline())
    return config


def _end(server: subprocess.Popen[str]) -> None:
    server.terminate()
    server.wait()
    if server.stdout is not None:
        server.stdout.close()


if __name__ == "__main__":
    loop = asyncio.new_event_loop()
    task = loop.create_task(_serve())
    loop.add_signal_handler(signal.SIGTERM, task.cancel)
    with contextlib.suppress(asyncio.CancelledError):
        loop.run_until_complete(task)
    loop.close()
