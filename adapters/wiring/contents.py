"""Digests of the files that runs read and write: with them a touched file is distinguished from a changed one.

In: durable batches, and stores that can hash. Out: `ContentHashed` events: for the inputs of a run at its launch, for its
outputs at its success, and for a later change of either. A thread hashes one file at a time; a closing engine waits up to
`LAST_SECONDS` for the queue and leaves the rest unhashed.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from typing import NamedTuple

from datatask.engine.core.staleness import key_in, stored
from datatask.engine.core.tasks import TaskState
from datatask.engine.ports import Hashable, Hashed, Store
from datatask.engine.runtime.closing import in_own_thread
from datatask.engine.runtime.loop import Runtime
from datatask.engine.runtime.services import Service
from datatask.schema import events as e
from datatask.schema.definition import In
from datatask.schema.errors import DatataskError

logger = logging.getLogger("datatask.engine")

SLICE = 200
LAST_SECONDS = 5.0
KNOWN_MAX = 10_000
"""The most digests held in memory, which saves reading the disk again; an entry takes 300 bytes."""


class Links(NamedTuple):
    """The leaves that a task reads, through filters and translations, and the leaves that it writes."""

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


class Contents:
    """Hashes the inputs and outputs of an engine's runs, between `open` and `close`."""

    def __init__(self, runtime: Runtime, stores: Mapping[str, Store]) -> None:
        self._runtime = runtime
        self._stores = {leaf: store for leaf, store in stores.items() if isinstance(store, Hashable)}
        self._links: dict[str, Links] = {}
        self._watched: dict[str, list[TaskState]] = {}
        self._waiting: OrderedDict[tuple[str, str], None] = OrderedDict()
        self._known: OrderedDict[tuple[str, str], Hashed] = OrderedDict()
        self._news = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._work: asyncio.Task[None] | None = None

    def open(self) -> None:
        """Listen to batches, unless no task reads or writes a store that can hash."""
        state = self._runtime.state
        for definition in state.definition.tasks:
            if definition.on_change == "keep" and not definition.cache:
                continue
            task = state.tasks[definition.name]
            inputs = tuple(
                {
                    leaf.id: None
                    for link in definition.links
                    if link.is_input and isinstance(link.expr, In)
                    for leaf in [state.leaves[link.expr.leaf]]
                    if stored(leaf).id in self._stores
                }
            )
            outputs = tuple(
                link.expr.leaf
                for link in definition.links
                if link.is_output and isinstance(link.expr, In) and link.expr.leaf in self._stores
            )
            if inputs or outputs:
                self._links[task.name] = Links(inputs, outputs)
                for leaf in {*(stored(state.leaves[name]).id for name in inputs), *outputs}:
                    self._watched.setdefault(leaf, []).append(task)
        if self._links:
            self._runtime.listeners.append(self._see)
            self._work = self._runtime.services.keep("the digests of files", self._serve)

    async def close(self) -> None:
        """Wait for the queue, in a bounded time, and end."""
        if self._work is None:
            return
        with suppress(TimeoutError):
            async with asyncio.timeout(LAST_SECONDS):
                await self._idle.wait()
        self._runtime.listeners.remove(self._see)
        self._work.cancel()
        await asyncio.gather(self._work, return_exceptions=True)

    async def hashed(self) -> None:
        """Return when the queue is empty."""
        await self._idle.wait()

    def _see(self, batch: e.Batch) -> None:
        """Queue the values that the events of a batch concern."""
        for event in batch.events:
            if isinstance(event, e.LaunchDecided):
                if (links := self._links.get(event.task)) is not None:
                    self._want(event.job, links.inputs)
            elif isinstance(event, e.RunEnded):
                if event.outcome == "succeeded" and (links := self._links.get(event.task)) is not None:
                    self._want(event.job, links.outputs)
            elif isinstance(event, e.ValuePut) and event.run is None and event.repository in self._watched:
                if self._is_used(event.repository, event.job):
                    self._add(event.repository, event.job)

    def _is_used(self, leaf: str, job: str) -> bool:
        """Whether a run may have used the value before it was put; a value without use needs no digest."""
        index = self._runtime.state.job_index[job]
        return any(index < len(task.last_run) and task.last_run[index] for task in self._watched[leaf])

    def _want(self, job: str, leaves: Iterable[str]) -> None:
        state = self._runtime.state
        for name in leaves:
            leaf = state.leaves[name]
            key = key_in(leaf, state.job_index[job])
            if key >= 0:
                self._add(stored(leaf).id, state.jobs[key])

    def _add(self, leaf: str, job: str) -> None:
        self._waiting[leaf, job] = None
        self._idle.clear()
        self._news.set()

    async def _serve(self, service: Service) -> None:
        while True:
            await self._news.wait()
            self._news.clear()
            while self._waiting:
                due = [self._waiting.popitem(last=False)[0] for _ in range(min(SLICE, len(self._waiting)))]
                self._record(await in_own_thread(lambda due=due: self._digests(due), "the digests of files"))  # type: ignore[misc]
            service.works()
            self._idle.set()

    def can_hash(self, leaf: str) -> bool:
        """Whether a store can hash its values."""
        return leaf in self._stores

    def known(self, leaf: str, job: str) -> Hashed | None:
        """Return the last known digest of a value, present or not."""
        return self._known.get((leaf, job))

    async def content(self, leaf: str, job: str) -> Hashed | None:
        """Return the digest of a value as it is now, None where it cannot be hashed; a new digest is recorded."""
        found = await asyncio.to_thread(self._digests, [(leaf, job)])
        self._record(found)
        known = self.known(leaf, job)
        if known is None or await asyncio.to_thread(self._stores[leaf].version_now, job) != known.version:
            return None
        return known

    def _record(self, found: Sequence[tuple[str, str, Hashed]]) -> None:
        if found and self._runtime.failure is None:
            now = self._runtime.now()  # of this moment: events are in the order of their times
            for leaf, job, hashed in found:
                self._known[leaf, job] = hashed
                self._known.move_to_end((leaf, job))
            while len(self._known) > KNOWN_MAX:
                self._known.popitem(last=False)
            self._runtime.reactor.tickets.ask(
                [
                    e.ContentHashed(at=now, repository=leaf, job=job, **hashed._asdict())
                    for leaf, job, hashed in found
                ]
            )
            self._runtime.pump()

    def _digests(self, due: Sequence[tuple[str, str]]) -> list[tuple[str, str, Hashed]]:
        """Return the digests of values whose version is new, by leaf and job; blocking."""
        found = []
        for leaf, job in due:
            store = self._stores[leaf]
            try:
                known = self._known.get((leaf, job))
                if store.version_now(job) in (None, None if known is None else known.version):
                    continue
                hashed = store.hash_now(job)
            except DatataskError as error:
                logger.debug("the content of %s in %s is not known: %s", job, leaf, error)
                continue
            if hashed is not None:
                found.append((leaf, job, hashed))
        return found
