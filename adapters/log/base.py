"""What a log stands on where its beginning was archived: the state at the cut, and the rows that were carried over it.

In: a reader. Out: the digests by which `ArchiveCut` tells of them, and whether they still fit.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence

import msgspec

from datatask.adapters.log.faults import damaged
from datatask.adapters.log.pages import Stored
from datatask.adapters.log.reader import LogReader
from datatask.engine.ports import Filters
from datatask.schema.codec import payload_digest
from datatask.schema.errors import DatataskError
from datatask.schema.events import ArchiveCut

NAMED = (2, 5, 7, 8, 9)
"""Where names stand in a row."""

UNFIT = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError)
"""What values raise that nobody writes."""


def base_digest(body: bytes, carried: bytes) -> str:
    """Return what `ArchiveCut.state` says of a base: the SHA-256, in hex, of its state and of its carried rows."""
    return hashlib.sha256(hashlib.sha256(body).digest() + carried).hexdigest()


def base_fits(reader: LogReader) -> bool:
    """Whether the base and the rows carried with it are what the `ArchiveCut` says; also where there is none."""
    base = reader.header.base
    if not base:
        return True
    told = [event for _, event in reader.read(filters=Filters(kinds=("ArchiveCut",)))]
    states = {event.state for event in told if isinstance(event, ArchiveCut) and event.until == base}
    try:
        return states == {base_digest(reader.base_stored()[1], carried_digest(reader, base))}
    except (DatataskError, *UNFIT):
        return False


def carried_digest(reader: LogReader, until: int, positions: Sequence[int] | None = None) -> bytes:
    """Return the SHA-256 of the carried rows: each a JSON array as in the preimage of the chain, its position first."""
    digest = hashlib.sha256()
    kept = None if positions is None else frozenset(positions)
    for row in named_rows(reader, 0, until):
        if kept is None or row[0] in kept:
            *plain, payload, salt, hashed, _ = row
            encoded = None if payload is None else payload.encode()
            told = hashed.hex() if hashed else payload_digest(encoded, salt)
            digest.update(msgspec.json.encode([*plain, told]))
    return digest.digest()


def named_rows(reader: LogReader, after: int, until: int) -> Iterator[Stored]:
    """Yield the stored rows behind `after` with their names as text."""
    while after < until and (rows := reader.stored(after, until)):
        names = reader.decoder.names
        for row in rows:
            named = list(row)
            try:
                for column in NAMED:
                    named[column] = names[row[column]]
            except KeyError as error:
                raise damaged(f"name {error} is missing", reader.path, row[0]) from None
            yield tuple(named)
        after = rows[-1][0]
