"""Events read one by one that are what the log's chain says: what runs read goes through here.

In: positions. Out: their events, or `LogDamagedError` that names the position. The chain is made of whole batches, so
the first event that is asked for of a batch has the batch hashed again; of the other rows a mark is kept, by which a
row that is read later is known to be the one that was hashed. Rows that were carried over a cut are covered by the
`ArchiveCut` instead (cutting.py). Blocking, and safe from any thread.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence

from datatask.adapters.log.base import base_fits
from datatask.adapters.log.faults import damaged
from datatask.adapters.log.pages import Query
from datatask.adapters.log.reader import LogReader
from datatask.adapters.log.verify import Chain, begun, page
from datatask.schema.events import Event

MARKS_MAX = 100_000
_BEFORE = "SELECT max(position) FROM log WHERE position < ? AND chain IS NOT NULL"
_REMEDY = "see `datatask verify`; restore the log from a backup"


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
