"""The log's file, opened for reading only, while others write to it, cut it, or put another one in its place.

In: a path, and work on a connection. Out: what the work found, in a snapshot that holds. With nothing in the write-ahead log
the file is opened as immutable, so that nothing is made beside it, and what was found is thrown away and looked up again when
the file or its write-ahead log changed meanwhile. Only SQLite opens the file: closing a descriptor of our own would drop the
locks that SQLite holds for an engine in the same process.
"""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import TypeVar

from datatask.adapters.log.faults import damaged, mapped
from datatask.adapters.log.presence import gone
from datatask.schema.errors import LogError, LogGoneError, NoLogError, TemporaryError

_ATTEMPTS = 20
_UNSHARED = {sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY}
"""What SQLite answers where it cannot make the shared memory of a write-ahead log."""

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
            for _ in range(_ATTEMPTS):
                connection = self._connect()
                try:
                    found = work(connection)
                except sqlite3.DatabaseError:
                    if self._steady():
                        raise
                else:
                    if self._steady():
                        return found
                self.close()
            raise self._unsteady()

    def apart(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """As `steadily`, on a connection of its own, which other threads do not wait for."""
        for _ in range(_ATTEMPTS):
            stamp = self._stamp()
            try:
                with closing(self._open(stamp)) as connection:
                    found = work(connection)
            except LogError:
                if self._is_same(stamp):
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

    def _unsteady(self) -> TemporaryError:
        return TemporaryError(
            "the log is opened and closed all the time", where=str(self.path), remedy="try again"
        )


def _unwritten(stamp: Stamp) -> bool:
    """Whether the write-ahead log holds nothing, so that the file alone is the whole log."""
    return stamp[1] is None or stamp[1][-1] == 0


def _status(path: Path) -> tuple[int, int, int, int]:
    status = os.stat(path)
    return status.st_dev, status.st_ino, status.st_mtime_ns, status.st_size
