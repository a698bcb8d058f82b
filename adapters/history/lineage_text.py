"""A lineage as text: trees of values and runs, or a Graphviz document.

In: a `Lineage`. Out: lines. In a tree what stands below came from what stands above it (downstream), or the other way
round (upstream); what was shown before is named again, and not unfolded again.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator

from datatask.adapters.history.lineage import Lineage, Read
from datatask.adapters.history.when import iso

DIGEST_SHOWN = 12
DEEP = 200
"""A tree deeper than this is cut there: whoever reads text has had enough."""

_COLORS = {"succeeded": "#1a7f37", "failed": "#cf222e", "timed_out": "#cf222e", "refused": "#cf222e"}


def lines(found: Lineage) -> Iterator[str]:
    """Yield the lineage as trees."""
    graph = _Graph(found)
    if not found.values and not found.runs:
        yield f"{found.about}: nothing was read or written"
    elif len(found.start) == 1:
        if found.direction != "down":
            yield from _section("upstream", graph.tree(found.start, graph.above))
        if found.direction != "up":
            yield from _section("downstream", graph.tree(found.start, graph.below))
    elif found.direction == "up":
        yield from graph.tree(graph.ends(graph.below), graph.above)
    else:
        yield from graph.tree(graph.ends(graph.above), graph.below)
    if found.cut:
        count = len(found.values) + len(found.runs)
        yield f"(cut after {count} values and runs: --limit shows more)"
    if not found.whole:
        yield "(readers of other jobs were not looked for: --whole looks through the log)"


def _section(title: str, tree: Iterator[str]) -> Iterator[str]:
    yield f"{title}:"
    for line in tree:
        yield f"  {line}"


class _Graph:
    """Neighbours, and what they are called."""

    def __init__(self, found: Lineage) -> None:
        self.found = found
        self._read: dict[tuple[int, int], Read] = {(read.run, read.position): read for read in found.reads}
        self._above: dict[int, list[int]] = {}
        self._below: dict[int, list[int]] = {}
        for read in found.reads:
            self._edge(read.position, read.run)
        for write in found.writes:
            self._edge(write.run, write.position)

    def _edge(self, source: int, target: int) -> None:
        self._below.setdefault(source, []).append(target)
        self._above.setdefault(target, []).append(source)

    def above(self, node: int) -> list[int]:
        return self._above.get(node, [])

    def below(self, node: int) -> list[int]:
        return self._below.get(node, [])

    def ends(self, beyond: Callable[[int], list[int]]) -> tuple[int, ...]:
        """Return the nodes with nothing beyond them."""
        return tuple(node for node in sorted({*self.found.values, *self.found.runs}) if not beyond(node))

    def tree(self, roots: tuple[int, ...], onward: Callable[[int], list[int]]) -> Iterator[str]:
        """Yield the trees below these roots, each node unfolded once."""
        shown: set[int] = set()
        stack: list[tuple[int, int | None, str, str]] = [(root, None, "", "") for root in reversed(roots)]
        while stack:
            node, parent, lead, rest = stack.pop()
            again = node in shown
            shown.add(node)
            nexts = onward(node)
            deep = len(rest) > 3 * DEEP
            more = " (see above)" if again and nexts else " …" if deep and nexts else ""
            yield lead + self.line(node, parent) + more
            if again or deep:
                continue
            last = len(nexts) - 1
            for index in range(last, -1, -1):
                corner, below = ("└─ ", "   ") if index == last else ("├─ ", "│  ")
                stack.append((nexts[index], node, rest + corner, rest + below))

    def line(self, node: int, parent: int | None) -> str:
        value = self.found.values.get(node)
        if value is not None:
            digest = f" sha256:{value.digest[:DIGEST_SHOWN]}" if value.digest else ""
            by = "" if value.run is not None else f" {value.origin}"
            by += f" by {value.actor}" if value.run is None and value.actor != "engine" else ""
            gone = "" if value.current else ", no longer there"
            return f"{value.repository} {value.job} @{node}{digest}{by}{gone}{self._how(parent, node)}"
        run = self.found.runs.get(node)
        if run is None:
            return f"@{node}"
        attempt = f", attempt {run.attempt}" if run.attempt > 1 else ""
        when = iso(run.ended_at or run.decided_at)
        return f"run {node} {run.task} {run.job}: {run.state}{attempt}, {when}{self._how(node, parent)}"

    def _how(self, run: int | None, value: int | None) -> str:
        """Return how a run had to do with a value, where that is not plain: decided on it but read nothing of it."""
        read = self._read.get((run or 0, value or 0))
        if read is None:
            return ""
        name = f" as {read.link}" if read.link else ""
        if read.read or not self.found.runs[read.run].reads:
            return f" (read{name})" if read.read else f" (decided on{name})"
        return f" (decided on{name}, not read)"


def dot(found: Lineage) -> Iterator[str]:
    """Yield a Graphviz document: values are boxes, runs are ellipses, dashed what was decided on and not read."""
    yield "digraph lineage {"
    yield '  rankdir=LR; node [fontname="Helvetica", fontsize=11];'
    for value in found.values.values():
        digest = f"\nsha256:{value.digest[:DIGEST_SHOWN]}" if value.digest else ""
        label = json.dumps(f"{value.repository}\n{value.job} @{value.position}{digest}")
        style = "" if value.current else ", style=dashed"
        bold = ", penwidth=2" if value.position in found.start and len(found.start) == 1 else ""
        yield f"  n{value.position} [shape=box, label={label}{style}{bold}];"
    for run in found.runs.values():
        label = json.dumps(f"{run.task}\n{run.job} run {run.run}\n{run.state}")
        color = f', color="{_COLORS[run.state]}"' if run.state in _COLORS else ""
        yield f"  n{run.run} [shape=ellipse, label={label}{color}];"
    for read in found.reads:
        style = "" if read.read else " [style=dashed]"
        yield f"  n{read.position} -> n{read.run}{style};"
    for write in found.writes:
        yield f"  n{write.run} -> n{write.position};"
    yield "}"
