"""Which resources there are: their paths, kinds and what can be done with them."""

from __future__ import annotations

from typing import Any, NamedTuple


class Kind(NamedTuple):
    """A resource: `group` is empty for the core; `model` names the client's class, by which fields are known."""

    plural: str
    name: str
    group: str = ""
    version: str = "v1"
    is_namespaced: bool = True
    model: str = ""
    short: tuple[str, ...] = ()

    @property
    def api_version(self) -> str:
        """As objects tell it."""
        return f"{self.group}/{self.version}" if self.group else self.version


KINDS = (
    Kind("namespaces", "Namespace", is_namespaced=False, model="V1Namespace", short=("ns",)),
    Kind("nodes", "Node", is_namespaced=False, model="V1Node", short=("no",)),
    Kind("pods", "Pod", model="V1Pod", short=("po",)),
    Kind("events", "Event", model="CoreV1Event", short=("ev",)),
    Kind("configmaps", "ConfigMap", model="V1ConfigMap", short=("cm",)),
    Kind("secrets", "Secret", model="V1Secret"),
    Kind("persistentvolumeclaims", "PersistentVolumeClaim", model="V1PersistentVolumeClaim", short=("pvc",)),
    Kind("serviceaccounts", "ServiceAccount", model="V1ServiceAccount", short=("sa",)),
    Kind("resourcequotas", "ResourceQuota", model="V1ResourceQuota", short=("quota",)),
    Kind("limitranges", "LimitRange", model="V1LimitRange", short=("limits",)),
    Kind(
        "poddisruptionbudgets", "PodDisruptionBudget", "policy", model="V1PodDisruptionBudget", short=("pdb",)
    ),
    Kind("runtimeclasses", "RuntimeClass", "node.k8s.io", is_namespaced=False, model="V1RuntimeClass"),
    Kind(
        "priorityclasses", "PriorityClass", "scheduling.k8s.io", is_namespaced=False, model="V1PriorityClass"
    ),
)
BY_PATH = {(kind.group, kind.version, kind.plural): kind for kind in KINDS}
REVIEWS = ("authorization.k8s.io", "v1", "selfsubjectaccessreviews")
VERBS = ["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"]
VERSION: dict[str, Any] = {
    "major": "1",
    "minor": "36",
    "emulationMajor": "1",
    "emulationMinor": "36",
    "minCompatibilityMajor": "1",
    "minCompatibilityMinor": "35",
    "gitVersion": "v1.36.2",
    "gitCommit": "0" * 40,
    "gitTreeState": "clean",
    "buildDate": "2026-01-01T00:00:00Z",
    "goVersion": "go1.26.0",
    "compiler": "gc",
    "platform": "linux/amd64",
}


def discovery(path: str) -> dict[str, Any] | None:
    """Return what the server tells of its resources at `/api`, `/api/v1`, `/apis` and `/apis/GROUP/VERSION`."""
    groups = sorted({(kind.group, kind.version) for kind in KINDS if kind.group} | {REVIEWS[:2]})
    if path == "/api":
        return {"kind": "APIVersions", "versions": ["v1"], "serverAddressByClientCIDRs": []}
    if path == "/apis":
        told = [{"groupVersion": f"{group}/{version}", "version": version} for group, version in groups]
        listed = [
            {"name": group, "versions": [one], "preferredVersion": one}
            for (group, _), one in zip(groups, told, strict=True)
        ]
        return {"kind": "APIGroupList", "apiVersion": "v1", "groups": listed}
    parts = path.strip("/").split("/")
    here = ("", parts[1]) if parts[0] == "api" and len(parts) == 2 else tuple(parts[1:])
    if here != ("", "v1") and here not in groups:
        return None
    resources = [
        {
            "name": kind.plural,
            "singularName": kind.name.lower(),
            "namespaced": kind.is_namespaced,
            "kind": kind.name,
            "verbs": VERBS,
            "shortNames": list(kind.short),
        }
        for kind in KINDS
        if (kind.group, kind.version) == here
    ]
    if here == REVIEWS[:2]:
        review = {
            "name": REVIEWS[2],
            "namespaced": False,
            "kind": "SelfSubjectAccessReview",
            "verbs": ["create"],
        }
        resources.append({**review, "singularName": "selfsubjectaccessreview"})
    group_version = "/".join(part for part in here if part)
    return {
        "kind": "APIResourceList",
        "apiVersion": "v1",
        "groupVersion": group_version,
        "resources": resources,
    }
