"""What is asked of a log's file, and what becomes of the rows: shared by the two readers.

In: bounds and `Filters`. Out: SQL with its parameters for one page of rows at a time, so that no snapshot is
held for long; and from rows back to events and whole batches. `LogReader` runs the SQL with plain sqlite3,
`SqliteLog` through SQLAlchemy's async engine; neither is known here.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import msgspec

from datatask.adapters.log.faults import damaged
from datatask.engine.ports import EVERYTHING, Filters
from datatask.schema.codec import MAKERS, Maker, Row, decode, undecodable
from datatask.schema.errors import UnknownNameError
from datatask.schema.events import Batch, Event, LaunchDecided, Recorded

PAGE_ROWS = 5_000
_NAMES_KEPT_MAX = 500_000

META = "SELECT key, value FROM meta"
HEAD = "SELECT max(position) FROM log"
END_OF_BATCH = "SELECT min(position) FROM log WHERE position >= ? AND chain IS NOT NULL"
BASE = "SELECT fold_version, state FROM base WHERE position = ?"
CHAIN_AT = "SELECT chain FROM log WHERE position = ?"
NAMES = "SELECT id, text FROM names WHERE id IN (SELECT value FROM json_each(?))"
_COLUMNS = "position, at, kind, version, essential, actor, cause, task, repository, job, run, payload, salt, digest, chain"

_NAMED = ("kind", "actor", "task", "repository", "job")

Stored = tuple[Any, ...]
"""One row of the `log` table, in the order of its columns."""


class Query(NamedTuple):
    """SQL and its parameters."""

    sql: str
    parameters: tuple[int | str | None, ...]


def page(
    after: int,
    until: int,
    filters: Filters = EVERYTHING,
    *,
    newest_first: bool = False,
    rows: int = PAGE_ROWS,
) -> Query:
    """Return the query for the first rows (`rows` at most) with after < position <= until that pass the filters.

    With jobs to filter by it is answered from the index on (job, position).
    """
    where, parameters = ["position > ?", "position <= ?"], [after, until]
    values: list[int | str | None] = list(parameters)
    for column, wanted in (
        ("kind", filters.kinds),
        ("task", filters.tasks),
        ("repository", filters.repositories),
        ("job", filters.jobs),
        ("actor", filters.actors),
    ):
        if wanted:
            where.append(f"{column} IN (SELECT id FROM names WHERE text IN (SELECT value FROM json_each(?)))")
            values.append(json.dumps(wanted))
    if filters.runs:
        where.append("run IN (SELECT value FROM json_each(?))")
        values.append(json.dumps(filters.runs))
    if filters.since is not None:
        where.append("at >= ?")
        values.append(filters.since)
    if filters.until is not None:
        where.append("at <= ?")
        values.append(filters.until)
    before = ""
    if filters.text:
        before = "WITH named AS MATERIALIZED (SELECT id FROM names WHERE instr(text, ?)) "
        values.insert(0, filters.text)
        named = " OR ".join(f"{column} IN named" for column in _NAMED)
        forms = list(dict.fromkeys((filters.text, in_json(filters.text))))
        inside = " OR ".join(["instr(payload, ?)"] * len(forms))
        where.append(f"({inside} OR {named})")
        values += forms
    order = "position DESC" if newest_first else "position"
    return Query(
        f"{before}SELECT {_COLUMNS} FROM log WHERE {' AND '.join(where)} ORDER BY {order} LIMIT {rows}",
        tuple(values),
    )


def passes(row: Row, filters: Filters) -> bool:
    """Whether an event passes the filters: the slow twin of `page`."""
    for value, wanted in (
        (row.kind, filters.kinds),
        (row.task, filters.tasks),
        (row.repository, filters.repositories),
        (row.job, filters.jobs),
        (row.actor, filters.actors),
        (row.run, filters.runs),
    ):
        if wanted and value not in wanted:
            return False
    if filters.since is not None and row.at < filters.since:
        return False
    if filters.until is not None and row.at > filters.until:
        return False
    if not filters.text:
        return True
    *names, payload = texts(row)
    return any(filters.text in text for text in (*names, payload)) or in_json(filters.text) in payload


def texts(row: Row) -> tuple[str, ...]:
    """Return what a search looks at: the names of an event, then its own fields as they are stored, in JSON."""
    names = (row.kind, row.actor, row.task, row.repository, row.job)
    return (*(name for name in names if name), (row.payload or b"").decode())


def fetch(positions: Sequence[int]) -> Query:
    """Return the query for the rows at these positions."""
    return Query(
        f"SELECT {_COLUMNS} FROM log WHERE position IN (SELECT value FROM json_each(?))",
        (json.dumps(list(positions)),),
    )


def in_json(text: str) -> str:
    """Return text as it looks inside a JSON string."""
    return msgspec.json.encode(text)[1:-1].decode()


class Decoder:
    """Rows to events; knows the names it has met, and (`made`) how the kinds it has met are made."""

    def __init__(self, place: str) -> None:
        self._place = place
        self._names: dict[int | None, str | None] = {None: None}
        self.made: dict[tuple[int, int], Maker] = {}
        self.launch: int | None = None

    def missing(self, rows: Iterable[Stored]) -> Query | None:
        """Return the query for the names in these rows that were not queried yet, if any."""
        if len(self._names) > _NAMES_KEPT_MAX:
            self._names = {None: None}
        used = {number for row in rows for number in (row[2], row[5], row[7], row[8], row[9])}
        fresh = [number for number in used if number not in self._names]  # not `-`: that walks all names
        return Query(NAMES, (json.dumps(sorted(fresh)),)) if fresh else None

    def learn(self, pairs: Iterable[Sequence[Any]]) -> None:
        """Take in what the query of `missing` found."""
        for number, text in pairs:
            self._names[number] = text

    @property
    def names(self) -> dict[int | None, str | None]:
        """The names learned so far, by number: for rows of the last page that was asked for."""
        return self._names

    def row(self, stored: Stored) -> Row:
        """Return the row with its names as text."""
        names = self._names
        position, at, kind, version, essential, actor, cause, task, repository, job, run, payload = stored[
            :12
        ]
        try:
            return Row(
                at,
                names[kind] or "",
                version,
                bool(essential),
                names[actor] or "",
                cause,
                names[task],
                names[repository],
                names[job],
                run,
                None if payload is None else payload.encode(),
            )
        except KeyError as error:
            raise damaged(f"name {error} is missing", self._place, position) from None

    def event(self, stored: Stored) -> Event:
        """Return the event of a row."""
        (position, at, kind, version, _, actor, cause, task, repository, job, run, payload, _, _, _) = stored
        names = self._names
        try:
            make = MAKERS.get((names[kind] or "", version))
            if make is not None:
                self.made[kind, version] = make
                self.launch = kind if names[kind] == LaunchDecided.__name__ else self.launch
            event = (
                decode(self.row(stored), where=f"{self._place} position {position}")
                if make is None
                else make(
                    at, names[actor], cause, names[task], names[repository], names[job], run, payload or "{}"
                )
            )
        except KeyError as error:
            raise damaged(f"name {error} is missing", self._place, position) from None
        except msgspec.DecodeError as error:
            raise undecodable(names[kind] or "", f"{self._place} position {position}", error) from error
        if type(event) is LaunchDecided and event.run == position:
            # The column says which run it is about; the event itself was made before it had a position.
            return msgspec.structs.replace(event, run=None)
        return event

    def recorded(self, rows: Iterable[Stored]) -> list[Recorded]:
        """Return the events of rows with their positions."""
        return [Recorded(row[0], self.event(row)) for row in rows]

    def in_order(self, rows: Iterable[Stored], positions: Sequence[int]) -> list[Event]:
        """Return the events at these positions in this order; `UnknownNameError` for one that is not there."""
        events = {row[0]: self.event(row) for row in rows}
        for position in positions:
            if position not in events:
                raise UnknownNameError(
                    f"there is no event at position {position}",
                    where=self._place,
                    remedy="look at `datatask log`",
                )
        return [events[position] for position in positions]


class Assembler:
    """Pages of rows to whole batches: what a page cuts off waits for the next page."""

    def __init__(self, decoder: Decoder, place: str, after: int) -> None:
        self._decoder = decoder
        self._place = place
        self._open: list[Event] = []
        self.position = after

    def batches(self, rows: Iterable[Stored]) -> Iterator[Batch]:
        """Yield the batches that end in these rows; a gap in the positions is damage."""
        decoder, opened, position = self._decoder, self._open, self.position
        names, made, launch = decoder.names, decoder.made, decoder.launch
        for row in rows:
            (there, at, kind, version, _, actor, cause, task, repository, job, run, payload, _, _, chain) = (
                row
            )
            if there != position + 1:
                raise damaged(f"the events {position + 1} to {there - 1} are missing", self._place, there)
            self.position = position = there
            try:
                # What `Decoder.event` does, without the call: this is where long logs spend their time.
                event = made[kind, version](
                    at,
                    names[actor],
                    cause,
                    names[task],
                    names[repository],
                    names[job],
                    None if kind == launch and run == there else run,
                    payload or "{}",
                )
            except (KeyError, msgspec.DecodeError):
                event = decoder.event(row)
                made, launch = decoder.made, decoder.launch
            opened.append(event)
            if chain is not None:
                yield Batch(position - len(opened) + 1, tuple(opened))
                opened.clear()
