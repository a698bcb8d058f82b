"""The beginning of a log moves into an archive, and what follows stands on a state.

In: a log that no engine has, and the state at the batch boundary where it is cut. Out: an archive beside it, and a log
whose first row follows on that state, its *base*. The archive is written, made durable and read again first; then one
transaction stores the base, says so in the log (`ArchiveCut`), and removes the rows. Rows that are still asked for
are carried: the values of present members, the launches of open runs, intents, the definition in force. What stands
behind is chained as before; the base is chained by the digest in `ArchiveCut`.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

import msgspec

from datatask.adapters.log.archives import (
    COLUMNS,
    FORMAT,
    SUFFIX,
    Head,
    archive_digest,
    check_archive,
    write_archive,
)
from datatask.adapters.log.checkpoints import checkpoints_in
from datatask.adapters.log.faults import mapped
from datatask.adapters.log.holder import take_lease
from datatask.adapters.log.locate import archives_path, checkpoints_path
from datatask.adapters.log.pages import Stored
from datatask.adapters.log.reader import LogReader
from datatask.adapters.log.tail import COLUMNS as TAIL_COLUMNS
from datatask.adapters.log.tail import STORED_AS, Tail, system_salts
from datatask.engine.core import checkpoints
from datatask.engine.core.state import FOLD_VERSION, State
from datatask.schema.errors import CallerError, LogDamagedError
from datatask.schema.events import ArchiveCut

_NAMED = (2, 5, 7, 8, 9)
_BUSY_SECONDS = 5.0


class Cut(NamedTuple):
    """What was moved: `events` up to `until` into `archive`; `carried` of their rows stayed. Sizes are of the file."""

    until: int
    events: int
    carried: int
    archive: Path
    size_before: int
    size_after: int


class Who(NamedTuple):
    """Who cuts, why, when (UTC nanoseconds), and with which version."""

    actor: str
    reason: str
    now: int
    version: str


def plan_cut(reader: LogReader, state: State) -> Cut:
    """Return what a cut at this state would move; `CallerError` where there is nothing to move."""
    base = reader.header.base
    if state.position <= base:
        raise CallerError(
            "there is nothing before this point that is not archived",
            where=f"{reader.path} position {state.position}",
            remedy=f"name a later point: the log begins behind position {base}",
        )
    size = reader.path.stat().st_size
    archive = archives_path(reader.path) / f"{base + 1}-{state.position}{SUFFIX}"
    return Cut(state.position, state.position - base, len(carried_positions(state)), archive, size, size)


def cut(path: Path, state: State, who: Who, step: Callable[[str], None] = lambda name: None) -> Cut:
    """Archive everything up to the state's position, under the lease; `step` hears of each step that is done.

    `LeaseHeldError` names an engine that has the log. Interrupted anywhere, the log is as it was or as it will be, and
    the same call again completes it.
    """
    lease = take_lease(path)
    try:
        with LogReader(path) as reader:
            plan = plan_cut(reader, state)
            archive = _archived(reader, plan, who, step)
            kept = carried_positions(state)
            body = checkpoints.dump(state)
            carried = carried_digest(reader, plan.until, kept)
            after = reader.chain_at(plan.until)
            event = ArchiveCut(
                at=max(who.now, _last_at(reader)),
                actor=who.actor,
                until=plan.until,
                archive=archive.name,
                digest=archive_digest(archive),
                state=base_digest(body, carried),
                reason=who.reason,
            )
        _transact(path, plan.until, kept, body, carried, after, event, step)
        _tidy(path, plan.until)
        step("tidied")
        return plan._replace(archive=archive, carried=len(kept), size_after=path.stat().st_size)
    finally:
        lease.release()


def carried_positions(state: State) -> list[int]:
    """Return the positions that are still asked for at this state, in order."""
    found = {1, state.defined_at, *state.open_runs}
    for leaf in state.leaves.values():
        positions = leaf.positions
        found.update(
            position
            for job in leaf.members(state.masks)
            if job < len(positions) and (position := positions[job]) > 0
        )
    found.update(intent.position for intent in state.intents.values())
    for run in state.open_runs.values():
        found.update(position for position in run.inputs.values() if position)
        found.update(intent.position for intent in run.intents.values())
    return sorted(position for position in found if 0 < position <= state.position)


def base_digest(body: bytes, carried: bytes) -> str:
    """Return what `ArchiveCut.state` says of a base: the SHA-256, in hex, of its state and of its carried rows."""
    return hashlib.sha256(hashlib.sha256(body).digest() + carried).hexdigest()


def carried_digest(reader: LogReader, until: int, positions: Sequence[int] | None = None) -> bytes:
    """Return the SHA-256 of the carried rows: each a JSON array with names as text, without its chain."""
    digest = hashlib.sha256()
    kept = None if positions is None else frozenset(positions)
    for row in named_rows(reader, 0, until):
        if kept is None or row[0] in kept:
            *plain, hashed, _ = row
            digest.update(msgspec.json.encode([*plain, hashed and hashed.hex()]))
    return digest.digest()


def named_rows(reader: LogReader, after: int, until: int) -> Iterator[Stored]:
    """Yield the stored rows behind `after` with their names as text."""
    while after < until and (rows := reader.stored(after, until)):
        names = reader.decoder.names
        for row in rows:
            named = list(row)
            for column in _NAMED:
                named[column] = names[row[column]]
            yield tuple(named)
        after = rows[-1][0]


def _archived(reader: LogReader, plan: Cut, who: Who, step: Callable[[str], None]) -> Path:
    """Return the archive, checked: one that an interrupted cut left, or a new one."""
    header, after = reader.header, reader.chain_at(plan.until)
    head = Head(
        archive=FORMAT,
        log=header.uuid,
        pipeline=header.pipeline,
        first=header.base + 1,
        last=plan.until,
        chain_before=header.base_chain.hex(),
        chain_after=after.hex(),
        columns=COLUMNS,
        written_by=who.version,
    )
    if plan.archive.exists():
        try:
            if check_archive(plan.archive) == head:
                return plan.archive
        except LogDamagedError:
            pass  # left by a cut that did not get here
    path = write_archive(plan.archive.parent, head, named_rows(reader, header.base, plan.until))
    step("written")
    check_archive(path)
    step("checked")
    return path


def _last_at(reader: LogReader) -> int:
    ((at,),) = reader.query("SELECT max(at) FROM log WHERE position = (SELECT max(position) FROM log)").rows
    return int(at)


def _transact(
    path: Path,
    until: int,
    kept: Sequence[int],
    body: bytes,
    carried: bytes,
    after: bytes,
    event: ArchiveCut,
    step: Callable[[str], None],
) -> None:
    with (
        mapped(path),
        closing(sqlite3.connect(path, isolation_level=None, timeout=_BUSY_SECONDS)) as connection,
    ):
        execute = connection.execute
        execute("PRAGMA synchronous = FULL")
        execute("BEGIN IMMEDIATE")
        ((uuid,),) = execute("SELECT value FROM meta WHERE key = 'uuid'").fetchall()
        head, head_chain = execute(
            "SELECT position, chain FROM log ORDER BY position DESC LIMIT 1"
        ).fetchone()
        names = {text: number for number, text in execute("SELECT id, text FROM names")}
        batch = Tail(uuid, head, head_chain if head > until else after, names, system_salts()).prepare(
            [event]
        )
        execute("CREATE TEMP TABLE kept (position INTEGER PRIMARY KEY)")
        execute("INSERT INTO kept SELECT value FROM json_each(?)", (json.dumps(list(kept)),))
        execute(
            "DELETE FROM log WHERE position <= ? AND position NOT IN (SELECT position FROM kept)", (until,)
        )
        execute("UPDATE log SET chain = NULL WHERE position <= ?", (until,))
        execute("DELETE FROM base")
        execute("INSERT INTO base VALUES (?, ?, ?, ?)", (until, FOLD_VERSION, body, carried))
        for key, value in (("base", until), ("base_chain", after)):
            execute("UPDATE meta SET value = ? WHERE key = ?", (value, key))
        connection.executemany("INSERT INTO names VALUES (?, ?)", batch.names)
        row = ", ".join("?" * TAIL_COLUMNS)
        execute(f"INSERT INTO log SELECT {', '.join(STORED_AS)} FROM (VALUES ({row}))", batch.values)
        step("in the transaction")
        execute("COMMIT")
        step("committed")


def _tidy(path: Path, until: int) -> None:
    """Give the space back, where no reader is in the way, and remove what stood on rows that are gone."""
    for found in checkpoints_in(checkpoints_path(path)):
        if found.position < until:
            found.path.unlink(missing_ok=True)
    with (
        mapped(path),
        closing(sqlite3.connect(path, isolation_level=None, timeout=_BUSY_SECONDS)) as connection,
    ):
        try:
            connection.execute("VACUUM")
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        except sqlite3.OperationalError:
            return  # a reader holds a snapshot: the pages are used again by what comes
