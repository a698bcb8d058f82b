"""Which pods that have succeeded had been evicted by their node: a process that handles TERM ends well, and only an event tells.

In: pods that are over. Out: the node's words about an eviction, or None. One list of the namespace's evictions serves all pods
that were over before it began; while no pod ends nothing is asked. Without the right to list events nothing is known.
"""

from __future__ import annotations

import asyncio
import time

from datatask.adapters.execute.kube.connection import Cluster, RefusedError, path_of
from datatask.adapters.execute.kube.pods import decode_pod_events
from datatask.engine.runtime.services import current

EVICTED = "Evicted"
REFUSED_SECONDS = 60.0
TRIES = 3
RETRY_SECONDS = 0.5
PAGE = 500
PAGES_MAX = 20


class Evictions:
    """The evictions of one namespace, looked at when pods have succeeded."""

    def __init__(self, cluster: Cluster, namespace: str) -> None:
        self._cluster, self._namespace = cluster, namespace
        self._services = current()
        self._next: asyncio.Task[dict[str, str]] | None = None
        self._under_way: asyncio.Task[dict[str, str]] | None = None
        self._closed_until = 0.0

    async def of(self, uid: str) -> str | None:
        """Return why the node has evicted a pod that is over, if it has."""
        if time.monotonic() < self._closed_until:
            return None
        if self._next is None:
            self._next = asyncio.get_running_loop().create_task(self._listed(self._under_way))
        return (await asyncio.shield(self._next)).get(uid)

    async def close(self) -> None:
        """Ask nothing more."""
        for task in (self._next, self._under_way):
            if task is not None:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)

    async def _listed(self, before: asyncio.Task[dict[str, str]] | None) -> dict[str, str]:
        """Return the evictions by uid, as they are when the list before this one is through."""
        if before is not None:
            await asyncio.wait((before,))
        self._under_way, self._next = self._next, None
        for _ in range(TRIES):
            try:
                return await self._list()
            except RefusedError as error:
                if error.refusal.again in ("limited", "never"):
                    self._closed_until = time.monotonic() + REFUSED_SECONDS
                    return {}
                await asyncio.sleep(min(error.refusal.after_seconds or RETRY_SECONDS, 10.0))
        return {}

    async def _list(self) -> dict[str, str]:
        query: dict[str, str | int] = {"fieldSelector": f"reason={EVICTED}", "limit": PAGE}
        found: dict[str, str] = {}
        for _ in range(PAGES_MAX):
            page = decode_pod_events(
                await self._cluster.ask("GET", path_of(self._namespace, kind="events"), query)
            )
            found.update((event.involved_object.uid, event.message) for event in page.items)
            if not page.metadata.continue_:
                break
            query["continue"] = page.metadata.continue_
        return found
