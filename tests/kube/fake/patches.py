"""The three kinds of patch that kubernetes_asyncio sends, applied to a copy."""

from __future__ import annotations

import copy
from typing import Any

from tests.kube.fake.refusals import Refusal, bad_request, unsupported_media_type

# Lists that a strategic merge joins by a key; lists of plain values that it unites.
MERGE_KEYS = {
    "conditions": "type",
    "containers": "name",
    "env": "name",
    "ephemeralContainers": "name",
    "imagePullSecrets": "name",
    "initContainers": "name",
    "ownerReferences": "uid",
    "podIPs": "ip",
    "hostIPs": "ip",
    "ports": "containerPort",
    "tolerations": "",
    "volumeMounts": "mountPath",
    "volumes": "name",
}
UNITED = {"finalizers"}


def patched(given: dict[str, Any], patch: Any, content_type: str) -> dict[str, Any]:
    """Return the object as the patch leaves it."""
    match content_type:
        case "application/json-patch+json":
            return _json_patched(given, patch)
        case "application/merge-patch+json":
            return merged(given, _mapping(patch))
        case "application/strategic-merge-patch+json":
            return _strategic(given, _mapping(patch))
    raise unsupported_media_type()


def _mapping(patch: Any) -> dict[str, Any]:
    if not isinstance(patch, dict):
        raise bad_request("error decoding patch: json: cannot unmarshal into Go value of type map")
    return patch


def merged(given: Any, patch: Any) -> Any:
    """Return a JSON merge patch's result: null removes, lists replace."""
    if not isinstance(patch, dict):
        return patch
    result = dict(given) if isinstance(given, dict) else {}
    for key, value in patch.items():
        if value is None:
            result.pop(key, None)
        else:
            result[key] = merged(result.get(key), value)
    return result


def _strategic(given: Any, patch: dict[str, Any]) -> dict[str, Any]:
    result = dict(given) if isinstance(given, dict) else {}
    if patch.get("$patch") == "replace":
        return {key: value for key, value in patch.items() if key != "$patch"}
    for key, value in patch.items():
        if key.startswith("$deleteFromPrimitiveList/"):
            name = key.partition("/")[2]
            result[name] = [one for one in result.get(name) or () if one not in value]
        elif key.startswith("$"):
            continue
        elif value is None:
            result.pop(key, None)
        elif isinstance(value, dict):
            result[key] = _strategic(result.get(key), value)
        elif isinstance(value, list) and key in UNITED:
            kept = result.get(key) or []
            result[key] = kept + [one for one in value if one not in kept]
        elif isinstance(value, list) and MERGE_KEYS.get(key):
            result[key] = _joined(result.get(key) or [], value, MERGE_KEYS[key])
        else:
            result[key] = value
    return result


def _joined(given: list[Any], patch: list[Any], by: str) -> list[Any]:
    result = {one.get(by): one for one in given}
    for one in patch:
        if one.get("$patch") == "delete":
            result.pop(one.get(by), None)
        else:
            result[one.get(by)] = _strategic(result.get(one.get(by)), one)
    return list(result.values())


def _json_patched(given: dict[str, Any], patch: Any) -> dict[str, Any]:
    if not isinstance(patch, list):
        raise bad_request(
            "error decoding patch: json: cannot unmarshal object into Go value of type jsonpatch.Patch"
        )
    result = copy.deepcopy(given)
    try:
        for step in patch:
            _apply(result, step)
    except (KeyError, IndexError, ValueError, TypeError, AssertionError) as error:
        text = "the server rejected our request due to an error in our request"
        raise Refusal(422, "Invalid", text, details={}) from error
    return result


def _apply(document: Any, step: dict[str, Any]) -> None:
    parent, last = _found(document, step["path"])
    match step["op"]:
        case "test":
            if _value(parent, last) != step.get("value"):
                raise ValueError(step["path"])
        case "remove":
            del parent[_place(parent, last)]
        case "add" if isinstance(parent, list):
            parent.insert(len(parent) if last == "-" else int(last), step["value"])
        case "add":
            parent[last] = step["value"]
        case "replace":
            _value(parent, last)
            parent[_place(parent, last)] = step["value"]
        case "copy" | "move":
            source, name = _found(document, step["from"])
            value = copy.deepcopy(_value(source, name))
            if step["op"] == "move":
                del source[_place(source, name)]
            _apply(document, {"op": "add", "path": step["path"], "value": value})
        case other:
            raise ValueError(other)


def _found(document: Any, path: str) -> tuple[Any, str]:
    steps = [step.replace("~1", "/").replace("~0", "~") for step in path.split("/")[1:]]
    for step in steps[:-1]:
        document = document[_place(document, step)]
    return document, steps[-1]


def _place(parent: Any, step: str) -> Any:
    return int(step) if isinstance(parent, list) else step


def _value(parent: Any, step: str) -> Any:
    return parent[_place(parent, step)]
