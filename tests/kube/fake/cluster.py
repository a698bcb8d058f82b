"""FakeCluster: the door to the fake; its attributes are a test's hands on the cluster.

In: options of the cluster. Out: a URL and a kubeconfig while the block lasts; nothing of it is left afterwards.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Protocol

from aiohttp import web

from tests.kube.fake import deleting
from tests.kube.fake.admitting import Admission
from tests.kube.fake.executing import Starter
from tests.kube.fake.faults import Faults
from tests.kube.fake.identities import Identities
from tests.kube.fake.logs import Logs
from tests.kube.fake.nodes import node
from tests.kube.fake.refusals import denied_by_webhook
from tests.kube.fake.server import Server
from tests.kube.fake.storing import Change, Object, Store, new_uid
from tests.kube.fake.watching import Ending
from tests.kube.fake.writing import now


class Kubelet(Protocol):
    """Who runs pods."""

    def begin(self) -> None:
        """Take up pods from now on."""

    async def close(self) -> None:
        """Let nothing of them be left."""


class FakeCluster:
    """A cluster of one server, with a namespace `default` and `namespaces` besides, and one node.

    `kubelet`: None (pods stay as a test leaves them), "toy" (local processes), "null" (by the clock); or set one before
    the block begins. `pace` is how many seconds the toy kubelet takes for what a real one takes a second for.
    """

    def __init__(
        self,
        kubelet: Literal["toy", "null"] | None = None,
        *,
        namespaces: tuple[str, ...] = (),
        pace: float = 0.02,
        env: Mapping[str, str] | None = None,
        history_max: int = 100_000,
    ) -> None:
        self.store = Store(history_max)
        self.faults = Faults()
        self.identities = Identities()
        self.admission = Admission(self.store)
        self.logs = Logs()
        self.bookmark_seconds = 60.0
        self.future_seconds = 3.0
        self.watch_lag_max: int | None = None
        self.settling_seconds = 0.0  # a new namespace refuses pods for so long
        self.pace, self.env = pace, dict(env or {})
        self.exec: Starter | None = None
        self.kubelet: Kubelet | None = self._kubelet(kubelet)
        self.url = ""
        self.server = Server(self)
        self._made_at: dict[str, float] = {}
        self._runner: web.ServerRunner | None = None
        deleting.keep_namespaces(self.store)
        self.store.listeners.append(self._noted)
        for name in ("default", *namespaces):
            self.add_namespace(name)
        self.store.put("nodes", node("node-1"))

    def _kubelet(self, kind: str | None) -> Kubelet | None:
        if kind == "toy":
            from tests.kube.fake.kubelet import ToyKubelet

            return ToyKubelet(self)
        if kind == "null":
            from tests.kube.fake.null import NullKubelet

            return NullKubelet(self)
        return None

    # --- as a server ------------------------------------------------------------------------------

    async def start(self, port: int = 0) -> None:
        """Listen on loopback."""
        self._runner = web.ServerRunner(web.Server(self.server.handle, access_log=None), shutdown_timeout=0.2)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", port, backlog=1024)
        await site.start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}"
        if self.kubelet is not None:
            self.kubelet.begin()

    async def stop(self) -> None:
        """End everything."""
        if self.kubelet is not None:
            await self.kubelet.close()
        self.end_watches("clean")
        self.logs.close()
        if self._runner is not None:
            await self._runner.cleanup()

    async def __aenter__(self) -> FakeCluster:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    def config(self, token: str = "admin") -> dict[str, Any]:
        """Return a kubeconfig as a mapping."""
        return {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "fake",
            "contexts": [{"name": "fake", "context": {"cluster": "fake", "user": "fake"}}],
            "clusters": [{"name": "fake", "cluster": {"server": self.url}}],
            "users": [{"name": "fake", "user": {"token": token}}],
        }

    def write_config(self, path: Path, token: str = "admin") -> str:
        """Write a kubeconfig; JSON is YAML too."""
        path.write_text(json.dumps(self.config(token)))
        return str(path)

    # --- a test's hands ---------------------------------------------------------------------------

    @property
    def counts(self) -> Counter[str]:
        """How often each was asked: {"create pods": 3, "watch pods": 1}."""
        return self.server.counts

    def add_namespace(self, name: str) -> None:
        """Add a namespace that is ready."""
        metadata = {"name": name, "uid": new_uid(), "creationTimestamp": now()}
        metadata["labels"] = {"kubernetes.io/metadata.name": name}
        told = {"kind": "Namespace", "apiVersion": "v1", "metadata": metadata}
        self.store.put(
            "namespaces", {**told, "spec": {"finalizers": ["kubernetes"]}, "status": {"phase": "Active"}}
        )
        self._made_at.pop(name, None)

    def pods(self, namespace: str = "") -> dict[str, Object]:
        """Return all pods by name."""
        return {one["metadata"]["name"]: one for one in self.store.all("pods", namespace)}

    def pod(self, name: str, namespace: str = "default") -> Object | None:
        """Return a pod."""
        return self.store.get("pods", namespace, name)

    async def until(self, name: str, *phases: str, namespace: str = "default", seconds: float = 20) -> Object:
        """Wait until a pod has one of these phases, or until it is gone for `"gone"`; return it."""
        table = self.store.tables["pods"]
        pod: Object = {}
        async with asyncio.timeout(seconds):
            while True:
                bell = table.bell
                found = self.pod(name, namespace)
                phase = "gone" if found is None else (found.get("status") or {}).get("phase", "")
                pod = found or pod
                if phase in phases:
                    return pod
                await bell.wait()

    def set_status(self, name: str, namespace: str = "default", **status: Any) -> Object:
        """Change fields of a pod's status, as a kubelet does."""
        pod = self.store.get("pods", namespace, name)
        assert pod is not None, name
        return self.store.put("pods", {**pod, "status": {**(pod.get("status") or {}), **status}}).object

    def delete_pod(self, name: str, namespace: str = "default", grace: int | None = None) -> None:
        """Delete a pod as somebody else does."""
        pod = self.store.get("pods", namespace, name)
        if pod is not None:
            options = {} if grace is None else {"gracePeriodSeconds": grace}
            deleting.delete(self.store, "pods", pod, options)

    def deny(self, message: str, *, webhook: str = "policy.example.org", code: int = 403) -> None:
        """Let an admission webhook refuse every pod from now on; `admission.webhooks.clear()` ends it."""
        self.admission.webhooks.append(lambda pod: denied_by_webhook(webhook, message, code))

    def end_watches(self, how: Ending = "clean") -> None:
        """End all open watches: "clean", "cut" (connection), "gone" (410 event); "silent" keeps them open and mute."""
        for watch in list(self.server.watches):
            watch.end(how)

    def forget_history(self) -> None:
        """Let every version of before be too old: resumed watches get 410."""
        self.store.compact()

    def is_settled(self, namespace: str) -> bool:
        """Tell whether a namespace has its service account and quota status."""
        made_at = self._made_at.get(namespace)
        return made_at is None or asyncio.get_running_loop().time() - made_at >= self.settling_seconds

    def _noted(self, change: Change) -> None:
        if change.resource == "pods" and change.gone:
            self.logs.drop(change.object)
        elif change.resource == "namespaces" and change.before is None and self.settling_seconds:
            self._made_at[change.object["metadata"]["name"]] = asyncio.get_running_loop().time()
