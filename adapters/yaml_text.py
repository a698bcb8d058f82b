"""YAML text that YAML 1.1 and YAML 1.2 read alike: documents in and out, and what one of them reads otherwise by name.

In: text that a person typed, or a file that a program may have written; or a document. Out: the document, or an `InvalidValueError`
with line and column; or text in which all that could be taken for something else is quoted. In files what YAML 1.1 takes for
text or a time is that: so wrote pydatatask. `01234`, `no`, `12:30:45` and `1_000` it always quoted. Kubernetes manifests are
read elsewhere, as clusters read them.
"""

from __future__ import annotations

import datetime as dt
import math
import re
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import yaml

from datatask.schema.errors import InvalidValueError, NotPossibleError

_TAG = "tag:yaml.org,2002:"
_STR, _MERGE, _TIME = f"{_TAG}str", f"{_TAG}merge", f"{_TAG}timestamp"

_CORE: tuple[tuple[re.Pattern[str], Callable[[str], Any]], ...] = (
    (re.compile(r"~|null|Null|NULL|"), lambda text: None),
    (re.compile(r"true|True|TRUE"), lambda text: True),
    (re.compile(r"false|False|FALSE"), lambda text: False),
    (re.compile(r"[-+]?[0-9]+"), int),
    (re.compile(r"0o[0-7]+"), lambda text: int(text[2:], 8)),
    (re.compile(r"0x[0-9a-fA-F]+"), lambda text: int(text[2:], 16)),
    (re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?"), float),
    (re.compile(r"[-+]?\.(inf|Inf|INF)"), lambda text: -math.inf if text[0] == "-" else math.inf),
    (re.compile(r"\.(nan|NaN|NAN)"), lambda text: math.nan),
)
"""The core schema of YAML 1.2, section 10.3.2; what fits none of these is text."""

_LIKE = re.compile(
    r"[-+.]*[0-9][-+._:0-9a-zA-Z]*|[-+.]*_[-+._:0-9e]*|[-+]?\.(inf|nan)|true|false|yes|no|on|off|null|~|<<|=|",
    re.IGNORECASE,
)
"""Texts that some reader of YAML takes for a number, a time, a truth value, nothing, or a merge."""

_BREAKS = {"\x85": "\\N", "\u2028": "\\L", "\u2029": "\\P"}
"""Line breaks in YAML 1.1, characters like others in YAML 1.2; and how both read them between double quotes."""
_BREAK = re.compile(f"[{''.join(_BREAKS)}]")


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """Refuses a key that is there twice, of which one value would be lost."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        """Return a mapping as a dict."""
        first: dict[Any, Any] = {}
        for key_node, _ in node.value if isinstance(node, yaml.MappingNode) else ():
            key = self.construct_object(key_node, deep=True)
            try:
                mark = first.setdefault(key, key_node.start_mark)
            except TypeError:
                continue  # not hashable: told by the constructor
            if mark is not key_node.start_mark:
                raise yaml.constructor.ConstructorError(
                    None,
                    None,
                    f"the key {key!r} is there twice, first in line {mark.line + 1}",
                    key_node.start_mark,
                )
        mapping: dict[Any, Any] = super().construct_mapping(node, deep=deep)
        return mapping


class _Dumper(getattr(yaml, "CSafeDumper", yaml.SafeDumper)):  # type: ignore[misc]
    """Quotes what could be taken for something else; times bear their tag, which the core schema of YAML 1.2 does not infer."""


def _text(dumper: Any, text: str) -> Any:
    style = '"' if _BREAK.search(text) else "'" if _LIKE.fullmatch(text) else None
    return dumper.represent_scalar(_STR, text, style=style)


def _time(dumper: Any, time: dt.date) -> Any:
    text = time.isoformat(" ") if isinstance(time, dt.datetime) else time.isoformat()
    return dumper.represent_scalar(_TIME, text, style="'")


_Dumper.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in known if tag != _TIME]
    for first, known in _Dumper.yaml_implicit_resolvers.items()
}
_Dumper.add_representer(str, _text)
_Dumper.add_representer(dt.date, _time)
_Dumper.add_representer(dt.datetime, _time)


def load_yaml(data: bytes, where: str, *, typed: bool = False) -> Any:
    """Return the document in `data`; `InvalidValueError` names `where`, line and column of what is wrong with it.

    `typed`: a person wrote it, so that also what YAML 1.1 takes for text or a time, and YAML 1.2 does not, is refused.
    """
    if typed:
        _refuse_breaks(data, where)
    try:
        loader = _Loader(data)
        try:
            node = loader.get_single_node()
            if node is None:
                return None
            _check(node, where, typed)
            return loader.construct_document(node)
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        place = _place(where, error.problem_mark) if error.problem_mark else where
        raise InvalidValueError(
            f"not YAML: {error.problem}", where=place, remedy="mend the document"
        ) from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        if isinstance(error, InvalidValueError):
            raise
        raise InvalidValueError(f"not YAML: {error}", where=where, remedy="mend the document") from error


def dump_yaml(document: Any, where: str, *, line: bool = False) -> bytes:
    """Return the YAML of a document, on one line with `line`; `NotPossibleError` names what YAML cannot hold."""
    style: dict[str, Any] = {"default_flow_style": True, "width": 1 << 20} if line else {}
    try:
        text = yaml.dump(document, Dumper=_Dumper, sort_keys=False, allow_unicode=True, **style)
    except yaml.representer.RepresenterError as error:
        raise NotPossibleError(
            f"{error.args[-1]!r:.160} cannot be written as YAML", where=where, remedy="store plain data"
        ) from error
    return str(text).encode()


def _place(where: str, mark: Any) -> str:
    return f"{where}, line {mark.line + 1}, column {mark.column + 1}"


def _check(root: Any, where: str, typed: bool) -> None:
    """Raise for the first scalar that YAML 1.1 and 1.2 read differently."""
    waiting, seen = [root], set[int]()
    while waiting:
        node = waiting.pop()
        if id(node) in seen:
            continue
        seen.add(id(node))
        if isinstance(node, yaml.MappingNode):
            waiting += [part for pair in reversed(node.value) for part in reversed(pair)]
        elif isinstance(node, yaml.SequenceNode):
            waiting += reversed(node.value)
        elif not node.style or node.tag not in (_STR, _TIME, f"{_TAG}binary"):
            if told := _differs(node.tag, node.value, typed):
                raise InvalidValueError(told[0], where=_place(where, node.start_mark), remedy=told[1])


def _refuse_breaks(data: bytes, where: str) -> None:
    """Raise for the first character that ends a line in YAML 1.1 only."""
    text = data.decode("utf-8", "replace")
    found = _BREAK.search(text)
    if found is None:
        return
    line, column = text.count("\n", 0, found.start()) + 1, found.start() - text.rfind("\n", 0, found.start())
    raise InvalidValueError(
        f"the character U+{ord(found[0]):04X} is a line break in YAML 1.1 only",
        where=f"{where}, line {line}, column {column}",
        remedy=f"write it as {_BREAKS[found[0]]} between double quotes",
    )


@lru_cache(maxsize=4096)
def _differs(tag: str, text: str, typed: bool) -> tuple[str, str] | None:
    """Return what to say of a plain scalar that YAML 1.1 reads as of this tag, and the remedy; None where both read alike."""
    if tag == _MERGE:
        return "<< merges mappings in YAML 1.1 only", "quote it, or write the keys out"
    if not tag.startswith(_TAG) or (not typed and tag in (_STR, _TIME)):
        return None
    old, new = _read_by_old(tag, text), _read_by_core(text)
    if type(old) is type(new) and (old == new or old != old):
        return None
    quoted = "'" + text.replace("'", "''") + "'"
    both = (
        dump_yaml(old if isinstance(new, str) else new, "", line=True)
        .decode()
        .removesuffix("\n...\n")
        .strip()
    )
    other = "" if isinstance(old, str) and isinstance(new, str) else f", or write {both}"
    return f"{text} is {_shown(old)} in YAML 1.1 and {_shown(new)} in YAML 1.2", f"quote it ({quoted}){other}"


def _read_by_old(tag: str, text: str) -> Any:
    loader = yaml.SafeLoader("")
    try:
        return loader.construct_object(yaml.ScalarNode(tag, text))
    finally:
        loader.dispose()


def _read_by_core(text: str) -> Any:
    for pattern, value in _CORE:
        if pattern.fullmatch(text):
            return value(text)
    return text


def _shown(value: Any) -> str:
    if isinstance(value, str):
        return "text"
    kinds = {bool: "the truth value ", int: "the number ", float: "the number "}
    words = "nothing" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
    return kinds.get(type(value), "the time " if isinstance(value, dt.date) else "") + words
