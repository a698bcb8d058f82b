"""What the code of a task is, as digests: equal for equal code, in every process, whatever its comments and formatting.

In: a function, or named texts such as a template. Out: a `Fingerprint`: a digest by component (`function NAME`, `global NAME`,
`class NAME`, `parameter NAME`, …), and what could not be followed, in words. Functions and classes of the project are read as syntax
trees without docstrings, with their defaults, closures, and the globals that they name; libraries stand for their names alone.
"""

from __future__ import annotations

import ast
import builtins
import datetime as dt
import decimal
import enum
import fractions
import functools
import hashlib
import inspect
import logging
import re
import types
import uuid
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path, PurePath
from typing import Any, NamedTuple

from datatask.engine.api.parameters import Parameter
from datatask.engine.api.repositories import Repository
from datatask.engine.api.sources import (
    definition_of,
    file_of,
    imported,
    is_project,
    loaded_names,
    names_in,
    normal_text,
    of_project,
    slots_of,
    tree_of,
)

DIGEST_CHARS = 32
COMPONENTS_MAX = 200
DEPTH_MAX = 50
ITEMS_MAX = 10_000

_PLAIN = (type(None), bool, int, float, complex, str, bytes, type(Ellipsis), range, slice)
_EXACT = (
    decimal.Decimal,
    fractions.Fraction,
    dt.date,
    dt.time,
    dt.timedelta,
    dt.timezone,
    uuid.UUID,
    PurePath,
)


class Fingerprint(NamedTuple):
    """Digests by component, and what could not be followed: changes of these go unnoticed."""

    components: dict[str, str]
    unfollowed: tuple[str, ...] = ()


def of_texts(texts: Mapping[str, str]) -> dict[str, str]:
    """Return the digests of named texts."""
    return {name: digest(text) for name, text in texts.items()}


def digest(*parts: str) -> str:
    """Return the digest of texts, told apart by their lengths."""
    found = hashlib.sha256()
    for part in parts:
        data = part.encode("utf-8", "surrogatepass")
        found.update(b"%d:" % len(data) + data)
    return found.hexdigest()[:DIGEST_CHARS]


def of_function(
    func: Callable[..., Any], given: Mapping[str, Parameter] = types.MappingProxyType({})
) -> Fingerprint:
    """Return the fingerprint of a task's function; `given` are the parameters that its arguments may name."""
    walk, name = _Walk(), getattr(func, "__qualname__", type(func).__name__)
    try:
        described = walk.value(func, name, 0)
    except (
        SystemError,
        RecursionError,
        MemoryError,
    ) as error:  # of the interpreter: no reason to refuse a task
        return Fingerprint({}, (f"function {name}: {type(error).__name__}: {error}",))
    if not isinstance(inspect.unwrap(func), types.FunctionType):
        walk.add("function", described)
    for name in _arguments(func):
        if name in given:
            walk.add(f"parameter {name}", f"{given[name].to_def().value!r}")
    components = walk.components
    if len(components) > COMPONENTS_MAX:
        rest = sorted(components)[COMPONENTS_MAX:]
        folded = digest(*(f"{name}={components[name]}" for name in rest))
        components = {name: components[name] for name in sorted(components)[:COMPONENTS_MAX]} | {
            "the rest": folded
        }
    return Fingerprint(dict(sorted(components.items())), tuple(sorted(walk.unfollowed)))


def _arguments(func: Callable[..., Any]) -> Iterable[str]:
    try:
        return tuple(inspect.signature(func).parameters)
    except (TypeError, ValueError):
        return ()


def _key(value: object) -> str:
    """Return what gives a member of a set its place, the same in every process; empty where nothing does."""
    if isinstance(value, enum.Enum):
        return f"{type(value).__qualname__}.{value.name}"
    if isinstance(value, _PLAIN + _EXACT):
        return f"{type(value).__name__} {value!r}"
    if isinstance(value, types.FunctionType):
        return f"{value.__module__}.{value.__qualname__} {value.__code__.co_firstlineno:09}"
    if isinstance(value, type):
        return f"{value.__module__}.{value.__qualname__}"
    if isinstance(value, tuple | frozenset):
        keys = [_key(item) for item in value]
        known = "" not in keys
        keys = sorted(keys) if isinstance(value, frozenset) else keys
        return f"{type(value).__name__} {keys}" if known else ""
    return ""


class _Walk:
    """Follows values from one function on; what it comes across twice is looked at once."""

    def __init__(self) -> None:
        self.components: dict[str, str] = {}
        self.unfollowed: set[str] = set()
        self._names: dict[int, str] = {}
        self._kept: list[object] = []  # so that no id is given twice

    def add(self, name: str, text: str) -> None:
        """Set a component."""
        self.components[name] = digest(text)

    def value(self, value: Any, name: str, depth: int) -> str:
        """Return a text that is equal for equal values, and add the components of the code in it."""
        if isinstance(value, _PLAIN):
            return f"{type(value).__name__} {value!r}"
        if id(value) in self._names:
            return self._names[id(value)]
        if depth > DEPTH_MAX:
            return self._leave(name, "it is nested too deeply")
        if isinstance(value, types.FunctionType | type):
            return self._code(value)
        return self._data(value, name, depth + 1)

    def _data(self, value: Any, name: str, depth: int) -> str:
        kind = type(value)
        if isinstance(value, enum.Enum):
            return f"{kind.__qualname__}.{value.name} {self.value(value.value, name, depth)}"
        if isinstance(value, _EXACT):
            return f"{kind.__qualname__} {value!s}"
        if isinstance(value, re.Pattern):
            return f"pattern {value.pattern!r} {value.flags}"
        if isinstance(value, Parameter):
            self.add(f"parameter {value.name}", f"{value.to_def().value!r}")
            return f"parameter {value.name}"
        if isinstance(value, logging.Logger):
            return f"logger {value.name}"
        if isinstance(value, types.ModuleType):
            return self._module(value)
        if isinstance(value, types.MethodType):
            return f"{self.value(value.__func__, name, depth)} of {self.value(value.__self__, name, depth)}"
        if isinstance(value, functools.partial):
            parts = (self.value(part, name, depth) for part in (value.func, value.args, value.keywords))
            return f"partial {' '.join(parts)}"
        if isinstance(
            value, types.BuiltinFunctionType | types.MethodDescriptorType | types.WrapperDescriptorType
        ):
            return f"builtin {value.__qualname__}"
        if isinstance(value, staticmethod | classmethod):
            return f"{kind.__name__} {self.value(value.__func__, name, depth)}"
        if isinstance(value, property):
            return "property " + " ".join(
                self.value(part, name, depth) for part in (value.fget, value.fset, value.fdel)
            )
        if kind.__module__.partition(".")[0] == "datatask" or isinstance(value, Repository):
            return f"datatask {kind.__qualname__}"  # what it stands for is in the definition
        if isinstance(value, list | tuple | set | frozenset | Mapping) and not of_project(kind):
            return self._items(value, name, depth)
        wrapped = getattr(value, "__wrapped__", None)
        if isinstance(wrapped, types.FunctionType):  # functools.cache and its kin
            return f"{kind.__qualname__} {self._code(wrapped)}"
        if of_project(kind):
            return self._instance(value, name, depth)
        if (
            kind.__module__ == "numpy"
            and hasattr(value, "tobytes")
            and getattr(value, "dtype", None) is not None
        ):
            if value.dtype.hasobject:
                return self._leave(name, "an array of objects")
            return f"array {value.dtype} {value.shape} {hashlib.sha256(value.tobytes()).hexdigest()}"
        return self._leave(name, f"a {kind.__module__}.{kind.__qualname__}")

    def _items(self, value: Any, name: str, depth: int) -> str:
        if len(value) > ITEMS_MAX:
            return self._leave(name, f"{len(value)} items")
        if isinstance(value, set | frozenset):
            ordered = sorted((key, number) for number, key in enumerate(map(_key, value)))
            keys = [key for key, _ in ordered]
            if "" in keys or len(set(keys)) < len(keys):  # each process would have them in another order
                return self._leave(name, f"a set of {len(keys)} things that have no order of their own")
            members = list(value)
            value = tuple(members[number] for _, number in ordered)
            return f"set {self._items(value, name, depth)}"
        mark = self._seen(value, f"the {type(value).__name__} {name}")
        if isinstance(value, Mapping):
            parts = sorted(
                f"{self.value(key, name, depth)}: {self.value(item, name, depth)}"
                for key, item in value.items()
            )
        else:
            parts = [self.value(item, name, depth) for item in value]
        self._names[id(value)] = (
            mark if isinstance(value, Mapping | list) else f"{type(value).__name__}({', '.join(parts)})"
        )
        return f"{type(value).__name__}({', '.join(parts)})"

    def _instance(self, value: Any, name: str, depth: int) -> str:
        kind = type(value)
        code = self._code(kind)
        self._seen(value, f"the {kind.__qualname__} {name}")
        held = dict(vars(value)) if hasattr(value, "__dict__") else {}
        for slot in (slot for base in kind.__mro__ for slot in slots_of(base)):
            if hasattr(value, slot):
                held[slot] = getattr(value, slot)
        items = [value] if isinstance(value, list | tuple | set | frozenset | Mapping) else []
        text = f"{code} {self._items(held, name, depth)}"
        for item in items:
            text += f" {self._items(item.items() if isinstance(item, Mapping) else tuple(item), name, depth)}"
        return text

    def _module(self, module: types.ModuleType) -> str:
        path = getattr(module, "__file__", None)
        if not is_project(path):
            return f"module {module.__name__}"
        name = f"module {module.__name__}"
        if name not in self.components:
            tree = tree_of(str(path))
            if tree is None:
                return self._leave(name, "its source cannot be read")
            self.add(name, normal_text(tree))
        return name

    def _code(self, value: types.FunctionType | type) -> str:
        """Return the name of a function or class, and add it as a component where it is the project's."""
        code = value.__code__ if isinstance(value, types.FunctionType) else None
        what = "function" if code is not None else "class"
        file = code.co_filename if code is not None else file_of(value)  # type: ignore[arg-type]
        if not is_project(file):
            return f"{what} {value.__module__}.{value.__qualname__}"
        place = "" if file is None or file.startswith("<") else f" ({Path(file).name})"
        label = self._seen(value, self._free(f"{what} {value.__qualname__.replace('<locals>.', '')}{place}"))
        node = definition_of(value)
        if node is None:
            return self._leave(label, "its source is not that of the code that runs")
        parts = [normal_text(node)]
        if isinstance(value, types.FunctionType):
            parts += [self.value(part, label, 1) for part in (value.__defaults__, value.__kwdefaults__)]
            cells = zip(value.__code__.co_freevars, value.__closure__ or (), strict=True)
            for name, cell in cells:
                try:
                    parts.append(f"{name} = {self.value(cell.cell_contents, name, 1)}")
                except ValueError:  # not bound yet
                    parts.append(f"{name} is unbound")
            self._globals(node, value.__globals__, loaded_names(value.__code__))
        else:
            parts += [self.value(base, label, 1) for base in value.__bases__]
            for held in vars(value).values():
                plain = held.__func__ if isinstance(held, staticmethod | classmethod) else held
                if isinstance(plain, types.FunctionType) and is_project(plain.__code__.co_filename):
                    self._globals(node, plain.__globals__)
                    break
        self.add(label, "\n".join(parts))
        return label

    def _free(self, label: str) -> str:
        """Return the label, numbered where another thing of that name was met."""
        found, number = label, 2
        taken = set(self._names.values())
        while found in taken:
            found, number = f"{label} ({number})", number + 1
        return found

    def _globals(
        self, node: ast.AST, names: Mapping[str, Any], loaded: Collection[str] | None = None
    ) -> None:
        """Follow the globals that a piece of code names; of a project's module only what is taken of it.

        `loaded` are the names that it takes from its globals, None where that is not known.
        """
        for name, path in sorted(names_in(node)):
            if name in names and (loaded is None or name in loaded):
                self._attribute(names[name], name, path)
            elif not hasattr(builtins, name):
                found = imported(node, name)
                if found is not None:
                    self._attribute(found, name, path)

    def _attribute(self, value: Any, name: str, path: tuple[str, ...]) -> None:
        label = name
        for part in path:
            if not isinstance(value, types.ModuleType):
                break
            if not is_project(getattr(value, "__file__", None)):
                return
            inner = getattr(value, part, None)
            if inner is None and not hasattr(value, part):
                break
            value, label = inner, f"{label}.{part}"
        text = self.value(value, label, 1)
        if not isinstance(
            value, types.FunctionType | type | types.ModuleType | Parameter
        ) and not text.startswith(("datatask ", "logger ")):
            self.add(f"global {label}", text)

    def _seen(self, value: object, label: str) -> str:
        self._names[id(value)] = label
        self._kept.append(value)
        return label

    def _leave(self, name: str, why: str) -> str:
        self.unfollowed.add(f"{name}: {why}")
        return f"unfollowed {why}"
