"""Where values came from and what came from them: the runs that read and wrote them, across jobs, as a graph and as text.

In: what `lineage_search` finds in a log. Out: a `Lineage` of values (each a `ValuePut`, by its position) and runs, and its lines:
trees, in which what stands below came from what stands above (downstream) or the other way round (upstream), or a Graphviz document.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from typing import Any, Literal

import msgspec

from datatask.engine.core.redaction import is_redacted
from datatask.schema import events as e
from datatask.schema.units import iso

DIGEST_SHOWN = 12
DEEP = 200
"""A tree deeper than this is cut there: whoever reads text has had enough."""

_COLORS = {"succeeded": "#1a7f37", "failed": "#cf222e", "timed_out": "#cf222e", "refused": "#cf222e"}


Direction = Literal["up", "down", "both"]


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


class LineageValue(msgspec.Struct, frozen=True, kw_only=True):
    """A value: what one `ValuePut` put. `digest` is the SHA-256 of the stored JSON, or of the blob, in hex.

    `current` is false once it was replaced or deleted; `digest` None: only membership is recorded.
    """

    position: int
    repository: str
    job: str
    at: int
    actor: str
    origin: str
    run: int | None
    digest: str | None
    size: int | None
    version: str | None
    current: bool

    def to_json(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__struct_fields__} | {"at": iso(self.at)}


class LineageRun(msgspec.Struct, frozen=True, kw_only=True):
    """A run, in the words of `runs --json`; `inputs` and `reads` as its events have them."""

    run: int
    task: str
    job: str
    attempt: int
    state: str
    decided_at: int
    ended_at: int | None
    where: str
    inputs: dict[str, int]
    reads: dict[str, int]
    end_position: int | None

    def to_json(self) -> dict[str, Any]:
        shape = {name: getattr(self, name) for name in ("run", "task", "job", "attempt", "state", "where")}
        return shape | {"decided_at": iso(self.decided_at), "ended_at": iso(self.ended_at)}


class Read(msgspec.Struct, frozen=True, kw_only=True):
    """A run had to do with a value: it was `decided` on it (through `link`), it really `read` it, or both."""

    run: int
    position: int
    link: str | None
    decided: bool
    read: bool


class Written(msgspec.Struct, frozen=True, kw_only=True):
    """A run wrote a value."""

    run: int
    position: int


class Lineage(msgspec.Struct, frozen=True, kw_only=True):
    """Values and runs by position, what the runs read and wrote, as of the batch boundary `position`.

    `start` are the positions asked about. `cut`: there is more than was asked for (`limit`, `depth` apart).
    `whole`: the log was looked through for readers of other jobs; they are missing where it was not.
    """

    about: str
    position: int
    direction: Direction
    start: tuple[int, ...]
    values: dict[int, LineageValue]
    runs: dict[int, LineageRun]
    reads: tuple[Read, ...]
    writes: tuple[Written, ...]
    whole: bool
    cut: bool

    def to_json(self) -> dict[str, Any]:
        """Return the lineage in the shape of `lineage --json`."""
        return {
            "about": self.about,
            "at_position": self.position,
            "direction": self.direction,
            "start": list(self.start),
            "values": [value.to_json() for value in self.values.values()],
            "runs": [run.to_json() for run in self.runs.values()],
            "reads": [msgspec.structs.asdict(read) for read in self.reads],
            "writes": [msgspec.structs.asdict(write) for write in self.writes],
            "whole": self.whole,
            "cut": self.cut,
        }

    def to_dot(self) -> str:
        """Return the lineage as a Graphviz document."""
        return "\n".join(dot(self)) + "\n"

    def __str__(self) -> str:
        return "\n".join(lines(self))

    def _repr_html_(self) -> str:
        from html import escape

        return f"<pre>{escape(str(self))}</pre>"


def reads_of(run: LineageRun) -> list[Read]:
    """Return what a run was decided on and what it read, one entry a value."""
    links: dict[int, str] = {}
    for link, position in run.inputs.items():
        links.setdefault(position, link)
    read = set(run.reads.values())
    return [
        Read(
            run=run.run,
            position=position,
            link=links.get(position),
            decided=position in links,
            read=position in read,
        )
        for position in sorted({*links, *read})
    ]


def digest_of(event: e.ValuePut) -> str | None:
    """Return the SHA-256 in hex of a blob, or of a document's stored JSON; None where neither is (still) recorded."""
    if is_redacted(event):
        return None
    if event.digest is not None:
        return event.digest
    return hashlib.sha256(bytes(event.value)).hexdigest() if event.value else None


def size_of(event: e.ValuePut) -> int | None:
    """Return a value's size in bytes: a blob's, or that of a document's stored JSON."""
    if event.size is not None or is_redacted(event):
        return event.size
    return len(bytes(event.value)) if event.value else None
