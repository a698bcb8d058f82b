"""The source of functions and classes as syntax trees: which files are the project's, what a piece of code names.

In: functions, classes and the files that define them. Out: syntax trees as text without docstrings and positions, so that comments and
formatting make no difference; and the names that code loads. A source that is not that of the code that runs is none.
"""

from __future__ import annotations

import ast
import functools
import inspect
import linecache
import site
import sys
import sysconfig
import types
from collections.abc import Iterable
from pathlib import Path
from typing import Any

Define = ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda | ast.ClassDef


@functools.cache
def _library_roots() -> tuple[str, ...]:
    paths = [*sysconfig.get_paths().values(), *site.getsitepackages(), site.getusersitepackages()]
    ours = Path(__file__).resolve().parents[2]
    paths += [str(ours / room) for room in ("adapters", "engine", "schema")]
    return tuple(sorted({str(Path(path).resolve()) for path in paths if path and path != sys.prefix}))


@functools.lru_cache(maxsize=4096)
def _is_library(path: str) -> bool:
    resolved = str(Path(path).resolve())
    roots = (root for root in _library_roots() if root not in (str(Path(sys.prefix).resolve()), "/"))
    return any(resolved.startswith(root + "/") for root in roots)


def is_project(path: str | None) -> bool:
    """Whether a file is the user's own: neither Python's, nor an installed package's, nor ours. Notebook cells are."""
    if path is None or path.startswith("<frozen"):
        return False
    return path.startswith("<") or not _is_library(path)


def file_of(kind: type) -> str | None:
    """Return the file of the module that defines a class."""
    module = sys.modules.get(kind.__module__)
    return getattr(module, "__file__", None)


def of_project(kind: type) -> bool:
    return kind.__module__ == "__main__" or is_project(file_of(kind))


def loaded_names(code: types.CodeType) -> set[str]:
    """Return the names that code, and the code in it, takes from its globals or as attributes."""
    found = set(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            found |= loaded_names(constant)
    return found


def slots_of(kind: type) -> Iterable[str]:
    slots = kind.__dict__.get("__slots__", ())
    return (slots,) if isinstance(slots, str) else slots


TRIES = 3


def _parse(text: str) -> ast.Module:
    """Return a syntax tree; tried again where CPython 3.11 says "recursion depth mismatch", since something else parsed meanwhile."""
    for _ in range(TRIES - 1):
        try:
            return ast.parse(text)
        except SystemError:
            continue
    return ast.parse(text)


@functools.lru_cache(maxsize=256)
def _parsed(path: str, text: str) -> ast.Module | None:
    try:
        return _parse(text)
    except (SyntaxError, ValueError):
        return None


def tree_of(path: str) -> ast.Module | None:
    linecache.checkcache(path)
    text = "".join(linecache.getlines(path))
    return _parsed(path, text) if text else None


def definition_of(value: types.FunctionType | type) -> Define | None:
    """Return the syntax tree of what defined a function or class; None where the source is not there or has changed since."""
    if isinstance(value, type):
        tree = tree_of(file_of(value) or "")
        found = [node for node in ast.walk(tree or ast.Module([], [])) if isinstance(node, ast.ClassDef)]
        named = [node for node in found if node.name == value.__name__]
        return named[0] if len(named) == 1 else None
    code = value.__code__
    tree = tree_of(code.co_filename)
    for node in ast.walk(tree) if tree is not None else ():
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) and _made(node, code):
            return node
    return None


def _made(node: Define, code: types.CodeType) -> bool:
    """Whether this piece of source is that of the code."""
    decorators = getattr(node, "decorator_list", [])
    line = min([node.lineno, *(decorator.lineno for decorator in decorators)])
    if line != code.co_firstlineno or getattr(node, "name", "<lambda>") != code.co_name:
        return False
    names = (
        {name.arg for name in ast.walk(node.args) if isinstance(name, ast.arg)}
        if not isinstance(node, ast.ClassDef)
        else set()
    )
    count = code.co_argcount + code.co_kwonlyargcount
    count += bool(code.co_flags & inspect.CO_VARARGS) + bool(code.co_flags & inspect.CO_VARKEYWORDS)
    if set(code.co_varnames[:count]) != names:
        return False
    if not isinstance(node, ast.Lambda):
        return True
    columns = [(begin, column) for begin, _, column, _ in code.co_positions() if begin is not None and column]
    body = node.body
    return not columns or (
        (body.lineno, body.col_offset) <= min(columns)
        and max(columns) <= (body.end_lineno, body.end_col_offset)
    )


def normal_text(node: ast.AST) -> str:
    """Return a syntax tree as text, without docstrings, decorators of the outermost function, and positions."""
    return ast.dump(_Normal().visit(_copied(node)), annotate_fields=False)


def _copied(node: ast.AST) -> ast.AST:
    made = (
        _parse(ast.unparse(node)).body[0] if not isinstance(node, ast.Module) else _parse(ast.unparse(node))
    )
    if isinstance(made, ast.FunctionDef | ast.AsyncFunctionDef):
        made.decorator_list = []  # a decorator is followed as the function that it returned
    return made


class _Normal(ast.NodeTransformer):
    """Takes docstrings away."""

    def generic_visit(self, node: ast.AST) -> ast.AST:
        super().generic_visit(node)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Module):
            first = node.body[0] if node.body else None
            if (
                isinstance(first, ast.Expr)
                and isinstance(first.value, ast.Constant)
                and isinstance(first.value.value, str)
            ):
                node.body = node.body[1:]
        return node


def names_in(node: ast.AST) -> set[tuple[str, tuple[str, ...]]]:
    """Return the names that code loads, each with the attributes that it takes of it, `a.b.c` as ("a", ("b", "c"))."""
    found: set[tuple[str, tuple[str, ...]]] = set()
    skipped = set(getattr(node, "decorator_list", [])) if not isinstance(node, ast.ClassDef) else set()

    def visit(each: ast.AST) -> None:
        if each in skipped:
            return
        chain: list[str] = []
        inner: ast.AST = each
        while isinstance(inner, ast.Attribute):
            chain.append(inner.attr)
            inner = inner.value
        if isinstance(inner, ast.Name):
            if isinstance(inner.ctx, ast.Load):
                found.add((inner.id, tuple(reversed(chain))))
            return
        for child in ast.iter_child_nodes(each):
            visit(child)

    visit(node)
    return found


def imported(node: ast.AST, name: str) -> Any:
    """Return what code imports under a name by itself, where that is loaded already."""
    for each in ast.walk(node):
        if isinstance(each, ast.Import):
            for alias in each.names:
                if (alias.asname or alias.name.partition(".")[0]) == name:
                    return sys.modules.get(alias.name if alias.asname else name)
        elif isinstance(each, ast.ImportFrom) and each.module is not None and not each.level:
            for alias in each.names:
                if (alias.asname or alias.name) == name:
                    return getattr(sys.modules.get(each.module), alias.name, None)
    return None
