"""What happens to a pod between its request and its first version: defaults, admission, validation.

The order is the server's: namespace, what changes the pod (limit range, service account, priority), validation, then what
only says no (limit range, webhooks, quota). A taken name comes after all of it.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from typing import Any

from tests.kube.fake import limits
from tests.kube.fake.quantities import amount
from tests.kube.fake.refusals import NAME_RULE, QUANTITY_RULE, Refusal, bad_request, forbidden, invalid
from tests.kube.fake.storing import Store

Pod = dict[str, Any]
Webhook = Callable[[Pod], Refusal | None]
_SUBDOMAIN = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*\Z")
_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?\Z")
_LABEL_VALUE = re.compile(r"(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?\Z")
_TOLERATIONS = [
    {
        "key": f"node.kubernetes.io/{what}",
        "operator": "Exists",
        "effect": "NoExecute",
        "tolerationSeconds": 300,
    }
    for what in ("not-ready", "unreachable")
]
ALWAYS_THERE = {"system-node-critical", "system-cluster-critical"}


class Admission:
    """The admission chain."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.quotas = limits.Quotas(store)
        self.webhooks: list[Webhook] = []

    def admit(self, pod: Pod, namespace: str, *, settled: bool = True) -> Pod:
        """Return the pod as it will be stored; `settled` is false while the namespace is brand new."""
        _check_decoding(pod)
        _default(pod)
        ranges = self.store.all("limitranges", namespace)
        limits.fill_from_ranges(pod, ranges)
        self._check_references(pod, namespace, settled=settled)
        _validate(pod)
        limits.check_ranges(pod, ranges)
        for webhook in self.webhooks:
            if refusal := webhook(pod):
                raise refusal
        self.quotas.check(pod, namespace, known=settled)
        pod["status"] = {"phase": "Pending", "qosClass": _quality(pod)}
        return pod

    def _check_references(self, pod: Pod, namespace: str, *, settled: bool) -> None:
        name, spec = pod["metadata"]["name"], pod["spec"]
        account = spec["serviceAccountName"]
        if not settled or (
            account != "default" and not self.store.get("serviceaccounts", namespace, account)
        ):
            why = f'error looking up service account {namespace}/{account}: serviceaccount "{account}" not found'
            raise forbidden("pods", name, why)
        priority = spec.get("priorityClassName")
        if priority and priority not in ALWAYS_THERE and not self.store.get("priorityclasses", "", priority):
            raise forbidden("pods", name, f"no PriorityClass with name {priority} was found")


def unknown_fields(pod: Pod) -> list[str]:
    """Return the fields of a pod's spec and containers that Kubernetes has not."""
    spec_fields, container_fields = _known_fields()
    told = [f"spec.{key}" for key in pod.get("spec") or {} if key not in spec_fields]
    for place, container in enumerate((pod.get("spec") or {}).get("containers") or ()):
        told += [f"spec.containers[{place}].{key}" for key in container if key not in container_fields]
    return told


@functools.cache
def _known_fields() -> tuple[set[str], set[str]]:
    from kubernetes_asyncio.client import V1Container, V1PodSpec

    return set(V1PodSpec.attribute_map.values()), set(V1Container.attribute_map.values())


def _check_decoding(pod: Pod) -> None:
    spec = pod.get("spec")
    if not isinstance(spec, dict):
        spec = pod["spec"] = {}
    for container in [*(spec.get("initContainers") or ()), *(spec.get("containers") or ())]:
        for part in ("requests", "limits"):
            for text in ((container.get("resources") or {}).get(part) or {}).values():
                try:
                    amount(text)
                except ValueError:
                    why = f"quantities must match the regular expression '{QUANTITY_RULE}'"
                    raise bad_request(f'Pod in version "v1" cannot be handled as a Pod: {why}') from None


def _default(pod: Pod) -> None:
    pod.setdefault("kind", "Pod")
    pod.setdefault("apiVersion", "v1")
    spec = pod["spec"]
    for container in [*(spec.get("initContainers") or ()), *(spec.get("containers") or ())]:
        resources = container["resources"] = container.get("resources") or {}
        for name, text in (resources.get("limits") or {}).items():
            resources.setdefault("requests", {}).setdefault(name, text)
        container.setdefault("terminationMessagePath", "/dev/termination-log")
        container.setdefault("terminationMessagePolicy", "File")
        image = str(container.get("image") or "")
        tag = image.rpartition("/")[2].partition(":")[2]
        container.setdefault("imagePullPolicy", "Always" if tag in ("", "latest") else "IfNotPresent")
    spec.setdefault("restartPolicy", "Always")
    spec.setdefault("terminationGracePeriodSeconds", 30)
    spec.setdefault("dnsPolicy", "ClusterFirst")
    spec.setdefault("serviceAccountName", "default")
    spec.setdefault("serviceAccount", spec["serviceAccountName"])
    spec.setdefault("securityContext", {})
    spec.setdefault("schedulerName", "default-scheduler")
    spec.setdefault("priority", 0)
    spec.setdefault("enableServiceLinks", True)
    spec.setdefault("preemptionPolicy", "PreemptLowerPriority")
    keys = {one.get("key") for one in spec.get("tolerations") or ()}
    spec["tolerations"] = [
        *(spec.get("tolerations") or ()),
        *[one for one in _TOLERATIONS if one["key"] not in keys],
    ]


def check_name(kind: str, name: str) -> None:
    """Refuse a name that is no DNS-1123 subdomain."""
    causes = name_causes(name)
    if causes:
        raise invalid(kind, name, causes)


def name_causes(name: str) -> list[tuple[str, str, str]]:
    """Return what is wrong with a name."""
    if len(name) > 253:
        why = f'Invalid value: "{name}": must be no more than 253 bytes'
        return [("FieldValueInvalid", why, "metadata.name")]
    if not _SUBDOMAIN.match(name):
        return [("FieldValueInvalid", f'Invalid value: "{name}": {NAME_RULE}', "metadata.name")]
    return []


def _validate(pod: Pod) -> None:
    name, spec = pod["metadata"]["name"], pod["spec"]
    causes = name_causes(name)
    for key, value in (pod["metadata"].get("labels") or {}).items():
        if len(value) > 63:
            why = f'Invalid value: "{value}": must be no more than 63 bytes'
            causes.append(("FieldValueInvalid", why, "metadata.labels"))
        elif not _LABEL_VALUE.match(value) or not key:
            why = f'Invalid value: "{value}": a valid label must be an empty string or consist of alphanumeric characters'
            causes.append(("FieldValueInvalid", why, "metadata.labels"))
    if not spec.get("containers"):
        causes.append(("FieldValueRequired", "Required value", "spec.containers"))
    for part in ("containers", "initContainers"):
        for place, container in enumerate(spec.get(part) or ()):
            causes += _container_causes(container, f"spec.{part}[{place}]")
    deadline = spec.get("activeDeadlineSeconds")
    if deadline is not None and not 1 <= deadline <= 2**31 - 1:
        why = f"Invalid value: {deadline}: must be between 1 and 2147483647, inclusive"
        causes.append(("FieldValueInvalid", why, "spec.activeDeadlineSeconds"))
    if spec["restartPolicy"] not in ("Always", "OnFailure", "Never"):
        why = (
            f'Unsupported value: "{spec["restartPolicy"]}": supported values: "Always", "Never", "OnFailure"'
        )
        causes.append(("FieldValueNotSupported", why, "spec.restartPolicy"))
    if causes:
        raise invalid("Pod", name, causes)


def _container_causes(container: dict[str, Any], at: str) -> list[tuple[str, str, str]]:
    causes = []
    if not container.get("name"):
        causes.append(("FieldValueRequired", "Required value", f"{at}.name"))
    elif not _LABEL.match(container["name"]) or len(container["name"]) > 63:
        why = f"Invalid value: \"{container['name']}\": a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-'"
        causes.append(("FieldValueInvalid", why, f"{at}.name"))
    if not container.get("image"):
        causes.append(("FieldValueRequired", "Required value", f"{at}.image"))
    resources = container["resources"]
    for name, asked in (resources.get("requests") or {}).items():
        bound = (resources.get("limits") or {}).get(name)
        if bound is not None and amount(asked) > amount(bound):
            why = f'Invalid value: "{asked}": must be less than or equal to {name} limit of {bound}'
            causes.append(("FieldValueInvalid", why, f"{at}.resources.requests"))
    return causes


def _quality(pod: Pod) -> str:
    """Return the QoS class."""
    told = [
        (resources.get("requests") or {}, resources.get("limits") or {})
        for one in [*(pod["spec"].get("initContainers") or ()), *pod["spec"]["containers"]]
        for resources in [one["resources"]]
    ]
    if not any(requests or bounds for requests, bounds in told):
        return "BestEffort"
    sure = all(
        {"cpu", "memory"} <= bounds.keys()
        and all(amount(requests[name]) == amount(bounds[name]) for name in ("cpu", "memory"))
        for requests, bounds in told
    )
    return "Guaranteed" if sure else "Burstable"
