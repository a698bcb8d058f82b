"""Which kinds of objects the server has, and what a path asks for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from tests.kube.fake.refusals import no_such_resource


class Resource(NamedTuple):
    """A kind of object."""

    plural: str
    kind: str
    group: str = ""
    version: str = "v1"
    namespaced: bool = True

    @property
    def api_version(self) -> str:
        """As objects say it."""
        return f"{self.group}/{self.version}" if self.group else self.version


class Target(NamedTuple):
    """What a request is about."""

    resource: Resource
    namespace: str
    name: str
    subresource: str


RESOURCES = {
    (one.group, one.plural): one
    for one in (
        Resource("pods", "Pod"),
        Resource("events", "Event"),
        Resource("configmaps", "ConfigMap"),
        Resource("secrets", "Secret"),
        Resource("serviceaccounts", "ServiceAccount"),
        Resource("resourcequotas", "ResourceQuota"),
        Resource("limitranges", "LimitRange"),
        Resource("namespaces", "Namespace", namespaced=False),
        Resource("nodes", "Node", namespaced=False),
        Resource("poddisruptionbudgets", "PodDisruptionBudget", "policy"),
        Resource("priorityclasses", "PriorityClass", "scheduling.k8s.io", namespaced=False),
        Resource(
            "selfsubjectaccessreviews", "SelfSubjectAccessReview", "authorization.k8s.io", namespaced=False
        ),
    )
}
OF_A_NAMESPACE = {"status", "finalize"}


def target_of(path: str) -> Target:
    """Return what a path like /api/v1/namespaces/NAMESPACE/pods/NAME/log names."""
    parts = path.strip("/").split("/")
    group = ""
    if parts[0] == "apis" and len(parts) > 3:
        group, version, rest = parts[1], parts[2], parts[3:]
    elif parts[0] == "api" and len(parts) > 2:
        version, rest = parts[1], parts[2:]
    else:
        raise no_such_resource()
    namespace = ""
    if rest[0] == "namespaces" and len(rest) > 2 and rest[2] not in OF_A_NAMESPACE:
        namespace, rest = rest[1], rest[2:]
    resource = RESOURCES.get((group, rest[0]))
    if resource is None or resource.version != version or (namespace and not resource.namespaced):
        raise no_such_resource()
    name, subresource, *more = [*rest[1:], "", ""][: max(2, len(rest) - 1)]
    if more:
        raise no_such_resource()
    return Target(resource, namespace, name, subresource)


def flag(query: Mapping[str, str], name: str) -> bool:
    """Tell whether a query says yes, in any way that Go reads as such; kubernetes_asyncio writes True."""
    return query.get(name, "") in ("1", "t", "T", "true", "TRUE", "True")
