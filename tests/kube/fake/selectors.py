"""Label and field selectors: from their text to a test of an object."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from tests.kube.fake.refusals import bad_request

Match = Callable[[dict[str, Any]], bool]
Labels = dict[str, str]
_SET = re.compile(r"(\S+)\s+(in|notin)\s*\(([^)]*)\)$")
_COMPARED = re.compile(r"([^=!<>\s]+)\s*(==|!=|=|<|>)\s*(.*)$")
_WORD = re.compile(r"[-A-Za-z0-9_./]*$")
_COMMON = {"metadata.name", "metadata.namespace"}
_FIELDS = {
    "pods": _COMMON
    | {
        "spec.hostNetwork",
        "spec.nodeName",
        "spec.restartPolicy",
        "spec.schedulerName",
        "spec.serviceAccountName",
        "status.nominatedNodeName",
        "status.phase",
        "status.podIP",
    },
    "events": _COMMON
    | {
        "involvedObject.apiVersion",
        "involvedObject.fieldPath",
        "involvedObject.kind",
        "involvedObject.name",
        "involvedObject.namespace",
        "involvedObject.resourceVersion",
        "involvedObject.uid",
        "reason",
        "reportingComponent",
        "source",
        "type",
    },
    "namespaces": _COMMON | {"status.phase"},
    "nodes": _COMMON | {"spec.unschedulable"},
}


def selector(resource: str, labels: str, fields: str) -> Match | None:
    """Return the test for both selectors, or None where everything matches."""
    by_label = [_requirement(part) for part in _parts(labels)]
    by_field = [_field(resource, part) for part in fields.split(",") if part]
    if not by_label and not by_field:
        return None

    def matches(given: dict[str, Any]) -> bool:
        told = given["metadata"].get("labels") or {}
        return all(test(told) for test in by_label) and all(test(given) for test in by_field)

    return matches


def matches_labels(labels: Labels, spec: dict[str, Any]) -> bool:
    """Tell whether labels match a LabelSelector object."""
    if any(labels.get(key) != value for key, value in (spec.get("matchLabels") or {}).items()):
        return False
    for rule in spec.get("matchExpressions") or ():
        has = rule["key"] in labels
        listed = has and labels[rule["key"]] in (rule.get("values") or ())
        if not {"In": listed, "NotIn": not listed, "Exists": has, "DoesNotExist": not has}[rule["operator"]]:
            return False
    return True


def _parts(text: str) -> list[str]:
    """Split at commas that are outside of parentheses."""
    return [part.strip() for part in re.split(r",(?![^(]*\))", text) if part.strip()]


def _requirement(part: str) -> Callable[[Labels], bool]:
    if found := _SET.match(part):
        key, word, listed = found.groups()
        values = {value.strip() for value in listed.split(",")}
        if word == "in":
            return lambda labels: labels.get(key) in values
        return lambda labels: labels.get(key) not in values
    if found := _COMPARED.match(part):
        return _comparison(*found.groups())
    key = part.removeprefix("!").strip()
    if not key or not _WORD.match(key):
        raise bad_request(f"unable to parse requirement: found '{part}', expected: identifier")
    if part.startswith("!"):
        return lambda labels: key not in labels
    return lambda labels: key in labels


def _comparison(key: str, sign: str, value: str) -> Callable[[Labels], bool]:
    if not _WORD.match(value):
        raise bad_request(f"unable to parse requirement: found '{value[0]}', expected: identifier")
    match sign:
        case "!=":
            return lambda labels: labels.get(key) != value
        case ">":
            return lambda labels: key in labels and int(labels[key]) > int(value)
        case "<":
            return lambda labels: key in labels and int(labels[key]) < int(value)
    return lambda labels: labels.get(key) == value


def _field(resource: str, part: str) -> Match:
    found = re.match(r"([^=!]+)(==|!=|=)(.*)$", part)
    if found is None:
        raise bad_request(f"invalid selector: '{part}'; can't understand '{part}'")
    path, sign, value = found.groups()
    if path not in _FIELDS.get(resource, _COMMON):
        raise bad_request(f"field label not supported: {path}")
    steps = path.split(".")
    return lambda given: (_at(given, steps) == value) is (sign != "!=")


def _at(given: Any, steps: list[str]) -> str:
    for step in steps:
        given = given.get(step) if isinstance(given, dict) else None
    if isinstance(given, dict):
        return str(given.get("component", ""))
    return "" if given is None else str(given)
