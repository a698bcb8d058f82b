"""The end of a log in memory: what the next batch stands on.

In: a batch of events. Out: a `Prepared` batch with its positions, its names interned and its chain hash, ready
to be inserted as it is. All of this happens on the caller's thread and touches no disk, so the writer thread
(writer.py) does nothing but SQL and hardly ever needs the interpreter's lock; and what cannot be stored is
refused here, before a position is given away.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator, Sequence
from random import Random
from typing import Any, NamedTuple

from datatask.schema.codec import Row, chain, encode, payload_digest
from datatask.schema.errors import CallerError
from datatask.schema.events import Event

BATCH_EVENTS_MAX = 10_000
COLUMNS = 15
"""Columns of the `log` table: what `Prepared.values` has per row."""

_SALTS_DRAWN = 512
_LAUNCH = "LaunchDecided"


class Prepared(NamedTuple):
    """A batch as it will be stored: `values` is flat, `COLUMNS` a row; `names` are the new ones."""

    first: int
    last: int
    values: list[Any]
    names: list[tuple[int, str]]
    chain: bytes


def system_salts() -> Iterator[int]:
    """Yield signed 64-bit salts from the system's randomness, drawn in blocks."""
    while True:
        yield from struct.unpack(f"{_SALTS_DRAWN}q", os.urandom(8 * _SALTS_DRAWN))


def seeded_salts(seed: int) -> Iterator[int]:
    """Yield the salts of a seed: the same for ever. For tests and simulation; they hide nothing."""
    random = Random(seed)
    while True:
        yield random.getrandbits(64) - (1 << 63)


def check_size(events: Sequence[Event]) -> None:
    """Raise `CallerError` unless these are 1 to 10,000 events."""
    if not 1 <= len(events) <= BATCH_EVENTS_MAX:
        raise CallerError(
            f"a batch has 1 to {BATCH_EVENTS_MAX:,} events, this one has {len(events):,}",
            remedy="append larger operations as a sequence of batches",
        )


def to_row(event: Event, position: int) -> Row:
    """Return the row of the event at this position: a launch decision is about the run that it makes."""
    try:
        row = encode(event)
    except (UnicodeEncodeError, TypeError, OverflowError) as error:
        raise _unstorable(event, error) from error
    return row._replace(run=position) if row.kind == _LAUNCH and row.run is None else row


class Tail:
    """The next position, the chain so far, and the number of every name."""

    def __init__(
        self, log: str, head: int, head_chain: bytes, names: dict[str, int], salts: Iterator[int]
    ) -> None:
        self.log = log
        self.next = head + 1
        self._chain = head_chain
        self._salts = salts
        self._names: dict[str | None, int | None] = {None: None}
        self._names.update(names)

    def prepare(self, events: Sequence[Event]) -> Prepared:
        """Give a batch its positions and all else it is stored with; on any error nothing has changed."""
        check_size(events)
        first = self.next
        rows = [to_row(event, position) for position, event in enumerate(events, first)]
        salts = [None if row.payload is None else next(self._salts) for row in rows]
        digests = [payload_digest(row.payload, salt) for row, salt in zip(rows, salts, strict=True)]
        try:
            hashed = chain(self._chain, self.log, first, rows, digests)
        except UnicodeEncodeError as error:
            raise _unstorable(events[0], error) from error
        fresh: list[tuple[int, str]] = []
        values: list[Any] = []
        position = first
        for row, salt in zip(rows, salts, strict=True):
            values += self._columns(position, row, salt, fresh)
            position += 1
        values[-1] = hashed
        self._chain, self.next = hashed, position
        return Prepared(first, position - 1, values, fresh, hashed)

    def _columns(
        self, position: int, row: Row, salt: int | None, fresh: list[tuple[int, str]]
    ) -> tuple[Any, ...]:
        at, kind, version, essential, actor, cause, task, repository, job, run, payload = row
        text = None if payload is None else payload.decode()
        names = self._names
        try:
            return (
                *(position, at, names[kind], version, essential, names[actor], cause, names[task]),
                *(names[repository], names[job], run, text, salt, None, None),
            )
        except KeyError:
            for name in (kind, actor, task, repository, job):
                if name not in names and name is not None:
                    # `None` takes the place of number 0, so the length is the next number.
                    number = len(names)
                    names[name] = number
                    fresh.append((number, name))
            return self._columns(position, row, salt, fresh)


def _unstorable(event: Event, error: Exception) -> CallerError:
    return CallerError(
        f"a {type(event).__name__} cannot be stored: {error}",
        where=event.job or event.task or "",
        remedy="use text that is valid Unicode, and integers of at most 64 bits",
    )
