"""A log's state by columns: a range of events folded as fast as SQLite gives them.

In: a `LogReader`, a state and a batch boundary. Out: the state there, the same that `reader.batches` and `fold.apply_all`
give. SQLite puts each page's columns together as JSON arrays, without the interpreter's lock, so one core reads the next
page while the other folds this one (engine/replay/bulk.py). What looks wrong (a gap, an odd payload, name or kind) is left
to the plain way from that page on, which says what and where; so is a stretch in which most events need the fold itself.
"""

from __future__ import annotations

import gc
import json
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import msgspec

from datatask.adapters.clock import effort
from datatask.adapters.log import queries
from datatask.engine.core.fold import apply_all
from datatask.engine.core.state import State
from datatask.engine.replay.bulk import Bulk
from datatask.engine.replay.transitions import COLUMNAR, Meaning, Page
from datatask.schema.codec import AS_NOW, own_fields
from datatask.schema.errors import DatataskError, LogDamagedError
from datatask.schema.events import Event

if TYPE_CHECKING:
    from datatask.adapters.log.reader import LogReader

SHORT = 2_000
"""Fewer events are folded plainly: the setting out would cost more than it saves."""

DEPTH = 4
"""Pages that are read ahead."""

ROWS_MAX = 32_768
ROWS_MIN = 512
BYTES_AIM = 12 << 20
BYTES_MAX = 96 << 20
"""The most rows of a page, fewer where their payloads are large; and the most bytes of one of its columns."""

PLAIN_SHARE = 0.5
PLAIN_ROWS = 65_536
"""After a page of which more than this share needed the fold itself, this number of events is folded plainly."""

NEAR = 16
AHEAD_MAX = 512
"""Events that are made at once, when one after another is asked for."""

_NAME_BITS, _VERSION_BITS = 31, 8
_KIND_SHIFT = _NAME_BITS + 1 + _VERSION_BITS
KINDS_MAX = 1 << (63 - _KIND_SHIFT)
"""Names with larger numbers do not fit into a key."""

_BETWEEN = ",\n"
"""Between two payloads: no payload has a line of its own, so that they can be counted."""

_KEY = (
    f"(kind << {_KIND_SHIFT}) + (version << {_NAME_BITS + 1})"
    f" + ifnull(repository, ifnull(task, 0) + {1 << _NAME_BITS})"
)

_BOUNDARY = (
    "SELECT position FROM log WHERE position <= ? AND chain IS NOT NULL ORDER BY position DESC LIMIT 1"
)

Reading = Future[tuple[Any, ...] | None]
Begin = Callable[[int, int], Reading]
Coming = tuple[int, int, Reading]
"""A page that is being read: the events behind a position, up to another."""

_integers = msgspec.json.Decoder(list[int])


@contextmanager
def collector_off() -> Iterator[None]:
    """Keep the garbage collector from looking through a large state, all of which lives, again and again."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()


class Unreadable(Exception):
    """A page cannot be folded by columns; the plain way tells why."""


def _plainly(reader: LogReader, state: State, until: int) -> State:
    for batch in reader.batches(state.position, until):
        apply_all(state, batch.first, batch.events)
    return state


class Follower:
    """Folds one log's events in order, range after range of one state; what it learned serves for the next."""

    def __init__(self, reader: LogReader) -> None:
        self._reader = reader
        self._bulk: Bulk | None = None
        self._columnar: dict[str, int] = {}
        self._sql = ""
        self._rows = ROWS_MAX
        self._made: dict[int, Event] = {}
        self._asked, self._run = 0, 1
        self._last = 0

    def follow(self, state: State, until: int) -> State:
        """Fold what lies between the state and the batch boundary `until`, and return the state."""
        if until <= state.position:
            return state
        last = self._begin(until) if until - state.position >= SHORT else 0
        if last <= state.position:
            return _plainly(self._reader, state, until)
        bulk = self._bulk
        if bulk is None or bulk.state is not state:
            bulk = self._bulk = Bulk(state)
        elif state.position != self._last:
            bulk.anew()
        # Pages are read by a connection of their own: names are asked for meanwhile.
        with self._reader.another() as reading, ThreadPoolExecutor(1, "datatask-columns") as pool:
            self._climb(bulk, last, lambda after, until: pool.submit(self._read, reading, after, until))
        bulk.settle()
        self._last = state.position
        return _plainly(self._reader, state, until) if last < until else state

    def _begin(self, until: int) -> int:
        """Return the last batch boundary up to `until`, 0 where pages cannot be read; learn what kinds there are."""
        ask = self._reader.ask
        boundary = ask(queries.Query(_BOUNDARY, (until,)))
        ((count, most),) = ask(queries.Query("SELECT count(*), max(id) FROM names", ()))
        if not boundary or count != most or most >= KINDS_MAX:
            return 0
        wanted = json.dumps(COLUMNAR)
        found = ask(
            queries.Query(
                "SELECT text, id FROM names WHERE text IN (SELECT value FROM json_each(?))", (wanted,)
            )
        )
        self._columnar = dict(found)
        self._sql = _sql(self._columnar, most)
        return int(boundary[0][0])

    def _climb(self, bulk: Bulk, last: int, begin: Begin) -> None:
        """Fold page after page, the next ones being read meanwhile."""
        state = bulk.state
        coming: deque[Coming] = deque()
        while state.position < last:
            effort.at("folding events", state.position, last)
            behind = coming[-1][1] if coming else state.position
            while len(coming) < DEPTH and behind < last:
                until = min(behind + self._rows, last)
                coming.append((behind, until, begin(behind, until)))
                behind = until
            after, until, future = coming.popleft()
            if self._folded(bulk, self._page(after, until, future.result())):
                continue
            bulk.settle()
            for _, _, future in coming:
                future.cancel()
            coming.clear()
            _plainly(self._reader, state, self._reader.end_of_batch(min(last, until + PLAIN_ROWS)))
            bulk.anew()

    def _folded(self, bulk: Bulk, page: Page | None) -> bool:
        """Fold a page; whether to go on so: not when it could not be read, or most of it needed the fold itself."""
        if page is None:
            return False
        plain = bulk.plain
        self._last = page.first + len(page.keys) - 1
        try:
            bulk.fold(page, self)
        except Unreadable:
            return False
        finally:
            self._made.clear()
        return bulk.plain - plain <= PLAIN_SHARE * len(page.keys)

    def _read(self, reader: LogReader, after: int, until: int) -> tuple[Any, ...] | None:
        """Read a page as SQLite puts it together; None where it cannot."""
        try:
            (row,) = reader.ask(queries.Query(self._sql, (after, until)), bytes_max=BYTES_MAX)
        except DatataskError:
            return None
        return row

    def _page(self, after: int, until: int, row: tuple[Any, ...] | None) -> Page | None:
        """Return what was read as columns; None where something is missing or does not decode."""
        if row is None:
            self._rows = max(ROWS_MIN, self._rows // 8)
            return None
        count, odd, keys, jobs, runs, times, *payloads = row
        if count != until - after or odd:
            return None
        size = sum(map(len, filter(None, payloads)))
        self._rows = max(ROWS_MIN, min(ROWS_MAX, self._rows * BYTES_AIM // max(size, BYTES_AIM // 2)))
        try:
            own: dict[str, list[Any]] = {kind: [] for kind in COLUMNAR}
            for (kind, _), text in zip(self._columnar.items(), payloads, strict=True):
                if text is not None:
                    own[kind] = own_fields(kind, f"[{text}]")
                    if len(own[kind]) != text.count("\n") + 1:
                        return None
            keys, jobs, runs, times = (_integers.decode(f"[{text}]") for text in (keys, jobs, runs, times))
        except (LogDamagedError, msgspec.DecodeError):
            return None
        if min(jobs) < 0:
            return None
        return Page(after + 1, keys, jobs, runs, times, own)

    # --- what stands behind the columns -----------------------------------------------------------

    def meaning(self, key: int) -> Meaning | None:
        """Return what a key stands for, None where the own fields are no column."""
        name = key & ((1 << _NAME_BITS) - 1)
        task_first = key >> _NAME_BITS & 1
        version = key >> (_NAME_BITS + 1) & 255
        number = key >> _KIND_SHIFT
        kind = next((kind for kind, own in self._columnar.items() if own == number), None)
        if kind is None or version not in AS_NOW[kind]:
            return None
        text = self.texts([name])[name] if name else None
        return Meaning(kind, text, None) if task_first else Meaning(kind, None, text)

    def texts(self, numbers: Sequence[int]) -> Mapping[int, str]:
        """Return the names with these numbers, in order; `Unreadable` when one is missing."""
        least, most = numbers[0], numbers[-1]
        if most - least < 2 * len(numbers):
            query = queries.Query("SELECT id, text FROM names WHERE id BETWEEN ? AND ?", (least, most))
        else:
            query = queries.Query(queries.NAMES, (json.dumps(numbers),))
        found = dict(self._reader.ask(query))
        if any(number not in found for number in numbers):
            raise Unreadable
        return found

    def event(self, position: int) -> Event:
        """Return an event of the page, made as ever; several at once where one after another is asked for."""
        event = self._made.pop(position, None)
        if event is None:
            close = position - self._asked <= NEAR
            self._run = min(AHEAD_MAX, 2 * self._run) if close else max(1, self._run // 2)
            until = min(self._last, position + self._run - 1)
            rows = self._reader.stored(position - 1, until)
            self._made = {row[0]: self._reader.decoder.event(row) for row in rows}
            event = self._made.pop(position, None)
            if event is None:
                raise Unreadable  # it was archived meanwhile
        self._asked = position
        return event


def _sql(columnar: Mapping[str, int], most: int) -> str:
    """Return the query for one page: a single row, put together in the order of positions.

    What the columns themselves do not show is counted: names that cannot be there, versions too large for a key.
    """
    payloads = [
        f"group_concat(ifnull(payload, '{{}}'), '{_BETWEEN}')"
        f" FILTER (WHERE kind = {number} AND version BETWEEN {AS_NOW[kind][0]} AND {AS_NOW[kind][-1]})"
        for kind, number in columnar.items()
    ]
    columns = [
        "count(*)",
        f"count(*) FILTER (WHERE actor < 1 OR actor > {most} OR task < 1 OR task > {most} OR version & ~255)",
        *(f"group_concat({column})" for column in (_KEY, "ifnull(job, 0)", "ifnull(run, 0)", "at")),
        *payloads,
    ]
    return (
        f"SELECT {', '.join(columns)} FROM"
        " (SELECT * FROM log WHERE position > ? AND position <= ? ORDER BY position)"
    )
