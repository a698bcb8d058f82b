"""ResourceQuota and LimitRange: what a pod asks for, what a namespace has left, and the words for no.

In: a pod about to be created. Out: the pod with a LimitRange's defaults, or a Refusal. Quotas are checked before the name is:
a second create of a pod that exists is 403 where the quota is full, not 409.
"""

from __future__ import annotations

from collections import defaultdict
from fractions import Fraction
from typing import Any

from tests.kube.fake.quantities import amount, is_binary, written
from tests.kube.fake.refusals import Refusal, forbidden
from tests.kube.fake.storing import Change, Store

Amounts = dict[str, Fraction]
OVER = ("Succeeded", "Failed")


def asked_by(pod: dict[str, Any], part: str) -> Amounts:
    """Return a pod's requests or limits: all containers at once, or the largest init container, whichever is more."""
    spec = pod["spec"]
    together: defaultdict[str, Fraction] = defaultdict(Fraction)
    alone: defaultdict[str, Fraction] = defaultdict(Fraction)
    sidecars: defaultdict[str, Fraction] = defaultdict(Fraction)
    for container in spec.get("initContainers") or ():
        for name, text in ((container.get("resources") or {}).get(part) or {}).items():
            if container.get("restartPolicy") == "Always":
                sidecars[name] += amount(text)
                alone[name] = max(alone[name], sidecars[name])
            else:
                alone[name] = max(alone[name], sidecars[name] + amount(text))
    for container in spec["containers"]:
        for name, text in ((container.get("resources") or {}).get(part) or {}).items():
            together[name] += amount(text)
    names = {*together, *alone, *sidecars}
    overhead = spec.get("overhead") or {}
    return {
        name: max(together[name] + sidecars[name], alone[name]) + amount(overhead.get(name, 0))
        for name in names
    }


def counted(pod: dict[str, Any]) -> Amounts:
    """Return what a pod takes of each key that a quota may name."""
    taken: Amounts = {"pods": Fraction(1), "count/pods": Fraction(1)}
    for part in ("requests", "limits"):
        for name, value in asked_by(pod, part).items():
            taken[f"{part}.{name}"] = value
            if part == "requests":
                taken[name] = value
    return taken


class Quotas:
    """The quotas of all namespaces, with what is used of them."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self._taken: dict[str, Amounts] = {}
        store.listeners.append(self._changed)

    def check(self, pod: dict[str, Any], namespace: str, *, known: bool = True) -> None:
        """Refuse a pod that some quota has no room for; `known` is false before a quota's first status."""
        for quota in self.store.all("resourcequotas", namespace):
            name, hard = quota["metadata"]["name"], quota["spec"].get("hard") or {}
            if not known:
                raise self._refused(
                    pod, f"status unknown for quota: {name}, resources: {','.join(sorted(hard))}"
                )
            if missing := _unspecified(pod, hard):
                raise self._refused(pod, f"failed quota: {name}: must specify {missing}")
            asked, used = counted(pod), self.used(namespace)
            over = [
                key for key in sorted(hard) if key in asked and asked[key] + used[key] > amount(hard[key])
            ]
            if over:
                told = {"requested": asked, "used": used, "limited": {key: amount(hard[key]) for key in over}}
                parts = [f"{word}: {_listed(over, values, hard)}" for word, values in told.items()]
                raise self._refused(pod, f"exceeded quota: {name}, {', '.join(parts)}")

    def used(self, namespace: str) -> defaultdict[str, Fraction]:
        """Return what pods that are not over take."""
        total: defaultdict[str, Fraction] = defaultdict(Fraction)
        for pod in self.store.all("pods", namespace):
            if (pod.get("status") or {}).get("phase") in OVER:
                continue
            uid = pod["metadata"]["uid"]
            if uid not in self._taken:
                self._taken[uid] = counted(pod)
            for key, value in self._taken[uid].items():
                total[key] += value
        return total

    def _changed(self, change: Change) -> None:
        """Keep the status of quotas, as their controller does."""
        if change.resource not in ("pods", "resourcequotas"):
            return
        if change.gone and change.resource == "pods":
            self._taken.pop(change.object["metadata"]["uid"], None)
        namespace = change.object["metadata"].get("namespace", "")
        quotas = self.store.all("resourcequotas", namespace)
        used = self.used(namespace) if quotas else {}
        for quota in quotas:
            hard = quota["spec"].get("hard") or {}
            told = {key: _written(key, used[key], hard) for key in hard}
            status = {"hard": hard, "used": told}
            if quota.get("status") != status:
                self.store.put("resourcequotas", {**quota, "status": status})

    @staticmethod
    def _refused(pod: dict[str, Any], why: str) -> Refusal:
        return forbidden("pods", pod["metadata"]["name"], why)


def _unspecified(pod: dict[str, Any], hard: dict[str, str]) -> str:
    told = []
    containers = [*(pod["spec"].get("initContainers") or ()), *pod["spec"]["containers"]]
    for key in sorted(hard):
        part, _, name = key.partition(".")
        if key in ("cpu", "memory"):
            part, name = "requests", key
        if part not in ("requests", "limits") or name not in ("cpu", "memory"):
            continue
        without = [
            one["name"] for one in containers if name not in ((one.get("resources") or {}).get(part) or {})
        ]
        if without:
            told.append(f"{key} for: {','.join(sorted(without))}")
    return "; ".join(told)


def _listed(keys: list[str], values: Any, hard: dict[str, str]) -> str:
    return ",".join(f"{key}={_written(key, values[key], hard)}" for key in keys)


def _written(key: str, value: Fraction, hard: dict[str, str]) -> str:
    return written(value, binary=is_binary(hard[key]))


def with_range_defaults(given: dict[str, Any]) -> dict[str, Any]:
    """Return a LimitRange with the defaults that follow from its others."""
    for rule in given["spec"].get("limits") or ():
        if rule.get("type") == "Container":
            for source, name in (
                ("max", "default"),
                ("default", "defaultRequest"),
                ("min", "defaultRequest"),
            ):
                if source in rule:
                    rule[name] = {**rule[source], **(rule.get(name) or {})}
    return given


def fill_from_ranges(pod: dict[str, Any], ranges: list[dict[str, Any]]) -> None:
    """Give containers the requests and limits that they lack, and say so in an annotation."""
    told = []
    for rule in _rules(ranges, "Container"):
        for kind, containers in (("init container", "initContainers"), ("container", "containers")):
            for container in pod["spec"].get(containers) or ():
                resources = container.setdefault("resources", {})
                for part, default in (("requests", "defaultRequest"), ("limits", "default")):
                    for name, text in (rule.get(default) or {}).items():
                        if name not in (resources.get(part) or {}):
                            resources.setdefault(part, {})[name] = text
                            told.append(f"{name} {part[:-1]} for {kind} {container['name']}")
    if told:
        annotations = pod["metadata"].setdefault("annotations", {})
        annotations["kubernetes.io/limit-ranger"] = f"LimitRanger plugin set: {'; '.join(told)}"


def check_ranges(pod: dict[str, Any], ranges: list[dict[str, Any]]) -> None:
    """Refuse a pod outside of a LimitRange."""
    told = []
    for rule in _rules(ranges, "Container"):
        for container in [*(pod["spec"].get("initContainers") or ()), *pod["spec"]["containers"]]:
            told += _broken(rule, "Container", container.get("resources") or {})
    for rule in _rules(ranges, "Pod"):
        sums = {
            part: {name: written(value, binary=True) for name, value in asked_by(pod, part).items()}
            for part in ("requests", "limits")
        }
        told += _broken(rule, "Pod", sums)
    if told:
        text = told[0] if len(told) == 1 else f"[{', '.join(told)}]"
        raise forbidden("pods", pod["metadata"]["name"], text)


def _rules(ranges: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    return [rule for one in ranges for rule in one["spec"].get("limits") or () if rule.get("type") == kind]


def _broken(rule: dict[str, Any], kind: str, resources: dict[str, Any]) -> list[str]:
    told = []
    for word, part, sign in (("minimum", "requests", -1), ("maximum", "limits", 1)):
        for name, bound in (rule.get(word[:3]) or {}).items():
            given = (resources.get(part) or {}).get(name)
            begin = f"{word} {name} usage per {kind} is {bound}"
            if given is None:
                told.append(f"{begin}, but no {part[:-1]} is specified")
            elif sign * amount(given) > sign * amount(bound):
                told.append(f"{begin}, but {part[:-1]} is {given}")
    return told
