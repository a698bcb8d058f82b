"""Statuses of pods: in comes what containers do, out goes what a kubelet tells of it, in the shapes of the recordings."""

from __future__ import annotations

import hashlib
import uuid
from typing import Any

from tests.kube.api import amounts, quantities
from tests.kube.api.storage import now

Object = dict[str, Any]
CREATING, INITIALIZING = "ContainerCreating", "PodInitializing"
DEADLINE = "Pod was active on the node longer than the specified deadline"
UNKNOWN = "The container could not be located when the pod was terminated"


def waiting(reason: str, message: str = "") -> Object:
    """Return the state of a container that does not run yet."""
    return {"waiting": {"reason": reason, **({"message": message} if message else {})}}


def terminated(code: int, reason: str = "", *, began: str = "", message: str = "", which: str = "") -> Object:
    """Return the state of a container that is over."""
    told: Object = {"exitCode": code, "reason": reason or ("Error" if code else "Completed")}
    if message:
        told["message"] = message
    return {
        "terminated": {
            **told,
            "startedAt": began or now(),
            "finishedAt": now(),
            "containerID": which or container_id(),
        }
    }


def container_id() -> str:
    """Return a new container's id."""
    return f"containerd://{uuid.uuid4().hex}{uuid.uuid4().hex}"


def log_is_gone() -> str:
    """Return the kubelet's words in place of a log that it no longer has."""
    return f"unable to retrieve container logs for {container_id()}"


def image_id(image: str) -> str:
    """Return an image's id: the same for the same name."""
    return f"sha256:{hashlib.sha256(image.encode()).hexdigest()}"


def container(
    spec: Object, state: Object, restarts: int = 0, last: Object | None = None, which: str = ""
) -> Object:
    """Return a container's status."""
    runs, begun = "running" in state, "waiting" not in state
    told = {
        "name": spec["name"],
        "state": state,
        "lastState": last or {},
        "ready": runs,
        "restartCount": restarts,
        "image": spec["image"],
        "imageID": image_id(spec["image"]) if begun else "",
        **({"containerID": which or state.get("terminated", {}).get("containerID", "")} if begun else {}),
        "started": runs,
    }
    if not begun:
        return told
    resources = spec.get("resources") or {}
    granted = {"allocatedResources": resources["requests"]} if resources.get("requests") else {}
    return {**told, **granted, "resources": resources}


def conditions(
    pod: Object, phase: str, *, sandbox: bool, initialized: bool, unready: list[str]
) -> list[Object]:
    """Return a pod's conditions on a node; times move where the status does."""
    over = phase in ("Succeeded", "Failed")
    reason = {"Succeeded": "PodCompleted", "Failed": "PodFailed"}.get(phase, "ContainersNotReady")
    why: Object = {} if not unready and not over else {"reason": reason}
    if unready and not over:
        why["message"] = f"containers with unready status: [{' '.join(unready)}]"
    init: Object = {"reason": "PodCompleted"} if phase == "Succeeded" else {}
    if not initialized:
        init = {"reason": "ContainersNotInitialized", "message": "containers with incomplete status"}
    before = {one["type"]: one for one in (pod.get("status") or {}).get("conditions") or ()}
    ready = not unready and not over
    made = []
    for kind, is_so, more in (
        ("PodReadyToStartContainers", sandbox and not over, {}),
        ("Initialized", initialized, init),
        ("Ready", ready, why),
        ("ContainersReady", ready, why),
        ("PodScheduled", True, {}),
    ):
        status = "True" if is_so else "False"
        was = before.get(kind) or {}
        at = was["lastTransitionTime"] if was.get("status") == status else now()
        generation = pod["metadata"].get("generation", 1)
        head = {"type": kind, "observedGeneration": generation, "status": status, "lastProbeTime": None}
        made.append({**head, "lastTransitionTime": at, **more})
    others = [one for kind, one in before.items() if kind == "DisruptionTarget"]
    return [*others, *made]


def whole(pod: Object, *, granted: bool = True, in_force: bool = True) -> Object:
    """Return what a pod's status says of its amounts as a whole."""
    told: Object = {}
    for which in ("requests", "limits"):
        found = amounts.of_pod(pod, which)
        told[which] = {name: quantities.write(n, binary=name == "memory") for name, n in found.items()}
    made: Object = {"allocatedResources": told["requests"]} if granted and told["requests"] else {}
    if in_force and any(told.values()):
        made["resources"] = {which: each for which, each in told.items() if each}
    return made


def scheduled(pod: Object) -> list[Object]:
    """Return the conditions of a pod that has a node."""
    head = {
        "type": "PodScheduled",
        "observedGeneration": pod["metadata"].get("generation", 1),
        "status": "True",
    }
    return [{**head, "lastProbeTime": None, "lastTransitionTime": now()}]


def unscheduled(pod: Object, reason: str, message: str) -> list[Object]:
    """Return the conditions of a pod that no node takes."""
    return [{**scheduled(pod)[0], "status": "False", "reason": reason, "message": message}]


def event(pod: Object, node: str, reason: str, message: str, kind: str, field: str = "") -> Object:
    """Return an event about a pod."""
    metadata = pod["metadata"]
    about = {
        "kind": "Pod",
        "namespace": metadata["namespace"],
        "name": metadata["name"],
        "uid": metadata["uid"],
    }
    about |= {"apiVersion": "v1", "resourceVersion": metadata["resourceVersion"]}
    if field:
        about["fieldPath"] = f"spec.containers{{{field}}}"
    by_scheduler = reason in ("Scheduled", "FailedScheduling")
    at: Object = {"firstTimestamp": None, "lastTimestamp": None, "eventTime": now(fine=True)}
    at["action"] = "Binding" if reason == "Scheduled" else "Scheduling"
    if not by_scheduler:
        at = {"firstTimestamp": now(), "lastTimestamp": now(), "count": 1, "eventTime": None}
    who = "default-scheduler" if by_scheduler else "kubelet"
    return {
        "kind": "Event",
        "apiVersion": "v1",
        "metadata": {
            "name": f"{metadata['name']}.{uuid.uuid4().hex[:16]}",
            "namespace": metadata["namespace"],
        },
        "involvedObject": about,
        "reason": reason,
        "message": message,
        "source": {} if by_scheduler else {"component": "kubelet", "host": node},
        **at,
        "type": kind,
        "reportingComponent": who,
        "reportingInstance": node,
    }


def node_object(name: str, cpu: str, memory: str, pods: str) -> Object:
    """Return a node that is ready."""
    room = {"cpu": cpu, "memory": memory, "pods": pods, "ephemeral-storage": "264212084Ki"}
    ready = {
        "type": "Ready",
        "status": "True",
        "reason": "KubeletReady",
        "message": "kubelet is posting ready status",
    }
    return {
        "kind": "Node",
        "apiVersion": "v1",
        "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name, "kubernetes.io/os": "linux"}},
        "spec": {},
        "status": {
            "capacity": room,
            "allocatable": room,
            "conditions": [{**ready, "lastHeartbeatTime": now(), "lastTransitionTime": now()}],
            "addresses": [{"type": "InternalIP", "address": "127.0.0.1"}],
            "nodeInfo": {"kubeletVersion": "v1.36.2", "containerRuntimeVersion": "containerd://1.6.20"},
        },
    }
