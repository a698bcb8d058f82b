"""What a pod takes of quotas and of its node: in comes a pod, out go amounts, counted as the server counts them."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

from tests.kube.api import quantities
from tests.kube.api.statuses import cause, invalid

Object = dict[str, Any]
Amounts = dict[str, Decimal]


def is_of_pods(resource: str) -> bool:
    """Whether a resource can be asked for a pod as a whole."""
    return resource in ("cpu", "memory") or resource.startswith("hugepages-")


def parsed(told: Object | None) -> Amounts:
    """Return quantities as numbers."""
    return {resource: quantities.parse(value) for resource, value in (told or {}).items()}


def added(*parts: Amounts) -> Amounts:
    """Return the sums."""
    total: Amounts = {}
    for part in parts:
        for resource, amount in part.items():
            total[resource] = total.get(resource, Decimal()) + amount
    return total


def larger(*parts: Amounts) -> Amounts:
    """Return the largest of each."""
    most: Amounts = {}
    for part in parts:
        for resource, amount in part.items():
            most[resource] = max(most.get(resource, amount), amount)
    return most


def of_containers(spec: Object, which: str) -> Amounts:
    """Return the requests or limits of all containers together: sidecars stay from their turn on, other init containers go."""

    def of(container: Object) -> Amounts:
        return parsed((container.get("resources") or {}).get(which))

    mains = [of(one) for one in spec.get("containers") or ()]
    beside: list[Amounts] = []
    steps: list[Amounts] = []
    for one in spec.get("initContainers") or ():
        if one.get("restartPolicy") == "Always":
            beside.append(of(one))
            steps.append(added(*beside))
        else:
            steps.append(added(of(one), *beside))
    return larger(added(*mains, *beside), *steps)


def of_pod(pod: Object, which: str = "requests") -> Amounts:
    """Return a pod's requests or limits, overhead included."""
    spec = pod["spec"]
    level = parsed((spec.get("resources") or {}).get(which))
    inner = of_containers(spec, which) | {name: amount for name, amount in level.items() if is_of_pods(name)}
    overhead = parsed(spec.get("overhead"))
    return added(
        inner, overhead if which == "requests" else {k: v for k, v in overhead.items() if k in inner}
    )


def of_quota(pod: Object) -> Amounts:
    """Return what a pod takes of a quota, by the quota's names; plain names stand for requests."""
    total: Amounts = {"pods": Decimal(1), "count/pods": Decimal(1)}
    for which in ("requests", "limits"):
        for resource, amount in of_pod(pod, which).items():
            total[f"{which}.{resource}"] = amount
            if which == "requests":
                total[resource] = amount
    return total


def complete(spec: Object) -> None:
    """Fill in a pod's own requests: by its containers where they ask, else by its limits."""
    told = spec.get("resources")
    if not told or not told.get("limits"):
        return
    requests = dict(told.get("requests") or {})
    for resource, amount in of_containers(spec, "requests").items():
        if resource not in requests and resource in ("cpu", "memory"):
            requests[resource] = quantities.write(amount, binary=resource == "memory")
    for resource, value in told["limits"].items():
        requests.setdefault(resource, value)
    spec["resources"] = {**told, "requests": requests}


def check(pod: Object) -> None:
    """Refuse a pod whose containers ask for more than it does itself."""
    spec, causes = pod["spec"], []
    level = (spec.get("resources") or {}).get("requests") or {}
    inside = of_containers(spec, "requests")
    for resource, value in sorted(level.items(), reverse=True):
        if inside.get(resource, Decimal()) > quantities.parse(value):
            least = quantities.write(inside[resource], binary=resource == "memory")
            told = f'Invalid value: "{value}": must be greater than or equal to aggregate container requests of {least}'
            causes.append(cause("FieldValueInvalid", told, f"spec.resources.requests[{resource}]"))
    if causes:
        raise invalid("Pod", pod["metadata"]["name"], causes)
