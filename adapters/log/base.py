"""Rows that are checked before they are used: events read one by one, and what an archive left of the log's beginning.

In: positions, or a reader. Out: their events, or `LogDamagedError` that names the position; the digests by which `ArchiveCut`
tells of the base. The chain is made of whole batches, so the first event that is asked for of a batch has the batch hashed
again; of the other rows a mark is kept, by which a row that is read later is known to be the one that was hashed. Rows
that were carried over a cut are covered by the `ArchiveCut` instead. Blocking, and safe from any thread.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator, Sequence

import msgspec

from datatask.adapters.log.faults import damaged
from datatask.adapters.log.integrity.verify import Chain, begun, page
from datatask.adapters.log.queries import Query, Stored
from datatask.adapters.log.reader import LogReader
from datatask.engine.ports import Filters
from datatask.schema.codec import payload_digest
from datatask.schema.errors import DatataskError
from datatask.schema.events import ArchiveCut, Event

MARKS_MAX = 100_000
_BEFORE = "SELECT max(position) FROM log WHERE position < ? AND chain IS NOT NULL"
_REMEDY = "see `datatask verify`; restore the log from a backup"


NAMED = (2, 5, 7, 8, 9)
"""Where names stand in a row."""
UNFIT = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError)
"""What values raise that nobody writes."""


class CheckedReader:
    """Fetches events of one log, and believes none that its batch does not vouch for."""

    def __init__(self, reader: LogReader) -> None:
        """Take a reader, which stays the caller's to close."""
        self._reader = reader
        self._lock = threading.Lock()
        self._marks: dict[int, int] = {}
        self._base = 0

    def fetch(self, positions: Sequence[int]) -> list[Event]:
        """Return the events at these positions, in the order asked; `UnknownNameError` for a missing one."""
        wanted = sorted(set(positions))
        with self._lock:
            for last_try in (False, True):
                rows = self._reader.stored_at(wanted)
                if all(self._fits(row[0], hash(row)) for row in rows) or last_try:
                    break
                # A row that is another one than a moment ago: redacted meanwhile, which its batch will tell.
                self._marks.clear()
            return self._reader.decoder.in_order(rows, positions)

    def _fits(self, position: int, mark: int) -> bool:
        known = self._marks.get(position)
        if known is None:
            self._check(position, mark)
            known = self._marks[position]
        return known == mark

    def _check(self, position: int, mark: int) -> None:
        if len(self._marks) > MARKS_MAX:
            self._marks.clear()
        base = self._reader.header.base
        if position > base:
            self._check_batch(position, base)
            return
        if self._base != base and not base_fits(self._reader):
            what = "the values that were carried over the cut are not those that were stored there"
            raise damaged(what, self._reader.path, position, _REMEDY)
        self._base, self._marks[position] = base, mark

    def _check_batch(self, position: int, base: int) -> None:
        reader = self._reader
        ((before,),) = reader.ask(Query(_BEFORE, (position,)))
        end = reader.end_of_batch(position)
        chain = begun(reader, max(before or 0, base))
        chain.learned = False  # the names of a batch are few, those of the log may be a million
        while chain.position < end and (rows := page(reader, chain, end)):
            self._marks.update((row[0], hash(row)) for row in rows)
        self._refuse(chain, position, end)

    def _refuse(self, chain: Chain, position: int, end: int) -> None:
        faults = chain.finish(end)
        if faults or position not in self._marks:
            self._marks.clear()
            told = str(faults[0]) if faults else "it is not there any more"
            raise damaged(
                f"the event is not the one that was written ({told})", self._reader.path, position, _REMEDY
            )


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
