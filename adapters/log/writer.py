"""The writer: one thread, one connection, one transaction for everything that is waiting.

In: prepared batches, in order. Out: rows on the disk, then one call per transaction back onto the event loop
with the new head. Each transaction checks that the log's epoch is still ours and otherwise writes nothing.

A group is inserted by a few statements of many rows, not by `executemany`: that gives the interpreter's lock
back and asks for it again at every row, and with a busy event loop each time costs up to a switch interval
(5 ms). Measured in docs/decisions/0002-writer-thread.md: 68 times as fast under a busy loop.

The first failure is the last transaction: what was waiting is dropped, and the log above is poisoned.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError

from datatask.adapters.log.faults import translate
from datatask.adapters.log.opening import disconnect
from datatask.adapters.log.tail import COLUMNS, Prepared
from datatask.schema.errors import DatataskError, LeaseLostError

GROUP_ROWS_MAX = 4096
_ROWS_PER_STATEMENT = 1024
"""The largest power of two whose values fit SQLite's default of 32,766 parameters."""

_INSERT_NAMES = "INSERT INTO names (id, text) VALUES "
_INSERT_LOG = "INSERT INTO log VALUES "
_EPOCH = "SELECT value FROM meta WHERE key = 'epoch'"


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
        durable: Callable[[int, bytes], None],
        failed: Callable[[DatataskError], None],
    ) -> None:
        self._connection = connection
        self._path = path
        self._epoch = epoch
        self._durable = durable
        self._failed = failed
        self._waiting: SimpleQueue[Prepared | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._work, name=f"log-writer {path.name}", daemon=True)
        self._thread.start()

    def put(self, batch: Prepared) -> None:
        """Hand over the next batch; returns at once."""
        self._waiting.put(batch)

    def close(self) -> None:
        """Wait until all that was put is written (or has failed), then end the thread and the connection."""
        self._waiting.put(None)
        self._thread.join()
        disconnect(self._connection)

    def _work(self) -> None:
        while group := self._next_group():
            try:
                self._write(group)
            except Exception as error:  # whatever it was, nothing may be written after it
                self._roll_back()
                self._failed(translate(error, self._path, group[0].first))
                return
            self._durable(group[-1].last, group[-1].chain)

    def _next_group(self) -> list[Prepared]:
        """Wait for a batch, and return it with all that waits behind it up to the cap; empty at the end."""
        batch = self._waiting.get()
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
        execute = self._connection.exec_driver_sql
        execute("BEGIN IMMEDIATE")
        epoch = execute(_EPOCH).scalar()
        if epoch != self._epoch:
            raise LeaseLostError(
                f"the log is at epoch {epoch}, this engine opened it at {self._epoch}",
                where=str(self._path),
                remedy="another engine has taken over: stop this one",
            )
        names = [value for batch in group for name in batch.names for value in name]
        if names:
            self._insert(_INSERT_NAMES, names, 2)
        values = group[0].values if len(group) == 1 else [value for batch in group for value in batch.values]
        self._insert(_INSERT_LOG, values, COLUMNS)
        execute("COMMIT")

    def _insert(self, statement: str, values: list[Any], columns: int) -> None:
        """Insert flat values by statements of a power of two rows, so that few differ and all stay prepared."""
        start, rows = 0, len(values) // columns
        size = _ROWS_PER_STATEMENT
        while rows:
            while size > rows:
                size //= 2
            end = start + size * columns
            self._connection.exec_driver_sql(_statement(statement, columns, size), tuple(values[start:end]))
            start, rows = end, rows - size

    def _roll_back(self) -> None:
        # There may be no transaction, or no file any more; the failure that counts is told already.
        with suppress(DBAPIError):
            self._connection.exec_driver_sql("ROLLBACK")


_statements: dict[tuple[str, int], str] = {}


def _statement(insert: str, columns: int, rows: int) -> str:
    """Return the statement that inserts so many rows; there are at most 22 of them."""
    text = _statements.get((insert, rows))
    if text is None:
        row = f"({', '.join('?' * columns)})"
        text = _statements[insert, rows] = insert + ", ".join([row] * rows)
    return text
