"""Objects, their versions, and what became of them: the etcd of the fake.

In: objects as dicts, which nobody changes once they are here. Out: each change with a version, to whoever watches. A state of
the past is the present with later changes undone, until `compact` forgets them.
"""

from __future__ import annotations

import asyncio
import bisect
import uuid
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import msgspec

Object = dict[str, Any]
Key = tuple[str, str]  # namespace, name
FIRST_VERSION = 20
HISTORY_MAX = 100_000
encode = msgspec.json.encode


class Change:
    """One version of one object; `before` is the version that it replaced."""

    __slots__ = ("_body", "before", "gone", "object", "resource", "version")

    def __init__(
        self, resource: str, version: int, before: Object | None, now: Object, *, gone: bool
    ) -> None:
        self.resource, self.version, self.before, self.object, self.gone = (
            resource,
            version,
            before,
            now,
            gone,
        )
        self._body: bytes | None = None

    @property
    def kind(self) -> str:
        """What a watch without selectors calls it."""
        if self.gone:
            return "DELETED"
        return "MODIFIED" if self.before is not None else "ADDED"

    @property
    def body(self) -> bytes:
        """The object as JSON, made once for all watches."""
        if self._body is None:
            self._body = encode(self.object)
        return self._body


class Table:
    """All objects of one resource, and their changes in order."""

    def __init__(self) -> None:
        self.objects: dict[Key, Object] = {}
        self.changes: list[Change] = []
        self.dropped = 0
        self.bell = asyncio.Event()

    def ring(self) -> None:
        """Wake all watches."""
        bell, self.bell = self.bell, asyncio.Event()
        bell.set()

    def after(self, version: int) -> int:
        """Return the position of the first change later than a version."""
        return self.dropped + bisect.bisect_right(self.changes, version, key=lambda change: change.version)

    def since(self, position: int) -> list[Change]:
        """Return the changes from a position on."""
        return self.changes[max(0, position - self.dropped) :]

    @property
    def end(self) -> int:
        """The position after the last change."""
        return self.dropped + len(self.changes)


class Store:
    """All tables under one counter of versions."""

    def __init__(self, history_max: int = HISTORY_MAX) -> None:
        self.version = FIRST_VERSION
        self.oldest = FIRST_VERSION + 1
        self.tables: defaultdict[str, Table] = defaultdict(Table)
        self.listeners: list[Callable[[Change], None]] = []
        self.history_max = history_max

    def get(self, resource: str, namespace: str, name: str) -> Object | None:
        """Return an object."""
        return self.tables[resource].objects.get((namespace, name))

    def all(self, resource: str, namespace: str = "") -> list[Object]:
        """Return all objects, of one namespace or of every one, in the order of their keys."""
        objects = self.tables[resource].objects
        return [objects[key] for key in sorted(objects) if not namespace or key[0] == namespace]

    def at(self, resource: str, version: int) -> dict[Key, Object]:
        """Return all objects as they were at a version."""
        table = self.tables[resource]
        objects = dict(table.objects)
        for change in reversed(table.since(table.after(version))):
            key = key_of(change.object)
            if change.before is None:
                objects.pop(key, None)
            else:
                objects[key] = change.before
        return objects

    def put(self, resource: str, given: Object) -> Change:
        """Store a new object or a new version of one."""
        key = key_of(given)
        return self._record(resource, self.tables[resource].objects.get(key), given, gone=False)

    def remove(self, resource: str, given: Object) -> Change:
        """Let an object be gone; its last version says when."""
        return self._record(resource, self.tables[resource].objects[key_of(given)], given, gone=True)

    def _record(self, resource: str, before: Object | None, given: Object, *, gone: bool) -> Change:
        self.version += 1
        stored = {**given, "metadata": {**given["metadata"], "resourceVersion": str(self.version)}}
        table = self.tables[resource]
        key = key_of(stored)
        if gone:
            del table.objects[key]
        else:
            table.objects[key] = stored
        change = Change(resource, self.version, before, stored, gone=gone)
        table.changes.append(change)
        if len(table.changes) > self.history_max:
            self._trim(table)
        table.ring()
        for listener in self.listeners:
            listener(change)
        return change

    def _trim(self, table: Table) -> None:
        half = len(table.changes) // 2
        self.oldest = max(self.oldest, table.changes[half - 1].version + 1)
        table.dropped += half
        del table.changes[:half]

    def compact(self) -> None:
        """Forget all versions but the present ones: watches and pages of before are too old."""
        self.version += 1
        self.oldest = self.version + 1
        for table in self.tables.values():
            table.dropped += len(table.changes)
            table.changes.clear()
            table.ring()


def key_of(given: Object) -> Key:
    """Return where an object lives."""
    metadata = given["metadata"]
    return metadata.get("namespace", ""), metadata["name"]


def new_uid() -> str:
    """Return an identity for an object."""
    return str(uuid.uuid4())
