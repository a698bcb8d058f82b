"""Clusters that run pods: the API server for tests with its toy kubelet, here or in a process of its own, or a real one.

In: what containers have in their environment, or DATATASK_TEST_KUBECONFIG. Out: a hand on a server whose pods are local
processes (`toy_cluster`), or a `Target` that engines of other processes reach too: a toy, unless the variable names a real
cluster; then a namespace of its own there, and the image DATATASK_TEST_KUBE_IMAGE.
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
from typing import Any, NamedTuple

from datatask import PodManager
from datatask.adapters.execute.kube.connection import MERGE_PATCH, Cluster, Location, RefusedError, path_of
from tests.kube.api import serve
from tests.kube.api.kubelet import running
from tests.kube.scripted import SPACE, Hand
from tests.servers import SharedServer

ROOT = Path(__file__).resolve().parents[2]
REAL = os.environ.get("DATATASK_TEST_KUBECONFIG") or None
IMAGE = os.environ.get("DATATASK_TEST_KUBE_IMAGE", "busybox")


@contextlib.asynccontextmanager
async def toy_cluster(env: Mapping[str, str] | None = None, **how: Any) -> AsyncIterator[Hand]:
    """Serve with a quick kubelet while the block lasts."""
    how = {"pace": 0.005, "backoff": 0.1, **how}
    async with serve() as server, running(server, env=env, **how):
        yield Hand(server)


class Target(NamedTuple):
    """A cluster for tests: its kubeconfig as a mapping or a path, a namespace, an image with a shell."""

    config: dict[str, Any] | None
    kubeconfig: str | None
    namespace: str
    image: str

    def manager(self, app: str) -> PodManager:
        """Return a manager of an application there."""
        return PodManager(app, self.namespace, self.config, kubeconfig=self.kubeconfig)

    async def ask(self, method: str, path: str, body: Any = None) -> Any:
        """Ask the API for something."""
        cluster = Cluster(Location(self.config, kubeconfig=self.kubeconfig))
        kind = MERGE_PATCH if method == "PATCH" else "application/json"
        await cluster.attach()
        try:
            return json.loads(await cluster.ask(method, path, body=body, content_type=kind))
        finally:
            await cluster.detach()

    @property
    def is_real(self) -> bool:
        """Whether nodes are nodes."""
        return self.kubeconfig is not None


@contextlib.asynccontextmanager
async def real_cluster() -> AsyncIterator[Target]:
    """Make a namespace on the real cluster, and remove it in the end."""
    assert REAL is not None
    name = f"datatask-test-{os.getpid()}-{os.urandom(3).hex()}"
    there = Target(None, REAL, name, IMAGE)
    await there.ask("POST", "/api/v1/namespaces", {"metadata": {"name": name}})
    try:
        yield there
    finally:
        await there.ask("DELETE", f"/api/v1/namespaces/{name}")
        listed = await there.ask("GET", path_of(name))
        for pod in listed["items"]:  # what engines of tests have let go of holds its namespace for ever
            if pod["metadata"].get("finalizers"):
                with contextlib.suppress(RefusedError):
                    free = {"metadata": {"finalizers": None}}
                    await there.ask("PATCH", path_of(name, pod["metadata"]["name"]), free)


@functools.cache
def target() -> Target:
    """Return the cluster of this test run, held by a process of its own: whoever asks has a loop that ends sooner."""
    command = [sys.executable, "-m", "tests.kube.toy"]
    server = SharedServer(command, stdout=subprocess.PIPE, cwd=ROOT, text=True)
    atexit.register(_end, server)
    assert server.stdout is not None
    return Target(*json.loads(server.stdout.readline()))


def _end(server: subprocess.Popen[str]) -> None:
    server.terminate()
    server.wait()
    if server.stdout is not None:
        server.stdout.close()


@contextlib.asynccontextmanager
async def cluster(**how: Any) -> AsyncIterator[tuple[Target, Hand | None]]:
    """Open a cluster with a namespace, and a hand on it unless it is a real one."""
    if REAL is not None:
        async with real_cluster() as there:
            yield there, None
    else:
        async with toy_cluster(**how) as hand:
            yield Target(hand.config(), None, SPACE, IMAGE), hand


async def _serve() -> None:
    """Hold a cluster until TERM, and print what it is."""
    over = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, over.set)
    async with cluster() as (there, _):
        print(json.dumps(there), flush=True)
        await over.wait()


if __name__ == "__main__":
    asyncio.run(_serve())
