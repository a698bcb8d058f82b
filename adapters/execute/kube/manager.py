"""`PodManager`: an application's pods in a namespace of a cluster, for tasks and by hand.

In: the application, the namespace, and which cluster. Out: what a task's runner needs (`shared`), calls for programs and
for `doctor`, and `KubePlace`: the log of a run's pod, and a shell in it, which is kubectl's with the same configuration.
Nothing is read or connected before the first call.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import weakref
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

import msgspec

from datatask.adapters.execute.kube import pods
from datatask.adapters.execute.kube import pods as names
from datatask.adapters.execute.kube.cluster import Shared
from datatask.adapters.execute.kube.connection import Cluster, Location, RefusedError, path_of
from datatask.adapters.execute.kube.lines import Lines
from datatask.adapters.execute.kube.pods import Pod, as_pod, decode_list
from datatask.adapters.spools import Spool
from datatask.schema.errors import CallerError, InvalidValueError, NotInstalledError, TemporaryError
from datatask.schema.values import check_name

LOOK_SECONDS = 5.0
"""So long a question is waited for that the pipeline can do without."""
_shared: weakref.WeakValueDictionary[tuple[object, ...], Shared] = weakref.WeakValueDictionary()


class PodManager:
    """An application's pods in one namespace.

    `config` is a Configuration of kubernetes_asyncio's, or the content of a kubeconfig as a mapping; without it the
    cluster is found as kubectl finds it: `kubeconfig` (a path), else KUBECONFIG, ~/.kube/config, or the service account of
    the pod that this runs in; `context` is one of its contexts, for several clusters in one pipeline. `finalizer` keeps
    each pod until its end and logs are collected, whoever deletes it.
    """

    def __init__(
        self,
        app: str,
        namespace: str,
        config: Any = None,
        *,
        kubeconfig: str | os.PathLike[str] | None = None,
        context: str | None = None,
        finalizer: bool = True,
    ) -> None:
        self.app = check_name(app, "app")
        if not isinstance(namespace, str) or not names.is_dns_label(namespace):
            raise InvalidValueError(
                f"{namespace!r:.80} is no namespace", where=app, remedy="see `kubectl get namespaces`"
            )
        self.namespace = namespace
        self.config = config
        self.finalizer = finalizer
        file = None if kubeconfig is None else os.fspath(kubeconfig)
        if config is not None and (file or context) and not isinstance(config, Mapping):
            raise InvalidValueError("config and kubeconfig or context say the same thing twice", where=app)
        self._location = Location(config, file, context)
        whose = id(config) if config is not None else (file or os.environ.get("KUBECONFIG"), context)
        key = (app, namespace, finalizer, whose)
        found = _shared.get(key)
        self.shared = found or Shared(Cluster(self._location), namespace, app)
        self.shared.finalizer = finalizer
        _shared[key] = self.shared  # two managers of the same pods are one to the cluster
        self._own: Cluster | None = None
        self._sockets: Any = None

    def __repr__(self) -> str:
        context = f", context={self._location.context!r}" if self._location.context else ""
        return f"PodManager({self.app!r}, {self.namespace!r}{context})"

    def place(self, identity: str) -> KubePlace:
        """Return a run's pod, for `enter` and for `cat` of its log while it runs."""
        return KubePlace(self._location, self.namespace, self.app, identity)

    # --- by hand ----------------------------------------------------------------------------------

    @property
    def cluster(self) -> Cluster:
        """The cluster: the one that the tasks use, or one opened by hand."""
        return self._own if self._own is not None else self.shared.cluster

    async def open(self) -> Cluster:
        """Connect by hand, outside of a pipeline too; `close` ends it."""
        if self._own is None:
            own = Cluster(self._location)
            await own.attach()
            self._own = own
        return self._own

    async def close(self) -> None:
        """End what was opened by hand."""
        if self._sockets is not None:
            await self._sockets.close()
            self._sockets = None
        if self._own is not None:
            own, self._own = self._own, None
            await own.detach()

    @property
    def api(self) -> Any:
        """kubernetes_asyncio's ApiClient; while the pipeline is open, or after `open`."""
        return self.cluster.api

    @property
    def api_ws(self) -> Any:
        """An ApiClient for exec and port-forward, which are web sockets."""
        if self._sockets is None:
            from kubernetes_asyncio.stream import WsApiClient

            self._sockets = WsApiClient(configuration=self.api.configuration)
        return self._sockets

    @property
    def v1(self) -> Any:
        """The CoreV1Api over `api`."""
        from kubernetes_asyncio.client import CoreV1Api

        return CoreV1Api(self.api)

    @property
    def v1_ws(self) -> Any:
        """The CoreV1Api over `api_ws`."""
        from kubernetes_asyncio.client import CoreV1Api

        return CoreV1Api(self.api_ws)

    async def launch(self, job: str, task: str, manifest: dict[str, Any]) -> None:
        """Create a pod by hand, with this application's labels; it is nobody's run."""
        cluster = await self.open()
        metadata = {
            **(manifest.get("metadata") or {}),
            "namespace": self.namespace,
            "name": names.pod_name(self.app, task, job, ""),
            "labels": {
                **((manifest.get("metadata") or {}).get("labels") or {}),
                **_by_hand(self.app, task, job),
            },
        }
        await cluster.ask("POST", path_of(self.namespace), body={**manifest, "metadata": metadata})

    async def query(self, job: str | None = None, task: str | None = None) -> list[Any]:
        """Return the application's pods, of a job, of a task, as kubernetes_asyncio's V1Pod."""
        wanted = {"app": self.app, "task": task, "job": job}
        chosen = ",".join(
            f"{key}={names.label_value(value)}" for key, value in wanted.items() if value is not None
        )
        await self.open()
        listed = await self.v1.list_namespaced_pod(self.namespace, label_selector=chosen)
        items: list[Any] = listed.items
        return items

    async def delete(self, pod: Any) -> None:
        """Delete a pod, at once, and let it go; one that is gone is fine."""
        cluster = await self.open()
        wanted = as_pod(pod)
        path = path_of(self.namespace, wanted.name)
        shared = Shared(cluster, self.namespace, self.app)
        shared.prepare()
        try:
            found = await shared.get(wanted.name)
            if found is not None and wanted.uid in ("", found.uid):
                await shared.delete(found.name, found.uid, 0)
                await shared.release(found)
        except RefusedError as error:
            raise InvalidValueError(error.what, where=path) from error

    async def logs(self, pod: Any, timeout: float = 10) -> bytes:
        """Return what the pod's first container has said so far; `TemporaryError` with the kubelet's words in place of a log."""
        cluster = await self.open()
        wanted = as_pod(pod)
        query: dict[str, str | int] = {"timestamps": "true"}  # what has no time is not the container's
        if wanted.spec.containers:
            query["container"] = wanted.spec.containers[0].name
        path = path_of(self.namespace, wanted.name, "log")
        data = await cluster.ask("GET", path, query, seconds=timeout)
        spool = Spool()
        lines = Lines(spool.path("log"))
        try:
            lines.begin()
            lines.feed(data)
            lines.finish()
            said, words = lines.read(0, lines.size), lines.words.decode(errors="replace")
        finally:
            lines.close()
            spool.close()
        if words:
            raise TemporaryError(f"the log of the pod {wanted.name} is not there: {words}")
        return said

    async def overhead(self, runtime_class: str) -> dict[str, str]:
        """Return what a RuntimeClass adds to each pod, quantities by resource; `RefusedError` where we may not look."""
        cluster = Cluster(self._location)
        await cluster.attach()
        try:
            path = f"/apis/node.k8s.io/v1/runtimeclasses/{quote(runtime_class, safe='')}"
            found = msgspec.json.decode(await cluster.ask("GET", path, seconds=LOOK_SECONDS))
        finally:
            await cluster.detach()
        fixed: dict[str, str] = (found.get("overhead") or {}).get("podFixed") or {}
        return fixed

    async def pods(self) -> list[Pod]:
        """Return the application's pods as they are now, of every log."""
        cluster = await self.open()
        found: list[Pod] = []
        token = ""
        while True:
            query: dict[str, str | int] = {"labelSelector": names.selector(self.app), "limit": 500}
            if token:
                query["continue"] = token
            page = decode_list(await cluster.ask("GET", path_of(self.namespace), query))
            found += page.items
            token = page.metadata.continue_
            if not token:
                return found


def _by_hand(app: str, task: str, job: str) -> dict[str, str]:
    return {"app": names.label_value(app), "task": names.label_value(task), "job": names.label_value(job)}


PART_BYTES = 1 << 20


class KubePlace:
    """One run's pod, looked for at the first use."""

    def __init__(self, location: Location, namespace: str, app: str, identity: str) -> None:
        self._location, self._namespace = location, namespace
        self._app, self._identity = app, identity
        self._cluster: Cluster | None = None
        self._spool = Spool()
        self._lines = Lines(self._spool.path("log"))
        self._pod = Pod()

    async def _open(self) -> Cluster:
        if self._cluster is not None:
            return self._cluster
        cluster = Cluster(self._location)
        await cluster.attach()
        self._cluster = cluster
        log = self._identity.partition(".")[0]
        query = {"labelSelector": f"{pods.selector(self._app)},{pods.LOG}={pods.label_value(log)}"}
        listed = decode_list(await cluster.ask("GET", path_of(self._namespace), query)).items
        found = [pod for pod in listed if pods.identity_of(pod) == self._identity]
        if not found:
            text = "its pod is not there (any more)"
            raise CallerError(text, where=self._namespace, remedy="see `datatask runs`")
        self._pod = found[0]
        return cluster

    @property
    def _container(self) -> str:
        return (self._pod.spec.containers or [])[0].name

    async def read(self, name: str, offset: int) -> bytes:
        """Return what the first container's log has from an offset on, at most 1 MiB; nothing where there is no more yet."""
        cluster = await self._open()
        if offset >= self._lines.size:
            query: dict[str, str | int] = {"container": self._container, "timestamps": "true"}
            if since := self._lines.since:
                query["sinceTime"] = since
            path = path_of(self._namespace, self._pod.name, "log")
            self._lines.begin()
            try:
                async with cluster.stream(path, query, silent_seconds=30.0) as parts:
                    async for part in parts:
                        self._lines.feed(part)
            except RefusedError as error:
                if error.refusal.code not in (400, 404):
                    raise
            finally:
                self._lines.cut()
        return self._lines.read(offset, PART_BYTES) if offset < self._lines.size else b""

    async def enter(self) -> int:
        """Open a shell in the first container, on the terminal if there is one; return its exit code."""
        await self._open()
        kubectl = shutil.which("kubectl")
        where = ["exec", "-i", *(["-t"] if os.isatty(0) else []), "-n", self._namespace, self._pod.name]
        words = [*self._options(), *where, "-c", self._container, "--", "sh"]
        if kubectl is None:
            line = " ".join(["kubectl", *words])
            raise NotInstalledError(
                "kubectl is not installed, which opens shells in pods", remedy=f"elsewhere: {line}"
            )
        process = await asyncio.create_subprocess_exec(kubectl, *words)
        return await process.wait()

    def _options(self) -> list[str]:
        location = self._location
        named = [f"--kubeconfig={location.kubeconfig}"] if location.kubeconfig else []
        return [*named, *([f"--context={location.context}"] if location.context else [])]

    async def close(self) -> None:
        """Let go."""
        self._lines.close()
        self._spool.close()
        if self._cluster is not None:
            await self._cluster.detach()
