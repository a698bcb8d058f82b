"""What a log says for the states beside it: nothing that lies there is believed for its own checksum's sake.

In: a reader. Out: `Vouch`. For an engine's checkpoint an event stands in the log, with the SHA-256 of its bytes, and is checked
against the chain. Readers append nothing: what they leave bears a code (HMAC) over position, hash of the chain and
bytes, made with a key that only the log has: the salt of its first event. A user who can read the log can make that code;
`verify` therefore compares each such state with the one that it folds itself.
"""

from __future__ import annotations

import hashlib
import hmac

from datatask.adapters.log.checked import CheckedReader
from datatask.adapters.log.checkpoints import Found, Vouch
from datatask.adapters.log.pages import Query
from datatask.adapters.log.reader import LogReader
from datatask.schema.errors import DatataskError
from datatask.schema.events import CheckpointWritten

_FIRST_SALT = "SELECT salt FROM log WHERE position = 1"


def vouching(reader: LogReader) -> Vouch:
    """Return what says whether this log vouches for a state in a file."""
    checked = CheckedReader(reader)

    def vouch(found: Found, body: bytes, mac: str) -> bool:
        if found.event:
            event = _told(checked, found)
            return event is not None and event.sha256 == hashlib.sha256(body).hexdigest()
        return bool(mac) and hmac.compare_digest(mac, code(reader, found.position, found.fold_version, body))

    return vouch


def code(reader: LogReader, position: int, fold_version: int, body: bytes) -> str:
    """Return the code of a state that a reader keeps; empty where the log has no key or no such boundary."""
    try:
        salts = reader.ask(Query(_FIRST_SALT, ()))
        chain = reader.chain_at(position)
    except DatataskError:
        return ""
    if not salts or not isinstance(salts[0][0], int):
        return ""
    key = hashlib.sha256(f"{reader.uuid} {salts[0][0]}".encode()).digest()
    text = f"{position} {fold_version} {chain.hex()} {hashlib.sha256(body).hexdigest()}"
    return hmac.new(key, text.encode(), "sha256").hexdigest()


def told_by(reader: LogReader, found: Found) -> CheckpointWritten | None:
    """Return the event that is named for a state, as the chain has it; None where it is not about this state."""
    return _told(CheckedReader(reader), found) if found.event else None


def _told(checked: CheckedReader, found: Found) -> CheckpointWritten | None:
    try:
        (event,) = checked.fetch([found.event])
    except DatataskError:
        return None
    if not isinstance(event, CheckpointWritten):
        return None
    return event if (event.position, event.fold_version) == (found.position, found.fold_version) else None
