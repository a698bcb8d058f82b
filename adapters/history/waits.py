"""Where the time of jobs went, from a log: one job's intervals, and sums by task, host, day, job, cause.

In: a reader and a `WaitQuery`. Out: `Interval`s, or `Sums`. The whole log is folded once; beside it
are kept the open episodes and the sums, nothing that grows with the number of events.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from datatask.adapters.clock import SystemClock
from datatask.adapters.history.moments import When, position_of
from datatask.adapters.history.shapes import Table
from datatask.adapters.history.states import beginning, collector_off
from datatask.adapters.log.lease import probe
from datatask.adapters.log.reader import LogReader
from datatask.engine.ports import Filters
from datatask.engine.waits.intervals import CAUSES, WORKING, Episode, Interval, Spread
from datatask.engine.waits.ledger import Ledger
from datatask.schema.errors import InvalidValueError, UnknownNameError, unknown
from datatask.schema.events import EngineOpened, PipelineDefined, Renamed
from datatask.schema.units import SECOND, iso

BY = ("task", "host", "day", "job", "cause")
USUAL = ("task", "cause")
SUM_FIELDS = ("seconds", "nanoseconds", "share", "episodes", "open", "mean", "p50", "p95", "max")
TASK_FIELDS = ("episodes", "open", "seconds", "waited", "mean", "p50", "p95", "max")
INTERVAL_FIELDS = (
    "task", "episode", "from", "to", "seconds", "nanoseconds", "cause", "detail", "began", "ended", "run",
    "repository", "job",
)  # fmt: skip

Sink = Callable[[Episode], None]


class WaitQuery(NamedTuple):
    """One task, one job, from when on, and as of when."""

    task: str | None = None
    job: str | None = None
    since: When | None = None
    at: When | None = None


class Sums(NamedTuple):
    """Rows by the keys of the query, and per task how long episodes waited in all."""

    at_position: int
    until: int
    rows: Table
    tasks: Table


# --- one job ----------------------------------------------------------------------------------------


def find_intervals(reader: LogReader, asked: WaitQuery) -> list[Interval]:
    """Return the intervals of `asked.job` by task, then by time; `UnknownNameError` for a task or job that does not exist.

    Those of one episode follow each other without gaps; `ended` is None for an open one.
    """
    check(reader, asked)
    found: list[Interval] = []
    _follow(reader, asked, lambda episode: found.extend(episode.intervals))
    return sorted(found, key=lambda one: (one.task, one.start))


def interval_row(one: Interval) -> dict[str, Any]:
    """Return an interval in its documented shape."""
    return {
        "task": one.task,
        "episode": one.episode,
        "from": iso(one.start),
        "to": iso(one.end),
        "seconds": one.nanoseconds / SECOND,
        "nanoseconds": one.nanoseconds,
        "cause": one.cause,
        "detail": one.detail,
        "began": one.began,
        "ended": one.ended,
        "run": one.run,
        "repository": one.repository,
        "job": one.job,
    }


# --- sums -------------------------------------------------------------------------------------------


def sum_up(reader: LogReader, asked: WaitQuery, by: Sequence[str] = USUAL) -> Sums:
    """Add up where the time went, a row for each combination of `by` (`BY`) that occurs."""
    wrong = next((name for name in by if name not in BY), None)
    if wrong is not None or not by or len(set(by)) < len(by):
        what = (
            f"there is no {wrong} to tell sums apart by"
            if wrong is not None
            else "sums are by each name once"
        )
        raise InvalidValueError(what, remedy="use some of: " + ", ".join(BY))
    check(reader, asked)
    groups: dict[tuple[Any, ...], _Sum] = {}
    tasks: dict[str, _Sum] = {}
    apart = "cause" in by

    def take(episode: Episode) -> None:
        parts: dict[tuple[Any, ...], list[int]] = {}
        waited = 0
        for (cause, day, host), share in episode.sums.items():
            values = {"task": episode.task, "job": episode.job, "cause": cause, "day": day, "host": host}
            waits = 0 if cause in WORKING else share
            part = parts.setdefault(tuple(values[name] for name in by), [0, 0])
            part[0] += share
            part[1] += share if apart else waits
            waited += waits
        for key, (total, spread) in parts.items():
            groups.setdefault(key, _Sum()).take(total, spread, episode.open)
        tasks.setdefault(episode.task, _Sum()).take(episode.end - episode.start, waited, episode.open)

    waits = _follow(reader, asked, take, by_day="day" in by, by_host="host" in by)
    order = {task: index for index, task in enumerate(waits.state.tasks)}
    return Sums(
        waits.state.position, waits.at, _rows(groups, by, order),
        Table(
            ("task", *TASK_FIELDS),
            ((task, *group.figures(waited=True)) for task, group in _sorted(tasks, order)),
        ),
    )  # fmt: skip


class _Sum:
    """One row: nanoseconds in all, and the spread over episodes of those that count."""

    __slots__ = ("open", "spread", "total")

    def __init__(self) -> None:
        self.total = self.open = 0
        self.spread = Spread()

    def take(self, total: int, spread: int, is_open: bool) -> None:
        self.total += total
        self.open += is_open
        self.spread.add(spread)

    def figures(self, *, waited: bool = False) -> tuple[Any, ...]:
        spread = self.spread
        mean = spread.total / spread.count / SECOND
        rest = (mean, spread.quantile(0.5) / SECOND, spread.quantile(0.95) / SECOND, spread.largest / SECOND)
        if waited:
            return spread.count, self.open, self.total / SECOND, spread.total / SECOND, *rest
        return spread.count, self.open, *rest


def _rows(groups: dict[tuple[Any, ...], _Sum], by: Sequence[str], order: dict[str, int]) -> Table:
    """Return the rows; a share is that of the rows with the same keys but for the cause, or of all."""
    among = [index for index, name in enumerate(by) if name != "cause"] if "cause" in by else []
    wholes: dict[tuple[Any, ...], int] = {}
    for key, group in groups.items():
        whole = tuple(key[index] for index in among)
        wholes[whole] = wholes.get(whole, 0) + group.total

    def place(key: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(_place(name, value, order) for name, value in zip(by, key, strict=True))

    rows = []
    for key in sorted(groups, key=place):
        group = groups[key]
        of = wholes[tuple(key[index] for index in among)]
        shown = (_shown(name, value) for name, value in zip(by, key, strict=True))
        share = group.total / of if of else 0.0
        rows.append((*shown, group.total / SECOND, group.total, share, *group.figures()))
    return Table((*by, *SUM_FIELDS), rows)


def _sorted(tasks: dict[str, _Sum], order: dict[str, int]) -> list[tuple[str, _Sum]]:
    return sorted(tasks.items(), key=lambda entry: (order.get(entry[0], len(order)), entry[0]))


def _place(name: str, value: Any, order: dict[str, int]) -> Any:
    if name == "task":
        return order.get(value, len(order)), value
    return CAUSES.index(value) if name == "cause" else value


def _shown(name: str, value: Any) -> Any:
    if name == "day":
        return (dt.date(1970, 1, 1) + dt.timedelta(days=value)).isoformat()
    return None if value == "" else value


# --- the log ----------------------------------------------------------------------------------------


def _follow(
    reader: LogReader, asked: WaitQuery, sink: Sink, *, by_day: bool = False, by_host: bool = False
) -> Ledger:
    """Pass the episodes of a query to `sink`, under the present names of tasks."""
    until = position_of(reader, asked.at)
    since = _time_of(reader, asked.since)
    names = _names(reader, until) if asked.task is not None else {}

    def renamed(episode: Episode) -> None:
        if episode.task in names and names[episode.task] != episode.task:
            now = names[episode.task]
            intervals = [one._replace(task=now) for one in episode.intervals]
            episode = episode._replace(task=now, intervals=intervals)
        sink(episode)

    tasks = None
    if asked.task is not None:
        tasks = {old for old, now in names.items() if now == names.get(asked.task, asked.task)}
    with collector_off():
        waits = Ledger(
            beginning(reader),
            renamed,
            tasks=tasks,
            job=asked.job,
            since=since,
            by_day=by_day,
            by_host=by_host,
        )
        for batch in reader.batches(waits.state.position, until):
            waits.take(batch)
        horizon = 0
        if asked.at is not None and asked.at.at is not None:
            horizon = min(asked.at.at, SystemClock().now())
            if horizon > waits.at and _died(reader, until):
                waits.died()
        waits.finish(horizon)
    return waits


def _time_of(reader: LogReader, when: When | None) -> int:
    if when is None:
        return 0
    if when.position is None:
        return when.at or 0
    position_of(reader, when)
    return reader.fetch([when.position])[0].at if when.position else 0


def _died(reader: LogReader, position: int) -> bool:
    """Whether the engine that wrote up to `position` wrote nothing more and is gone."""
    after = next(reader.batches(position), None)
    if after is None:
        return probe(reader.path) is None
    return any(isinstance(event, EngineOpened) for event in after.events)


def _names(reader: LogReader, until: int) -> dict[str, str]:
    """Return all names that tasks have had -> their present names."""
    names: dict[str, str] = {}
    filters = Filters(kinds=("PipelineDefined", "Renamed"))
    for _, event in reader.read(0, until, filters):
        if isinstance(event, PipelineDefined):
            names.update((task.name, task.name) for task in event.definition.tasks)
        elif isinstance(event, Renamed) and event.what == "task":
            names[event.old] = event.old
            names = {old: event.new if now == event.old else now for old, now in names.items()}
            names[event.new] = event.new
    if beginning(reader).position:
        names.update((name, name) for name in beginning(reader).tasks if name not in names)
    return names


def is_task(reader: LogReader, name: str) -> bool:
    """Whether a task has, or has had, this name."""
    return name in _names(reader, reader.head)


def known_tasks(reader: LogReader) -> str:
    """Return a remedy that names the tasks."""
    return "tasks are: " + ", ".join(sorted(set(_names(reader, reader.head).values()))[:20])


def is_job(reader: LogReader, name: str) -> bool:
    """Whether the log has an event of this job."""
    sql = "SELECT 1 FROM log WHERE job = (SELECT id FROM names WHERE text = ?) LIMIT 1"
    return bool(reader.query(sql, (name,)).rows)


def refuse_unknown(
    reader: LogReader, tasks: Iterable[str] = (), jobs: Iterable[str] = (), repositories: Iterable[str] = ()
) -> None:
    """Refuse names that the log does not have, with those that are like them; what was archived may have had others."""
    if reader.header.base:
        return
    known = _names(reader, reader.head) if tasks else {}
    for task in tasks:
        if task not in known:
            raise unknown("task", task, known)
    for job in jobs:
        if not is_job(reader, job):
            raise UnknownNameError(f"there is no job {job} in the log", remedy="see: datatask ls")
    for repository in repositories:
        if not reader.query("SELECT 1 FROM names WHERE text = ?", (repository,)).rows:
            raise UnknownNameError(
                f"there is no repository {repository} in the log", remedy="see: datatask status --all"
            )


def check(reader: LogReader, asked: WaitQuery) -> None:
    """Refuse names that are none."""
    if asked.task is not None and asked.task not in (known := _names(reader, reader.head)):
        raise unknown("task", asked.task, known)
    if asked.job is not None and not is_job(reader, asked.job):
        raise UnknownNameError(f"there is no job {asked.job} in the log", remedy="see: datatask ls")
