"""The output of runs, stored beside the log in `<log>.logs`, a SQLite file that no other data depends on.

In: `Printed` records by run and stream, of bounded size. Out: the same records by run. The engine writes them from a thread in
batches; a reader lags some tenths of a second behind. A failed write is dropped and logged once: a full disk ends no run.
The file holds the UUID of its log: a reader ignores the file of another log, and the writer empties it first.
"""

from __future__ import annotations

import logging
import os
import sqlite3
import threading
from collections.abc import Iterable, Sequence
from contextlib import closing, suppress
from pathlib import Path

from datatask.adapters.trust import private
from datatask.schema.messages import Printed

logger = logging.getLogger("datatask.engine")

PAUSE_SECONDS = 0.2
WAITING_BYTES_MAX = 64 << 20
"""The most output that may wait for the disk; output beyond it is dropped."""
BUSY_SECONDS = 5.0
_SCHEMA = """
CREATE TABLE IF NOT EXISTS about (uuid TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS printed (
    run INTEGER NOT NULL, stream TEXT NOT NULL, size INTEGER NOT NULL, head BLOB NOT NULL, tail BLOB NOT NULL,
    PRIMARY KEY (run, stream)
) WITHOUT ROWID;
"""


def kept_path(log: Path) -> Path:
    """Return the path of the file with the output of a log's runs."""
    return log.with_name(log.name + ".logs")


class KeptWriter:
    """Writes the output of runs in a thread, which starts with the first output; `close` writes the rest."""

    def __init__(self, log: Path, uuid: str) -> None:
        self.path, self._uuid = kept_path(log), uuid
        self._waiting: list[tuple[int, Printed]] = []
        self._bytes = 0
        self._lock, self._writing = threading.Lock(), threading.Lock()
        self._news = threading.Event()
        self._ended = False
        self._told = False
        self._thread: threading.Thread | None = None

    def put(self, run: int, printed: Iterable[Printed]) -> None:
        """Queue the output of a run."""
        with self._lock:
            for one in printed:
                size = len(one.head) + len(one.tail)
                if self._bytes + size > WAITING_BYTES_MAX:
                    continue
                self._bytes += size
                self._waiting.append((run, one))
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="datatask-logs", daemon=True)
            self._thread.start()
        self._news.set()

    def flush(self) -> None:
        """Write the queued output now."""
        self._write()

    def close(self) -> None:
        """Write the queued output, and end the thread."""
        self._ended = True
        self._news.set()
        if self._thread is not None:
            self._thread.join(BUSY_SECONDS)

    def _work(self) -> None:
        while not self._ended:
            self._news.wait()
            self._news.clear()
            self._write()
            if not self._ended:
                threading.Event().wait(PAUSE_SECONDS)  # many small outputs make one transaction
        self._write()

    def _write(self) -> None:
        with self._writing:
            self._written()

    def _written(self) -> None:
        with self._lock:
            waiting, self._waiting, self._bytes = self._waiting, [], 0
        if not waiting:
            return
        try:
            with closing(self._opened()) as connection, connection:
                connection.executemany(
                    "INSERT OR REPLACE INTO printed VALUES (?, ?, ?, ?, ?)",
                    [(run, one.stream, one.size, one.head, one.tail) for run, one in waiting],
                )
        except (OSError, sqlite3.Error) as error:
            if not self._told:
                self._told = True
                logger.warning("what runs print is not kept: %s: %s", self.path, error)

    def _opened(self) -> sqlite3.Connection:
        connection = _made(self.path)
        try:
            owner = connection.execute("SELECT uuid FROM about").fetchone()
            if owner is None:
                connection.execute("INSERT INTO about VALUES (?)", (self._uuid,))
            elif owner[0] != self._uuid:
                connection.execute(
                    "DELETE FROM printed"
                )  # the output of another log, of which this one took the place
                connection.execute("UPDATE about SET uuid = ?", (self._uuid,))
            connection.commit()
        except BaseException:
            connection.close()
            raise
        return connection


def _made(path: Path) -> sqlite3.Connection:
    os.close(private(str(path), os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW))
    connection = sqlite3.connect(path, timeout=BUSY_SECONDS)
    try:
        connection.execute("PRAGMA synchronous = OFF")  # output is not worth an fsync
        connection.executescript(_SCHEMA)
    except BaseException:
        connection.close()
        raise
    return connection


def read_kept(log: Path, uuid: str, runs: Sequence[int]) -> dict[int, list[Printed]]:
    """Return the output of these runs, by run; a run without stored output is missing."""
    path = kept_path(log)
    found: dict[int, list[Printed]] = {}
    if not path.exists():
        return found
    with (
        suppress(sqlite3.Error),
        closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)) as connection,
    ):
        if connection.execute("SELECT uuid FROM about").fetchone() != (uuid,):
            return found
        for run in runs:
            rows = connection.execute(
                "SELECT stream, size, head, tail FROM printed WHERE run = ? ORDER BY stream DESC", (run,)
            )
            if printed := [Printed(*row) for row in rows]:
                found[run] = printed
    return found


def forget_kept(log: Path, below: int, keep: Iterable[int] = ()) -> int:
    """Delete the output of runs with numbers below `below`, except those in `keep`; return the number of runs."""
    path = kept_path(log)
    if not path.exists():
        return 0
    with closing(_made(path)) as connection:
        runs = {
            run for (run,) in connection.execute("SELECT DISTINCT run FROM printed WHERE run < ?", (below,))
        }
        gone = sorted(runs.difference(keep))
        with connection:
            connection.executemany("DELETE FROM printed WHERE run = ?", [(run,) for run in gone])
        connection.execute("VACUUM")
    return len(gone)


def copy_kept(log: Path, to: Path) -> None:
    """Copy the output file of a log beside a copy of the log, as one snapshot; do nothing where there is none."""
    path = kept_path(log)
    if path.exists():
        with closing(_made(kept_path(to))) as copy, closing(sqlite3.connect(path)) as connection:
            connection.backup(copy)
