"""Reading a log without a lease: for commands, the web page, audits, worker threads, and after a crash.

In: a place. Out: batches, events, and the answers to SQL, always of whole durable batches, in short snapshots
that never block the writer. No byte of the log is changed, and beside a log that was closed properly no file
appears either: with nothing in the write-ahead log the file is opened as immutable, and each answer is thrown
away and asked for again when the file or its write-ahead log changed meanwhile.

The file is only ever opened by SQLite: closing a descriptor of our own would drop the locks that SQLite holds
for an engine in the same process.
"""

from __future__ import annotations

import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

from datatask.adapters.effort import effort
from datatask.adapters.log import queries
from datatask.adapters.log.faults import archived, damaged, mapped
from datatask.adapters.log.header import Header, parse_header
from datatask.adapters.log.locate import locate
from datatask.adapters.log.presence import gone
from datatask.engine.core.state import FOLD_VERSION
from datatask.engine.ports import EVERYTHING, Filters
from datatask.schema.codec import CHAIN_START, Row
from datatask.schema.errors import (
    CallerError,
    InvalidValueError,
    LogError,
    LogGoneError,
    NoLogError,
    NotPossibleError,
    TemporaryError,
    UnknownNameError,
)
from datatask.schema.events import Batch, Event, Recorded

_ATTEMPTS = 20
_STEPS_PER_LOOK = 20_000
"""SQLite's virtual machine steps between two looks at the clock: about a millisecond."""

_READING = {
    sqlite3.SQLITE_SELECT,
    sqlite3.SQLITE_READ,
    sqlite3.SQLITE_FUNCTION,
    sqlite3.SQLITE_RECURSIVE,
}
_ACTIONS = {
    getattr(sqlite3, f"SQLITE_{action}"): action.replace("_", " ")
    for action in (
        "INSERT", "UPDATE", "DELETE", "ATTACH", "DETACH", "PRAGMA", "TRANSACTION", "SAVEPOINT", "REINDEX", "ANALYZE",
        "CREATE_TABLE", "CREATE_TEMP_TABLE", "CREATE_VIEW", "CREATE_TEMP_VIEW", "CREATE_INDEX", "CREATE_TRIGGER",
        "CREATE_VTABLE", "FUNCTION", "DROP_TABLE", "DROP_VIEW", "DROP_INDEX", "DROP_TRIGGER", "ALTER_TABLE",
    )
}  # fmt: skip
_VIRTUAL = "SELECT 0 FROM json_each('[]'), json_tree('[]')"
"""Makes SQLite set up its own virtual tables, which it does by what looks like a write to whoever authorizes."""

_PRAGMAS = {"table_info", "table_xinfo", "index_list", "index_info", "table_list", "database_list"}

_OUTSIDE = {"load_extension", "readfile", "writefile", "edit", "fts3_tokenizer"}
"""Functions that reach beyond the log, where a build of SQLite has them."""

VALUE_BYTES_MAX = 64 << 20
ANSWER_BYTES_MAX = 1 << 30

Parameters = Sequence[Any] | Mapping[str, Any]
_UNSHARED = {sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY}
"""What SQLite answers where it cannot make the shared memory of a write-ahead log."""

Stamp = tuple[tuple[int, int, int, int], tuple[int, int, int, int] | None]


class Answer(NamedTuple):
    """The answer to a query; `more` says that rows were left off."""

    columns: tuple[str, ...]
    rows: list[tuple[Any, ...]]
    more: bool


class LogReader:
    """A log, read only. Thread-safe; close it, or use it in a `with`."""

    def __init__(self, place: str | Path) -> None:
        """Open the log at a URL or path; `CallerError` when there is none."""
        located = locate(place)
        if located.path is None:
            raise NoLogError(
                "a log in memory is read in its own process only", remedy="name a file with --log"
            )
        self.url, self.path, self.uuid = located.url, located.path, ""
        self._lock = threading.RLock()
        self._connection: sqlite3.Connection | None = None
        self._stamped: Stamp | None = None
        self._unshared = False
        self._decoder = queries.Decoder(str(self.path))
        header = self.header
        self.uuid, self.pipeline = header.uuid, header.pipeline

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

        `learned`: all names up to `until` were learned, so that nobody looks for those that are not known yet.
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
        with self._lock:
            if bytes_max is None:
                return self._ask(query)
            connection = self._connect()
            usual = connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, bytes_max)
            try:
                return self._ask(query)
            finally:
                if connection is self._connection:
                    connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, usual)

    def another(self) -> LogReader:
        """Return another reader of the same log, with a connection of its own; close it."""
        return LogReader(self.path)

    @property
    def decoder(self) -> queries.Decoder:
        """What makes events of stored rows."""
        return self._decoder

    def integrity(self) -> list[str]:
        """Return what SQLite's own checks find wrong in the file, at most 100 lines; reads all of it."""
        with self._lock, mapped(self.path):
            connection = self._connect()
            told = [str(row[0]) for row in connection.execute("PRAGMA integrity_check(100)")]
            return [line for line in told if line != "ok"]

    def copy_to(self, target: Path) -> None:
        """Copy the file, as it is at one moment, to a new path; the writer goes on meanwhile. Not yet durable."""
        os.close(os.open(target, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600))
        with self._lock, mapped(self.path):
            for _ in range(_ATTEMPTS):
                connection = self._connect()
                with closing(_unlocked(target)) as copy:
                    try:
                        connection.backup(copy)
                    except sqlite3.DatabaseError:
                        if self._steady():
                            raise
                    else:
                        if self._steady():
                            return
                self.close()
            raise self._unsteady()

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
        from datatask.adapters.log.base_refolding import refolded

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

        columns, more = self.stream(
            sql, parameters, begin=begin, take=take, timeout_seconds=timeout_seconds, rows_max=rows_max
        )
        return Answer(columns, rows, more)

    def stream(
        self,
        sql: str,
        parameters: Parameters = (),
        *,
        begin: Callable[[], None],
        take: Callable[[tuple[Any, ...]], None],
        timeout_seconds: float,
        rows_max: int | None = None,
    ) -> tuple[tuple[str, ...], bool]:
        """`query` with each row handed to `take`; return the columns, and whether rows were left off.

        `begin` is called before the first row, and once more where what was taken is void, as the log changed.
        """
        for _ in range(_ATTEMPTS):
            stamp = self._stamp()
            try:
                with closing(self._open(stamp)) as connection:
                    begin()
                    until = time.monotonic() + timeout_seconds
                    told = self._answer(connection, sql, parameters, until, rows_max, take)
            except LogError:
                if self._is_same(stamp):
                    raise
                continue
            if not (_unwritten(stamp) or self._unshared) or self._stamp() == stamp:
                return told
        raise self._unsteady()

    def close(self) -> None:
        """Let go of the file; again is fine."""
        with self._lock:
            if self._connection is not None:
                self._connection.close()
                self._connection = None

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
        with self._lock, mapped(self.path):
            for _ in range(_ATTEMPTS):
                connection = self._connect()
                try:
                    rows = connection.execute(query.sql, query.parameters).fetchall()
                except sqlite3.DatabaseError:
                    if self._steady():
                        raise
                else:
                    if self._steady():
                        return rows
                self.close()
            raise self._unsteady()

    def _connect(self) -> sqlite3.Connection:
        """Return the connection, a new one when the present one was made for what has changed since."""
        if self._connection is not None and not self._steady():
            self.close()
        for attempt in range(_ATTEMPTS if self._connection is None else 0):
            self._stamped = self._stamp()
            try:
                self._connection = self._open(self._stamped)
                self._refuse_another(self._connection)
                break
            except (sqlite3.DatabaseError, LogError) as error:
                self.close()
                if (
                    attempt + 1 == _ATTEMPTS
                    or isinstance(error, LogGoneError)
                    or self._is_same(self._stamped)
                ):
                    raise
        assert self._connection is not None
        return self._connection

    def _is_same(self, stamp: Stamp) -> bool:
        """Whether the files are still those that were to be opened; the last engine removes its write-ahead log."""
        return [status and status[:2] for status in self._stamp()] == [
            status and status[:2] for status in stamp
        ]

    def _refuse_another(self, connection: sqlite3.Connection) -> None:
        """Raise `LogGoneError` where the file that has the name by now is of another log."""
        if self.uuid:
            found = connection.execute("SELECT value FROM meta WHERE key = 'uuid'").fetchone()
            if found != (self.uuid,):
                raise gone("another log was put in this one's place", self.path)

    def _steady(self) -> bool:
        """Whether what the connection saw is what SQLite promises: all but an immutable file that changed."""
        if self._stamped is None:
            return True
        if not (_unwritten(self._stamped) or self._unshared):
            (*file, _, size), opened = self._stamp()[0], self._stamped[0]
            return tuple(file) == opened[:2] and size >= opened[-1]  # a log's file never shrinks
        return self._stamp() == self._stamped

    def _open(self, stamp: Stamp) -> sqlite3.Connection:
        if stamp[0][-1] == 0:
            raise damaged(
                "the file is empty", self.path, remedy="restore it from a backup, or delete it to start anew"
            )
        option = "immutable=1" if _unwritten(stamp) else "mode=ro"
        self._unshared = False
        with mapped(self.path):
            connection = self._made(option)
            try:
                connection.execute("PRAGMA schema_version").fetchone()
            except sqlite3.OperationalError as error:
                connection.close()
                if error.sqlite_errorcode & 0xFF not in _UNSHARED:
                    raise
                # A write-ahead log on a medium where nothing can be made beside it: its index is kept in memory.
                self._unshared = True
                connection = self._made("mode=ro&vfs=unix-none")
                connection.execute("PRAGMA locking_mode = EXCLUSIVE")
            connection.execute("PRAGMA query_only = ON")
        return connection

    def _made(self, option: str) -> sqlite3.Connection:
        return sqlite3.connect(
            f"{self.path.as_uri()}?{option}", uri=True, isolation_level=None, check_same_thread=False
        )

    def _stamp(self) -> Stamp:
        """Return what tells whether the file or its write-ahead log changed."""
        with mapped(self.path):
            try:
                main = _status(self.path)
            except (FileNotFoundError, NotADirectoryError):
                if self.uuid:
                    raise gone("the log was removed or moved while it was read", self.path) from None
                raise NoLogError(
                    "there is no log here",
                    where=str(self.path),
                    remedy="check --log, or start with `datatask run`",
                ) from None
            try:
                return main, _status(self.path.with_name(self.path.name + "-wal"))
            except FileNotFoundError:
                return main, None

    def _answer(
        self,
        connection: sqlite3.Connection,
        sql: str,
        parameters: Parameters,
        deadline: float,
        rows_max: int | None,
        take: Callable[[tuple[Any, ...]], None],
    ) -> tuple[tuple[str, ...], bool]:
        connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, VALUE_BYTES_MAX)
        connection.execute(_VIRTUAL)
        refused: list[str] = []

        def authorize(action: int, first: str | None, second: str | None, *_: str | None) -> int:
            verdict = _authorize(action, first, second)
            if verdict != sqlite3.SQLITE_OK:
                refused.append(_ACTIONS.get(action, "this"))
            return verdict

        connection.set_authorizer(authorize)
        connection.set_progress_handler(lambda: time.monotonic() > deadline, _STEPS_PER_LOOK)
        try:
            cursor = connection.execute(sql, parameters)
            if cursor.description is None:
                raise NotPossibleError("this statement answers nothing", where="SQL", remedy="use a SELECT")
            columns = tuple(column[0] for column in cursor.description)
            for number, row in enumerate(cursor):
                if number == rows_max:
                    return columns, True
                take(row)
            return columns, False
        except (sqlite3.Error, sqlite3.Warning) as error:
            if refused:
                raise NotPossibleError(
                    f"{refused[0]} is refused: a log is only read here",
                    where="SQL",
                    remedy="one SELECT; see docs/log.md for the views",
                ) from error
            if getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) in (
                sqlite3.SQLITE_ERROR,
                sqlite3.SQLITE_AUTH,
            ):
                raise CallerError(
                    f"{error}", where="SQL", remedy="one SELECT; see docs/log.md for the views"
                ) from error
            if getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_TOOBIG or isinstance(
                error, sqlite3.DataError
            ):
                raise InvalidValueError(
                    f"one value has more than {VALUE_BYTES_MAX >> 20:,} MiB",
                    where="SQL",
                    remedy="ask for less",
                ) from error
            with mapped(self.path):
                raise

    def _unsteady(self) -> TemporaryError:
        return TemporaryError(
            "the log is opened and closed all the time", where=str(self.path), remedy="try again"
        )


def _unlocked(path: Path) -> sqlite3.Connection:
    """Connect to a file that is nobody else's, on whatever file system: without locks and without a journal."""
    connection = sqlite3.connect(f"{path.as_uri()}?vfs=unix-none", uri=True, isolation_level=None)
    connection.execute("PRAGMA journal_mode = OFF")
    connection.execute("PRAGMA synchronous = OFF")
    return connection


def _unwritten(stamp: Stamp) -> bool:
    """Whether the write-ahead log holds nothing, so that the file alone is the whole log."""
    return stamp[1] is None or stamp[1][-1] == 0


def _status(path: Path) -> tuple[int, int, int, int]:
    status = os.stat(path)
    return status.st_dev, status.st_ino, status.st_mtime_ns, status.st_size


def _authorize(action: int, first: str | None, second: str | None) -> int:
    if action == sqlite3.SQLITE_FUNCTION and (second or "").lower() in _OUTSIDE:
        return sqlite3.SQLITE_DENY
    if action in _READING or (action == sqlite3.SQLITE_PRAGMA and first in _PRAGMAS):
        return sqlite3.SQLITE_OK
    return sqlite3.SQLITE_DENY
