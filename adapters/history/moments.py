"""Points in time as people write them: a position, an ISO time, or an age such as `-2h`.

In come their words, out go positions and engine times; the way back is in `schema.units`.
"""

from __future__ import annotations

import datetime as dt
import re
from typing import TYPE_CHECKING, NamedTuple

from datatask.adapters.log.faults import archived
from datatask.schema.errors import CallerError, InvalidValueError
from datatask.schema.units import UNIT_SECONDS, iso, nanoseconds

if TYPE_CHECKING:
    from datatask.adapters.log.reader import LogReader

_AGE = re.compile(r"-(\d+(?:\.\d+)?)\s*(ms|s|m|h|d|w)", re.ASCII)
_POSITION_MAX = 2**62


class When(NamedTuple):
    """A position, or a time in UTC nanoseconds: exactly one of the two."""

    position: int | None = None
    at: int | None = None

    @property
    def last_at(self) -> int | None:
        """The last nanosecond that is meant, as times are shown and written to the microsecond."""
        return None if self.at is None else self.at + 999


def parse_when(text: str, now: int) -> When:
    """Return what `text` says; times without a zone are UTC. `now` is UTC nanoseconds."""
    if text.isascii() and text.isdigit():
        position = int(text)
        if position > _POSITION_MAX:
            raise _wrong(text)
        return When(position=position)
    age = _AGE.fullmatch(text)
    if age is not None:
        return When(at=max(0, now - int(float(age[1]) * UNIT_SECONDS[age[2]] * 1e9)))
    try:
        time = dt.datetime.fromisoformat(text)
    except ValueError:
        raise _wrong(text) from None
    aware = time if time.tzinfo is not None else time.replace(tzinfo=dt.UTC)
    return When(at=nanoseconds(aware))


def position_of(reader: LogReader, when: When | None) -> int:
    """Return the batch boundary that `when` means: the one that ends the batch, or the last one before a time."""
    head, base = reader.head, reader.header.base
    if when is None:
        return head
    if when.position is not None:
        if when.position > head:
            raise InvalidValueError(
                f"position {when.position} is beyond the head, {head}",
                where=reader.url,
                remedy="name a position that the log has",
            )
        if when.position < base:
            what = f"the state at position {when.position}"
            raise archived(reader.path, base, what, max(when.position, 1))
        return when.position if when.position in (0, base) else reader.end_of_batch(when.position)
    assert when.last_at is not None
    last = last_before(reader, when.last_at, head)
    if last < base:
        raise archived(reader.path, base, f"the state at {iso(when.at)}", last)
    rows = reader.query(
        "SELECT max(position) FROM log WHERE position > ? AND position <= ? AND chain IS NOT NULL",
        (base, last),
    ).rows
    return int(rows[0][0] or base)


def last_kept(reader: LogReader, when: When) -> int:
    """Return the boundary that `when` means; where that was archived before, the one where the log begins."""
    base = reader.header.base
    if when.position is not None:
        return position_of(reader, when._replace(position=max(when.position, base)))
    assert when.last_at is not None
    return base if last_before(reader, when.last_at, reader.head) <= base else position_of(reader, when)


def last_before(reader: LogReader, at: int, head: int) -> int:
    """Return the last position written at or before `at`: times never go back, so by bisection.

    Of the part that was archived only the end is known: the last before it is meant by all earlier times.
    """
    low, high = reader.header.base, head
    if low and _at(reader, low, 0) > at:
        return low - 1
    while low < high:
        middle = (low + high + 1) // 2
        if _at(reader, middle, at) <= at:
            low = middle
        else:
            high = middle - 1
    return low


def _at(reader: LogReader, position: int, otherwise: int) -> int:
    rows = reader.query("SELECT at FROM log WHERE position = ?", (position,)).rows
    return int(rows[0][0]) if rows else otherwise


def _wrong(text: str) -> CallerError:
    return InvalidValueError(
        f"{text!r:.80} is no point in time",
        remedy="use a position, an ISO time such as 2026-03-01T12:00, or an age such as -2h, -30m, -7d",
    )


Moment = int | str | dt.datetime | dt.timedelta | When | None
