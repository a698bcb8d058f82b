"""Objects and their history: in come new versions, out go reads, consistent lists of the past, and events in order.

One counter counts the versions of all objects, as etcd's revision does. Stored objects are never changed in place, so that
an event, a list and a watch may share them; `encoded` keeps an object's JSON once made.
"""

from __future__ import annotations

import asyncio
import bisect
import datetime as dt
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import msgspec

from tests.kube.api.kinds import Kind
from tests.kube.api.statuses import gone, not_found

Object = dict[str, Any]
HISTORY = 50_000
encode = msgspec.json.Encoder().encode


def now(*, fine: bool = False) -> str:
    """Return the time as objects tell it, to the second; to the microsecond where they are `fine`."""
    return dt.datetime.now(dt.UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ" if fine else "%Y-%m-%dT%H:%M:%SZ")


class Change(NamedTuple):
    """One version of one object; `before` is the version that it replaced."""

    version: int
    type: str
    found: Object
    before: Object | None


class Table:
    """All objects of one resource, by namespace and name."""

    def __init__(self, kind: Kind) -> None:
        self.kind = kind
        self.objects: dict[tuple[str, str], Object] = {}
        self.changes: list[Change] = []
        self.oldest = 0
        self.waiters: list[asyncio.Future[None]] = []
        self.listeners: list[Callable[[Change], None]] = []

    def after(self, version: int) -> int:
        """Return the place of the first change after a version."""
        return bisect.bisect_right(self.changes, version, key=lambda change: change.version)

    def at(self, version: int, current: int) -> dict[tuple[str, str], Object]:
        """Return the objects as they were at a version."""
        if version >= current:
            return self.objects
        if version < self.oldest:
            raise gone("The resourceVersion for the provided list is too old.")
        objects = dict(self.objects)
        for change in reversed(self.changes[self.after(version) :]):
            where = key_of(change.found)
            if change.before is None:
                objects.pop(where, None)
            else:
                objects[where] = change.before
        return objects

    async def wait(self, seconds: float) -> None:
        """Wait for a change, at most so long."""
        waiter = asyncio.get_running_loop().create_future()
        self.waiters.append(waiter)
        await asyncio.wait((waiter,), timeout=max(seconds, 0.0))

    def wake(self) -> None:
        """Wake who waits."""
        waiters, self.waiters = self.waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)


class Storage:
    """All tables, and the counter of versions."""

    def __init__(self, first: int = 100) -> None:
        self.version = first
        self.first = first
        self.tables: dict[str, Table] = {}
        self._json: dict[int, tuple[Object, bytes]] = {}

    def table(self, kind: Kind) -> Table:
        """Return a resource's table."""
        found = self.tables.get(kind.plural)
        if found is None:
            found = self.tables[kind.plural] = Table(kind)
            found.oldest = self.first
        return found

    def find(self, kind: Kind, namespace: str, name: str) -> Object | None:
        """Return an object, or nothing."""
        return self.table(kind).objects.get((namespace, name))

    def get(self, kind: Kind, namespace: str, name: str) -> Object:
        """Return an object; 404 where there is none."""
        found = self.find(kind, namespace, name)
        if found is None:
            raise not_found(kind.plural, name)
        return found

    def create(self, kind: Kind, found: Object) -> Object:
        """Store a new object; it gets its version, and uid and time where it has none."""
        metadata = found["metadata"]
        metadata.setdefault("uid", str(uuid.uuid4()))
        metadata.setdefault("creationTimestamp", now())
        return self._put(kind, "ADDED", found, None)

    def update(self, kind: Kind, found: Object) -> Object:
        """Store a new version of an object; what keeps an object from being gone may be over by it."""
        before = self.get(kind, found["metadata"].get("namespace", ""), found["metadata"]["name"])
        return self._put(kind, "MODIFIED", found, before)

    def remove(self, kind: Kind, found: Object) -> Object:
        """Let an object be gone."""
        return self._put(kind, "DELETED", found, found)

    def _put(self, kind: Kind, type: str, found: Object, before: Object | None) -> Object:
        self.version += 1
        table = self.table(kind)
        found = {**found, "metadata": {**found["metadata"], "resourceVersion": str(self.version)}}
        where = key_of(found)
        if type == "DELETED":
            before = table.objects.pop(where)
        else:
            table.objects[where] = found
        change = Change(self.version, type, found, before)
        table.changes.append(change)
        if before is not None:
            self._json.pop(id(before), None)
        if len(table.changes) > 2 * HISTORY:
            self.compact(kind, table.changes[-HISTORY].version)
        for listener in table.listeners:
            listener(change)
        table.wake()
        return found

    def compact(self, kind: Kind, version: int | None = None) -> None:
        """Forget history up to a version (all of it): who asks for older gets 410, who watches is cut."""
        table = self.table(kind)
        if version is None:
            self.version += 1
            version = self.version
        del table.changes[: table.after(version)]
        table.oldest = version
        table.wake()

    def encoded(self, found: Object) -> bytes:
        """Return an object's JSON."""
        kept = self._json.get(id(found))
        if kept is not None and kept[0] is found:
            return kept[1]
        data = encode(found)
        if len(self._json) > HISTORY:
            self._json.clear()
        self._json[id(found)] = (found, data)
        return data


def key_of(found: Object) -> tuple[str, str]:
    """Return where an object is kept."""
    return found["metadata"].get("namespace", ""), found["metadata"]["name"]


def by_namespace(objects: Iterable[Object]) -> dict[str, list[Object]]:
    """Return objects by their namespaces."""
    found: dict[str, list[Object]] = defaultdict(list)
    for one in objects:
        found[one["metadata"].get("namespace", "")].append(one)
    return found
