"""Which events: by what they are about, who caused them, when, what they say, and what led to them.

In: a reader and a `Selection`. Out: events, in the log's order or the newest first. Times become positions by
bisection, since they never go back, and a job's events come from the index, so that what is asked for is read
and not the log. Chains of cause are walked here too: `consequences` forwards, `causes` backwards.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from itertools import islice
from typing import NamedTuple

from datatask.adapters.history.moments import When, last_before
from datatask.adapters.log import queries
from datatask.adapters.log.faults import archived
from datatask.adapters.log.reader import LogReader
from datatask.engine.ports import EVERYTHING, Filters
from datatask.schema.codec import Row, encode
from datatask.schema.errors import InvalidValueError, TemporaryError
from datatask.schema.events import Event, LaunchDecided, Recorded, RunEnded, UnknownEvent

_NO_ACTOR = "\0"
_STEP = 100_000
"""Positions that are looked at in one statement while consequences are followed."""

_LINKS = """
SELECT l.position, k.text, l.cause, l.run,
       CASE WHEN k.text IN ('LaunchDecided', 'Evaluated') THEN l.payload -> '$.inputs' END
FROM log l JOIN names k ON k.id = l.kind
WHERE l.position > ? AND l.position <= ? AND (l.cause IS NOT NULL OR l.run IS NOT NULL OR k.text = 'Evaluated')
ORDER BY l.position
"""


class Selection(NamedTuple):
    """Which events: `filters` and all of the rest must hold.

    `filters.actors` may name a user, `user@host`, or all of `user@host: command`. `pattern` is searched for where
    `filters.text` is. Of the rest only this number of the `last`; `newest_first` reverses the order.
    """

    filters: Filters = EVERYTHING
    since: When | None = None
    until: When | None = None
    pattern: re.Pattern[str] | None = None
    caused_by: int | None = None
    causes_of: int | None = None
    last: int | None = None
    newest_first: bool = False


def select(reader: LogReader, selection: Selection = Selection()) -> Iterator[Recorded]:  # noqa: B008
    """Yield the events that are selected, page by page in bounded memory (with `last`, that number of them)."""
    first, last = bounds(reader, selection)
    if selection.last is None:
        yield from _matching(reader, selection, first - 1, last, selection.newest_first)
        return
    found = list(islice(_matching(reader, selection, first - 1, last, True), selection.last))
    yield from found if selection.newest_first else reversed(found)


def follow(
    reader: LogReader, selection: Selection, wait: Callable[[int], bool], until: int | None = None
) -> Iterator[Recorded]:
    """Yield what `select` does and then what is appended, until `wait(head)` returns False.

    `wait` returns when the log may have grown. `until` is the last time (UTC nanoseconds) that is of interest.
    """
    head = reader.head
    yield from select(reader, selection)
    _, end = bounds(reader, selection)
    if selection.until is not None and selection.until.position is not None and end < head:
        return
    while wait(head):
        try:
            after, head = head, reader.head
        except TemporaryError:
            continue  # an engine opens or closes the log just now
        last = head
        if selection.until is not None and selection.until.position is not None:
            last = min(head, selection.until.position)
        for found in _matching(reader, selection, after, last, False):
            if until is not None and found.event.at > until:
                return
            yield found
        if last < head or (selection.until is not None and selection.until.position == head):
            return


def bounds(reader: LogReader, selection: Selection) -> tuple[int, int]:
    """Return the first and the last position that the times and positions of a selection allow."""
    head, base = reader.head, reader.header.base
    since, until = selection.since, selection.until
    first, last = 1, head
    if since is not None:
        first = max(1, since.position) if since.position is not None else 0
        if since.at is not None:
            first = last_before(reader, since.at - 1, head) + 1
    if until is not None:
        last = min(head, until.position) if until.position is not None else 0
        if until.last_at is not None:
            last = last_before(reader, until.last_at, head)
        if last < base:
            raise archived(reader.path, base, f"what was written up to position {last}", max(last, 1))
    return first, last


def _matching(
    reader: LogReader, selection: Selection, after: int, last: int, newest_first: bool
) -> Iterator[Recorded]:
    filters = selection.filters
    if filters.actors:
        filters = filters._replace(actors=actors_named(reader, filters.actors))
    found: Iterator[Recorded]
    if selection.caused_by is not None or selection.causes_of is not None:
        found = _linked(reader, selection, after, last, filters, newest_first)
    else:
        back, most = newest_first, selection.last or queries.PAGE_ROWS
        found = (
            reader.read_back(after, last, filters, page_rows=most)
            if back
            else reader.read(after, last, filters)
        )
    pattern = selection.pattern
    return found if pattern is None else (one for one in found if _says(one.event, pattern))


def actors_named(reader: LogReader, wanted: tuple[str, ...]) -> tuple[str, ...]:
    """Return the actors in the log that are meant: whole, or by their user, or by `user@host`."""
    found = []
    for name in wanted:
        rows = reader.query(
            "SELECT text FROM names WHERE text = :name OR instr(text, :name || '@') = 1"
            " OR (instr(:name, '@') > 0 AND instr(text, :name || ':') = 1)",
            {"name": name},
        ).rows
        found += [text for (text,) in rows]
    return tuple(found) or (_NO_ACTOR,)


def _says(event: Event, pattern: re.Pattern[str]) -> bool:
    return any(pattern.search(text) for text in queries.texts(encode(event)))


def _linked(
    reader: LogReader, selection: Selection, after: int, last: int, filters: Filters, newest_first: bool
) -> Iterator[Recorded]:
    wanted: set[int] | None = None
    if selection.caused_by is not None:
        wanted = consequences(reader, selection.caused_by)
    if selection.causes_of is not None:
        led = causes(reader, selection.causes_of)
        wanted = led if wanted is None else wanted & led
    positions = sorted((p for p in wanted or () if after < p <= last), reverse=newest_first)
    for start in range(0, len(positions), queries.PAGE_ROWS):
        part = positions[start : start + queries.PAGE_ROWS]
        for position, event in zip(part, reader.fetch(part), strict=True):
            if filters is EVERYTHING or queries.passes(_row(position, event), filters):
                yield Recorded(position, event)


def _row(position: int, event: Event) -> Row:
    row = encode(event)
    return row._replace(run=position) if isinstance(event, LaunchDecided) else row


# --- chains of cause --------------------------------------------------------------------------------


def consequences(reader: LogReader, position: int) -> set[int]:
    """Return the positions of all that followed from an event, however indirectly.

    Those are the events that name it as their cause; all that is told of a run that followed, and what the run
    wrote; the launches and evaluations that read a value that it put; and the end of a run that it stopped.
    """
    _known(reader, position)
    led, runs, stopped = {position}, set[int](), set[int]()
    (kind, run), *_ = reader.query(
        "SELECT k.text, l.run FROM log l JOIN names k ON k.id = l.kind WHERE l.position = ?", (position,)
    ).rows
    _take(position, kind, run, runs, stopped)
    head = reader.head
    for start in range(position, head, _STEP):
        rows = reader.query(_LINKS, (start, min(start + _STEP, head)), timeout_seconds=3600.0).rows
        for at, kind, cause, run, inputs in rows:
            if (
                cause in led
                or run in runs
                or (run in stopped and kind == "RunEnded")
                or (inputs is not None and not led.isdisjoint(_numbers(inputs)))
            ):
                led.add(at)
                _take(at, kind, run, runs, stopped)
    return led - {position}


def _take(position: int, kind: str, run: int | None, runs: set[int], stopped: set[int]) -> None:
    if kind == "LaunchDecided":
        runs.add(position)
    elif kind == "StopDecided" and run is not None:
        stopped.add(run)


def _numbers(text: str) -> list[int]:
    """Return the positions in the JSON of `inputs`: the values of an object or of a list."""
    import msgspec

    found = msgspec.json.decode(text)
    return list(found.values()) if isinstance(found, dict) else found


def causes(reader: LogReader, position: int) -> set[int]:
    """Return the positions of all that led to an event: its cause, its run, what that read, and so on backwards."""
    _known(reader, position)
    led: set[int] = set()
    front = {position}
    while front:
        events = dict(zip(sorted(front), reader.fetch(sorted(front)), strict=True))
        front = {
            earlier for at, event in events.items() for earlier in _led_to(reader, at, event) if earlier < at
        } - led
        led |= front
    return led


def _led_to(reader: LogReader, position: int, event: Event) -> list[int]:
    found = [number for number in (event.cause, event.run) if number is not None and number != position]
    inputs = getattr(event, "inputs", ()) if not isinstance(event, UnknownEvent) else ()
    found += inputs.values() if isinstance(inputs, dict) else inputs
    if isinstance(event, RunEnded) and event.job is not None:
        stops = Filters(kinds=("StopDecided",), jobs=(event.job,), runs=(event.run or 0,))
        found += [stop.position for stop in reader.read(event.run or 0, position, stops)]
    return found


def _known(reader: LogReader, position: int) -> None:
    if not 1 <= position <= reader.head:
        raise InvalidValueError(
            f"there is no event at position {position}",
            where=reader.url,
            remedy="name a position that `datatask log` shows",
        )
    if position <= reader.header.base:
        reader.fetch([position])  # carried, else told to live in an archive
