"""Foreign stores that fail, answer late and tell of changes after a while; and the log of one engine's life."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path

from datatask.adapters.log.blobs import FileBlobs
from datatask.adapters.log.memory import MemoryLog
from datatask.engine.api.repositories.stored import StoredRepository
from datatask.engine.ports import Appeared, Change, Doubtful, Listed, Store, Vanished
from datatask.schema.definition import Medium
from datatask.schema.errors import LogError, TemporaryError
from datatask.schema.messages import Write
from tests.simulation.plans import Plan, chance

NO_BLOBS = FileBlobs(Path("/nowhere"), durable=False)


class Shelf:
    """What a foreign store holds, whatever becomes of the engine; a version is a count."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.versions: dict[str, int] = {}
        self.count = 0
        self.watchers: list[Callable[[str], None]] = []

    def put(self, job: str) -> str:
        """Set a value; return its version."""
        self.count += 1
        self.versions[job] = self.count
        self._changed(job)
        return str(self.count)

    def delete(self, job: str) -> None:
        """Remove a value."""
        if self.versions.pop(job, None) is not None:
            self._changed(job)

    def version(self, job: str) -> str | None:
        """Return the version of a member, or None."""
        found = self.versions.get(job)
        return None if found is None else str(found)

    def _changed(self, job: str) -> None:
        for watcher in self.watchers:
            watcher(job)


class SimStore:
    """The store port on a shelf, for one engine's life."""

    def __init__(self, shelf: Shelf, plan: Plan, durable: Callable[[], int]) -> None:
        self.shelf, self.plan, self.durable = shelf, plan, durable
        self.calls = 0
        self.dead = False

    async def list(self) -> AsyncIterator[Listed]:
        """Yield all members as of one moment, or raise in the middle."""
        members = list(self.shelf.versions.items())
        await self._travel("list")
        fails = self._draw("listing fails") < self.plan.faults.listing_errors
        for index, (job, version) in enumerate(members):
            if fails and index >= len(members) // 2:
                raise TemporaryError("the listing was cut short", where=self.shelf.name)
            yield Listed(job, str(version))
        if fails:
            raise TemporaryError("the listing was cut short", where=self.shelf.name)

    async def put(self, write: Write) -> str | None:
        """Write, or fail for now."""
        await self._travel("put")
        self._may_fail()
        return self.shelf.put(write.job)

    async def delete(self, job: str) -> None:
        """Delete, or fail for now."""
        await self._travel("delete")
        self._may_fail()
        self.shelf.delete(job)

    async def version(self, job: str) -> str | None:
        """Return the version now."""
        return self.shelf.version(job)

    def identity(self) -> str:
        """The shelf stays the same."""
        return self.shelf.name

    def watch(self, tell: Callable[[Change], None]) -> Callable[[], None] | None:
        """Tell what is on the shelf a while after a change, as inotify does: what is there when it looks."""
        loop = asyncio.get_running_loop()

        def look(job: str) -> None:
            if self.dead:
                return
            if self._draw("overflow") < self.plan.faults.overflow:
                tell(Doubtful(self.shelf.name, "too many changes at once"))
                return
            version = self.shelf.version(job)
            gone = version is None
            tell(Vanished(self.shelf.name, job) if gone else Appeared(self.shelf.name, job, version))

        def changed(job: str) -> None:
            if self.dead:
                return
            late = self._draw("echo") < self.plan.faults.echo_late
            loop.call_later(self._draw("telling") * (3 if late else 0.05), look, job)

        self.shelf.watchers.append(changed)
        return lambda: self.shelf.watchers.remove(changed)

    async def _travel(self, what: str) -> None:
        self.calls += 1
        await asyncio.sleep(self._draw(what) * 0.3)

    def _may_fail(self) -> None:
        if self._draw("fails") < self.plan.faults.store_errors:
            raise TemporaryError("the store has no time", where=self.shelf.name)

    def _draw(self, what: str) -> float:
        self.calls += 1
        return chance(self.plan.seed, what, self.shelf.name, self.calls)


class ShelfRepository(StoredRepository):
    """A foreign repository of which the log records versions only."""

    medium: Medium = "foreign"

    def __init__(self, store: SimStore) -> None:
        super().__init__(name=store.shelf.name, record="version")
        self._store = store

    def __repr__(self) -> str:
        return f"ShelfRepository({self._store.shelf.name!r})"

    def _own_store(self) -> Store:
        return self._store

    async def info(self, job: str) -> str | None:
        """Return the version."""
        return self._store.shelf.version(job)


class SimLog(MemoryLog):
    """A log whose batches become durable after a while; `reborn` is what a crash leaves of it."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.loop: asyncio.AbstractEventLoop | None = None
        self._flushing = False
        super().__init__(pipeline="life", clock_now=1, seed=plan.seed, hold=True)

    @property
    def blobs(self) -> FileBlobs:
        """Nothing here is large enough to become one."""
        return NO_BLOBS

    def reborn(self) -> SimLog:
        """Return the durable part as a new engine finds it; this one takes nothing any more."""
        fresh = SimLog(self.plan)
        fresh._batches = [batch for batch in self._batches if batch.last <= self._head]
        fresh._events = self._events[: self._head]
        fresh._head = self._head
        fresh.epoch = self.epoch + 1
        self._closed = True
        return fresh

    def enqueue(self, events: object) -> range:
        """Append, and let it become durable soon."""
        positions = super().enqueue(events)  # type: ignore[arg-type]
        if self.loop is not None and not self._flushing and not self._closed:
            self._flushing = True
            wait = chance(self.plan.seed, "fsync", positions.start) * 0.02
            self.loop.call_later(wait, self._flush, positions.start)
        return positions

    def _flush(self, first: int) -> None:
        self._flushing = False
        if self._closed or self._failure is not None:
            return
        if chance(self.plan.seed, "disk", first, self.epoch) < self.plan.faults.disk_full:
            self.fail(LogError("no space is left on the disk", where=self.url))
            return
        # A part of what waits, up to a boundary: the rest follows with the next commit.
        share = chance(self.plan.seed, "share", first)
        until = self._head + max(1, int((len(self._events) - self._head) * share))
        self.release(until)
        if self.pending and self.loop is not None:
            self._flushing = True
            self.loop.call_later(0.005, self._flush, first + 1)
