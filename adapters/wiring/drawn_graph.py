"""A pipeline's graph as a notebook shows it, and as text.

In: a networkx graph of tasks and repositories, and what they are called. Out: the same graph with `_repr_svg_`, drawn from left
to right by the flow of data, and `str`, a line for each link. No program and no package beside networkx is needed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from html import escape
from typing import Any

import networkx

from datatask.engine.api.tasks import Task

COLUMN_GAP, ROW, BOX, MARGIN, CHARACTER = 60, 44, 28, 12, 7.3
LABEL_MAX = 40
_STYLE = """
  .datatask-graph { font: 12px ui-monospace, Menlo, Consolas, monospace; }
  .datatask-graph .ground { fill: #ffffff; } .datatask-graph text { fill: #1f2328; text-anchor: middle; }
  .datatask-graph .task { fill: #ddf4ff; stroke: #0969da; } .datatask-graph .repository { fill: #f6f8fa; stroke: #8c959f; }
  .datatask-graph path { fill: none; stroke: #8c959f; } .datatask-graph .status { stroke-dasharray: 4 3; }
  @media (prefers-color-scheme: dark) {
    .datatask-graph .ground { fill: #0d1117; } .datatask-graph text { fill: #e6edf3; }
    .datatask-graph .task { fill: #0c2d6b; } .datatask-graph .repository { fill: #21262d; }
  }
"""


class DrawnGraph(networkx.DiGraph):  # type: ignore[misc]  # networkx has no types
    """A DiGraph of tasks and repositories that draws itself."""

    def __init__(self, graph: Any = None, named: Callable[[Any], str] = str, **attributes: Any) -> None:
        super().__init__(graph, **attributes)
        self.named = named

    def __str__(self) -> str:
        """Say each link in a line: `source -> target (link)`."""
        found = (
            f"{self.named(source)} -> {self.named(target)} ({link})"
            for source, target, link in self.edges(data="link_name")
        )
        return "\n".join(found) or "no links"

    def _repr_svg_(self) -> str:
        return "\n".join(_drawing(self))


def _columns(graph: DrawnGraph) -> list[list[Any]]:
    """Return the nodes by how far they are from the beginning; what a task only looks at to know its own state holds nothing up."""
    forward = networkx.DiGraph()
    forward.add_nodes_from(graph)
    forward.add_edges_from(
        (source, target)
        for source, target, data in graph.edges(data=True)
        if not (data.get("is_status") and isinstance(target, Task))
    )
    parts = networkx.condensation(forward)
    rank: dict[int, int] = {}
    for part in networkx.topological_sort(parts):
        rank[part] = max((rank[before] + 1 for before in parts.predecessors(part)), default=0)
    columns: list[list[Any]] = [[] for _ in range(max(rank.values(), default=-1) + 1)]
    for node in graph:
        columns[rank[parts.graph["mapping"][node]]].append(node)
    return columns


def _drawing(graph: DrawnGraph) -> Iterator[str]:
    columns = _columns(graph)
    places: dict[Any, tuple[float, float, float]] = {}
    x: float = MARGIN
    for column in columns:
        width = max(len(_label(graph, node)) for node in column) * CHARACTER + 20
        for row, node in enumerate(column):
            places[node] = x, MARGIN + row * ROW, width
        x += width + COLUMN_GAP
    wide = max(x - COLUMN_GAP, 0) + MARGIN
    high = MARGIN * 2 + max(map(len, columns), default=0) * ROW
    yield f'<svg xmlns="http://www.w3.org/2000/svg" class="datatask-graph" width="{wide:.0f}" height="{high:.0f}" viewBox="0 0 {wide:.0f} {high:.0f}">'
    yield f'<style>{_STYLE}</style><rect class="ground" width="100%" height="100%"/>'
    for source, target, data in graph.edges(data=True):
        status = " class='status'" if data.get("is_status") or data.get("inhibits_start") else ""
        title = escape(str(data.get("link_name", "")))
        yield f"<path{status} d='{_curve(places[source], places[target])}'><title>{title}</title></path>"
    for node, (left, top, width) in places.items():
        kind = "task" if isinstance(node, Task) else "repository"
        yield f'<rect class="{kind}" x="{left:.1f}" y="{top:.1f}" width="{width:.1f}" height="{BOX}" rx="{8 if kind == "task" else 2}"/>'
        yield f'<text x="{left + width / 2:.1f}" y="{top + BOX / 2 + 4:.1f}">{escape(_label(graph, node))}<title>{escape(graph.named(node))}</title></text>'
    yield "</svg>"


def _curve(source: tuple[float, float, float], target: tuple[float, float, float]) -> str:
    """Return the path of an edge: to the right between columns, else around on the left side of the target."""
    from_x, from_y = source[0] + source[2], source[1] + BOX / 2
    to_x, to_y = target[0], target[1] + BOX / 2
    bend = max(COLUMN_GAP / 2, abs(to_x - from_x) / 3)
    return f"M{from_x:.1f} {from_y:.1f} C{from_x + bend:.1f} {from_y:.1f} {to_x - bend:.1f} {to_y:.1f} {to_x:.1f} {to_y:.1f}"


def _label(graph: DrawnGraph, node: Any) -> str:
    name = graph.named(node)
    return name if len(name) <= LABEL_MAX else name[: LABEL_MAX - 1] + "…"
