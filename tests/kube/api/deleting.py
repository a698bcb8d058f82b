"""Deletion: in comes an object and how it shall go, out goes what is left of it: marked, held by finalizers, or gone."""

from __future__ import annotations

from typing import Any

from tests.kube.api.decoding import later
from tests.kube.api.kinds import BY_PATH, KINDS, Kind
from tests.kube.api.statuses import Refusal
from tests.kube.api.storage import Storage, now

Object = dict[str, Any]
PODS = BY_PATH["", "v1", "pods"]
NAMESPACES = BY_PATH["", "v1", "namespaces"]


def check_preconditions(found: Object, kind: Kind, options: Object) -> None:
    """Refuse to delete another object than the one that is meant."""
    name, wanted = found["metadata"]["name"], options.get("preconditions") or {}
    for key, word, have in (
        ("uid", "UID", found["metadata"]["uid"]),
        ("resourceVersion", "ResourceVersion", found["metadata"]["resourceVersion"]),
    ):
        asked = wanted.get(key)
        if asked is not None and asked != have:
            message = (
                f'Operation cannot be fulfilled on {kind.name} "{name}": the {word} in the precondition ({asked}) does '
                f"not match the {word} in record ({have}). The object might have been deleted and then recreated"
            )
            raise Refusal(409, message, details={"name": name, "kind": kind.name})


def delete(storage: Storage, kind: Kind, found: Object, options: Object) -> Object:
    """Delete as the server does, and return the object as it was last."""
    check_preconditions(found, kind, options)
    if kind == PODS:
        return _delete_pod(storage, found, options.get("gracePeriodSeconds"))
    if kind == NAMESPACES:
        return _delete_namespace(storage, found)
    if found["metadata"].get("finalizers"):
        return found if found["metadata"].get("deletionTimestamp") else mark(storage, kind, found, None)
    return storage.remove(kind, found)


def mark(storage: Storage, kind: Kind, found: Object, grace: int | None) -> Object:
    """Say when an object shall be gone."""
    metadata = dict(found["metadata"])
    metadata["deletionTimestamp"] = later(grace or 0)
    if grace is not None:
        metadata["deletionGracePeriodSeconds"] = grace
        metadata["generation"] = metadata.get("generation", 1) + 1
    return storage.update(kind, {**found, "metadata": metadata})


def _delete_pod(storage: Storage, pod: Object, asked: int | None) -> Object:
    spec, metadata = pod["spec"], pod["metadata"]
    grace = spec.get("terminationGracePeriodSeconds", 30) if asked is None else max(asked, 0)
    over = (pod.get("status") or {}).get("phase") in ("Succeeded", "Failed")
    if over or not spec.get("nodeName"):
        grace = 0
    if metadata.get("deletionTimestamp"):
        told = metadata.get("deletionGracePeriodSeconds", 0)
        if grace < told:  # it may only go sooner
            pod = mark(storage, PODS, pod, grace)
        grace = min(grace, told)
    else:
        pod = mark(storage, PODS, pod, grace)
    if grace == 0 and not pod["metadata"].get("finalizers"):
        return storage.remove(PODS, pod)
    return pod


def _delete_namespace(storage: Storage, namespace: Object) -> Object:
    if not namespace["metadata"].get("deletionTimestamp"):
        namespace = mark(storage, NAMESPACES, {**namespace, "status": {"phase": "Terminating"}}, None)
    name = namespace["metadata"]["name"]
    for kind in KINDS:
        for where, found in list(storage.table(kind).objects.items()):
            if where[0] == name and kind.is_namespaced:
                delete(storage, kind, found, {})
    return empty(storage, name) or namespace


def empty(storage: Storage, name: str) -> Object | None:
    """Let a terminating namespace be gone once nothing is in it; return it if it is."""
    namespace = storage.find(NAMESPACES, "", name)
    if namespace is None or not namespace["metadata"].get("deletionTimestamp"):
        return None
    kept = (kind for kind in KINDS if kind.is_namespaced)
    if any(where[0] == name for kind in kept for where in storage.table(kind).objects):
        return None
    return storage.remove(NAMESPACES, namespace)


def finish(storage: Storage, kind: Kind, found: Object) -> Object:
    """Let an object be gone that was marked and that nothing holds any more; return it."""
    metadata = found["metadata"]
    if metadata.get("deletionTimestamp") and not metadata.get("finalizers"):
        ended = metadata.get("deletionGracePeriodSeconds", 0) == 0
        if kind != PODS or ended:
            storage.remove(kind, found)
            empty(storage, metadata.get("namespace", ""))
    return found


def done_status(found: Object, kind: Kind) -> Object:
    """Return what a deletion of a small object is answered with."""
    details = {"name": found["metadata"]["name"], "kind": kind.plural, "uid": found["metadata"]["uid"]}
    return {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details}


def namespace_of(name: str) -> Object:
    """Return a new namespace as it is stored."""
    metadata = {"name": name, "creationTimestamp": now(), "labels": {"kubernetes.io/metadata.name": name}}
    return {
        "kind": "Namespace",
        "apiVersion": "v1",
        "metadata": metadata,
        "spec": {"finalizers": ["kubernetes"]},
        "status": {"phase": "Active"},
    }
