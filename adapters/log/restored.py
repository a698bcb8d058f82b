"""A log as if nothing had been archived: one file with all of it, made in the user's cache.

In: a log with its archives. Out: the path of a copy whose base is position 0, so that whatever reads a log reads all of
it. The copy is a cache: it is kept beside the rungs, grows with the log, and may be removed at any time.
"""

from __future__ import annotations

import fcntl
import os
import sqlite3
from contextlib import closing, suppress
from pathlib import Path

from datatask.adapters.log.archives import archives_of, read_head, read_rows
from datatask.adapters.log.faults import mapped
from datatask.adapters.log.locate import blobs_path, locate
from datatask.adapters.log.reader import LogReader
from datatask.schema.codec import CHAIN_START
from datatask.schema.errors import CallerError, LogDamagedError

_INSERT = f"INSERT INTO log VALUES ({', '.join('?' * 15)})"
_WHOLE = "whole-"
_NAMED = (2, 5, 7, 8, 9)


def cache_folder(uuid: str) -> Path:
    """Return where copies of a log are kept for this user."""
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "datatask" / uuid


def is_whole(path: Path) -> bool:
    """Whether this is such a copy."""
    return path.name.startswith(_WHOLE)


def restore(path: Path) -> Path:
    """Return the whole log; the log itself where nothing was archived. `CallerError` for an archive that is missing."""
    with LogReader(path) as reader:
        header = reader.header
        if not header.base:
            return path
        archives = _unbroken(reader, path)
    folder = cache_folder(header.uuid)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    whole = folder / f"{_WHOLE}{header.base_chain.hex()[:16]}.db"
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not _usable(whole):
            _build(whole, path, archives)
        _follow(whole, path, header.base)
        _beside(whole, path)
    return whole


def open_whole(path: Path) -> LogReader:
    """Open a log with its archives, under the name of the log."""
    whole = restore(path)
    reader = LogReader(whole)
    reader.url = locate(path).url
    return reader


def forget(uuid: str) -> None:
    """Remove every copy of a log: something in it is not to be kept."""
    for path in cache_folder(uuid).glob(f"{_WHOLE}*"):
        with suppress(OSError):
            path.unlink()


def _unbroken(reader: LogReader, path: Path) -> list[Path]:
    archives, position, before = archives_of(path, reader.uuid), 0, CHAIN_START.hex()
    wanted = []
    for archive in archives:
        head = read_head(archive)
        if head.first == position + 1 and head.chain_before == before and head.last <= reader.header.base:
            wanted.append(archive)
            position, before = head.last, head.chain_after
    if (position, before) != (reader.header.base, reader.header.base_chain.hex()):
        raise CallerError(
            f"the archive of the events from {position + 1} on is missing",
            where=f"{path}.archives",
            remedy="put it there, or ask without --with-archives",
        )
    return wanted


def _usable(whole: Path) -> bool:
    try:
        with closing(sqlite3.connect(f"{whole.as_uri()}?mode=ro", uri=True)) as connection:
            return bool(connection.execute("SELECT max(position) FROM log").fetchone())
    except sqlite3.Error:
        return False


def _build(whole: Path, path: Path, archives: list[Path]) -> None:
    """Make the copy from the archives alone, whole or not at all."""
    fresh = whole.with_suffix(".new")
    fresh.unlink(missing_ok=True)
    os.close(os.open(fresh, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600))
    with (
        mapped(fresh),
        closing(sqlite3.connect(fresh.as_uri(), uri=True, isolation_level=None)) as connection,
    ):
        execute = connection.execute
        execute("PRAGMA synchronous = OFF")
        execute("PRAGMA journal_mode = MEMORY")
        _attach(connection, path)
        execute("BEGIN")
        later = []
        for (statement,) in execute("SELECT sql FROM live.sqlite_master WHERE sql IS NOT NULL").fetchall():
            if statement.startswith("CREATE TABLE"):
                execute(statement)
            else:
                later.append(statement)
        execute("INSERT INTO names SELECT * FROM live.names")
        execute("INSERT INTO meta SELECT * FROM live.meta")
        execute("UPDATE meta SET value = 0 WHERE key = 'base'")
        execute("UPDATE meta SET value = ? WHERE key = 'base_chain'", (CHAIN_START,))
        names: dict[str | None, int | None] = dict(execute("SELECT text, id FROM names").fetchall())
        names[None] = None
        for archive in archives:
            connection.executemany(_INSERT, (_numbered(row, names, archive) for row in read_rows(archive)))
        for statement in later:
            execute(statement)
        execute("COMMIT")
    os.rename(fresh, whole)


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


def _follow(whole: Path, path: Path, base: int) -> None:
    """Append what the log has and the copy has not; the header follows too."""
    with (
        mapped(whole),
        closing(sqlite3.connect(whole.as_uri(), uri=True, isolation_level=None)) as connection,
    ):
        execute = connection.execute
        execute("PRAGMA synchronous = OFF")
        _attach(connection, path)
        execute("BEGIN")
        ((head,),) = execute("SELECT max(position) FROM main.log").fetchall()
        after = max(head, base)
        execute("INSERT INTO main.names SELECT * FROM live.names WHERE id > (SELECT max(id) FROM main.names)")
        execute("INSERT INTO main.log SELECT * FROM live.log WHERE position > ?", (after,))
        execute(
            "UPDATE main.meta SET value = (SELECT l.value FROM live.meta l WHERE l.key = main.meta.key)"
            " WHERE key IN ('epoch', 'host', 'pid', 'started')"
        )
        execute("COMMIT")


def _attach(connection: sqlite3.Connection, path: Path) -> None:
    wal = path.with_name(path.name + "-wal")
    written = wal.exists() and wal.stat().st_size > 0
    connection.execute("ATTACH ? AS live", (f"{path.as_uri()}?{'mode=ro' if written else 'immutable=1'}",))


def _beside(whole: Path, path: Path) -> None:
    """Let what lies beside the log be found beside the copy."""
    for mine, its in (
        (blobs_path(whole), blobs_path(path)),
        (whole.with_name(whole.name + "-lease"), path.with_name(path.name + "-lease")),
    ):
        if not mine.is_symlink():
            mine.symlink_to(its.absolute())
