"""One payload taken out of its row, within whoever's transaction: what stays, and the digest that the chain needs.

In: a function that executes SQL, and a `Removal`. Out: the row with `left_of` its event in place of the payload, and
the payload's salted digest; the salt goes, so that nobody can try out what the payload was.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from datatask.adapters.log.faults import damaged
from datatask.adapters.log.integrity.verify import left_digest
from datatask.adapters.log.tail import Removal
from datatask.engine.core.redaction import left_of
from datatask.schema.codec import Row, decode, encode, payload_digest
from datatask.schema.errors import NotPossibleError, UnknownNameError
from datatask.schema.events import Event

Execute = Callable[[str, tuple[Any, ...]], Any]

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


def remove_payload(execute: Execute, removal: Removal, path: Path) -> None:
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
