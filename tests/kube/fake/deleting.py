"""The ways in which objects go: grace, finalizers, force, evictions, and namespaces with all that is in them.

A pod on a node gets a deletion timestamp and waits for its kubelet, which deletes it with grace 0. Whatever has finalizers
stays until they are gone. The last two versions of a pod are told as the server tells them: MODIFIED, then DELETED.
"""

from __future__ import annotations

import datetime as dt
from typing import Any

from tests.kube.fake.refusals import budget_exceeded, conflict
from tests.kube.fake.resources import RESOURCES
from tests.kube.fake.selectors import matches_labels
from tests.kube.fake.storing import Change, Object, Store

OVER = ("Succeeded", "Failed")


def delete(store: Store, plural: str, given: Object, options: dict[str, Any]) -> Object:
    """Delete an object, or mark it; return it as the answer tells it."""
    metadata = given["metadata"]
    _check_preconditions(plural, metadata, options.get("preconditions") or {})
    if options.get("dryRun"):
        return given
    if plural == "namespaces":
        return _delete_namespace(store, given)
    grace = _grace(given, options) if plural == "pods" else 0
    marked = metadata.get("deletionTimestamp")
    if marked and grace >= (metadata.get("deletionGracePeriodSeconds") or 0):
        return given
    deletion: dict[str, Any] = {"deletionTimestamp": _later(grace), "deletionGracePeriodSeconds": grace}
    if plural == "pods" and not marked:
        deletion["generation"] = metadata.get("generation", 1) + 1
    if plural != "pods" and not metadata.get("finalizers"):
        return store.remove(plural, given).object
    stored = store.put(plural, {**given, "metadata": {**metadata, **deletion}}).object
    return store.remove(plural, stored).object if is_free(plural, stored) else stored


def is_free(plural: str, given: Object) -> bool:
    """Tell whether an object is marked, and nothing keeps it."""
    metadata = given["metadata"]
    if plural == "namespaces" or not metadata.get("deletionTimestamp"):
        return False
    return not metadata.get("finalizers") and not metadata.get("deletionGracePeriodSeconds")


def evict(store: Store, pod: Object, options: dict[str, Any]) -> None:
    """Delete a pod unless a PodDisruptionBudget needs it."""
    namespace, labels = pod["metadata"]["namespace"], pod["metadata"].get("labels") or {}
    for budget in store.all("poddisruptionbudgets", namespace):
        spec = budget["spec"]
        if not matches_labels(labels, spec.get("selector") or {}):
            continue
        covered = [
            one
            for one in store.all("pods", namespace)
            if matches_labels(one["metadata"].get("labels") or {}, spec.get("selector") or {})
        ]
        healthy = sum(_is_ready(one) for one in covered)
        needed = int(spec.get("minAvailable", len(covered) - int(spec.get("maxUnavailable", 0))))
        if healthy - _is_ready(pod) < needed:
            raise budget_exceeded(budget["metadata"]["name"], needed, healthy)
    delete(store, "pods", pod, options)


def keep_namespaces(store: Store) -> None:
    """Let namespaces go once they are empty."""

    def changed(change: Change) -> None:
        name = change.object["metadata"].get("namespace")
        if change.gone and name:
            _sweep(store, name)

    store.listeners.append(changed)


def _delete_namespace(store: Store, given: Object) -> Object:
    if given["metadata"].get("deletionTimestamp"):
        return given
    name = given["metadata"]["name"]
    metadata = {**given["metadata"], "deletionTimestamp": _later(0)}
    marked = store.put(
        "namespaces", {**given, "metadata": metadata, "status": {"phase": "Terminating"}}
    ).object
    for resource in RESOURCES.values():
        if resource.namespaced:
            for one in store.all(resource.plural, name):
                delete(store, resource.plural, one, {})
    _sweep(store, name)
    return marked


def _sweep(store: Store, name: str) -> None:
    namespace = store.get("namespaces", "", name)
    if namespace is None or namespace["status"]["phase"] != "Terminating":
        return
    if not any(store.all(one.plural, name) for one in RESOURCES.values() if one.namespaced):
        store.remove("namespaces", namespace)


def _check_preconditions(plural: str, metadata: dict[str, Any], wanted: dict[str, Any]) -> None:
    kind = next(one.kind for one in RESOURCES.values() if one.plural == plural)
    for key, label in (("uid", "UID"), ("resourceVersion", "ResourceVersion")):
        asked, has = wanted.get(key), metadata[key]
        if asked is not None and asked != has:
            why = f"the {label} in the precondition ({asked}) does not match the {label} in record ({has})."
            raise conflict(
                kind, metadata["name"], f"{why} The object might have been deleted and then recreated"
            )


def _grace(pod: Object, options: dict[str, Any]) -> int:
    """Return the seconds that a pod may take: none where nobody runs it."""
    if not pod["spec"].get("nodeName") or (pod.get("status") or {}).get("phase") in OVER:
        return 0
    asked = options.get("gracePeriodSeconds")
    return int(pod["spec"].get("terminationGracePeriodSeconds", 30) if asked is None else max(0, asked))


def _later(seconds: float) -> str:
    return (dt.datetime.now(dt.UTC) + dt.timedelta(seconds=seconds)).strftime("%Y-%m-%dT%H:%M:%SZ")


def _is_ready(pod: Object) -> bool:
    conditions = (pod.get("status") or {}).get("conditions") or ()
    return any(one["type"] == "Ready" and one["status"] == "True" for one in conditions)
