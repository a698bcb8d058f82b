"""Admission: in comes a valid pod, out goes what limit ranges add to it, or the refusal of whoever says no.

In the server's order: namespace, service account, priority, limit range, webhooks, quota.
"""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal
from typing import Any

from tests.kube.api import amounts, pod_security, quantities
from tests.kube.api.kinds import BY_PATH
from tests.kube.api.statuses import Refusal, cause, forbidden, not_found
from tests.kube.api.storage import Storage

Object = dict[str, Any]
Webhook = Callable[[Object], str | None]
NAMESPACES = BY_PATH["", "v1", "namespaces"]
PODS = BY_PATH["", "v1", "pods"]
_OVER = ("Succeeded", "Failed")


class Admission:
    """Who has a say in creates; `webhooks` (name -> why it refuses, or None) are the test's."""

    def __init__(self, storage: Storage) -> None:
        self.storage = storage
        self.webhooks: dict[str, Webhook] = {}
        self._amounts: dict[str, tuple[int, dict[str, Decimal]]] = {}

    def namespace(self, resource: str, name: str, namespace: str) -> None:
        """Refuse what is made where nothing can be made."""
        found = self.storage.find(NAMESPACES, "", namespace)
        if found is None:
            raise not_found("namespaces", namespace)
        if found["metadata"].get("deletionTimestamp"):
            why = f"unable to create new content in namespace {namespace} because it is being terminated"
            told = cause(
                "NamespaceTerminating", f"namespace {namespace} is being terminated", "metadata.namespace"
            )
            raise forbidden(resource, name, why, [told])

    def pod(self, pod: Object, namespace: str) -> None:
        """Let a pod pass, completed by limit ranges."""
        name = pod["metadata"]["name"]
        account = pod["spec"]["serviceAccountName"]
        if (
            account != "default"
            and self.storage.find(BY_PATH["", "v1", "serviceaccounts"], namespace, account) is None
        ):
            why = f'error looking up service account {namespace}/{account}: serviceaccount "{account}" not found'
            raise forbidden("pods", name, why)
        self._runtime(pod)
        priority = pod["spec"].get("priorityClassName")
        if priority:
            kind = BY_PATH["scheduling.k8s.io", "v1", "priorityclasses"]
            found = self.storage.find(kind, "", priority)
            if found is None and not priority.startswith("system-"):
                raise forbidden("pods", name, f"no PriorityClass with name {priority} was found")
            pod["spec"]["priority"] = (found or {}).get("value", 2000000000)
        for limits in self._of("limitranges", namespace):
            self._limit(pod, limits)
        amounts.check(pod)
        if why := self._violated(pod, namespace, "enforce"):
            raise forbidden("pods", name, why.replace("violate", "violates", 1))
        for hook, judge in self.webhooks.items():
            if denied := judge(pod):
                message = f'admission webhook "{hook}" denied the request: {denied}'
                raise Refusal(403, message, "Forbidden")
        for quota in self._of("resourcequotas", namespace):
            self._fits(pod, quota, namespace)

    def _runtime(self, pod: Object) -> None:
        """Write the overhead of a pod's RuntimeClass into it; nobody else may."""
        spec, name = pod["spec"], pod["metadata"]["name"]
        which = spec.get("runtimeClassName")
        found = self.storage.find(BY_PATH["node.k8s.io", "v1", "runtimeclasses"], "", which) if which else {}
        if found is None:
            raise forbidden("pods", name, f'pod rejected: RuntimeClass "{which}" not found')
        overhead = (found.get("overhead") or {}).get("podFixed")
        if spec.get("overhead") and not overhead:
            why = "Pod Overhead set without corresponding RuntimeClass defined Overhead"
            raise forbidden("pods", name, f"pod rejected: {why}")
        if overhead:
            spec["overhead"] = overhead

    def warnings(self, pod: Object, namespace: str) -> list[str]:
        """Return what the server warns of in a pod that it takes."""
        why = self._violated(pod, namespace, "warn")
        return [f"would {why}"] if why else []

    def _violated(self, pod: Object, namespace: str, mode: str) -> str:
        labels = (self.storage.find(NAMESPACES, "", namespace) or {"metadata": {}})["metadata"].get(
            "labels"
        ) or {}
        if labels.get(f"{pod_security.LABEL}/{mode}") != "restricted":
            return ""
        return pod_security.violations(pod)

    def _of(self, plural: str, namespace: str) -> list[Object]:
        table = self.storage.table(BY_PATH["", "v1", plural])
        return [found for where, found in sorted(table.objects.items()) if where[0] == namespace]

    def _limit(self, pod: Object, limits: Object) -> None:
        """Fill in a limit range's defaults and keep its bounds."""
        added, broken = [], []
        for rule in limits["spec"].get("limits") or ():
            if rule.get("type") != "Container":
                continue
            for part in ("containers", "initContainers"):
                for container in pod["spec"].get(part) or ():
                    kind = "container" if part == "containers" else "init container"
                    added += [f"{text} for {kind} {container['name']}" for text in _complete(container, rule)]
                    broken += _bounds(container, rule)
        if added:
            told = dict(pod["metadata"].get("annotations") or {})
            told["kubernetes.io/limit-ranger"] = "LimitRanger plugin set: " + "; ".join(added)
            pod["metadata"]["annotations"] = told
        if broken:
            why = broken[0] if len(broken) == 1 else f"[{', '.join(broken)}]"
            raise forbidden("pods", pod["metadata"]["name"], why)

    def _fits(self, pod: Object, quota: Object, namespace: str) -> None:
        """Refuse what a quota has no room for."""
        name, which = pod["metadata"]["name"], quota["metadata"]["name"]
        hard = {
            resource: quantities.parse(value) for resource, value in quota["spec"].get("hard", {}).items()
        }
        asked = amounts.of_quota(pod)
        for container in () if pod["spec"].get("resources") else pod["spec"]["containers"]:
            short = [resource for resource in sorted(hard) if _needs(resource, container)]
            if short:
                why = f"failed quota: {which}: must specify {','.join(short)} for: {container['name']}"
                raise forbidden("pods", name, why)
        used = self.used(namespace)
        over = sorted(
            resource
            for resource, most in hard.items()
            if asked.get(resource) and used.get(resource, Decimal()) + asked[resource] > most
        )
        if over:
            said = {resource: quota["spec"]["hard"][resource] for resource in over}
            told = {
                part: ",".join(
                    f"{resource}={quantities.write(there.get(resource, Decimal()), binary=_is_bytes(resource))}"
                    for resource in over
                )
                for part, there in (("requested", asked), ("used", used))
            }
            limited = ",".join(f"{resource}={value}" for resource, value in said.items())
            why = f"exceeded quota: {which}, requested: {told['requested']}, used: {told['used']}, limited: {limited}"
            raise forbidden("pods", name, why)

    def used(self, namespace: str) -> dict[str, Decimal]:
        """Return what a namespace's pods take: those that are over count as objects only."""
        total: dict[str, Decimal] = {}
        for (where, _), pod in self.storage.table(PODS).objects.items():
            if where != namespace:
                continue
            uid = pod["metadata"]["uid"]
            version = pod["metadata"].get("generation", 1)
            known = self._amounts.get(uid)
            if known is None or known[0] != version:
                known = self._amounts[uid] = (version, amounts.of_quota(pod))
            over = (pod.get("status") or {}).get("phase") in _OVER
            for resource, amount in ({"count/pods": Decimal(1)} if over else known[1]).items():
                total[resource] = total.get(resource, Decimal()) + amount
        return total

    def quota_status(self, quota: Object) -> Object:
        """Return a quota with what is used of it."""
        hard = quota.get("spec", {}).get("hard", {})
        used = self.used(quota["metadata"]["namespace"])
        told = {
            resource: quantities.write(used.get(resource, Decimal()), binary=_is_bytes(resource))
            for resource in hard
        }
        return {**quota, "status": {"hard": hard, "used": told}}


def _is_bytes(resource: str) -> bool:
    return resource.endswith(("memory", "storage"))


def _needs(resource: str, container: Object) -> bool:
    """Whether a quota on a resource wants a container to speak of it, which it does not."""
    which, _, what = resource.rpartition(".")
    if what not in ("cpu", "memory", "ephemeral-storage") or resource.startswith("count/"):
        return False
    return what not in ((container.get("resources") or {}).get(which or "requests") or {})


def complete_limit_range(found: Object) -> None:
    """Fill in a limit range's own defaults: default from max, defaultRequest from default."""
    rules = []
    for rule in (found.get("spec") or {}).get("limits") or ():
        rule = dict(rule)
        if rule.get("type") == "Container":
            default = {**(rule.get("max") or {}), **(rule.get("default") or {})}
            request = {**default, **(rule.get("min") or {}), **(rule.get("defaultRequest") or {})}
            if default:
                rule["default"] = default
            if request:
                rule["defaultRequest"] = request
        rules.append(rule)
    found["spec"] = {**(found.get("spec") or {}), "limits": rules}


def _complete(container: Object, rule: Object) -> list[str]:
    resources = container.get("resources") or {}
    made = {which: dict(resources.get(which) or {}) for which in ("limits", "requests")}
    added = []
    for which, key, word in (("requests", "defaultRequest", "request"), ("limits", "default", "limit")):
        fresh = {name: value for name, value in (rule.get(key) or {}).items() if name not in made[which]}
        made[which] |= fresh
        if fresh:
            added.append(f"{', '.join(sorted(fresh))} {word}")
    if added:
        container["resources"] = {**resources, **{which: told for which, told in made.items() if told}}
    return added


def _bounds(container: Object, rule: Object) -> list[str]:
    resources, broken = container.get("resources") or {}, []
    requests, limits = resources.get("requests") or {}, resources.get("limits") or {}
    for resource, least in (rule.get("min") or {}).items():
        if resource not in requests:
            broken.append(f"minimum {resource} usage per Container is {least}.  No request is specified")
        elif quantities.parse(requests[resource]) < quantities.parse(least):
            broken.append(
                f"minimum {resource} usage per Container is {least}, but request is {requests[resource]}"
            )
    for resource, most in (rule.get("max") or {}).items():
        if resource not in limits:
            broken.append(f"maximum {resource} usage per Container is {most}.  No limit is specified")
        elif quantities.parse(limits[resource]) > quantities.parse(most):
            broken.append(
                f"maximum {resource} usage per Container is {most}, but limit is {limits[resource]}"
            )
    return broken
