"""SQLite's errors in our words, mapped in this one place.

In: whatever `sqlite3`, SQLAlchemy or the file system raised while a log was in use. Out: a `DatataskError`
that names the file, the position as far as it is known, and the remedy; the original is its `__cause__`.
"""

from __future__ import annotations

import errno
import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from datatask.schema.errors import (
    DatataskError,
    InternalError,
    LogDamagedError,
    LogError,
    TemporaryError,
    TimeLimitError,
    UnknownNameError,
)
from datatask.schema.troubles import trouble

_RESTORE = "restore it from a backup; what can still be read comes out with `sqlite3 FILE .recover`"

_DAMAGED = {
    sqlite3.SQLITE_CORRUPT: "the file is damaged",
    sqlite3.SQLITE_NOTADB: "the file is not a log (not an SQLite database)",
    sqlite3.SQLITE_FORMAT: "the file is damaged",
    sqlite3.SQLITE_ERROR: "the file is not a log, or damaged",
    sqlite3.SQLITE_MISMATCH: "the file is damaged",
}
_UNUSABLE = {
    sqlite3.SQLITE_FULL: ("the disk is full", "free some space and start again; nothing durable was lost"),
    sqlite3.SQLITE_IOERR: ("the disk failed", "look at the system log, then start again"),
    sqlite3.SQLITE_READONLY: (
        "the file cannot be written",
        "check the permissions of the file and its folder",
    ),
    sqlite3.SQLITE_CANTOPEN: ("the file cannot be opened", "check that it exists and may be read"),
    sqlite3.SQLITE_PERM: ("the file cannot be opened", "check the permissions of the file and its folder"),
    sqlite3.SQLITE_AUTH: (
        "this statement may not be used on a log",
        "use SELECT on the log's own tables and views",
    ),
}
_OF_SYSTEM = {
    errno.ENOSPC: sqlite3.SQLITE_FULL,
    errno.EDQUOT: sqlite3.SQLITE_FULL,
    errno.EROFS: sqlite3.SQLITE_READONLY,
}
FULL_BYTES = 1 << 16
"""With less room than this, what SQLite calls an error of the disk is a full one: it maps files of 32 KB."""

_BUSY = {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}


def damaged(
    what: str, path: Path | str, position: int | None = None, remedy: str = _RESTORE
) -> LogDamagedError:
    """Return the error for a log that does not say what it said, at `position` where that is known."""
    where = str(path) if position is None else f"{path} position {position}"
    return LogDamagedError(what, where=where, remedy=remedy)


def archived(path: Path, base: int, what: str, position: int) -> UnknownNameError:
    """Return the error for what is asked of a part of the log that was moved into an archive."""
    return UnknownNameError(
        f"{what} is not here any more: events up to {base} were archived{_into(path, position)}",
        where=str(path),
        remedy="ask again with --with-archives",
    )


def _into(path: Path, position: int) -> str:
    """Return which archive holds a position, by the names of those that are here."""
    from datatask.adapters.log.locate import archives_path

    for file in archives_path(path).glob("*-*"):
        first, _, last = file.name.partition(".")[0].partition("-")
        if first.isdecimal() and last.isdecimal() and int(first) <= position <= int(last):
            return f", this part into {file.parent.name}/{file.name}"
    return ""


def _is_of_driver(error: BaseException) -> bool:
    """Whether SQLAlchemy wrapped the error; told by its module, so that readers need not load SQLAlchemy."""
    return type(error).__module__.startswith("sqlalchemy.")


def translate(error: BaseException, path: Path | str, position: int | None = None) -> DatataskError:
    """Return our error for one of SQLite's, SQLAlchemy's or the system's."""
    if isinstance(error, DatataskError):
        return error
    inner = getattr(error, "orig", None) or error if _is_of_driver(error) else error
    if isinstance(inner, OSError):
        where = str(inner.filename or path)
        if inner.errno in _OF_SYSTEM:
            what, remedy = _UNUSABLE[_OF_SYSTEM[inner.errno]]
            return LogError(f"{what} ({inner.strerror})", where=where, remedy=remedy)
        return LogError(f"{inner.strerror or inner}", where=where, remedy="see to the file system")
    if isinstance(inner, UnicodeDecodeError):
        return damaged("the file's schema is no text", path, position)
    if not isinstance(inner, sqlite3.Error):
        return trouble(inner, str(path)) or InternalError(
            f"{type(inner).__name__}: {inner}", where=str(path), remedy="please report it with the log"
        )
    code = getattr(inner, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF
    if code in _BUSY:
        return TemporaryError("the log is busy", where=str(path), remedy="try again")
    if code == sqlite3.SQLITE_INTERRUPT:
        return TimeLimitError(
            "the query took too long", where=str(path), remedy="allow more time, or ask for less"
        )
    if code in _UNUSABLE:
        if code == sqlite3.SQLITE_IOERR and _is_full(Path(path)):
            code = sqlite3.SQLITE_FULL
        if code == sqlite3.SQLITE_CANTOPEN and (short := _shortage()) is not None:
            return trouble(short, str(path)) or InternalError(str(short))
        what, remedy = _UNUSABLE[code]
        return LogError(f"{what} ({inner})", where=str(path), remedy=remedy)
    return damaged(f"{_DAMAGED.get(code, 'the file cannot be used')} ({inner})", path, position)


def _shortage() -> OSError | None:
    """Return why nothing at all can be opened just now, None where it can: SQLite does not tell the two apart."""
    try:
        os.close(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))
    except OSError as error:
        return OSError(error.errno, error.strerror)
    return None


def _is_full(path: Path) -> bool:
    """Whether the disk that holds a file has no room left."""
    try:
        disk = os.statvfs(path.parent)
    except OSError:
        return False
    return disk.f_bavail * disk.f_frsize < FULL_BYTES


@contextmanager
def mapped(path: Path | str, position: int | None = None) -> Iterator[None]:
    """Run a block in which foreign errors become ours."""
    try:
        yield
    except (sqlite3.Error, OSError, UnicodeDecodeError) as error:
        raise translate(error, path, position) from error
    except Exception as error:
        if not _is_of_driver(error):
            raise
        raise translate(error, path, position) from error
