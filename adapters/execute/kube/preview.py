"""The manifest of a task before there is a job: its template is checked, and the resources of its pods are counted.

In: a template's text and its scope. Out: the manifest, with a mark in place of each value of the job, and `Resources`, counted
as the scheduler counts: main containers run together; init containers run one after another before them, sidecars
(restartPolicy Always) from their turn to the end. Per resource a pod takes the larger of both, and `overhead` on top. A
limit stands for a missing request; where both are missing, or a request depends on the job, that is an error.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterable, Iterator, Mapping
from decimal import Decimal
from typing import Any

import jinja2

from datatask.adapters.execute.base.templates import Lazy, Template, as_yaml
from datatask.adapters.execute.kube.manifests import Manifest, parse_manifest
from datatask.schema.errors import CallerError, InvalidValueError, NotPossibleError
from datatask.schema.resources import Resources, parse_quantity

MARK = "of-the-job"


class Unknown:
    """Stands for a value that only a job has."""

    def __str__(self) -> str:
        return MARK

    def __getattr__(self, name: str) -> Unknown:
        if name.startswith("__"):
            raise AttributeError(name)
        return self

    def __getitem__(self, key: object) -> Unknown:
        return self

    def __call__(self, *_: object, **__: object) -> Unknown:
        return self

    def __iter__(self) -> Iterator[Unknown]:
        yield self


def _as_yaml(value: object) -> str:
    return MARK if isinstance(value, Unknown) else as_yaml(value)


_jinja = jinja2.Environment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True, autoescape=False)
_jinja.filters |= {"sh": str, "json": lambda value: json.dumps(value, default=str), "yaml": _as_yaml}


def sketch(template: Template, scope: Mapping[str, Any], where: str) -> Manifest | None:
    """Return the manifest with marks; None where the template cannot be rendered without a job."""
    template.compile()
    known = {name: Unknown() if _is_later(value) else value for name, value in scope.items()}
    try:
        text = _jinja.from_string(template.text()).render(known | {"job": Unknown()})
    except jinja2.UndefinedError as error:
        raise CallerError(f"the template uses what there is not: {error.message}", where=where) from error
    except Exception:
        return None  # it computes with a job's values
    return parse_manifest(text, where)


def requests_of(manifest: Manifest | None, where: str) -> Resources:
    """Return what each pod of the task takes; `CallerError` where it says nothing, or something else for each job."""
    remedy = "pass job_resources=, the most that one pod of the task takes"
    if manifest is None:
        raise NotPossibleError("what its pods take depends on the job", where=where, remedy=remedy)
    try:
        return resources_of(manifest, where)
    except CallerError as error:
        if MARK in error.what:
            raise NotPossibleError(
                "what its pods take depends on the job", where=where, remedy=remedy
            ) from error
        raise


def _is_later(value: object) -> bool:
    return isinstance(value, Lazy) or inspect.isawaitable(value)


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
        raise InvalidValueError(f"resources of {who} is no mapping", where=where)
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
