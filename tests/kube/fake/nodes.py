"""Nodes, and where pods fit: labels, what is allocatable, and the scheduler's words where no node will do."""

from __future__ import annotations

from collections import Counter
from fractions import Fraction
from typing import Any

from tests.kube.fake.limits import OVER, asked_by
from tests.kube.fake.quantities import amount
from tests.kube.fake.storing import Object, Store, new_uid
from tests.kube.fake.writing import now

ROOM = {"cpu": "64", "memory": "256Gi", "pods": "100000", "ephemeral-storage": "1Ti"}
SELECTOR = "node(s) didn't match Pod's node affinity/selector"


def node(name: str, labels: dict[str, str] | None = None, **room: str) -> Object:
    """Return a node that is ready."""
    allocatable = {**ROOM, **room}
    told = {"kubernetes.io/hostname": name, "kubernetes.io/os": "linux", "kubernetes.io/arch": "amd64"}
    ready = {
        "type": "Ready",
        "status": "True",
        "reason": "KubeletReady",
        "message": "kubelet is posting ready status",
        "lastHeartbeatTime": now(),
        "lastTransitionTime": now(),
    }
    return {
        "kind": "Node",
        "apiVersion": "v1",
        "metadata": {
            "name": name,
            "uid": new_uid(),
            "creationTimestamp": now(),
            "labels": {**told, **(labels or {})},
        },
        "spec": {},
        "status": {
            "capacity": allocatable,
            "allocatable": allocatable,
            "conditions": [ready],
            "addresses": [{"type": "InternalIP", "address": "127.0.0.1"}],
            "nodeInfo": {"kubeletVersion": "v1.36.2", "operatingSystem": "linux", "architecture": "amd64"},
        },
    }


def place_for(store: Store, pod: Object) -> tuple[str, str]:
    """Return a node's name, or "" and why there is none."""
    nodes = store.all("nodes")
    asked = {**asked_by(pod, "requests"), "pods": Fraction(1)}
    reasons: Counter[str] = Counter()
    for one in nodes:
        why = _unfit(store, one, pod, asked)
        if not why:
            return one["metadata"]["name"], ""
        reasons.update(why)
    told = ", ".join(f"{count} {reason}" for reason, count in sorted(reasons.items()))
    head = f"0/{len(nodes)} nodes are available"
    return "", (
        f"{head}: {told}. no new claims to deallocate, preemption: {head}: "
        f"{len(nodes)} Preemption is not helpful for scheduling."
    )


def _unfit(store: Store, one: Object, pod: Object, asked: dict[str, Fraction]) -> list[str]:
    labels = one["metadata"].get("labels") or {}
    if any(labels.get(key) != value for key, value in (pod["spec"].get("nodeSelector") or {}).items()):
        return [SELECTOR]
    if one["spec"].get("unschedulable"):
        return ["node(s) were unschedulable"]
    if not is_ready(one):
        return ["node(s) had untolerated taint(s)"]
    allocatable = one["status"]["allocatable"]
    name = one["metadata"]["name"]
    room = {key: amount(allocatable.get(key, 0)) for key in asked}
    if any(asked[key] > room[key] for key in asked):  # without looking at who is there
        return [f"Insufficient {key}" for key in sorted(asked) if asked[key] > room[key]]
    for other in store.tables["pods"].objects.values():
        if other["spec"].get("nodeName") == name and other["status"].get("phase") not in OVER:
            for key, value in {**asked_by(other, "requests"), "pods": Fraction(1)}.items():
                if key in room:
                    room[key] -= value
    if room.get("pods", Fraction(1)) < 1:
        return ["Too many pods"]
    return [f"Insufficient {key}" for key in sorted(asked) if asked[key] > room[key]]


def is_ready(one: Object) -> bool:
    """Tell whether a node's kubelet is heard of."""
    return any(told["type"] == "Ready" and told["status"] == "True" for told in one["status"]["conditions"])


def with_readiness(one: Object, status: str, reason: str) -> Object:
    """Return a node with another Ready condition."""
    ready: dict[str, Any] = {**one["status"]["conditions"][0], "status": status, "reason": reason}
    ready["lastTransitionTime"] = now()
    return {**one, "status": {**one["status"], "conditions": [ready]}}
