"""Runs as rows: filtered, sorted, grouped, and as they were known at an earlier point.

In: a reader and a `RunFilter`, for groups also their keys. Out: one row a run in the documented shape, or one a group
with counts, failures, waits and durations. A few runs are looked up one by one through the index on jobs, many are found
in one pass over the log, with starts and ends joined by run. The view `runs` gives the same rows.
"""

from __future__ import annotations

import json
from bisect import bisect
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from functools import lru_cache
from math import ceil
from typing import Any, NamedTuple

from datatask.adapters.history.moments import When, last_before, position_of
from datatask.adapters.history.states import collector_off
from datatask.adapters.log.reader import LogReader
from datatask.engine.ports import Filters
from datatask.engine.waits.episodes import NEAR
from datatask.schema.errors import InvalidValueError, one_of
from datatask.schema.events import EngineOpened
from datatask.schema.units import SECOND, iso

_COLUMNS = {
    "run": "d.position",
    "task": "t.text",
    "job": "j.text",
    "attempt": "d.payload ->> '$.attempt'",
    "state": "CASE WHEN e.position IS NOT NULL THEN e.payload ->> '$.outcome'"
    " WHEN s.position IS NOT NULL THEN 'running' ELSE 'decided' END",
    "decided_at": "d.at",
    "started_at": "s.at",
    "ended_at": "e.at",
    "where": "coalesce(e.payload ->> '$.where', s.payload ->> '$.where')",
    "exit_code": "e.payload ->> '$.exit_code'",
    "error": "e.payload ->> '$.error.message'",
    "wait": "(s.at - d.at) / 1e9",
    "duration": "(e.at - s.at) / 1e9",
    "episode": "d.payload ->> '$.episode'",
    "error_type": "e.payload ->> '$.error.type'",
    "again": "e.payload ->> '$.detail.again'",
    "reused": "CAST(e.payload ->> '$.detail.reused' AS INTEGER)",
    "identities": "d.payload -> '$.identities'",
}
"""A run's fields -> what they are, by the rows of its decision `d`, its start `s` and its end `e`."""

RUN_FIELDS = tuple(_COLUMNS)
STATES = (
    "decided",
    "running",
    "succeeded",
    "failed",
    "timed_out",
    "cancelled",
    "lost",
    "refused",
    "handed_over",
    "conflicted",
)
TIMES = ("decided_at", "started_at", "ended_at")
SORTS = {
    "decided": "run",
    "started": "started_at",
    "ended": "ended_at",
    **{name: name for name in RUN_FIELDS if name not in TIMES},
}
"""What runs can be sorted by -> the column."""

FOREVER = 2**62
QUERY_SECONDS = 3600.0
_ASIDE = ("run", "state", "where", "started_at", "ended_at")
"""What conditions on whole rows look at."""


_KIND = "(SELECT id FROM names WHERE text = '{0}')"
_STARTS = f"({_KIND.format('RunStarted')}, {_KIND.format('RunAdopted')})"
_ENDS = f"({_KIND.format('RunEnded')})"

_FROM = "FROM log d LEFT JOIN names t ON t.id = d.task LEFT JOIN names j ON j.id = d.job"
_FROM_ENDS = (
    "FROM log e CROSS JOIN log d ON d.position = e.run"
    " LEFT JOIN names t ON t.id = d.task LEFT JOIN names j ON j.id = d.job"
)
_LOOKED_UP = """
LEFT JOIN log {0} ON {0}.position = (
  SELECT x.position FROM log x WHERE x.job = d.job AND x.position > d.position AND x.position <= :known
    AND x.run = d.position AND x.kind IN {1} ORDER BY x.position LIMIT 1)
"""
_PASSED = """
{0} AS MATERIALIZED (SELECT run, min(position) AS position, at, payload FROM log
  WHERE kind IN {1} AND position >= :first AND position <= :known GROUP BY run)
"""


GROUP_FIELDS = (
    "runs",
    "ended",
    "failed",
    "failed_share",
    "wait_mean",
    "duration_total",
    "duration_mean",
    "duration_p50",
    "duration_p95",
    "duration_max",
)
FAILURES = frozenset({"failed", "timed_out", "lost", "refused"})
KEYS = (*(name for name in RUN_FIELDS if name not in (*TIMES, "wait", "duration")), "host", "day", "hour")
"""What runs can be grouped by: `host` is where it ran, or the engine's for what ran near the engine; `day` and
`hour` (UTC) are those of the decision."""
_COUNTED = ("run", "state", "ended_at", "wait", "duration", "decided_at")


class RunFilter(NamedTuple):
    """Which runs: those that pass every field that is given; several values of a field are alternatives.

    `where` are patterns of places (`node-*`) or of hosts, for runs near the engine; `since` and `until` are about the
    decision; `active` is a span in which the run was going; `at` is the point as of which all is reported.
    """

    tasks: tuple[str, ...] = ()
    jobs: tuple[str, ...] = ()
    states: tuple[str, ...] = ()
    where: tuple[str, ...] = ()
    since: When | None = None
    until: When | None = None
    active: tuple[When, When] | None = None
    at: When | None = None


def find_runs(
    reader: LogReader,
    wanted: RunFilter = RunFilter(),  # noqa: B008
    *,
    sort: str = "decided",
    last: int | None = None,
    newest_first: bool = False,
) -> Iterator[dict[str, Any]]:
    """Yield the runs in order, in the shape of `runs --json`; with `last` only that number of the last in that order.

    What is not known (the duration of a run that has not ended) comes before what is.
    """
    if sort not in SORTS:
        raise InvalidValueError(f"runs cannot be sorted by {sort}", remedy=one_of(SORTS))
    rows = run_rows(reader, wanted, RUN_FIELDS, SORTS[sort], last)
    return map(_shape, rows if newest_first else reversed(rows))


def run_rows(
    reader: LogReader, wanted: RunFilter, columns: Sequence[str], sort: str, last: int | None
) -> list[tuple[Any, ...]]:
    """Return these columns of the runs, the last first."""
    sql, parameters = _statement(reader, wanted, columns, sort, last)
    with collector_off():
        return reader.query(sql, parameters, timeout_seconds=QUERY_SECONDS).rows


def _statement(
    reader: LogReader, wanted: RunFilter, columns: Sequence[str], sort: str, last: int | None
) -> tuple[str, dict[str, int | str | None]]:
    """Return the SELECT for these runs, the last first."""
    known = position_of(reader, wanted.at)
    first, until = _span(reader, wanted, known)
    values: dict[str, int | str | None] = {"first": first, "until": until, "known": known}
    where = [f"d.kind = {_KIND.format('LaunchDecided')}", "d.position >= :first", "d.position <= :until"]
    for column, names in (("task", wanted.tasks), ("job", wanted.jobs)):
        if names:
            values[column] = json.dumps(names)
            listed = f"(SELECT id FROM names WHERE text IN (SELECT value FROM json_each(:{column})))"
            where.append(f"d.{column} IN {listed}")
    outside = _outside(reader, wanted, values)
    few = bool(wanted.jobs) or (last is not None and not outside and sort == "run")
    inner_columns = [*columns, *(name for name in _ASIDE if name not in columns)] if outside else columns
    row = ", ".join(f'{_COLUMNS[name]} AS "{name}"' for name in inner_columns)
    order = ", ".join(dict.fromkeys((f'"{sort}" DESC', '"run" DESC')))
    limit = "" if last is None else f" LIMIT {last}"
    before, source = "", _FROM
    if few:
        joins = _LOOKED_UP.format("s", _STARTS) + _LOOKED_UP.format("e", _ENDS)
    elif wanted.states and not {"decided", "running"} & set(wanted.states):
        # Failed runs are few of many: found from their ends, not from all decisions.
        source, joins = _FROM_ENDS, _LOOKED_UP.format("s", _STARTS)
        where += [f"e.kind IN {_ENDS}", "e.position >= :first", "e.position <= :known"]
        where.append("e.payload ->> '$.outcome' IN (SELECT value FROM json_each(:states))")
    else:
        before = "WITH " + ",".join((_PASSED.format("s", _STARTS), _PASSED.format("e", _ENDS)))
        joins = "LEFT JOIN s ON s.run = d.position LEFT JOIN e ON e.run = d.position"
    inner = f"SELECT {row} {source} {joins} WHERE {' AND '.join(where)}"
    if not outside:
        return f"{before}{inner} ORDER BY {order}{limit}", values
    shown = ", ".join(f'"{name}"' for name in columns)
    rest = " AND ".join(outside)
    return f"{before}SELECT {shown} FROM ({inner}) WHERE {rest} ORDER BY {order}{limit}", values


def _outside(reader: LogReader, wanted: RunFilter, values: dict[str, int | str | None]) -> list[str]:
    """Return the conditions on what only a whole row tells."""
    found = []
    if wanted.states:
        values["states"] = json.dumps(wanted.states)
        found.append("state IN (SELECT value FROM json_each(:states))")
    if wanted.where:
        values["places"] = json.dumps(wanted.where)
        values["spans"] = json.dumps(_spans(reader, wanted.where))
        near = ", ".join(f"'{place}'" for place in sorted(NEAR))
        found.append(
            '(EXISTS (SELECT 1 FROM json_each(:places) WHERE "where" GLOB value)'
            f""" OR (coalesce("where", '') IN ({near}) AND EXISTS (SELECT 1 FROM json_each(:spans)"""
            " WHERE run >= value ->> 0 AND run < value ->> 1)))"
        )
    if wanted.active is not None:
        begin, end = wanted.active
        values["begin"], values["end"] = _time(reader, begin, False), _time(reader, end, True)
        found.append("started_at <= :end AND (ended_at IS NULL OR ended_at >= :begin)")
    return found


def engines_of(reader: LogReader) -> list[tuple[int, str]]:
    """Return where each engine began in the log, and its host: runs near the engine ran on that."""
    kinds = Filters(kinds=("EngineOpened",))
    return [
        (position, event.host)
        for position, event in reader.read(filters=kinds)
        if isinstance(event, EngineOpened)
    ]


def _spans(reader: LogReader, places: Sequence[str]) -> list[tuple[int, int]]:
    """Return the spans of the log (first, behind the last) in which the engine's host is one of these places."""
    engines = engines_of(reader)
    ends = [*(position for position, _ in engines[1:]), FOREVER]
    return [
        (begin, end)
        for (begin, host), end in zip(engines, ends, strict=False)
        if any(fnmatchcase(host, place) for place in places)
    ]


def _span(reader: LogReader, wanted: RunFilter, known: int) -> tuple[int, int]:
    """Return the first and last position of decisions that `since`, `until` and `at` allow."""
    first = 1
    if wanted.since is not None:
        first = wanted.since.position or 0
        if wanted.since.at is not None:
            first = last_before(reader, wanted.since.at - 1, known) + 1
    until = known if wanted.until is None else min(known, position_of(reader, wanted.until))
    return first, until


def _time(reader: LogReader, when: When, last: bool) -> int:
    if when.position is None:
        return (when.last_at if last else when.at) or 0
    (event,) = reader.fetch([when.position])
    return event.at


def _shape(row: tuple[Any, ...]) -> dict[str, Any]:
    shape = dict(zip(RUN_FIELDS, row, strict=True))
    for name in TIMES:
        if shape[name] is not None:
            seconds, rest = divmod(shape[name], SECOND)
            shape[name] = f"{second_of(seconds)}.{rest // 1000:06d}Z"
    if shape["identities"] is not None:
        shape["identities"] = json.loads(shape["identities"])
    return shape


@lru_cache(maxsize=10_000)
def second_of(seconds: int) -> str:
    """Return a second as ISO 8601; many runs share one, and writing it out is what takes time."""
    return (iso(seconds * SECOND) or "")[:19]


class RunGroup:
    """The counts and durations of one group."""

    __slots__ = ("durations", "ended", "failed", "runs", "waits")

    def __init__(self) -> None:
        self.runs = self.ended = self.failed = 0
        self.waits: list[float] = []
        self.durations: list[float] = []

    def add(self, state: str, ended_at: int | None, wait: float | None, duration: float | None) -> None:
        """Count a run."""
        self.runs += 1
        self.ended += ended_at is not None
        self.failed += state in FAILURES
        if wait is not None:
            self.waits.append(wait)
        if duration is not None:
            self.durations.append(duration)

    def figures(self) -> tuple[Any, ...]:
        """Return the values of `GROUP_FIELDS`; seconds, and None where there is nothing to tell."""
        durations = sorted(self.durations)
        return (
            self.runs,
            self.ended,
            self.failed,
            _rounded(self.failed / self.ended) if self.ended else None,
            _mean(self.waits),
            _rounded(sum(durations)) if durations else None,
            _mean(durations),
            percentile(durations, 0.5),
            percentile(durations, 0.95),
            durations[-1] if durations else None,
        )


def group_runs(
    reader: LogReader,
    wanted: RunFilter = RunFilter(),  # noqa: B008
    *,
    by: Sequence[str],
    sort: str | None = None,
    last: int | None = None,
    newest_first: bool = False,
) -> tuple[tuple[str, ...], list[tuple[Any, ...]]]:
    """Return columns and rows: one row for each combination of `by`, in their order or sorted by a column."""
    for name in by:
        if name not in KEYS:
            raise InvalidValueError(f"runs cannot be grouped by {name}", remedy=one_of(KEYS))
    columns = (*by, *GROUP_FIELDS)
    if sort is not None and sort not in columns:
        raise InvalidValueError(f"groups cannot be sorted by {sort}", remedy=one_of(columns))
    rows = [(*key, *group.figures()) for key, group in _groups(reader, wanted, by).items()]
    rows.sort(key=lambda row: tuple(map(_order, row)))
    if sort is not None:
        index = columns.index(sort)
        rows.sort(key=lambda row: _order(row[index]))
    rows = rows if last is None else rows[-last:]
    return columns, rows[::-1] if newest_first else rows


def _groups(reader: LogReader, wanted: RunFilter, by: Sequence[str]) -> dict[tuple[Any, ...], RunGroup]:
    made = {"day", "hour", "host"}
    named = [name for name in dict.fromkeys((*by, "where")) if name not in made]
    columns = [*_COUNTED, *named]
    engines = engines_of(reader) if "host" in by else []
    begins = [position for position, _ in engines]
    groups: dict[tuple[Any, ...], RunGroup] = {}
    for run, state, ended_at, wait, duration, decided_at, *names in run_rows(
        reader, wanted, columns, "run", None
    ):
        values = dict(zip(named, names, strict=True))
        if not made.isdisjoint(by):
            second, place = second_of(decided_at // SECOND), values["where"] or ""
            values["day"], values["hour"] = second[:10], second[:13]
            values["host"] = engines[bisect(begins, run) - 1][1] if engines and place in NEAR else place
        key = tuple(values[name] for name in by)
        group = groups.get(key)
        if group is None:
            group = groups[key] = RunGroup()
        group.add(state, ended_at, wait, duration)
    return groups


def _order(value: Any) -> tuple[bool, Any]:
    """Order values of one column, the unknown first."""
    return (value is not None, value if value is not None else 0)


def percentile(ordered: Sequence[float], share: float) -> float | None:
    """Return the smallest value that at least this share of the values does not exceed (nearest rank)."""
    return ordered[ceil(share * len(ordered)) - 1] if ordered else None


def _mean(values: Sequence[float]) -> float | None:
    return _rounded(sum(values) / len(values)) if values else None


def _rounded(value: float) -> float:
    return round(value, 6)
