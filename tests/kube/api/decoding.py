"""Reading what is sent: in comes a body, out goes an object with known fields only, or the server's refusal.

Known fields are those of kubernetes_asyncio's classes, which are made from the server's own description.
"""

from __future__ import annotations

import datetime as dt
import functools
import json
import re
from typing import Any

import yaml
from kubernetes_asyncio.client import models

from tests.kube.api import quantities
from tests.kube.api.kinds import Kind
from tests.kube.api.statuses import Refusal

Object = dict[str, Any]
_CONTAINER = re.compile(r"(list\[|dict\(str, |dict\[str, )(.*)[\])]$")


def read_body(data: bytes, content_type: str) -> Any:
    """Return a body's value."""
    try:
        if "yaml" in content_type:
            return yaml.safe_load(data)
        return json.loads(data)
    except (ValueError, yaml.YAMLError) as error:
        raise Refusal(400, f"error decoding request body: {error}") from None


def read_object(data: bytes, kind: Kind, content_type: str = "application/json") -> Object:
    """Return the object of a create or replace."""
    try:
        found = read_body(data, content_type)
        problem = "" if isinstance(found, dict) else _go_type(found)
    except Refusal:
        found, problem = None, "json: invalid character looking for beginning of value"
    if problem:
        struct = 'struct { APIVersion string "json:\\"apiVersion,omitempty\\""; Kind string "json:\\"kind,omitempty\\"" }'
        unread = f"json: cannot unmarshal {problem} into Go value of type {struct}"
        raise Refusal(
            400,
            f"the object provided is unrecognized (must be of type {kind.name}): couldn't get version/kind; "
            f"json parse error: {unread if not problem.startswith('json') else problem} ({data.hex()})",
        )
    said = found.get("kind", kind.name), found.get("apiVersion", kind.api_version)
    if said != (kind.name, kind.api_version):
        message = (
            f"the object provided is unrecognized (must be of type {kind.name}): {said[1]}, Kind={said[0]}"
        )
        raise Refusal(400, message)
    return {
        "kind": kind.name,
        "apiVersion": kind.api_version,
        **found,
        "metadata": dict(found.get("metadata") or {}),
    }


def _go_type(found: Any) -> str:
    return {str: "string", list: "array", bool: "bool", int: "number", float: "number"}.get(
        type(found), "null"
    )


@functools.cache
def _fields(model: str) -> dict[str, tuple[str, str]]:
    """Return a class's fields: how they hold values (`one`, `list`, `dict`) and of which class."""
    made = getattr(models, model, None)
    if made is None:
        return {}
    found = {}
    for name, wire in made.attribute_map.items():
        kind = made.openapi_types[name]
        match = _CONTAINER.match(kind)
        held = "one" if match is None else "list" if match[1] == "list[" else "dict"
        found[wire] = (held, kind if match is None else match[2])
    return found


def known(found: Object, kind: Kind) -> tuple[Object, list[str]]:
    """Return the object without fields that nobody knows, and the paths of those."""
    unknown: list[str] = []
    return _known(found, kind.model, "", unknown), unknown


def _known(found: Any, model: str, path: str, unknown: list[str]) -> Any:
    fields = _fields(model)
    if not fields or not isinstance(found, dict):
        return found
    kept = {}
    for key, value in found.items():
        here = f"{path}.{key}" if path else key
        if key not in fields:
            unknown.append(here)
            continue
        held, of = fields[key]
        if value is None:
            continue
        if held == "one":
            kept[key] = _known(value, of, here, unknown)
        elif held == "list" and isinstance(value, list):
            kept[key] = [_known(one, of, f"{here}[{at}]", unknown) for at, one in enumerate(value)]
        elif held == "dict" and isinstance(value, dict):
            kept[key] = {name: _known(one, of, f"{here}.{name}", unknown) for name, one in value.items()}
        else:
            kept[key] = value
    return kept


def check_quantities(found: Object, kind: Kind) -> None:
    """Refuse resources that are no quantities, and strings where the server wants them."""
    spec = found.get("spec")
    if kind.plural != "pods" or not isinstance(spec, dict):
        return
    for part in ("containers", "initContainers"):
        for container in spec.get(part) or ():
            resources = container.get("resources") or {}
            for which in ("limits", "requests"):
                for value in (resources.get(which) or {}).values():
                    try:
                        quantities.parse(value)
                    except ValueError as error:
                        raise cannot_be_handled(kind, str(error)) from None
            for one in container.get("env") or ():
                if not isinstance(one.get("value", ""), str):
                    of = _go_type(one["value"])
                    where = f"Go struct field EnvVar.spec.{part}.env.value of type string"
                    raise cannot_be_handled(kind, f"json: cannot unmarshal {of} into {where}")


def cannot_be_handled(kind: Kind, why: str) -> Refusal:
    """Return: this is no such object."""
    return Refusal(400, f'{kind.name} in version "{kind.version}" cannot be handled as a {kind.name}: {why}')


def later(seconds: float) -> str:
    """Return a time from now as objects tell it."""
    return (dt.datetime.now(dt.UTC) + dt.timedelta(seconds=seconds)).strftime("%Y-%m-%dT%H:%M:%SZ")
