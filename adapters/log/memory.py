"""The log in memory: complete, and gone with the process. For tests, simulation, and ephemeral pipelines.

In: batches of events. Out: the same events, durable at once, or, with `hold`, only when `release` says so, so
that a simulation can crash between the two. Events are kept as they are; rows and the chain
are made when a hash is asked for, as the engine does without. With a seed everything about it is reproducible.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_left
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from random import Random
from typing import Self

from datatask.adapters.log.blobs import FileBlobs
from datatask.adapters.log.locate import MEMORY
from datatask.adapters.log.queries import passes
from datatask.adapters.log.tail import Removal, check_size, removals_of, seeded_salts, system_salts, to_row
from datatask.adapters.log.writer import Durable, Failed, Waiters
from datatask.adapters.spools import Spool
from datatask.engine.core.fold import apply_all
from datatask.engine.core.redaction import left_of
from datatask.engine.core.state import State
from datatask.engine.ports import EVERYTHING, Checkpoint, Filters
from datatask.schema.codec import CHAIN_START, Row, chain, payload_digest
from datatask.schema.errors import DatataskError, NotOpenError, UnknownNameError
from datatask.schema.events import Batch, Event, LogCreated, PayloadRedacted, Recorded
from datatask.schema.messages import AnyRequest, Reply

_CHECKPOINTS_KEPT = 3
_PENDING_MAX = 1_000


class MemoryInbox:
    """Requests as a list: `ask` adds one, `replies` are what was answered."""

    blocking = False

    def __init__(self) -> None:
        self._requests: dict[str, AnyRequest] = {}
        self.replies: dict[str, Reply] = {}

    def ask(self, request: AnyRequest) -> None:
        """Add a request."""
        self._requests[request.id] = request

    def pending(self) -> list[AnyRequest]:
        """Return the unanswered requests, oldest first (at most 1,000)."""
        return list(self._requests.values())[:_PENDING_MAX]

    def answer(self, reply: Reply) -> None:
        """Answer a request and remove it from the pending ones."""
        self._requests.pop(reply.id, None)
        self.replies[reply.id] = reply


class MemoryLog:
    """The `EventLog` port in memory; with `hold=True` nothing is durable before `release`."""

    url = MEMORY

    def __init__(
        self, *, pipeline: str = "pipeline", clock_now: int = 0, seed: int | None = None, hold: bool = False
    ) -> None:
        """Make a log whose first event, `LogCreated`, is durable already."""
        random = Random(seed)
        self.uuid = f"{random.getrandbits(128):032x}"
        self.pipeline = pipeline
        self.epoch = 1
        self._inbox = MemoryInbox()
        self._salts = system_salts() if seed is None else seeded_salts(seed)
        self._batches: list[Batch] = []
        self._events: list[Event] = []
        self._head = 0
        self._hashes: dict[int, bytes] = {0: CHAIN_START}
        self._hashed = 0
        self._hold = False
        self._waiters = Waiters()
        self._telling = False
        self._failure: DatataskError | None = None
        self._closed = False
        self._checkpoints: list[Checkpoint] = []
        self._blobs: FileBlobs | None = None
        self.enqueue([LogCreated(at=clock_now, log=self.uuid, pipeline=pipeline)])
        self._hold = hold

    @classmethod
    async def open(cls, *, pipeline: str = "pipeline", clock_now: int = 0, seed: int | None = None) -> Self:
        """Make a log, as `SqliteLog.open` does."""
        return cls(pipeline=pipeline, clock_now=clock_now, seed=seed)

    # --- writing ------------------------------------------------------------------------------------

    @property
    def head(self) -> int:
        """The last durable position."""
        return self._head

    @property
    def next(self) -> int:
        """The position that the next enqueued event will get."""
        return len(self._events) + 1

    @property
    def pending(self) -> int:
        """How many events are enqueued and not yet durable."""
        return len(self._events) - self._head

    @property
    def holds_lease(self) -> bool:
        """Whether this log may act: always, until it failed."""
        return self._failure is None

    @property
    def keeps_checkpoints(self) -> bool:
        """Whether states may be kept: always, they go with this process."""
        return True

    def enqueue(self, events: Sequence[Event]) -> range:
        """Append one batch (1-10,000 events) and return its positions at once."""
        if self._failure is not None:
            raise self._failure
        if self._closed:
            raise NotOpenError("the log is closed", where=self.url, remedy="open it again")
        check_size(events)
        first = len(self._events) + 1
        if type(events[0]) is PayloadRedacted:
            for removal in removals_of(first, events):
                self._remove(removal)
        self._batches.append(Batch(first, tuple(events)))
        self._events += events
        if not self._hold:
            self._move(len(self._events))
        return range(first, len(self._events) + 1)

    def _remove(self, removal: Removal) -> None:
        """Put what is left of a durable event in its place; the chain keeps what it was."""
        self.chain_at(self._head)
        index = removal.position - 1
        left = left_of(self.fetch_now(removal.position), removal.position, removal.by)
        self._events[index] = left
        number = self._index(removal.position)
        first, events = self._batches[number]
        at = removal.position - first
        self._batches[number] = Batch(first, (*events[:at], left, *events[at + 1 :]))

    async def append(self, events: Sequence[Event]) -> range:
        """`enqueue`, and return when the batch is durable."""
        positions = self.enqueue(events)
        if positions.stop - 1 > self._head:
            await self._waiters.wait(positions.stop - 1, asyncio.get_running_loop())
        return positions

    def subscribe(self, durable: Durable, failed: Failed | None = None) -> Callable[[], None]:
        """Call `durable(head)` on the loop whenever the head moved; return the function that ends it."""
        return self._waiters.subscribe(durable, failed)

    def release(self, until: int | None = None) -> None:
        """Make what is held durable, up to the batch that holds `until`."""
        last = len(self._events) if until is None else self._end_of_batch(until)
        if last > self._head:
            self._move(last)

    def crash(self) -> None:
        """Lose what is not durable, as a machine does that stops: the log goes on from its head."""
        del self._events[self._head :]
        while self._batches and self._batches[-1].last > self._head:
            self._batches.pop()
        self._waiters = Waiters()

    def fail(self, error: DatataskError) -> None:
        """Fail as a disk does: what is held is lost, and every later call raises this error."""
        self._failure = error
        self._waiters.failed(error)

    def _move(self, head: int) -> None:
        self._head = head
        if self._telling:
            return
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            self._tell()
        else:
            # Never inside the caller's own call: subscribers see what any other log shows them.
            self._telling = True
            loop.call_soon(self._tell)

    def _tell(self) -> None:
        self._telling = False
        self._waiters.durable(self._head)

    # --- reading ------------------------------------------------------------------------------------

    async def batches(self, after: int = 0, until: int | None = None) -> AsyncIterator[Batch]:
        """Yield the durable batches behind `after`, in order, up to the one that holds `until` (or the head)."""
        last = self._head if until is None else min(until, self._head)
        for index in range(self._index(after + 1), self._index(last) + 1):
            if index < len(self._batches) and self._batches[index].first <= last:
                yield self._batches[index]

    async def fold(self, state: State) -> State:
        """Fold the durable events behind a state, and return the state."""
        async for batch in self.batches(state.position):
            apply_all(state, batch.first, batch.events)
        return state

    async def read(
        self, after: int = 0, until: int | None = None, filters: Filters = EVERYTHING
    ) -> AsyncIterator[Recorded]:
        """Yield durable events with after < position <= until that pass the filters."""
        last = self._head if until is None else min(until, self._head)
        for position in range(after + 1, last + 1):
            event = self._events[position - 1]
            if filters is EVERYTHING or passes(to_row(event, position), filters):
                yield Recorded(position, event)

    async def fetch(self, positions: Sequence[int]) -> list[Event]:
        """Return the events at these positions, in the order asked; `UnknownNameError` for a missing one."""
        return [self.fetch_now(position) for position in positions]

    def fetch_now(self, position: int) -> Event:
        """Return one durable event."""
        if not 1 <= position <= self._head:
            raise UnknownNameError(
                f"there is no event at position {position}", where=self.url, remedy="look at `datatask log`"
            )
        return self._events[position - 1]

    def chain_at(self, position: int) -> bytes:
        """Return the chain hash at a durable batch boundary; `UnknownNameError` where there is none."""
        while self._hashed < len(self._batches) and self._batches[self._hashed].last <= self._head:
            batch = self._batches[self._hashed]
            self._hashes[batch.last] = self._hash(batch)
            self._hashed += 1
        if position not in self._hashes:
            raise UnknownNameError(
                f"no batch ends at position {position}", where=self.url, remedy="name the last of a batch"
            )
        return self._hashes[position]

    def _hash(self, batch: Batch) -> bytes:
        rows = [to_row(event, position) for position, event in enumerate(batch.events, batch.first)]
        digests = [
            payload_digest(row.payload, salt) for row, salt in zip(rows, self._drawn(rows), strict=True)
        ]
        return chain(self._hashes[batch.first - 1], self.uuid, batch.first, rows, digests)

    def _drawn(self, rows: Sequence[Row]) -> Iterator[int | None]:
        return (None if row.payload is None else next(self._salts) for row in rows)

    def _index(self, position: int) -> int:
        """Return the index of the batch that holds a position, or the number of batches."""
        return bisect_left(self._batches, position, key=lambda batch: batch.last)

    def _end_of_batch(self, position: int) -> int:
        index = self._index(position)
        return self._batches[index].last if index < len(self._batches) else len(self._events)

    # --- beside the log -----------------------------------------------------------------------------

    async def checkpoint(self, checkpoint: Checkpoint) -> None:
        """Keep a checkpoint; the newest few are kept."""
        self._checkpoints = sorted([*self._checkpoints, checkpoint])[-_CHECKPOINTS_KEPT:]

    async def latest_checkpoint(self, fold_version: int) -> Checkpoint | None:
        """Return the newest checkpoint of this fold version whose chain hash is this log's, or None."""
        for checkpoint in reversed(self._checkpoints):
            if checkpoint.fold_version == fold_version and self._stands(checkpoint):
                return checkpoint
        return None

    async def base_state(self) -> bytes | None:
        """Nothing is archived here."""
        return None

    def _stands(self, checkpoint: Checkpoint) -> bool:
        try:
            return self.chain_at(checkpoint.position) == checkpoint.chain
        except UnknownNameError:
            return False

    @property
    def blobs(self) -> FileBlobs:
        """The blobs, in a temporary folder that goes with the log."""
        if self._blobs is None:
            self._spool = Spool()
            self._blobs = FileBlobs(self._spool.folder, durable=False)
        return self._blobs

    @property
    def inbox(self) -> MemoryInbox:
        """Where tests and other parts of this process ask."""
        return self._inbox

    def reopen(self) -> None:
        """Take what is appended again, for an engine that comes after the one that closed it."""
        self._closed = False
        self.epoch += 1

    async def close(self) -> None:
        """Make durable what is enqueued, and end; reading goes on. Again is fine."""
        if not self._closed and self._failure is None:
            self.release()
        self._closed = True
