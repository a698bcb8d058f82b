"""What tests of the API server share: a server, kubernetes_asyncio's door to it, and what is asked of it over and over."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator, Awaitable
from typing import Any, NamedTuple

import pytest
from kubernetes_asyncio import client, watch
from kubernetes_asyncio.client.exceptions import ApiException

from tests.kube.api import Server, serve

NS = "space"


class Client(NamedTuple):
    """A server, and kubernetes_asyncio's door to it."""

    server: Server
    v1: Any  # it takes manifests as they are read from YAML, which its hints do not say
    api: client.ApiClient

    async def make(self, name: str, labels: dict[str, str] | None = None, **spec: Any) -> Any:
        """Make a pod."""
        return await self.v1.create_namespaced_pod(spec.pop("namespace", NS), manifest(name, labels, **spec))

    async def names(self, **query: Any) -> list[str]:
        """Return the names that a list has."""
        return [one.metadata.name for one in (await self.v1.list_namespaced_pod(NS, **query)).items]


def manifest(name: str, labels: dict[str, str] | None = None, **spec: Any) -> dict[str, Any]:
    """Return a pod that does nothing."""
    container: dict[str, Any] = {
        "name": "main",
        "image": "busybox:1",
        "command": spec.pop("command", ["true"]),
    }
    if amounts := spec.pop("limits", None):
        container["resources"] = {"limits": amounts, "requests": amounts}
    metadata = {"name": name, "labels": labels or {}, **spec.pop("metadata", {})}
    return {"metadata": metadata, "spec": {"restartPolicy": "Never", "containers": [container], **spec}}


def configuration(server: Server, token: str = "admin") -> client.Configuration:
    """Return how a user reaches the server."""
    made = client.Configuration(host=server.url)
    made.api_key = {"BearerToken": token}
    made.api_key_prefix = {"BearerToken": "Bearer"}
    return made


@contextlib.asynccontextmanager
async def connected(token: str = "admin") -> AsyncIterator[Client]:
    """Serve, and connect."""
    async with serve() as server, client.ApiClient(configuration(server, token)) as api:
        server.namespace(NS)
        server.reader.future_seconds = 0.05
        yield Client(server, client.CoreV1Api(api), api)


async def refused(asking: Awaitable[Any], code: int, reason: str | None = None) -> dict[str, Any]:
    """Expect a refusal; return its body."""
    with pytest.raises(ApiException) as caught:
        await asking
    assert caught.value.status == code
    told: dict[str, Any] = json.loads(caught.value.body or b"")
    assert reason is None or told["reason"] == reason
    return told


async def watched(to: Client, count: int, **query: Any) -> list[tuple[str, str, Any]]:
    """Return so many events (or fewer, where the watch ends before)."""
    seen = []
    async with watch.Watch() as watching:
        query = {"timeout_seconds": 1, **query}
        async for event in watching.stream(to.v1.list_namespaced_pod, NS, **query):
            found = event["object"]
            seen.append((event["type"], "" if isinstance(found, dict) else found.metadata.name, found))
            if len(seen) == count:
                break
    return seen


# --- objects --------------------------------------------------------------------------------------------
