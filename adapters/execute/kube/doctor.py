"""What `doctor` asks of a cluster: is it there, who are we, may we do what we must, and what is left of runs that are over.

In: a manager, and which runs are open. Out: findings, a line each: yes, no or note; what; remedy. Rights are asked for one by
one, as `kubectl auth can-i` does; nothing is created.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import AsyncIterator, Collection

import msgspec

from datatask.adapters.execute.kube import pods as names
from datatask.adapters.execute.kube.cluster import Shared
from datatask.adapters.execute.kube.connection import Cluster, RefusedError, path_of
from datatask.adapters.execute.kube.manager import PodManager
from datatask.adapters.execute.kube.pods import Pod

Found = tuple[str, str, str]
NEEDED = (
    ("create", "pods", ""),
    ("get", "pods", ""),
    ("list", "pods", ""),
    ("watch", "pods", ""),
    ("patch", "pods", ""),
    ("delete", "pods", ""),
    ("get", "pods", "log"),
)
USEFUL = {
    ("list", "events", ""): "without it `why` lacks the cluster's reasons",
    ("create", "pods", "exec"): "without it neither `enter` nor a handle_timeout runs commands in a pod",
    (
        "get",
        "pods",
        "exec",
    ): "without it a handle_timeout runs no commands in a pod (`podman.v1_ws`, web sockets)",
}
"""Rights that are not needed to run pods, and what does not work without each."""
OLDEST = (1, 26)
REVIEWS = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"


async def look(manager: PodManager) -> AsyncIterator[Found]:
    """Yield what is found of the connection, the versions, the namespace and the rights; `CallerError` without a configuration."""
    cluster = await manager.open()
    try:
        try:
            yield await _versions(cluster)
        except RefusedError as error:
            yield (
                "no",
                f"{cluster.host}: {error.what}",
                "see `kubectl cluster-info` and `kubectl config view`",
            )
            return
        async for found in _rights(cluster, manager.namespace):
            yield found
        try:
            await cluster.ask("GET", path_of(manager.namespace), {"limit": 1})
            yield "yes", f"namespace {manager.namespace}: its pods can be listed", ""
        except RefusedError as error:
            yield (
                "no",
                f"namespace {manager.namespace}: {error.what}",
                "docs/kubernetes.md has the manifest of rights",
            )
    finally:
        await manager.close()


async def _versions(cluster: Cluster) -> Found:
    told = msgspec.json.decode(await cluster.ask("GET", "/version"))
    server, library = str(told.get("gitVersion", "?")), importlib.metadata.version("kubernetes_asyncio")
    numbers = "".join(mark if mark.isdigit() or mark == "." else " " for mark in server).split()
    parts = tuple(int(part) for part in (numbers[0].split(".") if numbers else [])[:2] if part)
    text = f"{cluster.host}: Kubernetes {server}, kubernetes_asyncio {library}"
    if parts and parts < OLDEST:
        return "note", text, f"tested with {'.'.join(map(str, OLDEST))} and newer"
    return "yes", text, ""


async def _rights(cluster: Cluster, namespace: str) -> AsyncIterator[Found]:
    missing: list[str] = []
    for verb, resource, part in (*NEEDED, *USEFUL):
        asked = {"namespace": namespace, "verb": verb, "resource": resource, "subresource": part}
        body = {
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SelfSubjectAccessReview",
            "spec": {"resourceAttributes": {key: value for key, value in asked.items() if value}},
        }
        try:
            answer = msgspec.json.decode(await cluster.ask("POST", REVIEWS, body=body))
        except RefusedError as error:
            yield "note", f"the server does not tell what we may do: {error.what}", ""
            return
        if not (answer.get("status") or {}).get("allowed"):
            what = f"{verb} {resource}{'/' + part if part else ''}"
            if (without := USEFUL.get((verb, resource, part))) is not None:
                yield "note", f"may not {what} in {namespace}", without
            else:
                missing.append(what)
    if missing:
        told = f"may not {', '.join(missing)} in {namespace}"
        yield "no", told, "docs/kubernetes.md has the manifest of rights"
    else:
        yield "yes", f"may create, watch, patch and delete pods in {namespace}, and read their logs", ""


async def leftovers(manager: PodManager) -> list[Pod]:
    """Return the application's pods, of every log."""
    try:
        return [pod for pod in await manager.pods() if names.identity_of(pod)]
    finally:
        await manager.close()


async def remove(manager: PodManager, pods: Collection[Pod]) -> set[str]:
    """Delete these pods and let go of them; return the names of those that were."""
    cluster = await manager.open()
    shared = Shared(cluster, manager.namespace, manager.app)
    shared.prepare()
    gone: set[str] = set()
    try:
        for pod in pods:
            try:
                await shared.remove(pod)
                gone.add(pod.name)
            except RefusedError:
                continue
    finally:
        await manager.close()
    return gone
