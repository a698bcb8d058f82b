"""No circle of modules: whoever reads one follows its imports downwards only.

In come the sources; imports within functions and under `TYPE_CHECKING` count. A circle is printed as a path.
"""

from __future__ import annotations

import ast
from collections import deque
from pathlib import Path

ROOT = Path(__file__).parents[2]
Graph = dict[str, set[str]]


def modules(root: Path) -> dict[str, Path]:
    """Return the product's modules by name; `datatask.` is left out, as the folders stand beside it."""
    found: dict[str, Path] = {}
    for top in ("schema", "engine", "adapters", "datatask"):
        for path in sorted((root / top).rglob("*.py")):
            parts = path.relative_to(root).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(path: Path, known: dict[str, Path]) -> set[str]:
    """Return the modules that a file imports, wherever in the file."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            inside = {alias.name: f"{node.module}.{alias.name}" for alias in node.names}
            names.update(name if short(name) in known else str(node.module) for name in inside.values())
    return {short(name) for name in names} & known.keys()


def short(name: str) -> str:
    """Return a module's name as `modules` has it."""
    inner = name.removeprefix("datatask.")
    return inner if inner.split(".")[0] in ("schema", "engine", "adapters") else name


def circles(graph: Graph) -> list[list[str]]:
    """Return for each set of modules that reach each other its shortest circle, as a path."""
    reached = {module: _reached(graph, module) for module in graph}
    found: list[list[str]] = []
    done: set[str] = set()
    for module in sorted(graph):
        if module in reached[module] and module not in done:
            together = {other for other in reached[module] if module in reached[other]}
            done |= together
            found.append(min((_shortest(graph, one) for one in sorted(together)), key=len))
    return found


def _reached(graph: Graph, start: str) -> set[str]:
    seen: set[str] = set()
    todo = [start]
    while todo:
        fresh = graph[todo.pop()] - seen
        seen |= fresh
        todo += fresh
    return seen


def _shortest(graph: Graph, start: str) -> list[str]:
    """Return the shortest path from a module back to it."""
    paths = deque([[start]])
    seen: set[str] = set()
    while paths:
        path = paths.popleft()
        for following in sorted(graph[path[-1]] - seen):
            if following == start:
                return [*path, start]
            seen.add(following)
            paths.append([*path, following])
    raise AssertionError(f"{start} is in no circle")


def test_no_circle_of_modules() -> None:
    """No module imports, over others, itself."""
    known = modules(ROOT)
    assert len(known) > 100
    graph = {name: imports(path, known) for name, path in known.items()}
    found = [" -> ".join(path) for path in circles(graph)]
    assert not found, "circles of modules:\n" + "\n".join(found)


def test_a_circle_is_found_and_printed(tmp_path: Path) -> None:
    """Imports in functions and for type checkers close a circle as well; the path is the shortest."""
    room = tmp_path / "engine"
    room.mkdir()
    (room / "__init__.py").write_text("")
    (room / "a.py").write_text("def late():\n    from datatask.engine import b\n")
    (room / "b.py").write_text(
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from datatask.engine.c import C\n"
    )
    (room / "c.py").write_text("import datatask.engine.a\nclass C: ...\n")
    (room / "d.py").write_text("from datatask.engine.a import late\n")
    known = modules(tmp_path)
    graph = {name: imports(path, known) for name, path in known.items()}
    assert circles(graph) == [["engine.a", "engine.b", "engine.c", "engine.a"]]
