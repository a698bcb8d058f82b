"""Whether the log's file is still the one that was opened: removed, moved, replaced, cut or emptied under an engine.

In: a path whose file SQLite has open. Out: `gone` hears, once and on this thread, the `LogGoneError` that says what became of it.
SQLite goes on writing to a file that has no name any more, and all of that would be lost in silence; a write-ahead log
without its name is one that no reader finds. Each look is a few calls of stat(2); they are made on a thread, so that
neither a busy loop nor a disk that does not answer keeps the other waiting.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path

from datatask.schema.errors import DatataskError, LogGoneError

LOOK_SECONDS = 0.5
FAILURES_MAX = 20
SIDECARS = ("-wal", "-shm")

_Key = tuple[int, int]


class Presence:
    """Looks after one open log, from `start` to `stop`."""

    def __init__(
        self, path: Path, gone: Callable[[DatataskError], None], *, seconds: float = LOOK_SECONDS
    ) -> None:
        """Take the file as it is now, its write-ahead log included."""
        self._path = path
        self._gone = gone
        self._seconds = seconds
        status = os.stat(path)
        self._key, self._size = _key(status), status.st_size
        self._sidecars = {end: _found(path, end) for end in SIDECARS}
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._look, name=f"log-presence {path.name}", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Raise `LogGoneError` where the file is not the one that was opened."""
        try:
            status = os.stat(self._path)
        except OSError as error:
            raise self._error(f"the log was removed or moved under this engine ({error.strerror})") from error
        if _key(status) != self._key:
            raise self._error("another file was put in the log's place under this engine")
        if status.st_size < self._size:
            what = f"cut from {self._size:,} to {status.st_size:,} bytes" if status.st_size else "emptied"
            raise self._error(f"the log was {what} under this engine")
        self._size = status.st_size
        for end, opened in self._sidecars.items():
            if opened is not None and _found(self._path, end) != opened:
                raise self._error(
                    f"the log's {self._path.name}{end} was removed or replaced under this engine"
                )

    def stop(self) -> None:
        """Look no more; again is fine."""
        self._end.set()
        if threading.current_thread() is not self._thread:
            self._thread.join(self._seconds)

    def _look(self) -> None:
        failures = 0
        while not self._end.wait(self._seconds):
            try:
                self.check()
                failures = 0
            except LogGoneError as error:
                self._gone(error)
                return
            except Exception as error:  # the machine is in need, or this is wrong: nobody would look any more
                failures += 1
                if failures > FAILURES_MAX:
                    self._gone(self._error(f"it cannot be seen whether the log is still there ({error!r})"))
                    return

    def _error(self, what: str) -> LogGoneError:
        return gone(what, self._path)


def gone(what: str, path: Path) -> LogGoneError:
    """Return the error for a log whose file is not there, or not itself, any more."""
    return LogGoneError(
        what,
        where=str(path),
        remedy="put the file back with its write-ahead log, or restore a backup, then start again; what was recorded since is"
        " not in another copy",
    )


def _found(path: Path, end: str) -> _Key | None:
    try:
        return _key(os.stat(path.with_name(path.name + end)))
    except OSError:
        return None


def _key(status: os.stat_result) -> _Key:
    return status.st_dev, status.st_ino
