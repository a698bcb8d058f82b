"""The SQLite log: the `EventLog` port over one file and its sidecars.

In: batches of events, on the event loop. They get their positions, names and chain hash in memory (tail.py)
and go to the writer's thread (writer.py), which commits everything that waits in one transaction and calls
back once per transaction. Out: batches and events again, read through SQLAlchemy's async engine on read-only
connections, or, for worker threads, through a `LogReader`. Opening and creating are in open.py.
"""

from __future__ import annotations

import asyncio
import uuid as uuids
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

import aiosqlite
from sqlalchemy import AsyncAdaptedQueuePool
from sqlalchemy.ext.asyncio import create_async_engine

from datatask.adapters.log import queries
from datatask.adapters.log.blobs import FileBlobs
from datatask.adapters.log.checkpoints import CheckedReader, FileCheckpoints, vouching
from datatask.adapters.log.columns import Follower, collector_off
from datatask.adapters.log.faults import damaged, mapped
from datatask.adapters.log.file_changes import Presence, seal, unseal
from datatask.adapters.log.inbox import FileInbox
from datatask.adapters.log.lease import Lease, Patience, take_lease
from datatask.adapters.log.locate import (
    blobs_path,
    checkpoints_path,
    default_path,
    inbox_path,
    locate,
    refuse_network,
    remember_home,
)
from datatask.adapters.log.open import Durability, Opened, Opener, create_log, disconnect, open_log
from datatask.adapters.log.private import guard
from datatask.adapters.log.reader import LogReader
from datatask.adapters.log.tail import Tail, system_salts
from datatask.adapters.log.writer import Durable, Failed, Waiters, Writer
from datatask.engine.core.state import State
from datatask.engine.ports import EVERYTHING, Checkpoint, Filters
from datatask.engine.runtime.closing import in_own_thread
from datatask.schema.errors import (
    CallerError,
    DatataskError,
    LeaseHeldError,
    NoLogError,
    NotOpenError,
    UnknownNameError,
)
from datatask.schema.events import Batch, Event, Recorded
from datatask.schema.troubles import as_error

_READERS = 2


class SqliteLog:
    """One pipeline's log in a file; made by `open`, used on the loop that opened it."""

    def __init__(
        self, path: Path, lease: Lease, opened: Opened, durability: Durability, salts: Iterator[int]
    ) -> None:
        """Start writing behind an opened log's head; use `open` instead."""
        header = opened.header
        self.path = path
        self.url = f"sqlite:///{path}"
        self.uuid, self.pipeline, self.epoch = header.uuid, header.pipeline, header.epoch
        self._lease = lease
        self._loop = asyncio.get_running_loop()
        self._tail = Tail(header.uuid, opened.head, opened.head_chain, opened.names, salts)
        self._head, self._head_chain, self._base = opened.head, opened.head_chain, header.base
        self._waiters = Waiters()
        self._failure: DatataskError | None = None
        self._closed = False
        self._keeps_checkpoints = True
        self._blobs = FileBlobs(blobs_path(path), durable=durability == "full")
        self._inbox = FileInbox(inbox_path(path))
        self._checkpoints = FileCheckpoints(checkpoints_path(path), header.uuid)
        self._reader = LogReader(path)
        self._checked = CheckedReader(self._reader)
        self._decoder = queries.Decoder(str(path))
        self._engine = create_async_engine(
            "sqlite+aiosqlite://",
            async_creator=self._connect,
            poolclass=AsyncAdaptedQueuePool,
            pool_size=_READERS,
            max_overflow=0,
        )
        self._writer = Writer(
            opened.connection,
            path,
            self.epoch,
            head=opened.head,
            durable=self._on_thread_durable,
            failed=self._on_thread_failed,
        )
        self._presence = Presence(path, self._on_thread_failed)

    @classmethod
    async def open(
        cls,
        place: str | Path,
        *,
        pipeline: str,
        clock_now: int,
        version: str,
        host: str,
        pid: int,
        durability: Durability = "full",
        salts: Iterator[int] | None = None,
        uuid: str | None = None,
        mounts: str | None = None,
        brief: bool = False,
        waits: bool = True,
    ) -> Self:
        """Take the lease, make the log when there is none, raise its epoch, and return it.

        `LeaseHeldError` names who holds it; commands, which have it for a moment (`brief`), are waited for if we do
        not ask them instead (`waits`). `LogDamagedError`, `FutureLogError` and `CallerError` (another
        pipeline, a network file system) leave everything as it was. `salts`, `uuid` and `mounts` are for
        tests and simulation.
        """
        located = locate(place)
        if located.path is None:
            raise NoLogError(f"{located.url} is not a file", remedy="use MemoryLog for a log in memory")
        path = located.path
        opener = Opener(pipeline, version, host, pid, clock_now)
        drawn = salts or system_salts()
        new = uuid or uuids.uuid4().hex
        patience = Patience(path)
        while True:
            try:
                lease, opened = await asyncio.to_thread(
                    _open, path, opener, durability, drawn, new, mounts, brief
                )
                break
            except LeaseHeldError as error:
                if not waits:
                    raise
                pause = patience.pause(error)
            await asyncio.sleep(pause)
        try:
            return cls(path, lease, opened, durability, drawn)
        except BaseException:
            disconnect(opened.connection)
            lease.release()
            raise

    # --- writing ------------------------------------------------------------------------------------

    @property
    def head(self) -> int:
        """The last durable position."""
        return self._head

    @property
    def next(self) -> int:
        """The position that the next enqueued event will get."""
        return self._tail.next

    @property
    def pending(self) -> int:
        """How many events are enqueued and not yet durable."""
        return self._tail.next - 1 - self._head

    @property
    def holds_lease(self) -> bool:
        """Whether the lease is still ours; costs one `stat`, for asking right before an effect."""
        return self._lease.held and self._failure is None

    @property
    def keeps_checkpoints(self) -> bool:
        """Whether states of this engine may be kept: none once a payload was removed, which they may still hold."""
        return self._keeps_checkpoints

    def enqueue(self, events: Sequence[Event]) -> range:
        """Append one batch (1-10,000 events) and return its positions at once; durable when told."""
        if self._failure is not None or self._closed:
            self._refuse()
        try:
            batch = self._tail.prepare(events)
            if batch.removals:
                # States of this engine may still hold what is removed now; the next one folds from the log.
                self._keeps_checkpoints = False
            self._writer.put(batch)
        except CallerError:
            raise
        except BaseException as error:  # perhaps its positions are given away, and nothing may follow on them
            self._on_failed(as_error(error, self.url))
            raise
        return range(batch.first, batch.last + 1)

    async def append(self, events: Sequence[Event]) -> range:
        """`enqueue`, and return when the batch is durable."""
        positions = self.enqueue(events)
        await self._waiters.wait(positions.stop - 1, self._loop)
        return positions

    def subscribe(self, durable: Durable, failed: Failed | None = None) -> Callable[[], None]:
        """Call `durable(head)` on the loop whenever the head moved; return the function that ends it."""
        return self._waiters.subscribe(durable, failed)

    def _refuse(self) -> None:
        if self._failure is not None:
            raise self._failure
        raise NotOpenError("the log is closed", where=self.url, remedy="open it again")

    def _on_thread_durable(self, last: int, chain: bytes) -> None:
        self._tell(self._on_durable, last, chain)

    def _on_thread_failed(self, error: DatataskError) -> None:
        self._tell(self._on_failed, error)

    def _tell(self, function: Callable[..., None], *arguments: Any) -> None:
        # The loop was closed: there is no listener left, and what is on the disk stays there.
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(function, *arguments)

    def _on_durable(self, last: int, chain: bytes) -> None:
        self._head, self._head_chain = last, chain
        try:
            self._waiters.durable(last)
        except Exception as error:  # whoever was not told would wait for ever
            self._on_failed(as_error(error, self.url))

    def _on_failed(self, error: DatataskError) -> None:
        self._failure = error
        self._waiters.failed(error)

    # --- reading ------------------------------------------------------------------------------------

    async def batches(self, after: int = 0, until: int | None = None) -> AsyncIterator[Batch]:
        """Yield the durable batches behind `after`, in order, up to the one that holds `until` (or the head)."""
        last = self._head
        if until is not None and until < last:
            ((end,),) = await self._ask(queries.Query(queries.END_OF_BATCH, (until,)))
            last = end or last
        assembler = queries.Assembler(self._decoder, str(self.path), max(after, self._base))
        while assembler.position < last:
            rows = await self._page(queries.page(assembler.position, last))
            if not rows:
                raise damaged("the rest of the log is missing", self.path, assembler.position + 1)
            for batch in assembler.batches(rows):
                yield batch

    async def fold(self, state: State) -> State:
        """Fold the durable events behind a state, by columns, and return the state."""
        return await asyncio.to_thread(self._fold, state, self._head)

    def _fold(self, state: State, until: int) -> State:
        with collector_off():
            return Follower(self._reader).follow(state, until)

    async def read(
        self, after: int = 0, until: int | None = None, filters: Filters = EVERYTHING
    ) -> AsyncIterator[Recorded]:
        """Yield durable events with after < position <= until that pass the filters."""
        last = self._head if until is None else min(until, self._head)
        while rows := await self._page(queries.page(after, last, filters)):
            for recorded in self._decoder.recorded(rows):
                yield recorded
            after = rows[-1][0]
            if len(rows) < queries.PAGE_ROWS:
                return

    async def fetch(self, positions: Sequence[int]) -> list[Event]:
        """Return the events at these positions, in the order asked, after checking them against the chain."""
        return await asyncio.to_thread(self._checked.fetch, positions)

    def chain_at(self, position: int) -> bytes:
        """Return the chain hash at a durable batch boundary; `UnknownNameError` where there is none."""
        return self._head_chain if position == self._head else self._reader.chain_at(position)

    async def _page(self, query: queries.Query) -> list[queries.Stored]:
        rows = await self._ask(query)
        if (names := self._decoder.missing(rows)) is not None:
            self._decoder.learn(await self._ask(names))
        return rows

    async def _ask(self, query: queries.Query) -> list[tuple[Any, ...]]:
        with mapped(self.path):
            async with self._engine.connect() as connection:
                result = await connection.exec_driver_sql(query.sql, query.parameters)
                return [tuple(row) for row in result]

    async def _connect(self) -> aiosqlite.Connection:
        return await aiosqlite.connect(f"{self.path.as_uri()}?mode=ro", uri=True)

    # --- beside the log -----------------------------------------------------------------------------

    async def checkpoint(self, checkpoint: Checkpoint) -> None:
        """Keep a checkpoint, atomically; the newest few are kept; none after a payload was removed."""
        if self._keeps_checkpoints:
            await asyncio.to_thread(self._checkpoints.write, checkpoint)
            if not self._keeps_checkpoints:  # one was removed while this was written
                await asyncio.to_thread(self._checkpoints.remove)

    async def latest_checkpoint(self, fold_version: int) -> Checkpoint | None:
        """Return the newest checkpoint of this fold version that an event of this log vouches for, or None."""
        return await asyncio.to_thread(
            self._checkpoints.latest, fold_version, self._chain_or_none, vouching(self._reader)
        )

    async def base_state(self) -> bytes | None:
        """Return the state that the log stands on where its beginning was archived, as bytes, else None."""
        return await asyncio.to_thread(self._reader.base_state)

    def _chain_or_none(self, position: int) -> bytes | None:
        try:
            return self._reader.chain_at(position)
        except UnknownNameError:
            return None

    @property
    def blobs(self) -> FileBlobs:
        """The blobs beside the log."""
        return self._blobs

    @property
    def inbox(self) -> FileInbox:
        """Where other processes ask."""
        return self._inbox

    async def close(self) -> None:
        """Make durable what is enqueued, give the lease back, and end; again is fine."""
        if self._closed:
            return
        self._closed = True
        await self._engine.dispose()
        # The writer's connection goes last: the last one to close folds the write-ahead log into the file.
        await in_own_thread(self._close, "closing the log")  # the pool may be full of what hangs

    def _close(self) -> None:
        try:
            self._presence.stop()
            self._reader.close()
            try:
                self._presence.check()  # what is written from here on goes into the file that has the name, or nowhere
            finally:
                self._writer.close()
            if self._failure is None:
                seal(self.path)
        finally:
            self._lease.release()


def _open(
    path: Path,
    opener: Opener,
    durability: Durability,
    salts: Iterator[int],
    uuid: str,
    mounts: str | None,
    brief: bool,
) -> tuple[Lease, Opened]:
    refuse_network(path.parent, mounts)
    if path.is_dir():
        raise NoLogError(
            "this is a directory, not a log", where=str(path), remedy=f"try --log {default_path(path)}"
        )
    with mapped(path):
        guard(path)
    lease = take_lease(path, brief=brief)
    try:
        if not path.exists():
            create_log(path, opener, uuid, salts)
            lease.possess(path)
        remember_home(path)
        unseal(path)
        return lease, open_log(path, opener, durability)
    except BaseException:
        lease.release()
        raise
