"""The four tables of an export, as streams of rows: events, runs, values_now, lineage.

In: a reader, a state at a batch boundary, and `Wanted`. Out: tuples in the order of `COLUMNS`. They are the views of
docs/log.md, made by passes over the log instead of by SQL, so that nothing but what is open at the moment is
kept in memory, and so that any earlier boundary can be asked about. Tests hold them against the views.
"""

from __future__ import annotations

import json
from array import array
from collections.abc import Callable, Iterator
from typing import Any, Literal, NamedTuple

from datatask.adapters.history import shapes
from datatask.adapters.history.events import Selection, bounds, select
from datatask.adapters.history.moments import When
from datatask.adapters.log.reader import LogReader
from datatask.engine.core.state import State
from datatask.engine.ports import EVERYTHING, Filters
from datatask.schema import events as e
from datatask.schema.errors import NotPossibleError

Type = Literal["integer", "number", "text", "time", "flag"]
Row = tuple[Any, ...]

COLUMNS: dict[str, dict[str, Type]] = {
    "events": {
        "position": "integer",
        "at": "time",
        "kind": "text",
        "version": "integer",
        "essential": "flag",
        "actor": "text",
        "cause": "integer",
        "task": "text",
        "repository": "text",
        "job": "text",
        "run": "integer",
        "payload": "text",
    },
    "runs": {
        "run": "integer",
        "task": "text",
        "job": "text",
        "episode": "integer",
        "attempt": "integer",
        "origin": "text",
        "state": "text",
        "decided_at": "time",
        "started_at": "time",
        "ended_at": "time",
        "wait": "number",
        "duration": "number",
        "where_": "text",
        "exit_code": "integer",
        "error_type": "text",
        "error": "text",
        "priority": "number",
        "resources": "text",
        "usage": "text",
        "end_position": "integer",
    },
    "values_now": {
        "repository": "text",
        "job": "text",
        "position": "integer",
        "at": "time",
        "value": "text",
        "digest": "text",
        "size": "integer",
        "version": "text",
        "origin": "text",
        "run": "integer",
    },
    "lineage": {
        "run": "integer",
        "task": "text",
        "job": "text",
        "direction": "text",
        "link": "text",
        "repository": "text",
        "position": "integer",
    },
}
"""Table -> column -> type. The columns are those of the views, without what says the same again as text."""

_RUN_KINDS = ("LaunchDecided", "RunStarted", "RunAdopted", "RunEnded")
_FETCHED = 2_000


class Wanted(NamedTuple):
    """What to export: filters as for `log`; `since` and `until` are about when something was recorded."""

    filters: Filters = EVERYTHING
    since: When | None = None
    until: When | None = None

    def used(self) -> set[str]:
        """Return the names of the filters that restrict."""
        return {name for name in Filters._fields if getattr(self.filters, name)}


_TAKES = {
    "events": set(Filters._fields),
    "runs": {"tasks", "jobs", "runs"},
    "values_now": {"repositories", "jobs", "runs"},
    "lineage": {"tasks", "jobs", "repositories", "runs"},
}
OPTIONS = {
    "kinds": "--kind",
    "tasks": "--task",
    "repositories": "--repository",
    "jobs": "--job",
    "runs": "--run",
    "actors": "--actor",
    "text": "--grep",
}
"""Filter -> the option that sets it."""


def check(table: str, wanted: Wanted) -> None:
    """Raise `CallerError` for filters that a table has no columns for."""
    for name in sorted(wanted.used() - _TAKES[table]):
        raise NotPossibleError(
            f"{OPTIONS[name]} does not filter the table {table}",
            remedy="leave it out, or name a table that it filters, such as --table events",
        )


def rows(table: str, reader: LogReader, state: State, wanted: Wanted) -> Iterator[Row]:
    """Yield a table's rows, as known at the state's position."""
    check(table, wanted)
    make: Callable[[LogReader, State, Wanted], Iterator[Row]] = _TABLES[table]
    return make(reader, state, wanted)


# --- events -------------------------------------------------------------------------------------------


def recorded(reader: LogReader, state: State, wanted: Wanted) -> Iterator[e.Recorded]:
    """Yield the events that are wanted, up to the state's position."""
    selection = Selection(wanted.filters, wanted.since, wanted.until)
    for found in select(reader, selection):
        if found.position > state.position:
            return
        yield found


def _events(reader: LogReader, state: State, wanted: Wanted) -> Iterator[Row]:
    for position, event in recorded(reader, state, wanted):
        kind = event.name if isinstance(event, e.UnknownEvent) else type(event).__name__
        yield (
            position,
            event.at,
            kind,
            event.version if isinstance(event, e.UnknownEvent) else event.VERSION,
            event.ESSENTIAL,
            event.actor,
            event.cause,
            event.task,
            event.repository,
            event.job,
            position if kind == "LaunchDecided" else event.run,
            shapes.brief(event) or None,
        )


# --- runs ---------------------------------------------------------------------------------------------


def _span(reader: LogReader, state: State, wanted: Wanted) -> tuple[int, int]:
    """Return the first and the last position that `since` and `until` leave."""
    first, last = bounds(reader, Selection(EVERYTHING, wanted.since, wanted.until))
    return first, min(last, state.position)


def _runs(reader: LogReader, state: State, wanted: Wanted) -> Iterator[Row]:
    """Yield runs when they end, and at the end of the log those that go on: only these are kept meanwhile."""
    first, last = _span(reader, state, wanted)
    filters = Filters(kinds=_RUN_KINDS, tasks=wanted.filters.tasks, jobs=wanted.filters.jobs)
    chosen = set(wanted.filters.runs)
    going: dict[int, tuple[e.LaunchDecided, e.RunStarted | e.RunAdopted | None]] = {}
    for position, event in reader.read(first - 1, state.position, filters):
        match event:
            case e.LaunchDecided() if position <= last and (not chosen or position in chosen):
                going[position] = (event, None)
            case e.RunStarted() | e.RunAdopted() if event.run in going and going[event.run][1] is None:
                going[event.run] = (going[event.run][0], event)
            case e.RunEnded() if event.run in going:
                decided, started = going.pop(event.run)
                yield _run(event.run, decided, started, (position, event))
            case _ if position > last and not going:
                return
    for run, (decided, started) in going.items():
        yield _run(run, decided, started, None)


def _run(
    run: int,
    decided: e.LaunchDecided,
    started: e.RunStarted | e.RunAdopted | None,
    end: tuple[int, e.RunEnded] | None,
) -> Row:
    ended = end[1] if end is not None else None
    error = ended.error if ended is not None else None
    where = (ended.where if ended is not None else "") or (started.where if started is not None else "")
    return (
        run,
        decided.task,
        decided.job,
        decided.episode,
        decided.attempt,
        decided.origin,
        ended.outcome if ended is not None else "running" if started is not None else "decided",
        decided.at,
        started.at if started is not None else None,
        ended.at if ended is not None else None,
        (started.at - decided.at) / 1e9 if started is not None else None,
        (ended.at - started.at) / 1e9 if ended is not None and started is not None else None,
        where or None,
        ended.exit_code if ended is not None else None,
        error.type if error is not None else None,
        error.message if error is not None else None,
        decided.priority or None,
        _compact(decided.resources),
        _compact(ended.usage) if ended is not None else None,
        end[0] if end is not None else None,
    )


def _compact(document: object) -> str | None:
    return json.dumps(document, separators=(",", ":"), ensure_ascii=False) if document else None


# --- values -------------------------------------------------------------------------------------------


def _values(reader: LogReader, state: State, wanted: Wanted) -> Iterator[Row]:
    """Yield the present values, repository by repository: the state knows their positions, the log the rest."""
    first, last = _span(reader, state, wanted)
    first = max(first, reader.header.base + 1)  # what lies before is in an archive
    jobs = {state.job_index[job] for job in wanted.filters.jobs if job in state.job_index}
    for leaf in state.leaves.values():
        if leaf.definition.derived is not None or (
            wanted.filters.repositories and leaf.id not in wanted.filters.repositories
        ):
            continue
        members = leaf.members(state.masks)
        held = leaf.positions
        positions = array(
            "q",
            (held[job] for job in members if (not wanted.filters.jobs or job in jobs) and job < len(held)),
        )
        for chunk in _chunks(sorted(position for position in positions if first <= position <= last)):
            for position, event in zip(chunk, reader.fetch(chunk), strict=True):
                if not isinstance(event, e.ValuePut):
                    continue
                if wanted.filters.runs and event.run not in wanted.filters.runs:
                    continue
                yield _value(leaf.id, position, event)


def _value(repository: str, position: int, event: e.ValuePut) -> Row:
    return (
        repository,
        event.job,
        position,
        event.at,
        bytes(event.value).decode() if event.value else None,
        event.digest,
        event.size,
        event.version,
        event.origin,
        event.run,
    )


def _chunks(positions: list[int]) -> Iterator[list[int]]:
    for start in range(0, len(positions), _FETCHED):
        yield positions[start : start + _FETCHED]


# --- lineage ------------------------------------------------------------------------------------------


def _lineage(reader: LogReader, state: State, wanted: Wanted) -> Iterator[Row]:
    """Yield what runs were decided on, and what they wrote, in the order of the log, a page at a time."""
    first, last = _span(reader, state, wanted)
    filters = Filters(
        kinds=("LaunchDecided", "ValuePut"), tasks=wanted.filters.tasks, jobs=wanted.filters.jobs
    )
    page: list[e.Recorded] = []
    for found in reader.read(first - 1, last, filters):
        page.append(found)
        if len(page) >= _FETCHED:
            yield from _linked(reader, page, wanted)
            page = []
    yield from _linked(reader, page, wanted)


def _linked(reader: LogReader, page: list[e.Recorded], wanted: Wanted) -> Iterator[Row]:
    inputs = {
        position
        for found in page
        if isinstance(found.event, e.LaunchDecided)
        for position in found.event.inputs.values()
    }
    known = repositories_of(reader, inputs)
    for position, event in page:
        made: list[Row] = []
        if isinstance(event, e.LaunchDecided):
            made = [
                (position, event.task, event.job, "input", link, known.get(value), value)
                for link, value in event.inputs.items()
            ]
        elif isinstance(event, e.ValuePut) and event.run is not None:
            made = [(event.run, event.task, event.job, "output", None, event.repository, position)]
        for row in made:
            if wanted.filters.runs and row[0] not in wanted.filters.runs:
                continue
            if wanted.filters.repositories and row[5] not in wanted.filters.repositories:
                continue
            yield row


def repositories_of(reader: LogReader, positions: set[int]) -> dict[int, str | None]:
    """Return the repositories of the values at these positions; those that are no longer in the log are left out."""
    sql = (
        "SELECT l.position, n.text FROM log l LEFT JOIN names n ON n.id = l.repository"
        " WHERE l.position IN (SELECT value FROM json_each(?))"
    )
    return dict(reader.query(sql, (json.dumps(sorted(positions)),)).rows) if positions else {}


_TABLES: dict[str, Callable[[LogReader, State, Wanted], Iterator[Row]]] = {
    "events": _events,
    "runs": _runs,
    "values_now": _values,
    "lineage": _lineage,
}
TABLES = tuple(_TABLES)
