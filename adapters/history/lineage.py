"""Where values came from and what came from them: the runs that read and wrote them, across jobs.

A `Lineage` is a graph of values (each a `ValuePut`, by its position) and runs. `lineage_search` finds it in a log,
`lineage_text` prints it.
"""

from __future__ import annotations

import hashlib
from typing import Any, Literal

import msgspec

from datatask.adapters.history.when import iso
from datatask.engine.core.redactions import is_redacted
from datatask.schema import events as e

Direction = Literal["up", "down", "both"]


class Value(msgspec.Struct, frozen=True, kw_only=True):
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


class Run(msgspec.Struct, frozen=True, kw_only=True):
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
    values: dict[int, Value]
    runs: dict[int, Run]
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
        from datatask.adapters.history.lineage_text import dot

        return "\n".join(dot(self)) + "\n"

    def __str__(self) -> str:
        from datatask.adapters.history.lineage_text import lines

        return "\n".join(lines(self))

    def _repr_html_(self) -> str:
        from html import escape

        return f"<pre>{escape(str(self))}</pre>"


def reads_of(run: Run) -> list[Read]:
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
