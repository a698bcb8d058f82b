"""Runs in groups: how many there were, how many failed, how long they waited and took.

In: a reader, which runs (`runs.Wanted`), and what to group them by. Out: a row for each combination that there is.
"""

from __future__ import annotations

from bisect import bisect
from collections.abc import Sequence
from math import ceil
from typing import Any

from datatask.adapters.history.names import unknown
from datatask.adapters.history.runs import NANO, RUN_FIELDS, TIMES, Wanted, engines_of, run_rows, second_of
from datatask.adapters.log.reader import LogReader
from datatask.engine.core.phases import NEAR
from datatask.schema.errors import CallerError

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


class Group:
    """What the runs of one group amount to."""

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
    wanted: Wanted = Wanted(),  # noqa: B008
    *,
    by: Sequence[str],
    sort: str | None = None,
    last: int | None = None,
    newest_first: bool = False,
) -> tuple[tuple[str, ...], list[tuple[Any, ...]]]:
    """Return columns and rows: one row for each combination of `by`, in their order or sorted by a column."""
    for name in by:
        if name not in KEYS:
            raise CallerError(f"runs cannot be grouped by {name}", remedy=unknown(name, KEYS).remedy)
    columns = (*by, *GROUP_FIELDS)
    if sort is not None and sort not in columns:
        raise CallerError(f"groups cannot be sorted by {sort}", remedy="use one of: " + ", ".join(columns))
    rows = [(*key, *group.figures()) for key, group in _groups(reader, wanted, by).items()]
    rows.sort(key=lambda row: tuple(map(_order, row)))
    if sort is not None:
        index = columns.index(sort)
        rows.sort(key=lambda row: _order(row[index]))
    rows = rows if last is None else rows[-last:]
    return columns, rows[::-1] if newest_first else rows


def _groups(reader: LogReader, wanted: Wanted, by: Sequence[str]) -> dict[tuple[Any, ...], Group]:
    made = {"day", "hour", "host"}
    named = [name for name in dict.fromkeys((*by, "where")) if name not in made]
    columns = [*_COUNTED, *named]
    engines = engines_of(reader) if "host" in by else []
    begins = [position for position, _ in engines]
    groups: dict[tuple[Any, ...], Group] = {}
    for run, state, ended_at, wait, duration, decided_at, *names in run_rows(
        reader, wanted, columns, "run", None
    ):
        values = dict(zip(named, names, strict=True))
        if not made.isdisjoint(by):
            second, place = second_of(decided_at // NANO), values["where"] or ""
            values["day"], values["hour"] = second[:10], second[:13]
            values["host"] = engines[bisect(begins, run) - 1][1] if engines and place in NEAR else place
        key = tuple(values[name] for name in by)
        group = groups.get(key)
        if group is None:
            group = groups[key] = Group()
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
