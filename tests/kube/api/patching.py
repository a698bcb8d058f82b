"""Patches: in comes an object and a patch of any of the four kinds, out goes the patched object, or the server's refusal."""

from __future__ import annotations

import copy
from typing import Any

from tests.kube.api.statuses import Refusal

Object = dict[str, Any]
JSON, MERGE, STRATEGIC, APPLY = (
    "application/json-patch+json",
    "application/merge-patch+json",
    "application/strategic-merge-patch+json",
    "application/apply-patch+yaml",
)
# By which key the members of these lists are the same one; other lists are replaced.
MERGE_KEYS = {
    "containers": "name",
    "initContainers": "name",
    "ephemeralContainers": "name",
    "env": "name",
    "volumes": "name",
    "volumeMounts": "mountPath",
    "volumeDevices": "devicePath",
    "ports": "containerPort",
    "imagePullSecrets": "name",
    "hostAliases": "ip",
    "conditions": "type",
    "ownerReferences": "uid",
    "schedulingGates": "name",
    "podIPs": "ip",
    "hostIPs": "ip",
}
UNIONS = ("finalizers",)


def merge(found: Any, patch: Any) -> Any:
    """Return the merge patch's result: null removes, lists are replaced."""
    if not isinstance(patch, dict):
        return patch
    made = dict(found) if isinstance(found, dict) else {}
    for key, value in patch.items():
        if value is None:
            made.pop(key, None)
        else:
            made[key] = merge(made.get(key), value)
    return made


def strategic(found: Any, patch: Any) -> Any:
    """Return the strategic merge patch's result: members of known lists are merged by their keys."""
    if not isinstance(patch, dict):
        return patch
    if patch.get("$patch") == "replace":
        return {key: value for key, value in patch.items() if key != "$patch"}
    made = dict(found) if isinstance(found, dict) else {}
    for key, value in patch.items():
        if key.startswith("$deleteFromPrimitiveList/"):
            name = key.partition("/")[2]
            made[name] = [one for one in made.get(name) or () if one not in value]
        elif key.startswith("$"):
            continue
        elif value is None:
            made.pop(key, None)
        elif key in UNIONS and isinstance(value, list):
            before = made.get(key) or []
            made[key] = [*before, *(one for one in value if one not in before)]
        elif key in MERGE_KEYS and isinstance(value, list):
            made[key] = _by_key(made.get(key) or [], value, MERGE_KEYS[key])
        else:
            made[key] = strategic(made.get(key), value)
    return made


def _by_key(found: list[Any], patch: list[Any], key: str) -> list[Any]:
    made = list(found)
    for one in patch:
        if one.get("$patch") == "replace":
            return [other for other in patch if "$patch" not in other]
        at = next((at for at, other in enumerate(made) if other.get(key) == one.get(key)), None)
        if one.get("$patch") == "delete":
            made = [other for other in made if other.get(key) != one.get(key)]
        elif at is None:
            made.append(one)
        else:
            made[at] = strategic(made[at], one)
    return made


def json_patch(found: Object, patch: Any) -> Object:
    """Return the JSON patch's result; 422 for what cannot be done."""
    failed = Refusal(422, "the server rejected our request due to an error in our request", details={})
    made: Any = copy.deepcopy(found)
    try:
        for step in patch:
            match step["op"]:
                case "test":
                    if _get(made, step["path"]) != step["value"]:
                        raise failed
                case "add":
                    made = _set(made, step["path"], copy.deepcopy(step["value"]), insert=True)
                case "replace":
                    _get(made, step["path"])
                    made = _set(made, step["path"], copy.deepcopy(step["value"]), insert=False)
                case "remove":
                    _remove(made, step["path"])
                case "move":
                    value = _get(made, step["from"])
                    _remove(made, step["from"])
                    made = _set(made, step["path"], value, insert=True)
                case "copy":
                    made = _set(made, step["path"], copy.deepcopy(_get(made, step["from"])), insert=True)
                case _:
                    raise failed
    except (KeyError, IndexError, ValueError, TypeError):
        raise failed from None
    return made  # type: ignore[no-any-return]


def _parts(path: str) -> list[str]:
    return [part.replace("~1", "/").replace("~0", "~") for part in path.split("/")[1:]]


def _get(found: Any, path: str) -> Any:
    for part in _parts(path):
        found = found[int(part)] if isinstance(found, list) else found[part]
    return found


def _set(found: Any, path: str, value: Any, *, insert: bool) -> Any:
    parts = _parts(path)
    if not parts:
        return value
    holder = found
    for part in parts[:-1]:
        holder = holder[int(part)] if isinstance(holder, list) else holder[part]
    last = parts[-1]
    if not isinstance(holder, list):
        holder[last] = value
    elif last == "-":
        holder.append(value)
    elif insert:
        holder.insert(int(last), value)
    else:
        holder[int(last)] = value
    return found


def _remove(found: Any, path: str) -> None:
    *parents, last = _parts(path)
    for part in parents:
        found = found[int(part)] if isinstance(found, list) else found[part]
    del found[int(last) if isinstance(found, list) else last]


def leaves(found: Any, path: str = "") -> dict[str, Any]:
    """Return an object's leaves by path, lists counted as leaves."""
    if not isinstance(found, dict):
        return {path: found}
    told: dict[str, Any] = {}
    for key, value in found.items():
        told |= leaves(value, f"{path}.{key}")
    return told


def check_owners(found: Object, patch: Object, owners: dict[str, str], manager: str) -> None:
    """Refuse an apply that changes what another manager has set."""
    now = leaves(found)
    clashes = [
        (path, owners[path])
        for path, value in leaves(patch).items()
        if path in owners and owners[path] != manager and now.get(path) != value
    ]
    if not clashes:
        return
    causes = [
        {"reason": "FieldManagerConflict", "message": f'conflict with "{who}" using v1', "field": path}
        for path, who in clashes
    ]
    many = "conflict" if len(clashes) == 1 else "conflicts"
    if len({who for _, who in clashes}) == 1 and len(clashes) == 1:
        told = f'conflict with "{clashes[0][1]}" using v1: {clashes[0][0]}'
    else:
        told = "conflicts with " + ", ".join(f'"{who}" using v1: {path}' for path, who in clashes)
    raise Refusal(409, f"Apply failed with {len(clashes)} {many}: {told}", details={"causes": causes})
