"""A log as if nothing had been archived: one file with all of it, made in the user's cache.

In: a log with its archives. Out: the path of a copy whose base is position 0, so that whatever reads a log reads all of
it. The copy is a cache: it is kept beside the rungs, grows with the log, and may be removed at any time.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import NamedTuple, TypeVar

from datatask.adapters.log.faults import mapped
from datatask.adapters.log.locate import blobs_path, locate, user_cache
from datatask.adapters.log.maintenance.archives import read_rows, unbroken
from datatask.adapters.log.reader import LogReader
from datatask.adapters.trust import check_above, make_private, private
from datatask.schema.codec import CHAIN_START
from datatask.schema.errors import (
    InvalidValueError,
    LogDamagedError,
    NotPossibleError,
    TemporaryError,
)
from datatask.schema.version import APPLICATION_ID

T = TypeVar("T")

_INSERT = f"INSERT INTO main.log VALUES ({', '.join('?' * 15)})"
_WHOLE = "whole-"
_NAMED = (2, 5, 7, 8, 9)
_ATTEMPTS = 20
_BROKEN = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR)


def cache_folder(uuid: str) -> Path:
    """Return where copies of a log are kept for this user; `CallerError` where there is no such place, or others may fill it."""
    root = user_cache()
    if root is None:
        raise InvalidValueError(
            "there is no place for a copy of the log: no home is known", where="--with-archives",
            remedy="set HOME or XDG_CACHE_HOME",
        )  # fmt: skip
    check_above(root / uuid)
    return root / uuid


def restore(path: Path) -> Path:
    """Return the whole log; the log itself where nothing was archived. `CallerError` for an archive that is missing."""
    with LogReader(path) as reader:
        header = reader.header
    if not header.base:
        return path
    archives = unbroken(path, header.uuid, header.base, header.base_chain)
    folder = cache_folder(header.uuid)
    with mapped(folder):
        make_private(folder)
        whole = folder / f"{_WHOLE}{header.base_chain.hex()[:16]}.db"
        with open(folder / "lock", "w", opener=private) as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not follow(whole, path):
                _remove(folder)
                _build(whole, path, archives)
                follow(whole, path)
            _beside(whole, path)
    return whole


class WholeReader(LogReader):
    """A log with its archives, read from the copy, under the name of the log."""

    def __init__(self, path: Path) -> None:
        """Open the log at a path; `CallerError` when there is none, or when an archive is missing."""
        whole = restore(path)
        super().__init__(whole)
        self.live = path
        self.url = locate(path).url

    def refresh(self) -> None:
        """Take in what was appended to the log since."""
        if self.path != self.live and not follow(self.path, self.live):
            raise NotPossibleError(
                "the log was cut or replaced during this query", where=self.url, remedy="ask again"
            )


def _remove(folder: Path) -> None:
    """Remove copies that are of no use any more: of an earlier cut, or of a log that was put back since."""
    for old in folder.glob(f"{_WHOLE}*"):
        if old.is_dir() and not old.is_symlink():
            shutil.rmtree(old, ignore_errors=True)
        else:
            old.unlink(missing_ok=True)


def _with_log(place: Path, path: Path, work: Callable[[sqlite3.Connection], T]) -> T:
    """Do something to a file of ours in a transaction in which the log is attached as `live`.

    A log without a writer is attached as a file that does not change, so that nothing is made beside it; where it
    did change, what was done is taken back and done again.
    """
    for _ in range(_ATTEMPTS):
        before = _stamp(path)
        with closing(
            sqlite3.connect(f"{place.as_uri()}?mode=rw", uri=True, isolation_level=None)
        ) as connection:
            connection.execute("PRAGMA synchronous = OFF")
            option = "mode=ro" if before.written else "immutable=1"
            connection.execute("ATTACH ? AS live", (f"{path.as_uri()}?{option}",))
            connection.execute("BEGIN IMMEDIATE")
            try:
                done = work(connection)
            except sqlite3.DatabaseError:
                if before.written or _stamp(path) == before:
                    raise
                continue
            if before.written or _stamp(path) == before:
                connection.execute("COMMIT")
                return done
    raise TemporaryError("the log is opened and closed all the time", where=str(path), remedy="try again")


class _Stamp(NamedTuple):
    file: tuple[int, int, int]
    written: bool


def _stamp(path: Path) -> _Stamp:
    """Return what tells whether a log's file changed, and whether its write-ahead log holds anything."""
    status = os.stat(path)
    try:
        written = path.with_name(path.name + "-wal").stat().st_size > 0
    except FileNotFoundError:
        written = False
    return _Stamp((status.st_ino, status.st_mtime_ns, status.st_size), written)


def _build(whole: Path, path: Path, archives: list[Path]) -> None:
    """Make the copy from the archives alone, whole or not at all."""
    fresh = whole.with_suffix(".new")
    fresh.unlink(missing_ok=True)
    os.close(os.open(fresh, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600))
    try:
        _with_log(fresh, path, lambda connection: _fill(connection, archives))
        os.rename(fresh, whole)
    finally:
        fresh.unlink(missing_ok=True)


def _fill(connection: sqlite3.Connection, archives: list[Path]) -> None:
    execute = connection.execute
    later = []
    for (statement,) in execute("SELECT sql FROM live.sqlite_master WHERE sql IS NOT NULL").fetchall():
        if statement.startswith("CREATE TABLE"):
            execute(statement)
        else:
            later.append(statement)
    execute("INSERT INTO main.names SELECT * FROM live.names")
    execute("INSERT INTO main.meta SELECT * FROM live.meta")
    execute("UPDATE main.meta SET value = 0 WHERE key = 'base'")
    execute("UPDATE main.meta SET value = ? WHERE key = 'base_chain'", (CHAIN_START,))
    names: dict[str | None, int | None] = dict(execute("SELECT text, id FROM main.names").fetchall())
    names[None] = None
    for archive in archives:
        connection.executemany(_INSERT, (_numbered(row, names, archive) for row in read_rows(archive)))
    for statement in later:
        execute(statement)
    execute(f"PRAGMA main.application_id = {APPLICATION_ID}")


def _numbered(
    row: tuple[object, ...], names: dict[str | None, int | None], archive: Path
) -> tuple[object, ...]:
    numbered = list(row)
    try:
        for column in _NAMED:
            numbered[column] = names[row[column]]  # type: ignore[index]
    except KeyError as error:
        raise LogDamagedError(
            f"the log does not know the name {error}", where=f"{archive} position {row[0]}",
            remedy="restore the log from a backup",
        ) from error  # fmt: skip
    return tuple(numbered)


def follow(whole: Path, path: Path) -> bool:
    """Append what the log has and the copy has not; False where there is no copy, or none of this log's past."""
    if not whole.exists():
        return False
    try:
        return _with_log(whole, path, _append)
    except sqlite3.DatabaseError as error:
        if error.sqlite_errorcode & 0xFF in _BROKEN:
            return False  # a cache that did not survive: it is made anew
        with mapped(whole):
            raise


def _append(connection: sqlite3.Connection) -> bool:
    execute = connection.execute
    if not _agrees(execute):
        return False
    ((head,),) = execute("SELECT max(position) FROM main.log").fetchall()
    execute("INSERT INTO main.names SELECT * FROM live.names WHERE id > (SELECT max(id) FROM main.names)")
    execute("INSERT INTO main.log SELECT * FROM live.log WHERE position > ?", (head,))
    execute(
        "UPDATE main.meta SET value = (SELECT l.value FROM live.meta l WHERE l.key = main.meta.key)"
        " WHERE key IN ('epoch', 'host', 'pid', 'started')"
    )
    return True


def _agrees(execute: Callable[..., sqlite3.Cursor]) -> bool:
    """Whether what the copy has, the log has too: the hash at its head, and no payload was removed since."""
    head, hashed = execute("SELECT position, chain FROM main.log ORDER BY position DESC LIMIT 1").fetchone()
    there = execute("SELECT chain FROM live.log WHERE position = ?", (head,)).fetchone()
    base = dict(execute("SELECT key, value FROM live.meta WHERE key IN ('base', 'base_chain')").fetchall())
    before = base["base_chain"] if head == base["base"] else there and there[0]
    at_base = execute("SELECT chain FROM main.log WHERE position = ?", (base["base"],)).fetchone()
    ((removed,),) = execute(
        "SELECT count(*) FROM live.log WHERE position > ? AND kind IN"
        " (SELECT id FROM live.names WHERE text = 'PayloadRedacted')",
        (head,),
    ).fetchall()
    fits = hashed == before and at_base is not None and at_base[0] == base["base_chain"]
    return fits and (not removed or head == base["base"])


def _beside(whole: Path, path: Path) -> None:
    """Let what lies beside the log be found beside the copy."""
    for mine, its in (
        (blobs_path(whole), blobs_path(path)),
        (whole.with_name(whole.name + "-lease"), path.with_name(path.name + "-lease")),
    ):
        if not mine.is_symlink() or mine.readlink() != its.absolute():
            mine.unlink(missing_ok=True)
            mine.symlink_to(its.absolute())
