"""The writer of a log: one thread, one connection, one transaction for everything that is waiting.

In: prepared batches, in order. Out: rows on the disk, then one call per transaction back onto the event loop, where `Waiters`
wait for it. Each transaction checks that the log's epoch is still ours and otherwise writes nothing. What costs time under
a busy event loop is asking for the interpreter's lock: a group is as few statements as can be, mostly one, and where nothing was
written for some milliseconds the loop gives way (docs/decisions/0002-writer-thread.md). The first failure is the last transaction.
"""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from itertools import chain
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

from sqlalchemy import Connection

from datatask.adapters.log.faults import translate
from datatask.adapters.log.maintenance.offline import remove_payload
from datatask.adapters.log.open import disconnect, driver
from datatask.adapters.log.tail import COLUMNS, STORED_AS, Prepared
from datatask.schema.errors import DatataskError, InternalError, LeaseLostError

Durable = Callable[[int], None]
Failed = Callable[[BaseException], None]


GROUP_ROWS_MAX = 4096
_ROWS_PER_STATEMENT = 1024
"""The largest size (`statement_rows`) whose values fit SQLite's default of 32,766 parameters."""
_EPOCH = "(SELECT value FROM meta WHERE key = 'epoch')"
_INSERT_NAMES = "INSERT INTO names SELECT value ->> 0, value ->> 1 FROM json_each(?)"
_INSERT_LOG = (
    f"INSERT INTO log SELECT {', '.join(STORED_AS)} FROM (VALUES {{}}) WHERE column1 > 0 AND {_EPOCH} = ?"
)
HEAD_START_ROWS = 96
"""The number of waiting rows at which a resting thread starts at once, so that SQL and the loop's work overlap."""
_PATIENCE_SECONDS = 0.01
_WAY_SECONDS = 0.00001


class Waiters:
    """Futures by position, and subscribers; used on the loop's thread only."""

    def __init__(self) -> None:
        self._futures: deque[tuple[int, asyncio.Future[None]]] = deque()
        self._subscribers: list[tuple[Durable, Failed | None]] = []

    def wait(self, position: int, loop: asyncio.AbstractEventLoop) -> asyncio.Future[None]:
        """Return a future for when `position` is durable; positions only grow from call to call."""
        future = loop.create_future()
        self._futures.append((position, future))
        return future

    def subscribe(self, durable: Durable, failed: Failed | None) -> Callable[[], None]:
        """Add a subscriber; return the function that removes it."""
        entry = (durable, failed)
        self._subscribers.append(entry)

        def unsubscribe() -> None:
            if entry in self._subscribers:
                self._subscribers.remove(entry)

        return unsubscribe

    def durable(self, head: int) -> None:
        """Release everyone who waited for a position up to `head`, then tell the subscribers."""
        futures = self._futures
        while futures and futures[0][0] <= head:
            future = futures.popleft()[1]
            if not future.done():
                future.set_result(None)
        for durable, _ in tuple(self._subscribers):
            durable(head)

    def failed(self, error: BaseException) -> None:
        """Tell everyone that nothing more becomes durable."""
        while self._futures:
            future = self._futures.popleft()[1]
            if not future.done():
                future.set_exception(error)
        for _, failed in tuple(self._subscribers):
            if failed is not None:
                failed(error)


class Writer:
    """Makes batches durable in the order of `put`; tells `durable(last, chain)` or, once, `failed(error)`.

    Both are called on the writer's thread: whoever hears them moves on to its own.
    """

    def __init__(
        self,
        connection: Connection,
        path: Path,
        epoch: int,
        *,
        head: int,
        durable: Callable[[int, bytes], None],
        failed: Callable[[DatataskError], None],
    ) -> None:
        """Start the thread; `put` is for the loop that runs now."""
        self._connection = connection
        # The driver's own: SQLAlchemy's bookkeeping around a statement takes as long as inserting a few rows.
        self._execute = driver(connection).execute
        self._path = path
        self._epoch = epoch
        self._durable = durable
        self._failed = failed
        self._waiting: SimpleQueue[Prepared | None] = SimpleQueue()
        self._loop = asyncio.get_running_loop()
        self._asked = self._written = self._seen = head
        self._watching = False
        self._resting = True
        self._thread = threading.Thread(target=self._work, name=f"log-writer {path.name}", daemon=True)
        self._thread.start()

    def put(self, batch: Prepared) -> None:
        """Hand over the next batch; returns at once."""
        self._waiting.put(batch)
        self._asked = batch.last
        if self._resting and batch.last - self._written >= HEAD_START_ROWS:
            self._resting = False
            time.sleep(_WAY_SECONDS)
        if not self._watching:
            self._watching = True
            self._loop.call_later(_PATIENCE_SECONDS, self._look)

    def _look(self) -> None:
        """Let the thread have the interpreter's lock if it has not got on since last looked at."""
        self._watching = self._written < self._asked and self._thread.is_alive()
        if self._watching:
            if self._written == self._seen:
                time.sleep(_WAY_SECONDS)
            self._seen = self._written
            self._loop.call_later(_PATIENCE_SECONDS, self._look)

    def close(self) -> None:
        """Wait until all that was put is written (or has failed), then end the thread and the connection."""
        self._waiting.put(None)
        self._thread.join()
        disconnect(self._connection)

    def _work(self) -> None:
        """Write until the end; whatever fails here, nothing may be written after it, and the loop has to hear of it."""
        first: int | None = None
        try:
            while group := self._next_group():
                first = group[0].first
                self._check_order(group)
                self._write(group)
                self._written = group[-1].last
                self._durable(group[-1].last, group[-1].chain)
        except BaseException as error:
            self._roll_back()
            self._failed(translate(error, self._path, first))

    def _check_order(self, group: list[Prepared]) -> None:
        """Write nothing behind a batch that did not get here: the log would have a hole."""
        following = self._written + 1
        for batch in group:
            if batch.first != following:
                raise InternalError(
                    f"a batch of {batch.first} came where {following} follows", where=str(self._path)
                )
            following = batch.last + 1

    def _next_group(self) -> list[Prepared]:
        """Wait for a batch, and return it with all that waits behind it up to the cap; empty at the end."""
        self._resting = True
        batch = self._waiting.get()
        self._resting = False
        group: list[Prepared] = []
        rows = 0
        while batch is not None:
            group.append(batch)
            rows += batch.last - batch.first + 1
            if rows >= GROUP_ROWS_MAX:
                return group
            try:
                batch = self._waiting.get_nowait()
            except Empty:
                return group
        if group:
            self._waiting.put(None)  # the end is met again when this group is written
        return group

    def _write(self, group: list[Prepared]) -> None:
        names = [name for batch in group for name in batch.names]
        values = (
            group[0].values
            if len(group) == 1
            else list(chain.from_iterable([batch.values for batch in group]))
        )
        removals = [removal for batch in group for removal in batch.removals]
        if not names and not removals and len(values) <= _ROWS_PER_STATEMENT * COLUMNS:
            self._insert(values)
            return
        execute = self._execute
        if removals:
            execute("PRAGMA secure_delete = ON")
        execute("BEGIN IMMEDIATE")
        if names:
            execute(_INSERT_NAMES, (json.dumps(names),))
        for start in range(0, len(values), _ROWS_PER_STATEMENT * COLUMNS):
            self._insert(values[start : start + _ROWS_PER_STATEMENT * COLUMNS])
        for removal in removals:
            remove_payload(execute, removal, self._path)
        execute("COMMIT")

    def _insert(self, values: list[Any]) -> None:
        """Insert the rows in these flat values, all of them or (under another epoch) none."""
        rows = len(values) // COLUMNS
        size = statement_rows(rows)
        filling = (0,) * ((size - rows) * COLUMNS)
        result = self._execute(_statement(size), (*values, *filling, self._epoch))
        if result.rowcount != rows:
            raise LeaseLostError(
                f"the log is no longer at epoch {self._epoch}, at which this engine opened it",
                where=str(self._path),
                remedy="another engine has taken over: stop this one",
            )

    def _roll_back(self) -> None:
        # There may be no transaction, or no file any more; the failure that counts is told already.
        with suppress(Exception):
            self._execute("ROLLBACK")


def statement_rows(rows: int) -> int:
    """Return the next of the few sizes that statements have, so that all of them stay prepared.

    At most an eighth is filling (rows at position 0, which are left out); there are 64 sizes up to 1,024.
    """
    step = 1 << max(0, (rows - 1).bit_length() - 4)
    return -(-rows // step) * step


@cache
def _statement(rows: int) -> str:
    """Return the statement that inserts this number of rows."""
    row = f"({', '.join('?' * COLUMNS)})"
    return _INSERT_LOG.format(", ".join([row] * rows))
