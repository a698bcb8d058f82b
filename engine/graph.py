"""A pipeline as a graph of tasks and repositories, for pydatatask's `graph()` and for drawing."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from datatask.engine.repositories import Repository
from datatask.engine.tasks import Link, Task


class Edge(NamedTuple):
    """One link as an arrow: data flows from `source` to `target`."""

    source: Task | Repository
    target: Task | Repository
    name: str
    link: Link


def edges_of(tasks: Iterable[Task]) -> Iterator[Edge]:
    """Yield the arrows: into a task what it needs or is held back by, out of it what it fills."""
    for task in tasks:
        for name, link in task.links.items():
            into = link.is_input or link.required_for_start or link.inhibits_start
            if into:
                yield Edge(link.repo, task, name, link)
            if not into or link.is_output or link.is_status:
                yield Edge(task, link.repo, name, link)


def graph_of(tasks: Iterable[Task]) -> Any:
    """Return a networkx DiGraph with the link's flags and `link_name` on each edge."""
    import networkx

    graph = networkx.DiGraph()
    for task in tasks:
        graph.add_node(task)
    for edge in edges_of(tasks):
        graph.add_edge(edge.source, edge.target, link_name=edge.name, **_flags(edge.link))
    return graph


def _flags(link: Link) -> dict[str, bool]:
    names = (
        "is_input",
        "is_output",
        "is_status",
        "inhibits_start",
        "required_for_start",
        "inhibits_output",
        "required_for_output",
    )
    return {name: bool(getattr(link, name)) for name in names}


def dependants(tasks: Iterable[Task], node: Task | Repository, recursive: bool) -> list[Task | Repository]:
    """Return the node and what lies downstream: its direct successors, or everything reachable, in preorder."""
    following: dict[int, list[Task | Repository]] = {}
    for edge in edges_of(tasks):
        following.setdefault(id(edge.source), []).append(edge.target)
    found, seen, stack = [], set(), [node]
    while stack:
        current = stack.pop()
        if id(current) in seen:
            continue
        seen.add(id(current))
        found.append(current)
        if recursive or current is node:
            stack.extend(reversed(following.get(id(current), [])))
    return found
