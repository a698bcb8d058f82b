"""What a pod takes, by its manifest's requests, counted as the scheduler counts.

In: a Pod manifest as a mapping. Out: `Resources`. Main containers run together, init containers one after another
before them; init containers with restartPolicy Always (sidecars) run from their turn on to the end. A pod takes the larger
of what runs together in the end and of what any init container needs while it runs, per resource; and `overhead` on top.
Where requests are missing limits stand for them, as the API server defaults them; where both are missing it is an error.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from decimal import Decimal
from typing import Any

from datatask.schema.errors import CallerError
from datatask.schema.resources import Resources, parse_quantity

Amounts = dict[str, Decimal]
NEEDED = ("cpu", "memory")
IGNORED = ("ephemeral-storage", "pods")


def resources_of(manifest: Mapping[str, Any], where: str) -> Resources:
    """Return what the pod takes; other resources (`nvidia.com/gpu`) are custom amounts under their own names.

    `CallerError` names container and resource where a request is missing or is no quantity.
    """
    spec = manifest.get("spec") or {}
    mains = [_amounts(one, where) for one in spec.get("containers") or ()]
    total = _sum(mains)
    sidecars: Amounts = {}
    needed: Amounts = {}
    for container in spec.get("initContainers") or ():
        amounts = _amounts(container, where)
        if container.get("restartPolicy") == "Always":
            sidecars = _sum([sidecars, amounts])
            needed = _larger(needed, sidecars)
        else:
            needed = _larger(needed, _sum([sidecars, amounts]))
    whole = _sum(
        [_larger(_sum([total, sidecars]), needed), _quantities(spec.get("overhead") or {}, "overhead", where)]
    )
    asked = spec.get("resources") or {}
    if (
        isinstance(asked, Mapping) and asked
    ):  # requests of the pod as a whole stand for those of its containers
        whole |= _quantities(
            {**(asked.get("limits") or {}), **(asked.get("requests") or {})}, "the pod", where
        )
    custom = {name: amount for name, amount in whole.items() if name not in (*NEEDED, *IGNORED) and amount}
    return Resources(whole.get("cpu", Decimal(0)), whole.get("memory", Decimal(0)), 1, custom)


def _amounts(container: Mapping[str, Any], where: str) -> Amounts:
    asked = container.get("resources") or {}
    who = f"container {container.get('name', '?')}"
    if not isinstance(asked, Mapping):
        raise CallerError(f"resources of {who} is no mapping", where=where)
    amounts = _quantities({**(asked.get("limits") or {}), **(asked.get("requests") or {})}, who, where)
    missing = [name for name in NEEDED if name not in amounts]
    if missing:
        raise CallerError(
            f"{who} has no resources.requests.{missing[0]}",
            where=where,
            remedy="say what it takes: resources: {requests: {cpu: 100m, memory: 256Mi}}",
        )
    return amounts


def _quantities(given: Mapping[str, Any], who: str, where: str) -> Amounts:
    amounts = {}
    for name, quantity in given.items():
        try:
            amounts[str(name)] = parse_quantity(quantity)
        except CallerError as error:
            raise CallerError(f"{name} of {who}: {error.what}", where=where, remedy=error.remedy) from error
        if amounts[str(name)] < 0:
            raise CallerError(f"{name} of {who} is {quantity}, less than nothing", where=where)
    return amounts


def _sum(parts: Iterable[Amounts]) -> Amounts:
    total: Amounts = {}
    for part in parts:
        for name, amount in part.items():
            total[name] = total.get(name, Decimal(0)) + amount
    return total


def _larger(one: Amounts, other: Amounts) -> Amounts:
    return {name: max(one.get(name, Decimal(0)), other.get(name, Decimal(0))) for name in one | other}
