"""Which repositories a deletion reaches, by the recorded definition alone.

A task reaches the runs it has open and what it fills; a repository itself; with `recursive` everything that
lies downstream. Of a combined repository what its members need is deleted from, never what it excludes.
"""

from __future__ import annotations

from collections.abc import Iterator

from datatask.engine.core.expressions import unnegated
from datatask.engine.core.state import State
from datatask.schema import definition as d

Node = tuple[str, str]
"""("task" or "leaf", name)."""


def reached(state: State, task: str | None, expr: d.AnyExpr | None, recursive: bool) -> list[str]:
    """Return the leaves to delete from, nearest first, for a task or for a repository's membership."""
    following = _edges(state.definition)
    start: list[Node] = [("task", task)] if task is not None else []
    start += [("leaf", leaf) for leaf in unnegated(expr)] if expr is not None else []
    found: dict[Node, None] = {}
    stack = list(reversed(start))
    while stack:
        node = stack.pop()
        if node in found:
            continue
        found[node] = None
        if recursive or (node[0] == "task" and node in start):
            stack += reversed(following.get(node, []))
    leaves = [name for kind, name in found if kind == "leaf" and is_deletable(state, name)]
    return sorted(leaves, key=lambda leaf: _turn(state, leaf))


def _turn(state: State, leaf: str) -> int:
    """Stop runs first, and delete last what keeps a job from starting: it would start on what is half deleted."""
    if state.leaves[leaf].definition.derived is not None:
        return 0
    inhibits = (link for task in state.definition.tasks for link in task.links if link.inhibits_start)
    return 2 if any(leaf in unnegated(link.expr) for link in inhibits) else 1


def is_deletable(state: State, leaf: str) -> bool:
    """Whether jobs can be deleted from a leaf: stored ones, and `live` views, where it stops the run."""
    rule = state.leaves[leaf].definition.derived
    return rule is None or (isinstance(rule, d.ViewDef) and rule.view == "live")


def _edges(definition: d.PipelineDef) -> dict[Node, list[Node]]:
    found: dict[Node, list[Node]] = {}
    for task in definition.tasks:
        this = ("task", task.name)
        found[this] = [("leaf", d.view_id(task.name, "live"))]
        for link in task.links:
            into = link.is_input or link.required_for_start or link.inhibits_start
            for leaf in unnegated(link.expr):
                if into:
                    found.setdefault(("leaf", leaf), []).append(this)
                if not into or link.is_output or link.is_status:
                    found[this].append(("leaf", leaf))
    for leaf, derived in _filtered(definition):
        found.setdefault(("leaf", leaf), []).append(("leaf", derived))
    return found


def _filtered(definition: d.PipelineDef) -> Iterator[tuple[str, str]]:
    for repository in definition.repositories:
        if isinstance(repository.derived, d.FilteredDef):
            for leaf in unnegated(repository.derived.base):
                yield leaf, repository.id
