"""Evictions by request: in comes a pod that shall go, out goes its deletion, or the refusal of a disruption budget."""

from __future__ import annotations

import math
from typing import Any

from tests.kube.api import deleting
from tests.kube.api.kinds import BY_PATH
from tests.kube.api.selectors import matches
from tests.kube.api.statuses import Refusal
from tests.kube.api.storage import Storage

Object = dict[str, Any]
BUDGETS = BY_PATH["policy", "v1", "poddisruptionbudgets"]


def is_ready(pod: Object) -> bool:
    """Whether a pod counts for a budget."""
    status = pod.get("status") or {}
    told = {one["type"]: one["status"] for one in status.get("conditions") or ()}
    return status.get("phase") == "Running" and told.get("Ready") == "True"


def evict(storage: Storage, namespace: str, name: str, options: Object) -> Object:
    """Delete a pod if the budgets allow it."""
    pod = storage.get(deleting.PODS, namespace, name)
    labels = pod["metadata"].get("labels") or {}
    if is_ready(pod):
        for (where, budget), found in storage.table(BUDGETS).objects.items():
            selector = (found.get("spec") or {}).get("selector")
            if where == namespace and matches(selector, labels):
                _check(storage, namespace, budget, found["spec"])
    deleting.delete(storage, deleting.PODS, pod, options)
    return {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201}


def _check(storage: Storage, namespace: str, budget: str, spec: Object) -> None:
    pods = [
        pod
        for (where, _), pod in storage.table(deleting.PODS).objects.items()
        if where == namespace and matches(spec["selector"], pod["metadata"].get("labels") or {})
    ]
    healthy, needed = sum(map(is_ready, pods)), _number(spec.get("minAvailable"), len(pods))
    if spec.get("maxUnavailable") is not None:
        needed = len(pods) - _number(spec["maxUnavailable"], len(pods))
    if healthy - 1 < needed:
        message = f"The disruption budget {budget} needs {needed} healthy pods and has {healthy} currently"
        raise Refusal(
            429,
            "Cannot evict pod as it would violate the pod's disruption budget.",
            details={"causes": [{"reason": "DisruptionBudget", "message": message}]},
        )


def _number(said: Any, total: int) -> int:
    if isinstance(said, str) and said.endswith("%"):
        return math.ceil(int(said[:-1]) * total / 100)
    return int(said or 0)
