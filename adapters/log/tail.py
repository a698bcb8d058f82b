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
from hashlib import sha256
from random import Random
from typing import Any, NamedTuple

import msgspec

from datatask.schema.codec import Row, chain_of, encode, envelope_of, payload_of
from datatask.schema.errors import CallerError, InvalidValueError
from datatask.schema.events import Event, PayloadRedacted

BATCH_EVENTS_MAX = 10_000
COLUMNS = 15
"""Columns of the `log` table: what `Prepared.values` has per row."""

STORED_AS = tuple(
    f"nullif(column{number}, {stand_in})" if stand_in else f"column{number}"
    for number, stand_in in enumerate(
        ("", "", "", "", "", "", "0", "0", "0", "0", "0", "''", "0", "''", "''"), 1
    )
)
"""SQL for each column of `Prepared.values`: none is None there (nor bool, nor bytes), because sqlite3 looks for an
adapter for every value of these types, which costs more than all the rest of the binding."""

_SALTS_DRAWN = 512
_LAUNCH = "LaunchDecided"
_salt_bytes = struct.Struct(">q").pack


class Removal(NamedTuple):
    """The event at position `by` says that the payload at `position` goes; `left` is the digest of what stays."""

    by: int
    position: int
    left: str


class Prepared(msgspec.Struct, frozen=True, gc=False):
    """A batch as it will be stored: `values` is flat, `COLUMNS` a row; `names` are the new ones.

    `removals` are what its `PayloadRedacted` tell of, to be done in the same transaction.
    """

    first: int
    last: int
    values: list[Any]
    names: list[tuple[int, str]]
    chain: bytes
    removals: tuple[Removal, ...] = ()


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
        raise InvalidValueError(
            f"a batch has 1 to {BATCH_EVENTS_MAX:,} events, this one has {len(events):,}",
            remedy="append larger operations as a sequence of batches",
        )


def removals_of(first: int, events: Sequence[Event]) -> tuple[Removal, ...]:
    """Return what these events, at positions from `first` on, say was removed."""
    return tuple(
        Removal(by, event.position, event.left)
        for by, event in enumerate(events, first)
        if isinstance(event, PayloadRedacted)
    )


def to_row(event: Event, position: int) -> Row:
    """Return the row of the event at this position: a launch decision is about the run that it makes."""
    try:
        row = encode(event)
    except (UnicodeEncodeError, TypeError, OverflowError) as error:
        raise _unstorable(event, error) from error
    return Row(*row[:9], position, row.payload) if row.kind == _LAUNCH and row.run is None else row


class Tail:
    """The next position, the chain so far, and the number of every name."""

    def __init__(
        self, log: str, head: int, head_chain: bytes, names: dict[str, int], salts: Iterator[int]
    ) -> None:
        self.log = log
        self.next = head + 1
        self._chain = head_chain
        self._salts = salts
        self._names: dict[str | None, int] = {None: 0}
        self._names.update(names)

    def prepare(self, events: Sequence[Event]) -> Prepared:
        """Give a batch its positions and all else it is stored with; on a `CallerError` nothing has changed.

        One pass from event to columns: what `to_row`, `payload_digest` and `chain` do one after another, and what
        the log in memory does with them, at two thirds of the price.
        """
        if not 1 <= len(events) <= BATCH_EVENTS_MAX:
            check_size(events)
        first = position = self.next
        names, salts = self._names, self._salts
        values: list[Any] = []
        body: list[tuple[Any, ...]] = []
        fresh: list[tuple[int, str]] = []
        try:
            for event in events:
                kind, version, essential, payload = payload_of(event)
                at, actor, cause, task, repository, job, run = envelope_of(event)
                if run is None and kind == _LAUNCH:
                    run = position
                if payload is None:
                    text, salt, digest = "", 0, ""
                else:
                    text, salt = payload.decode(), next(salts)
                    digest = sha256(_salt_bytes(salt) + payload).hexdigest()
                body.append((at, kind, version, essential, actor, cause, task, repository, job, run, digest))
                try:
                    numbers = names[kind], names[actor], names[task], names[repository], names[job]
                except KeyError:
                    self._number(fresh, kind, actor, task, repository, job)
                    numbers = names[kind], names[actor], names[task], names[repository], names[job]
                of_kind, of_actor, of_task, of_repository, of_job = numbers
                values += (
                    position, at, of_kind, version, int(essential), of_actor, cause or 0, of_task, of_repository,
                    of_job, run or 0, text, salt, "", "",
                )  # fmt: skip
                position += 1
            hashed = chain_of(self._chain, self.log, first, body)
            values[-1] = bytearray(hashed)
            # They are never mixed with other events, so that looking at the first one is enough.
            removals = removals_of(first, events) if type(events[0]) is PayloadRedacted else ()
            prepared = Prepared(first, position - 1, values, fresh, hashed, removals)
        except (UnicodeEncodeError, TypeError, OverflowError) as error:
            for _, name in fresh:
                names.pop(name, None)
            raise _unstorable(events[min(position - first, len(events) - 1)], error) from error
        self._chain, self.next = hashed, position
        return prepared

    def _number(self, fresh: list[tuple[int, str]], *of: str | None) -> None:
        """Number those of these names that are new, and add them to the fresh ones, each before it is known."""
        names = self._names
        for name in of:
            if name is not None and name not in names:
                # `None` is number 0, so the length is the next number.
                fresh.append((len(names), name))
                names[name] = fresh[-1][0]


def _unstorable(event: Event, error: Exception) -> CallerError:
    return InvalidValueError(
        f"a {type(event).__name__} cannot be stored: {error}",
        where=event.job or event.task or "",
        remedy="use text that is valid Unicode, and integers of at most 64 bits",
    )
