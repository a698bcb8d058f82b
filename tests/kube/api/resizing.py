"""Resizing in place: in comes a patch of `pods/resize`, out goes the pod with other amounts; and what its node makes of it.

The node grants what it has room for, then puts it in force; without room the pod waits, and is tried again when others end.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

from tests.kube.api import amounts, telling, validation
from tests.kube.api.statuses import Refusal, cause, invalid
from tests.kube.api.storage import Storage, now

Object = dict[str, Any]
PENDING, RUNNING = "PodResizePending", "PodResizeInProgress"


def resized(before: Object, patched: Object, room: dict[str, Any] | None) -> Object:
    """Return the pod with the patch's amounts and nothing else of it; refusals as the server's."""
    found, name = copy.deepcopy(before), before["metadata"]["name"]
    wanted = {one["name"]: one for one in patched["spec"]["containers"]}
    for one in found["spec"]["containers"]:
        told = wanted.get(one["name"], one).get("resources") or {}
        one["resources"] = validation.as_text(told)
    if patched["spec"].get("resources"):
        found["spec"]["resources"] = validation.as_text(patched["spec"]["resources"])
    was, is_now = validation.quality(before), validation.quality(found)
    if was != is_now:
        told = f'Invalid value: "{was}": Pod QOS Class may not change as a result of resizing'
        raise invalid("Pod", name, [cause("FieldValueInvalid", told, "spec")])
    for resource, amount in amounts.of_pod(found).items():
        most = (room or {}).get(resource)
        if resource in ("cpu", "memory") and most is not None and amount > most:
            factor = 1000 if resource == "cpu" else 1
            asked, there = int(amount * factor), int(most * factor)
            why = f"node didn't have enough allocatable resources: {resource}, requested: {asked}, allocatable: {there}"
            details = {"name": name, "kind": "pods", "causes": [{"reason": "NodeCapacity"}]}
            raise Refusal(403, f'pods "{name}" is forbidden: {why}', details=details)
    if found["spec"] != before["spec"]:
        found["metadata"]["generation"] = before["metadata"].get("generation", 1) + 1
    return found


def is_due(pod: Object) -> bool:
    """Whether a pod that runs wants other amounts than are in force."""
    told = (pod.get("status") or {}).get("containerStatuses") or ()
    wanted = {one["name"]: one.get("resources") or {} for one in pod["spec"]["containers"]}
    return any(
        "running" in one["state"] and "resources" in one and one["resources"] != wanted[one["name"]]
        for one in told
    )


def grant(
    storage: Storage, kind: Any, find: Callable[[], Object | None], lacks: Callable[[Object], str]
) -> bool:
    """Let a node do a resize in its steps: granted, then in force; False where there is no room now."""
    pod = find()
    if pod is None:
        return True
    short = lacks(pod)
    if short:
        storage.update(kind, _with(pod, PENDING, reason="Deferred", message=short))
        return False
    storage.update(kind, _with(pod, RUNNING, granted=True))
    if (pod := find()) is not None:
        storage.update(kind, _with(pod, "", granted=True, in_force=True))
    return True


def _with(pod: Object, kind: str, *, granted: bool = False, in_force: bool = False, **why: str) -> Object:
    status = dict(pod["status"])
    generation = pod["metadata"].get("generation", 1)
    kept = [one for one in status["conditions"] if one["type"] not in (PENDING, RUNNING)]
    if kind:
        head = {"type": kind, "observedGeneration": generation, "status": "True", "lastProbeTime": None}
        kept = [{**head, "lastTransitionTime": now(), **why}, *kept]
    wanted = {one["name"]: one.get("resources") or {} for one in pod["spec"]["containers"]}
    told = []
    for one in status["containerStatuses"]:
        one = dict(one)
        if granted:
            one["allocatedResources"] = dict(wanted[one["name"]].get("requests") or {})
        if in_force:
            one["resources"] = wanted[one["name"]]
        told.append(one)
    status |= {"conditions": kept, "containerStatuses": told, "observedGeneration": generation}
    status |= telling.whole(pod, granted=granted, in_force=in_force)
    return {**pod, "status": status}


def shortage(resource: str, asked: Any, used: Any, room: Any) -> str:
    """Return why a resize has to wait, in the kubelet's words: cpu in thousandths."""
    factor = 1000 if resource == "cpu" else 1
    figures = (int(one * factor) for one in (asked, used, room))
    return "Node didn't have enough resource: {}, requested: {}, used: {}, capacity: {}".format(
        resource, *figures
    )
