"""What is measured of one Python file: a plain function of a path, run in a process pool."""

from __future__ import annotations

import ast
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

Function = ast.FunctionDef | ast.AsyncFunctionDef
BRANCHES = ast.If | ast.For | ast.AsyncFor | ast.While | ast.ExceptHandler | ast.match_case
BLOCKS = ("body", "orelse", "handlers", "finalbody", "cases")


def measured(path: Path) -> dict[str, Any]:
    """Return a file's metrics; `SyntaxError` or `ValueError` when it cannot be parsed."""
    source = path.read_bytes()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the standard library's tests hold odd code on purpose
        tree = ast.parse(source, path.name)
    nodes = list(statements(tree))
    functions = [node for node in nodes if isinstance(node, Function)]
    longest = max(functions, key=length, default=None)
    return {
        "lines": len(source.splitlines()),
        "statements": len(nodes),
        "functions": len(functions),
        "documented": sum(ast.get_docstring(function, clean=False) is not None for function in functions),
        "classes": sum(isinstance(node, ast.ClassDef) for node in nodes),
        "branches": sum(isinstance(node, BRANCHES) for node in nodes),
        "imports": sorted(set(imported(nodes))),
        "longest": None
        if longest is None
        else {"function": longest.name, "line": longest.lineno, "lines": length(longest)},
    }


def statements(tree: ast.Module) -> Iterator[ast.AST]:
    """Yield all statements, `except` and `case` clauses; what is inside expressions is not looked at."""
    todo: list[ast.AST] = list(tree.body)
    while todo:
        node = todo.pop()
        yield node
        for block in BLOCKS:
            inner = getattr(node, block, None)
            if isinstance(inner, list):
                todo.extend(inner)


def length(function: Function) -> int:
    """Return how many lines a function has."""
    return (function.end_lineno or function.lineno) - function.lineno + 1


def imported(nodes: list[ast.AST]) -> Iterator[str]:
    """Yield the top-level modules that are imported."""
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (name.name.partition(".")[0] for name in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module.partition(".")[0]
