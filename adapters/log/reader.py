"""Reading a log without a lease: for commands, the web page, audits, worker threads, and after a crash.

In: a place. Out: batches, events, and the answers to SQL (`sql`), always of whole durable batches, in short snapshots that
never block the writer (`log_file`). No byte of the log is changed, and beside a log that was closed properly no file appears.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from datatask.adapters.clock import effort
from datatask.adapters.log import queries
from datatask.adapters.log.faults import archived, damaged
from datatask.adapters.log.locate import locate
from datatask.adapters.log.log_file import (
    ANSWER_BYTES_MAX,
    Answer,
    Header,
    LogFile,
    Parameters,
    parse_header,
    stream,
)
from datatask.engine.core.state import FOLD_VERSION
from datatask.engine.ports import EVERYTHING, Filters
from datatask.schema.codec import CHAIN_START, Row
from datatask.schema.errors import InvalidValueError, NoLogError, TemporaryError, UnknownNameError
from datatask.schema.events import Batch, Event, Recorded


class LogReader:
    """A log, read only. Thread-safe; close it, or use it in a `with`."""

    def __init__(self, place: str | Path) -> None:
        """Open the log at a URL or path; `CallerError` when there is none."""
        located = locate(place)
        if located.path is None:
            raise NoLogError(
                "a log in memory is read in its own process only", remedy="name a file with --log"
            )
        self.url, self.path = located.url, located.path
        self.file = LogFile(self.path)
        self._lock = self.file.lock
        self._decoder = queries.Decoder(str(self.path))
        header = self.header
        self.uuid, self.pipeline = header.uuid, header.pipeline
        self.file.uuid = header.uuid

    @property
    def header(self) -> Header:
        """What the log says about itself now."""
        return parse_header(self._ask(queries.Query(queries.META, ())), self.path)

    @property
    def head(self) -> int:
        """The last durable position; 0 for an empty log."""
        ((head,),) = self._ask(queries.Query(queries.HEAD, ()))
        return head or 0

    def batches(self, after: int = 0, until: int | None = None) -> Iterator[Batch]:
        """Yield the batches behind `after`, in order, up to the one that holds `until` (or the head as of now)."""
        base = self.header.base
        assembler = queries.Assembler(self._decoder, str(self.path), max(after, base))
        last = self.end_of_batch(until)
        while assembler.position < last:
            rows = self._page(queries.page(assembler.position, last))
            self._refuse_cut(base, assembler.position)
            if not rows:
                raise damaged("the rest of the log is missing", self.path, assembler.position + 1)
            yield from assembler.batches(rows)

    def read(
        self, after: int = 0, until: int | None = None, filters: Filters = EVERYTHING
    ) -> Iterator[Recorded]:
        """Yield events with after < position <= until (or the head as of now) that pass the filters.

        `TemporaryError` where those that were to come have been archived meanwhile.
        """
        last, base = self.head if until is None else until, self.header.base
        while True:
            rows = self._page(queries.page(after, last, filters))
            self._refuse_cut(base, after)
            yield from self._decoder.recorded(rows)
            if len(rows) < queries.PAGE_ROWS:
                return
            after = rows[-1][0]
            effort.at("reading events", after, last)

    def read_back(
        self,
        after: int = 0,
        until: int | None = None,
        filters: Filters = EVERYTHING,
        *,
        page_rows: int = queries.PAGE_ROWS,
    ) -> Iterator[Recorded]:
        """Yield the same events as `read`, the newest first; whoever wants a few says so by `page_rows`."""
        last, base = self.head if until is None else until, self.header.base
        most = min(page_rows, queries.PAGE_ROWS)
        while True:
            rows = self._page(queries.page(after, last, filters, newest_first=True, rows=most))
            self._refuse_cut(base, rows[-1][0] - 1 if len(rows) == most else after)
            yield from self._decoder.recorded(rows)
            if len(rows) < most:
                return
            last = rows[-1][0] - 1

    def fetch(self, positions: Sequence[int]) -> list[Event]:
        """Return the events at these positions, in the order asked; `UnknownNameError` for a missing one."""
        rows = self._page(queries.fetch(positions))
        if len(rows) < len(set(positions)) and (base := self.header.base):
            missing = set(positions).difference(row[0] for row in rows)
            if min(missing) <= base:
                raise archived(self.path, base, f"position {min(missing)}", min(missing))
        return self._decoder.in_order(rows, positions)

    def rows(self, after: int = 0, until: int | None = None) -> Iterator[tuple[queries.Stored, Row]]:
        """Yield what is stored and the row that it stands for: what the chain is checked against."""
        last = self.head if until is None else until
        while rows := self._page(queries.page(after, last)):
            for stored in rows:
                yield stored, self._decoder.row(stored)
            after = rows[-1][0]

    def stored(self, after: int, until: int, *, learned: bool = False) -> list[queries.Stored]:
        """Return the next rows behind `after`, at most a page, as they are stored; `decoder` knows their names.

        `learned`: all names up to `until` were learned, so that unknown names are not looked up.
        """
        query = queries.page(after, until)
        return self._ask(query) if learned else self._page(query)

    def stored_at(self, positions: Sequence[int]) -> list[queries.Stored]:
        """Return the rows at these positions, as they are stored; `decoder` knows their names."""
        return self._page(queries.fetch(positions))

    def learn_names(self, most: int) -> bool:
        """Learn all names at once, unless there are more; return whether they were."""
        with self._lock:
            ((count,),) = self._ask(queries.Query("SELECT count(*) FROM names", ()))
            if count <= most:
                self._decoder.learn(self._ask(queries.Query("SELECT id, text FROM names", ())))
            return bool(count <= most)

    def ask(self, query: queries.Query, *, bytes_max: int | None = None) -> list[tuple[Any, ...]]:
        """Return the rows of one of our own statements; a `DatataskError` where one value has more bytes than said."""

        def limited(connection: sqlite3.Connection) -> list[tuple[Any, ...]]:
            assert bytes_max is not None
            usual = connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, bytes_max)
            try:
                return connection.execute(query.sql, query.parameters).fetchall()
            finally:
                connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, usual)

        return self._ask(query) if bytes_max is None else self.file.steadily(limited)

    def another(self) -> LogReader:
        """Return another reader of the same log, with a connection of its own; close it."""
        return LogReader(self.path)

    @property
    def decoder(self) -> queries.Decoder:
        """What makes events of stored rows."""
        return self._decoder

    def integrity(self) -> list[str]:
        """Return what SQLite's own checks find wrong in the file, at most 100 lines; reads all of it."""
        lines = self.file.steadily(
            lambda connection: connection.execute("PRAGMA integrity_check(100)").fetchall()
        )
        return [str(line) for (line,) in lines if line != "ok"]

    def copy_to(self, target: Path) -> None:
        """Copy the file, as it is at one moment, to a new path; the writer goes on meanwhile. Not yet durable."""
        os.close(os.open(target, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600))

        def copy(connection: sqlite3.Connection) -> None:
            os.truncate(target, 0)  # what a try before this one has copied cannot be opened without locks
            with closing(_unlocked(target)) as into:
                connection.backup(into)

        self.file.steadily(copy)

    def base_state(self) -> bytes | None:
        """Return the state that the log stands on where its beginning was archived, as bytes; None where it was not.

        One that an older fold made is folded anew from the archives; `LogDamagedError` where these are not here.
        """
        header = self.header
        if not header.base:
            return None
        version, body = self.base_stored()
        if version == FOLD_VERSION:
            return body
        from datatask.adapters.log.maintenance.archives import refolded

        return refolded(self.path, header, version)

    def base_stored(self) -> tuple[int, bytes]:
        """Return the fold version and the bytes of the state that the log stands on, as the cut left them."""
        base = self.header.base
        rows = self._ask(queries.Query(queries.BASE, (base,)))
        if not rows:
            raise damaged("the state that the log stands on is missing", self.path, base)
        return rows[0][0], bytes(rows[0][1])

    def chain_at(self, position: int) -> bytes:
        """Return the chain hash at a batch boundary; `UnknownNameError` where there is none."""
        if position == 0:
            return CHAIN_START
        rows = self._ask(queries.Query(queries.CHAIN_AT, (position,)))
        if not rows or rows[0][0] is None:
            header = self.header
            if position == header.base:
                return header.base_chain
            raise UnknownNameError(
                f"no batch ends at position {position}",
                where=str(self.path),
                remedy="name the last of a batch",
            )
        return bytes(rows[0][0])

    def end_of_batch(self, position: int | None) -> int:
        """Return the end of the batch that holds `position`, the head when that is beyond it or None."""
        if position is None:
            return self.head
        ((end,),) = self._ask(queries.Query(queries.END_OF_BATCH, (position,)))
        return self.head if end is None else int(end)

    def query(
        self,
        sql: str,
        parameters: Parameters = (),
        *,
        timeout_seconds: float = 10.0,
        rows_max: int | None = None,
    ) -> Answer:
        """Answer one SELECT over the log's tables and views; `TimeLimitError` when it takes too long.

        Parameters are a sequence for `?`, or a mapping for `:name`. In this process only the time between two steps
        of SQLite's machine is bounded, one value (`VALUE_BYTES_MAX`), and the answer (`ANSWER_BYTES_MAX`).
        """
        rows: list[tuple[Any, ...]] = []
        size = 0

        def take(row: tuple[Any, ...]) -> None:
            nonlocal size
            size += 64 + sum(8 if not isinstance(value, str | bytes) else len(value) for value in row)
            if size > ANSWER_BYTES_MAX:
                raise InvalidValueError(
                    f"the answer has more than {ANSWER_BYTES_MAX >> 20:,} MiB",
                    where="SQL",
                    remedy="ask for less, or write it with `datatask query --csv`, which holds no rows in memory",
                )
            rows.append(row)

        def begin() -> None:
            nonlocal size
            rows.clear()
            size = 0

        columns, more = stream(
            self.file,
            sql,
            parameters,
            begin=begin,
            take=take,
            timeout_seconds=timeout_seconds,
            rows_max=rows_max,
        )
        return Answer(columns, rows, more)

    def close(self) -> None:
        """Let go of the file; again is fine."""
        self.file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # --- one statement at a time --------------------------------------------------------------------

    def _page(self, query: queries.Query) -> list[queries.Stored]:
        """Return a page of rows after learning the names in it; names only grow, so two snapshots agree."""
        with self._lock:
            rows = self._ask(query)
            if (names := self._decoder.missing(rows)) is not None:
                self._decoder.learn(self._ask(names))
            return rows

    def _refuse_cut(self, base: int, after: int) -> None:
        """Raise `TemporaryError` where events behind `after` were archived since the base was `base`."""
        now = self.header.base
        if now > max(base, after):
            raise TemporaryError(
                f"events up to {now} were archived just now", where=str(self.path), remedy="ask again"
            )

    def _ask(self, query: queries.Query) -> list[tuple[Any, ...]]:
        return self.file.steadily(
            lambda connection: connection.execute(query.sql, query.parameters).fetchall()
        )


def _unlocked(path: Path) -> sqlite3.Connection:
    """Connect to a file that no other process uses, on any file system: without locks and without a journal."""
    connection = sqlite3.connect(f"{path.as_uri()}?vfs=unix-none", uri=True, isolation_level=None)
    connection.execute("PRAGMA journal_mode = OFF")
    connection.execute("PRAGMA synchronous = OFF")
    return connection
