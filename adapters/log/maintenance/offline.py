"""Events appended to a log without an engine, for maintenance (`redact`, `log-compact`), and the removal of a payload.

In: a path. Out: a `Caretaker` that holds the lease within its `with`. It opens no epoch and launches nothing; it checks what an
engine checks before it writes, and appends whole batches. `remove_payload` replaces a payload by `left_of` its event
and a salted digest; the salt is removed, so that guesses of the payload cannot be tested.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from datatask.adapters.log.faults import damaged, mapped
from datatask.adapters.log.file_changes import refuse_hidden
from datatask.adapters.log.integrity.verify import left_digest, verify_chain
from datatask.adapters.log.lease import Lease, Patience, take_lease
from datatask.adapters.log.locate import refuse_network
from datatask.adapters.log.log_file import check_may_write
from datatask.adapters.log.private import guard
from datatask.adapters.log.reader import LogReader
from datatask.adapters.log.tail import COLUMNS, STORED_AS, Removal, Tail, system_salts
from datatask.adapters.spools import sync
from datatask.engine.core.redaction import left_of
from datatask.schema.codec import Row, decode, encode, payload_digest
from datatask.schema.errors import LeaseHeldError, NotPossibleError, UnknownNameError
from datatask.schema.events import Event

_INSERT = f"INSERT INTO log SELECT {', '.join(STORED_AS)} FROM (VALUES ({', '.join('?' * COLUMNS)}))"
_LAST_TIME = "SELECT at FROM log ORDER BY position DESC LIMIT 1"

Announce = Callable[[str], None]
"""Hears the name of each step that was done: tests kill the process there."""
Execute = Callable[..., Any]
"""`execute` of a connection that is in a transaction."""


class Caretaker:
    """A log under our lease; made by `caretaking`."""

    def __init__(self, path: Path, connection: sqlite3.Connection, tail: Tail, at: int) -> None:
        self.path = path
        self._connection = connection
        self._tail = tail
        self._at = at

    @property
    def next(self) -> int:
        """The position that the next event will get."""
        return self._tail.next

    def now(self, wall: int) -> int:
        """Return engine time: the wall clock, never before the last event."""
        self._at = max(self._at, wall)
        return self._at

    def append(
        self,
        events: Sequence[Event],
        step: Announce = lambda _: None,
        also: Callable[[Execute], None] | None = None,
    ) -> range:
        """Append one batch, durably, and take out the payloads that its `PayloadRedacted` tell of.

        `also` is done in the same transaction, before.
        """
        batch = self._tail.prepare(events)
        execute = self._connection.execute
        with mapped(self.path, batch.first):
            execute("BEGIN IMMEDIATE")
            try:
                if also is not None:
                    also(execute)
                self._connection.executemany("INSERT INTO names VALUES (?, ?)", batch.names)
                for start in range(0, len(batch.values), COLUMNS):
                    execute(_INSERT, batch.values[start : start + COLUMNS])
                for removal in batch.removals:
                    remove_payload(execute, removal, self.path)
                step("written")
                execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:
                    execute("ROLLBACK")
                raise
        step("committed")
        return range(batch.first, batch.last + 1)

    def empty_wal(self) -> bool:
        """Bring the write-ahead log into the file and cut it to nothing; return whether no reader was in the way."""
        return empty_wal(self._connection, self.path)

    def vacuum(self) -> int:
        """Give back the file's free pages; return how many bytes. Killed meanwhile, the file is as it was."""
        with mapped(self.path):
            (free,) = self._connection.execute("PRAGMA freelist_count").fetchone()
            if not free:
                return 0
            before = self.path.stat().st_size
            self._connection.execute("VACUUM")
            self.empty_wal()
            return max(0, before - self.path.stat().st_size)


@contextmanager
def caretaking(path: Path) -> Iterator[Caretaker]:
    """Take the lease and open the log, once no command has it; `LeaseHeldError` where an engine has it, `LogDamagedError` where
    its end is damaged.
    """
    refuse_network(path.parent)
    with LogReader(path):
        pass  # no log: told before anything is made beside it
    with mapped(path):
        guard(path)
    lease = _lease(path)
    try:
        # The reader goes last where it is refused: whoever is the last to close clears the write-ahead log away.
        with (
            LogReader(path) as reader,
            mapped(path),
            closing(sqlite3.connect(path, isolation_level=None)) as connection,
        ):
            for pragma in (
                "journal_mode = WAL",
                "synchronous = FULL",
                "fullfsync = ON",
                "secure_delete = ON",
            ):
                connection.execute(f"PRAGMA {pragma}")
            _ = reader.head
            refuse_hidden(connection.execute, path)
            reader.close()
            yield Caretaker(path, connection, *_end(path, connection))
        sync(path.parent)
    finally:
        lease.release()


def _lease(path: Path) -> Lease:
    patience = Patience(path)
    while True:
        try:
            return take_lease(path, brief=True)
        except LeaseHeldError as error:
            pause = patience.pause(error)
        time.sleep(pause)


def _end(path: Path, connection: sqlite3.Connection) -> tuple[Tail, int]:
    """Return what the next batch stands on, and the last time, after checking that the last batch is whole."""
    with LogReader(path) as reader:
        header, head = reader.header, reader.head
        check_may_write(header, header.pipeline, path)
        ((before,),) = reader.query(
            "SELECT max(position) FROM log WHERE position < ? AND chain IS NOT NULL", (head,)
        ).rows
        broken = verify_chain(reader, after=max(header.base, before or 0)) if head else 1
        if broken is not None:
            raise damaged("the last batch is not what was written", path, broken)
        chain = reader.chain_at(head)
    names: dict[str, int] = {
        text: number for number, text in connection.execute("SELECT id, text FROM names")
    }
    if names and max(names.values()) != len(names):
        raise damaged("the table of names has gaps", path)
    (at,) = connection.execute(_LAST_TIME).fetchone()
    return Tail(header.uuid, head, chain, names, system_salts()), at


def empty_wal(connection: sqlite3.Connection, path: Path) -> bool:
    """Bring the write-ahead log into the file and cut it to nothing; return whether no other connection prevented it."""
    with mapped(path):
        busy, *_ = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        return not busy


ROW = (
    "SELECT at, kind, version, essential, actor, cause, task, repository, job, run, payload, salt, digest"
    " FROM events WHERE position = ?"
)
_REMOVE = "UPDATE log SET payload = ?, salt = NULL, digest = ? WHERE position = ?"
_BASE = "SELECT value FROM meta WHERE key = 'base'"


def event_of(row: Sequence[Any], position: int, path: Path) -> Event:
    """Return the event of a row of the view `events`, as `left_of` takes it."""
    payload = None if row[10] is None else row[10].encode()
    stored = Row._make([*row[:3], bool(row[3]), *row[4:10], payload])
    return decode(stored, where=f"{path} position {position}")


def remove_payload(execute: Callable[..., Any], removal: Removal, path: Path) -> None:
    """Take a payload out of its row; nothing where that was done before. `CallerError` where it may not be.

    A row that was archived is not here: whoever announces that its payload goes takes it out of the archive.
    """
    row = execute(ROW, (removal.position,)).fetchone()
    if row is None and removal.position <= execute(_BASE, ()).fetchone()[0]:
        return
    if row is None:
        raise UnknownNameError(f"there is no event at position {removal.position}", where=str(path))
    payload, salt, digest = row[10:13]
    if digest is None:
        left = encode(left_of(event_of(row, removal.position, path), removal.position, removal.by)).payload
        stays = None if left is None else left.decode()
        hashed = bytes.fromhex(payload_digest(None if payload is None else payload.encode(), salt))
        if not hashed:
            raise NotPossibleError("this event has no payload", where=f"position {removal.position}")
        execute(_REMOVE, (stays, hashed, removal.position))
        payload = stays
    if left_digest(payload) != removal.left:
        raise damaged("what is left of a payload is not what was announced", path, removal.position)
