"""Selectors: in comes the text of a label or field selector, out goes a test for objects, or the server's refusal."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from tests.kube.api.kinds import Kind
from tests.kube.api.statuses import Refusal

Object = dict[str, Any]
Test = Callable[[Object], bool]
_TOKEN = re.compile(r"\s*(==|!=|=|\(|\)|,|!|[^\s=!(),]+)")
_FIELDS: dict[str, dict[str, tuple[str, ...]]] = {
    "pods": {
        "spec.nodeName": ("spec", "nodeName"),
        "spec.restartPolicy": ("spec", "restartPolicy"),
        "spec.schedulerName": ("spec", "schedulerName"),
        "spec.serviceAccountName": ("spec", "serviceAccountName"),
        "status.phase": ("status", "phase"),
        "status.podIP": ("status", "podIP"),
    },
    "events": {
        **{
            f"involvedObject.{part}": ("involvedObject", part)
            for part in ("kind", "namespace", "name", "uid")
        },
        "reason": ("reason",),
        "type": ("type",),
    },
    "namespaces": {"status.phase": ("status", "phase")},
    "nodes": {"spec.unschedulable": ("spec", "unschedulable")},
}
_SIGNS = ("=", "==", "!=", "(", ")", ",", "!")


def _refused(found: str, expected: str) -> Refusal:
    return Refusal(400, f"unable to parse requirement: found '{found}', expected: {expected}")


class _Parser:
    """Words of a label selector, one after the other."""

    def __init__(self, text: str) -> None:
        self.words = _TOKEN.findall(text)
        self.at = 0

    def next(self) -> str:
        """Return the next word, or nothing."""
        self.at += 1
        return self.words[self.at - 1] if self.at <= len(self.words) else ""

    def identifier(self) -> str:
        """Return the next word, which must be a name or value."""
        word = self.next()
        if not word or word in _SIGNS:
            raise _refused(word, "identifier")
        return word

    def values(self) -> set[str]:
        """Return the values between brackets."""
        if (word := self.next()) != "(":
            raise _refused(word, "'('")
        found = {self.identifier()}
        while (word := self.next()) == ",":
            found.add(self.identifier())
        if word != ")":
            raise _refused(word, "',', or ')'")
        return found

    def value(self) -> str:
        """Return what follows `=`: nothing is a value too."""
        if self.at >= len(self.words) or self.words[self.at] == ",":
            return ""
        return self.identifier()

    def requirement(self) -> Callable[[dict[str, str]], bool]:
        """Return the next requirement."""
        key = self.next()
        if key == "!":
            absent = self.identifier()
            return lambda labels: absent not in labels
        if not key or key in _SIGNS:
            raise _refused(key, "!, identifier, or 'end of string'")
        match word := self.next():
            case "" | ",":
                self.at -= 1
                return lambda labels: key in labels
            case "=" | "==":
                wanted = self.value()
                if len(wanted.encode()) > 63:
                    why = f'values[0][{key}]: Invalid value: "{wanted}": must be no more than 63 bytes'
                    raise Refusal(400, f"unable to parse requirement: {why}")
                return lambda labels: labels.get(key) == wanted
            case "!=":
                other = self.value()
                return lambda labels: labels.get(key) != other
            case "in":
                among = self.values()
                return lambda labels: labels.get(key) in among
            case "notin":
                outside = self.values()
                return lambda labels: labels.get(key) not in outside
        raise _refused(word, "in, notin, =, ==, !=, gt, lt")


def by_labels(text: str) -> Test | None:
    """Return the test of a label selector; None where it lets all pass."""
    parser = _Parser(text)
    if not parser.words:
        return None
    tests = [parser.requirement()]
    while word := parser.next():
        if word != ",":
            raise _refused(word, "',' or 'end of string'")
        tests.append(parser.requirement())

    def chosen(found: Object) -> bool:
        labels = found["metadata"].get("labels") or {}
        return all(test(labels) for test in tests)

    return chosen


def by_fields(text: str, kind: Kind) -> Test | None:
    """Return the test of a field selector; None where it lets all pass."""
    if not text.strip():
        return None
    known = {"metadata.name": ("metadata", "name"), "metadata.namespace": ("metadata", "namespace")}
    fields: dict[str, tuple[str, ...]] = {**known, **_FIELDS.get(kind.plural, {})}
    wanted: list[tuple[tuple[str, ...], str, bool]] = []
    for part in text.split(","):
        match = re.fullmatch(r"([^=!]+)(==|!=|=)(.*)", part)
        if match is None:
            raise Refusal(400, f"invalid selector: '{text}'; can't understand '{part}'")
        field, how, value = match.groups()
        if field not in fields:
            raise Refusal(400, f"field label not supported: {field}")
        wanted.append((fields[field], value, how != "!="))

    def chosen(found: Object) -> bool:
        return all((_value(found, path) == value) is same for path, value, same in wanted)

    return chosen


def _value(found: Any, path: tuple[str, ...]) -> str:
    for part in path:
        found = (found or {}).get(part)
    return "" if found is None else str(found).lower() if isinstance(found, bool) else str(found)


def matches(selector: dict[str, Any] | None, labels: dict[str, str]) -> bool:
    """Whether labels fit a selector object (matchLabels, matchExpressions)."""
    if selector is None:
        return False
    for key, value in (selector.get("matchLabels") or {}).items():
        if labels.get(key) != value:
            return False
    for one in selector.get("matchExpressions") or ():
        has, values = labels.get(one["key"]), one.get("values") or ()
        held = {"In": has in values, "NotIn": has not in values, "Exists": has is not None}
        if not {**held, "DoesNotExist": has is None}[one["operator"]]:
            return False
    return True
