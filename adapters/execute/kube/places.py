"""A run's pod, for a person who looks into it while it runs: its log as it comes, and a shell in it.

In: a manager and a run's identity. Out: parts of the first container's log, and an exit code. The shell is kubectl's, with the
same configuration: a terminal in a pod is what it is for.
"""

from __future__ import annotations

import asyncio
import os
import shutil

from datatask.adapters.execute.kube import names
from datatask.adapters.execute.kube.connecting import Cluster, Location, RefusedError, path_of
from datatask.adapters.execute.kube.lines import Lines
from datatask.adapters.execute.kube.pods import Pod, decode_list
from datatask.adapters.spools import Spool
from datatask.schema.errors import CallerError

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
        query = {"labelSelector": f"{names.selector(self._app)},{names.LOG}={names.label_value(log)}"}
        listed = decode_list(await cluster.ask("GET", path_of(self._namespace), query)).items
        found = [pod for pod in listed if names.identity_of(pod) == self._identity]
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
            raise CallerError(
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
