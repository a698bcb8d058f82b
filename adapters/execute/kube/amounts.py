"""What a pod takes, counted as the scheduler counts it.

In: a manifest, or a pod as the API server has it. Out: `Resources`. Main containers run together; init containers
run one after another before them, sidecars (restartPolicy Always) from their turn to the end: per resource a pod takes
the larger of both. Requests of the pod as a whole stand for that, and the overhead of its RuntimeClass comes on top. A
limit stands for a missing request. While a pod is resized it takes what it has and what it is to have, whichever is more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from decimal import Decimal
from functools import lru_cache
from typing import Any

import msgspec

from datatask.adapters.execute.kube.pods import Pod
from datatask.schema.errors import CallerError, InvalidValueError
from datatask.schema.resources import Resources, parse_quantity

Amounts = dict[str, Decimal]
NEEDED = ("cpu", "memory")
IGNORED = ("ephemeral-storage", "pods")
REMEDY = "say what it takes: resources: {requests: {cpu: 100m, memory: 256Mi}}"


def resources_of(manifest: Mapping[str, Any], where: str) -> Resources:
    """Return what the pod of a manifest will take; resources such as `nvidia.com/gpu` are custom amounts of that name.

    `CallerError` names container and resource where a request is missing or is no quantity.
    """
    spec = manifest.get("spec") or {}
    level = _level(spec, where)
    if spec.get("resources") and not isinstance(spec["resources"], Mapping):
        raise InvalidValueError("spec.resources is no mapping", where=where)

    def asked(container: Mapping[str, Any]) -> Amounts:
        who = f"container {container.get('name', '?')}"
        amounts = _asked(container.get("resources") or {}, who, where)
        for name in NEEDED:
            if name not in amounts and name not in level:
                raise CallerError(f"{who} has no resources.requests.{name}", where=where, remedy=REMEDY)
        return amounts

    return _effective(spec, asked, level, where)


def taken(pod: Pod) -> Resources:
    """Return what a pod takes by its spec and its status, which differ while it is resized in place.

    Pods that are alike get the same object.
    """
    status = pod.status
    pending = pod.condition("PodResizePending")
    told = [(one.name, one.allocated_resources, one.resources) for one in pod.statuses()]
    told.append(("", status.allocated_resources, status.resources))
    infeasible = pending is not None and pending.reason == "Infeasible"
    return _taken(msgspec.json.encode((pod.spec, told, infeasible)))


@lru_cache(maxsize=4096)
def _taken(data: bytes) -> Resources:
    spec, told, infeasible = msgspec.json.decode(data)
    granted = {
        name: _larger(
            _quantities(allocated or {}, name, ""),
            _quantities((in_force or {}).get("requests") or {}, name, ""),
        )
        for name, allocated, in_force in told
    }

    def now(wanted: Amounts, name: str) -> Amounts:
        """Return the most of what is wanted, granted and in force; what the node can never grant does not count."""
        has = granted.get(name)
        return has if infeasible and has else _larger(wanted, has or {})

    def asked(container: Mapping[str, Any]) -> Amounts:
        return now(_asked(container.get("resources") or {}, container["name"], ""), container["name"])

    level = _level(spec, "")
    by_now = now(level, "")
    return _effective(spec, asked, {name: by_now.get(name, amount) for name, amount in level.items()}, "")


def _level(spec: Mapping[str, Any], where: str) -> Amounts:
    """Return what is asked for the pod as a whole, of cpu, memory and huge pages."""
    whole = spec.get("resources")
    if not isinstance(whole, Mapping):
        return {}
    return {
        name: amount
        for name, amount in _asked(whole, "the pod", where).items()
        if name in NEEDED or name.startswith("hugepages-")
    }


def _effective(
    spec: Mapping[str, Any], asked: Callable[[Mapping[str, Any]], Amounts], level: Amounts, where: str
) -> Resources:
    total = _sum(map(asked, spec.get("containers") or ()))
    sidecars: Amounts = {}
    steps: Amounts = {}
    for container in spec.get("initContainers") or ():
        amounts = asked(container)
        if container.get("restartPolicy") == "Always":
            sidecars = _sum([sidecars, amounts])
            steps = _larger(steps, sidecars)
        else:
            steps = _larger(steps, _sum([sidecars, amounts]))
    inner = _larger(_sum([total, sidecars]), steps)
    requests = (spec.get("resources") or {}).get("requests") or {}
    inner |= {
        name: amount
        for name, amount in level.items()
        # as the server completes them: containers' requests stand for a missing one, then the limit
        if name in requests or name not in inner or name not in NEEDED
    }
    whole = _sum([inner, _quantities(spec.get("overhead") or {}, "overhead", where)])
    custom = {name: amount for name, amount in whole.items() if name not in (*NEEDED, *IGNORED) and amount}
    return Resources(whole.get("cpu", Decimal(0)), whole.get("memory", Decimal(0)), 1, custom)


def _asked(resources: Any, who: str, where: str) -> Amounts:
    """Return requests, and limits where there is no request."""
    if not isinstance(resources, Mapping):
        raise InvalidValueError(f"resources of {who} is no mapping", where=where)
    return _quantities({**(resources.get("limits") or {}), **(resources.get("requests") or {})}, who, where)


def _quantities(given: Mapping[str, Any], who: str, where: str) -> Amounts:
    amounts = {}
    for name, quantity in given.items():
        try:
            amounts[str(name)] = parse_quantity(quantity)
        except CallerError as error:
            raise InvalidValueError(
                f"{name} of {who}: {error.what}", where=where, remedy=error.remedy
            ) from error
        if amounts[str(name)] < 0:
            raise InvalidValueError(f"{name} of {who} is {quantity}, less than nothing", where=where)
    return amounts


def _sum(parts: Iterable[Amounts]) -> Amounts:
    total: Amounts = {}
    for part in parts:
        for name, amount in part.items():
            total[name] = total.get(name, Decimal(0)) + amount
    return total


def _larger(one: Amounts, other: Amounts) -> Amounts:
    return {name: max(one.get(name, Decimal(0)), other.get(name, Decimal(0))) for name in one | other}


def most(one: Resources, other: Resources) -> Resources:
    """Return the larger amount of each."""
    custom = _larger(dict(one.custom), dict(other.custom))
    return Resources(max(one.cpu, other.cpu), max(one.mem, other.mem), 1, custom)
