"""A log's file opened for reading while others write it, cut it or replace it; its header; and SQL of users.

In: a path, and work on a connection. Out: the result, from one consistent snapshot. With an empty write-ahead log the
file is opened as immutable, so that no file is made beside it, and the result is discarded and computed again if the
file changed meanwhile. Only SQLite opens the file: closing a descriptor of ours would drop the locks that SQLite holds
for an engine in the same process. A user's SELECT runs within limits of time and size and changes nothing.
"""

from __future__ import annotations

import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, get_type_hints

from datatask.adapters.log.faults import damaged, mapped
from datatask.adapters.log.file_changes import gone
from datatask.schema.errors import (
    FutureLogError,
    InvalidValueError,
    LogError,
    LogGoneError,
    NoLogError,
    NotPossibleError,
    OtherPipelineError,
    TemporaryError,
)
from datatask.schema.version import FORMAT, META_KEYS

_PAUSES = (0.0, 0.0, 0.0, 0.0, 0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.128, 0.256)
"""Seconds between tries to read a log that others open, close or cut meanwhile."""

_UNSHARED = {sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY}
"""What SQLite answers where it cannot make the shared memory of a write-ahead log."""

_READONLY_FOR_NOW = {
    sqlite3.SQLITE_READONLY_CANTINIT,
    sqlite3.SQLITE_READONLY_CANTLOCK,
    sqlite3.SQLITE_READONLY_RECOVERY,
}

Stamp = tuple[tuple[int, int, int, int], tuple[int, int, int, int] | None]
T = TypeVar("T")


class LogFile:
    """One file; `uuid`, once set, is that of the log that it has to be. Thread-safe."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.uuid = ""
        self.lock = threading.RLock()
        self._connection: sqlite3.Connection | None = None
        self._stamped: Stamp | None = None
        self._unshared = False

    def steadily(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Return what the work finds on the connection that is kept open; it is done again where the file changed meanwhile."""
        with self.lock, mapped(self.path):
            for last in _tries():
                connection = self._connect()
                try:
                    found = work(connection)
                except sqlite3.DatabaseError as error:
                    if self._steady() and (last or not _may_pass(error)):
                        raise
                else:
                    if self._steady():
                        return found
                self.close()
            raise self._unsteady()

    def apart(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """As `steadily`, on a connection of its own, which other threads do not wait for."""
        for last in _tries():
            stamp = self._stamp()
            try:
                with mapped(self.path), closing(self._open(stamp)) as connection:
                    found = work(connection)
            except LogError as error:
                if self._is_same(stamp) and (last or not _may_pass(error)):
                    raise
                continue
            if not (_unwritten(stamp) or self._unshared) or self._stamp() == stamp:
                return found
        raise self._unsteady()

    def close(self) -> None:
        """Let go of the file; again is fine."""
        with self.lock:
            if self._connection is not None:
                self._connection.close()
                self._connection = None

    def _connect(self) -> sqlite3.Connection:
        """Return the connection, a new one when the present one was made for what has changed since."""
        if self._connection is not None and not self._steady():
            self.close()
        for last in _tries() if self._connection is None else ():
            self._stamped = self._stamp()
            try:
                self._connection = self._open(self._stamped)
                self._refuse_another(self._connection)
                break
            except (sqlite3.DatabaseError, LogError) as error:
                self.close()
                if last or isinstance(error, LogGoneError):
                    raise
                if self._is_same(self._stamped) and not _may_pass(error):
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

    def _unsteady(self) -> TemporaryError:
        return TemporaryError(
            "the log is opened and closed all the time", where=str(self.path), remedy="try again"
        )


def _tries() -> Iterator[bool]:
    """Give one try after another, with pauses that grow; True for the last."""
    for pause in _PAUSES:
        yield False
        time.sleep(pause)
    yield True


def _may_pass(error: BaseException) -> bool:
    """Whether SQLite could not open a file: its write-ahead log is removed and made anew by those that write."""
    cause = error if isinstance(error, sqlite3.Error) else error.__cause__
    code = getattr(cause, "sqlite_errorcode", 0)
    return code & 0xFF == sqlite3.SQLITE_CANTOPEN or code in _READONLY_FOR_NOW


def _unwritten(stamp: Stamp) -> bool:
    """Whether the write-ahead log holds nothing, so that the file alone is the whole log."""
    return stamp[1] is None or stamp[1][-1] == 0


def _status(path: Path) -> tuple[int, int, int, int]:
    status = os.stat(path)
    return status.st_dev, status.st_ino, status.st_mtime_ns, status.st_size


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

_SELECT = "one SELECT; see docs/log.md for the views"

VALUE_BYTES_MAX = 64 << 20
ANSWER_BYTES_MAX = 1 << 30

Parameters = Sequence[Any] | Mapping[str, Any]


class Answer(NamedTuple):
    """The answer to a query; `more` says that rows were left off."""

    columns: tuple[str, ...]
    rows: list[tuple[Any, ...]]
    more: bool


def stream(
    file: LogFile,
    sql: str,
    parameters: Parameters = (),
    *,
    begin: Callable[[], None],
    take: Callable[[tuple[Any, ...]], None],
    timeout_seconds: float,
    rows_max: int | None = None,
) -> tuple[tuple[str, ...], bool]:
    """Answer one SELECT, each row handed to `take`; return the columns, and whether rows were left off.

    `begin` is called before the first row, and once more where what was taken is void, as the log changed.
    """

    def answer(connection: sqlite3.Connection) -> tuple[tuple[str, ...], bool]:
        begin()
        with _bounded(connection, file.path, time.monotonic() + timeout_seconds):
            cursor = connection.execute(sql, parameters)
            if cursor.description is None:
                raise NotPossibleError("this statement answers nothing", where="SQL", remedy="use a SELECT")
            columns = tuple(column[0] for column in cursor.description)
            for number, row in enumerate(cursor):
                if number == rows_max:
                    return columns, True
                take(row)
            return columns, False

    return file.apart(answer)


@contextmanager
def _bounded(connection: sqlite3.Connection, path: Path, deadline: float) -> Iterator[None]:
    """Let a statement only read, and only until the deadline; what SQLite says of it is mapped."""
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
        yield
    except (sqlite3.Error, sqlite3.Warning) as error:
        code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR)
        if refused:
            what = f"{refused[0]} is refused: a log is only read here"
            raise NotPossibleError(what, where="SQL", remedy=_SELECT) from error
        if code in (sqlite3.SQLITE_ERROR, sqlite3.SQLITE_AUTH):
            raise InvalidValueError(f"{error}", where="SQL", remedy=_SELECT) from error
        if code == sqlite3.SQLITE_TOOBIG or isinstance(error, sqlite3.DataError):
            what = f"one value has more than {VALUE_BYTES_MAX >> 20:,} MiB"
            raise InvalidValueError(what, where="SQL", remedy="ask for less") from error
        with mapped(path):
            raise


def _authorize(action: int, first: str | None, second: str | None) -> int:
    if action == sqlite3.SQLITE_FUNCTION and (second or "").lower() in _OUTSIDE:
        return sqlite3.SQLITE_DENY
    if action in _READING or (action == sqlite3.SQLITE_PRAGMA and first in _PRAGMAS):
        return sqlite3.SQLITE_OK
    return sqlite3.SQLITE_DENY


class Header(NamedTuple):
    """One field a key of `META_KEYS`."""

    format: int
    may_read: int
    may_write: int
    written_by: str
    uuid: str
    pipeline: str
    epoch: int
    host: str
    pid: int
    started: int
    base: int
    base_chain: bytes


_KINDS = get_type_hints(Header)


def parse_header(rows: Iterable[Sequence[Any]], path: Path) -> Header:
    """Return the header in these rows of `meta`; refuse a log that only newer versions can read."""
    found = {key: value for key, value in rows if key in META_KEYS}
    missing = META_KEYS.keys() - found.keys()
    for key, value in found.items():
        if type(value) is not _KINDS[key]:
            raise damaged(f"the header's {key} is {value!r:.50}, no {_KINDS[key].__name__}", path)
    if "may_read" not in missing and found["may_read"] > FORMAT:
        raise _future(found["may_read"], path, "read")
    if missing:
        raise damaged(f"the header lacks {', '.join(sorted(missing))}", path)
    return Header(**found)


def check_may_write(header: Header, pipeline: str, path: Path) -> None:
    """Raise unless an engine of this version, for this pipeline, may append to the log."""
    if header.may_write > FORMAT:
        raise _future(header.may_write, path, "append to")
    if header.pipeline != pipeline:
        raise OtherPipelineError(
            f"this log belongs to the pipeline {header.pipeline!r}, not to {pipeline!r}",
            where=str(path),
            remedy="name another log (--log), or give the pipeline its old name",
        )


def _future(needed: int, path: Path, verb: str) -> FutureLogError:
    return FutureLogError(
        f"to {verb} this log takes storage format {needed}, this version knows {FORMAT}",
        where=str(path),
        remedy="use the datatask version that wrote it, or a newer one",
    )
