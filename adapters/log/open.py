"""How a log comes into being, and what is checked when an engine opens one: blocking, and under the lease.

In: a path and who opens. Out: the connection that will write, and the head it will write behind. A new log is
built under another name and moved into place, so that it is there whole or not at all. An old one is looked
at before an event of it changes: format, pipeline, length of the file, and the chain of its last batch. The
whole chain is read by verify.py, on request.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, NamedTuple

from sqlalchemy import Connection, create_engine
from sqlalchemy.pool import StaticPool

from datatask.adapters.log.faults import damaged, mapped
from datatask.adapters.log.file_changes import refuse_hidden
from datatask.adapters.log.integrity.verify import verify_chain
from datatask.adapters.log.log_file import Header, check_may_write, parse_header
from datatask.adapters.log.queries import HEAD, META
from datatask.adapters.log.reader import LogReader
from datatask.adapters.log.tail import COLUMNS, STORED_AS, Tail
from datatask.adapters.spools import sync
from datatask.schema.codec import CHAIN_START
from datatask.schema.errors import LogError
from datatask.schema.events import LogCreated
from datatask.schema.tables import create_statements
from datatask.schema.version import APPLICATION_ID, FORMAT

Durability = Literal["full", "process"]

SQLITE_OLDEST = (3, 38, 0)
"""STRICT tables came with 3.37, `->` with 3.38."""

_WAL_PAGES = 4_000
_SYNCHRONOUS = {"full": "FULL", "process": "NORMAL"}


class Opener(NamedTuple):
    """Who opens a log, and when."""

    pipeline: str
    version: str
    host: str
    pid: int
    now: int


class Opened(NamedTuple):
    """A log ready for its writer."""

    connection: Connection
    header: Header
    head: int
    head_chain: bytes
    names: dict[str, int]


def create_log(path: Path, opener: Opener, uuid: str, salts: Iterator[int]) -> None:
    """Make a new log with `LogCreated` at position 1, whole or not at all."""
    fresh = path.with_name(path.name + ".new")
    _refuse_orphan(path)
    for leftover in (fresh, *(fresh.with_name(fresh.name + end) for end in ("-journal", "-wal", "-shm"))):
        leftover.unlink(missing_ok=True)
    # SQLite gives its other files the mode of this one.
    os.close(os.open(fresh, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600))
    event = LogCreated(at=opener.now, log=uuid, pipeline=opener.pipeline)
    batch = Tail(uuid, 0, CHAIN_START, {}, salts).prepare([event])
    with mapped(path):
        connection = sqlite3.connect(fresh, isolation_level=None)
        try:
            connection.execute("PRAGMA synchronous = FULL")
            connection.execute("BEGIN")
            for statement in create_statements():
                connection.execute(statement)
            connection.executemany(
                "INSERT INTO meta VALUES (?, ?)", _first_header(opener, uuid)._asdict().items()
            )
            connection.executemany("INSERT INTO names VALUES (?, ?)", batch.names)
            row = ", ".join("?" * COLUMNS)
            connection.execute(
                f"INSERT INTO log SELECT {', '.join(STORED_AS)} FROM (VALUES ({row}))", batch.values
            )
            connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            connection.execute("COMMIT")
            connection.execute("PRAGMA journal_mode = WAL")
        finally:
            connection.close()
        os.rename(fresh, path)
        sync(path.parent)


def open_log(path: Path, opener: Opener, durability: Durability) -> Opened:
    """Check an existing log, raise its epoch in the opener's name, and return it ready for writing."""
    if sqlite3.sqlite_version_info < SQLITE_OLDEST:
        raise LogError(
            f"SQLite {sqlite3.sqlite_version} is too old",
            remedy=f"use a Python whose sqlite3 has SQLite {'.'.join(map(str, SQLITE_OLDEST))} or newer",
        )
    # The reader stays for as long as may be refused: whoever is the last to close clears the write-ahead log away.
    with LogReader(path) as reader, mapped(path):
        check_may_write(reader.header, opener.pipeline, path)
        connection = _connect(path, durability)
        try:
            if durability == "full":
                refuse_hidden(lambda sql: connection.exec_driver_sql(sql).all(), path)
            reader.close()
            return _take_over(connection, path, opener)
        except BaseException:
            disconnect(connection)
            raise


def disconnect(connection: Connection) -> None:
    """Close the file: the connection, and the pool that would keep it open."""
    connection.close()
    connection.engine.dispose()


def driver(connection: Connection) -> sqlite3.Connection:
    """Return the connection beneath SQLAlchemy's."""
    found: Any = connection.connection.driver_connection
    assert isinstance(found, sqlite3.Connection)
    return found


def _take_over(connection: Connection, path: Path, opener: Opener) -> Opened:
    execute = connection.exec_driver_sql
    # Busy readers may keep it from finishing: then the length is looked at next time.
    busy, *_ = execute("PRAGMA wal_checkpoint(TRUNCATE)").one()
    if not busy:
        _check_length(connection, path)
    header = parse_header([tuple(row) for row in execute(META)], path)
    head, chain = _check_head(connection, path, header)
    # The driver's own cursor: there may be a million, and SQLAlchemy's would take four times as long.
    names: dict[str, int] = dict(driver(connection).execute("SELECT text, id FROM names"))
    if names and max(names.values()) != len(names):
        raise damaged("the table of names has gaps", path)
    taken = header._replace(epoch=header.epoch + 1, host=opener.host, pid=opener.pid, started=opener.now)
    execute("BEGIN IMMEDIATE")
    for key in ("epoch", "host", "pid", "started"):
        execute("UPDATE meta SET value = ? WHERE key = ?", (getattr(taken, key), key))
    execute("COMMIT")
    return Opened(connection, taken, head, chain, names)


def _check_length(connection: Connection, path: Path) -> None:
    execute = connection.exec_driver_sql
    expected = _number(execute("PRAGMA page_count").scalar()) * _number(execute("PRAGMA page_size").scalar())
    actual = path.stat().st_size
    if actual < expected:
        raise damaged(f"the file was cut: it has {actual:,} bytes and should have {expected:,}", path)


def _check_head(connection: Connection, path: Path, header: Header) -> tuple[int, bytes]:
    """Return the head and its chain hash after checking that the last batch is whole and unchanged."""
    execute = connection.exec_driver_sql
    head = execute(HEAD).scalar()
    if head is None:
        raise damaged("the log has no events, not even its first", path, 1)
    before = execute(
        "SELECT max(position) FROM log WHERE position < ? AND chain IS NOT NULL", (head,)
    ).scalar()
    with LogReader(path) as reader:
        broken = verify_chain(reader, after=header.base if before is None else _number(before))
        if broken is not None:
            raise damaged("the last batch is not what was written", path, broken)
        return _number(head), reader.chain_at(_number(head))


def _connect(path: Path, durability: Durability) -> Connection:
    def connect() -> sqlite3.Connection:
        return sqlite3.connect(path, isolation_level=None, check_same_thread=False, cached_statements=128)

    engine = create_engine(
        "sqlite+pysqlite://", creator=connect, poolclass=StaticPool, isolation_level="AUTOCOMMIT"
    )
    connection = engine.connect()
    for pragma in (
        "journal_mode = WAL",
        f"synchronous = {_SYNCHRONOUS[durability]}",
        "fullfsync = ON",
        "checkpoint_fullfsync = ON",
        f"wal_autocheckpoint = {_WAL_PAGES}",
        f"journal_size_limit = {_WAL_PAGES * 4096}",
    ):
        connection.exec_driver_sql(f"PRAGMA {pragma}")
    return connection


def _first_header(opener: Opener, uuid: str) -> Header:
    return Header(
        format=FORMAT,
        may_read=FORMAT,
        may_write=FORMAT,
        written_by=opener.version,
        uuid=uuid,
        pipeline=opener.pipeline,
        epoch=0,
        host=opener.host,
        pid=opener.pid,
        started=opener.now,
        base=0,
        base_chain=CHAIN_START,
    )


def _refuse_orphan(path: Path) -> None:
    """A write-ahead log without its log would be played into the new one."""
    orphan = path.with_name(path.name + "-wal")
    with suppress(FileNotFoundError):
        if orphan.stat().st_size:
            raise damaged(
                "the log is gone, but its write-ahead log is still there",
                orphan,
                remedy="put the log back beside it, or remove both to start anew",
            )
        orphan.unlink()
    path.with_name(path.name + "-shm").unlink(missing_ok=True)


def _number(value: Any) -> int:
    return int(value)
