"""A pod's status as scheduler and kubelet write it, in the shapes of the recordings.

In: a pod and the states of its containers. Out: the next status. A step is a pure function; when it comes is the kubelet's
matter.
"""

from __future__ import annotations

import hashlib
from typing import Any

from tests.kube.fake.storing import Object
from tests.kube.fake.writing import now

State = dict[str, Any]
STARTING: State = {"waiting": {"reason": "ContainerCreating"}}
INITIALIZING: State = {"waiting": {"reason": "PodInitializing"}}
SCHEDULED = ("PodScheduled", "True", "", "")
STATUS_FIELDS: dict[str, Any] = {
    "f:status": {
        "f:conditions": {
            f'k:{{"type":"{kind}"}}': {".": {}, "f:lastProbeTime": {}, "f:status": {}, "f:type": {}}
            for kind in ("PodReadyToStartContainers", "Initialized", "Ready", "ContainersReady")
        },
        "f:containerStatuses": {},
        "f:hostIP": {},
        "f:phase": {},
        "f:podIP": {},
        "f:startTime": {},
    }
}


def running() -> State:
    """A container that runs since now."""
    return {"running": {"startedAt": now()}}


def terminated(
    code: int, started: str, *, reason: str = "", message: str = "", container_id: str = ""
) -> State:
    """A container that is over since now."""
    told: dict[str, Any] = {"exitCode": code, "reason": reason or ("Completed" if code == 0 else "Error")}
    if message:
        told["message"] = message
    told |= {"startedAt": started, "finishedAt": now()}
    if container_id:
        told["containerID"] = container_id
    return {"terminated": told}


def waiting(reason: str, message: str = "") -> State:
    """A container that does not start yet."""
    return {"waiting": {"reason": reason, **({"message": message} if message else {})}}


def container_status(
    spec: dict[str, Any],
    state: State,
    *,
    container_id: str = "",
    restarts: int = 0,
    last: State | None = None,
) -> dict[str, Any]:
    """Return what is told of one container."""
    runs = "running" in state
    told: dict[str, Any] = {
        "name": spec["name"],
        "state": state,
        "lastState": last or {},
        "ready": runs,
        "restartCount": restarts,
        "image": spec["image"],
        "imageID": image_id(spec["image"]) if container_id else "",
    }
    if container_id:
        told["containerID"] = container_id
    return {**told, "started": runs, **({"resources": spec.get("resources") or {}} if container_id else {})}


def image_id(image: str) -> str:
    """Return the identity of an image."""
    return f"sha256:{hashlib.sha256(image.encode()).hexdigest()}"


def conditions(
    pod: Object,
    ready: list[dict[str, Any]],
    *,
    sandbox: bool,
    initialized: bool = True,
    phase: str = "Pending",
) -> list[dict[str, Any]]:
    """Return the five conditions that a kubelet tells; times are kept where nothing changed."""
    unready = [one["name"] for one in ready if not one["ready"]]
    reason, message = "", ""
    if phase == "Failed":
        reason = "PodFailed"
    elif phase == "Succeeded" or (ready and all("terminated" in one["state"] for one in ready)):
        reason = "PodCompleted"
    elif unready:
        reason, message = "ContainersNotReady", f"containers with unready status: [{' '.join(unready)}]"
    is_ready = "False" if unready or phase in ("Failed", "Succeeded") else "True"
    done = "PodCompleted" if reason == "PodCompleted" else ""
    told = [
        ("PodReadyToStartContainers", "True" if sandbox else "False", "", ""),
        ("Initialized", "True" if initialized else "False", done, ""),
        ("Ready", is_ready, reason, message),
        ("ContainersReady", is_ready, reason, message),
        SCHEDULED,
    ]
    return with_conditions(pod, told)


def with_conditions(pod: Object, told: list[tuple[str, str, str, str]]) -> list[dict[str, Any]]:
    """Return conditions as objects have them."""
    before = {one["type"]: one for one in (pod.get("status") or {}).get("conditions") or ()}
    generation = pod["metadata"].get("generation", 1)
    moment = now()
    result = []
    for kind, status, reason, message in told:
        old = before.get(kind) or {}
        since = old["lastTransitionTime"] if old.get("status") == status else moment
        one = {
            "type": kind,
            "observedGeneration": generation,
            "status": status,
            "lastProbeTime": None,
            "lastTransitionTime": since,
        }
        if reason:
            one["reason"] = reason
        if message:
            one["message"] = message
        result.append(one)
    kinds = {one[0] for one in told}
    return result + [one for kind, one in before.items() if kind not in kinds]


def scheduled(pod: Object, node: str) -> Object:
    """Return the pod with a node."""
    status = {**(pod.get("status") or {}), "conditions": with_conditions(pod, [SCHEDULED])}
    return {**pod, "spec": {**pod["spec"], "nodeName": node}, "status": status}


def unschedulable(pod: Object, why: str) -> Object:
    """Return the pod that no node takes."""
    told = with_conditions(pod, [("PodScheduled", "False", "Unschedulable", why)])
    return {**pod, "status": {**(pod.get("status") or {}), "conditions": told}}


def reported(pod: Object, phase: str, told: list[dict[str, Any]], **more: Any) -> Object:
    """Return the pod with a kubelet's report: phase, containers, conditions, addresses.

    `sandbox` and `initialized` are for the conditions, `ip` is told once there is one, `init` are init containers' statuses,
    all else is put into the status as it is.
    """
    sandbox, initialized = more.pop("sandbox", True), more.pop("initialized", True)
    init, ip = more.pop("init", None), more.pop("ip", "")
    before = pod.get("status") or {}
    status: dict[str, Any] = {
        "observedGeneration": pod["metadata"].get("generation", 1),
        "phase": phase,
        "conditions": conditions(pod, told, sandbox=sandbox, initialized=initialized, phase=phase),
        **more,
        "hostIP": "127.0.0.1",
        "hostIPs": [{"ip": "127.0.0.1"}],
    }
    if ip or before.get("podIP"):
        address = ip or before["podIP"]
        status |= {"podIP": address, "podIPs": [{"ip": address}]}
    status["startTime"] = before.get("startTime") or now()
    if init:
        status["initContainerStatuses"] = init
    status |= {"containerStatuses": told, "qosClass": before.get("qosClass", "BestEffort"), "resources": {}}
    return {**pod, "metadata": _signed(pod["metadata"]), "status": status}


def _signed(metadata: dict[str, Any]) -> dict[str, Any]:
    mark = {
        "manager": "kubelet",
        "operation": "Update",
        "apiVersion": "v1",
        "time": now(),
        "fieldsType": "FieldsV1",
        "fieldsV1": STATUS_FIELDS,
        "subresource": "status",
    }
    return {**metadata, "managedFields": [*(metadata.get("managedFields") or [])[:1], mark]}
