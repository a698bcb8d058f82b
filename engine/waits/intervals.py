"""Causes over time: the intervals and episodes of jobs, the lines that many jobs share, and sums of durations.

A `Line` is one cause over time that all jobs in one phase of a task share: a round that says "quota" is one change
of one line, however many jobs wait. A job's share of it is the difference between two running sums, taken when the
job enters the phase and when it leaves. Times are engine time, UTC nanoseconds. A `Spread` adds durations up in
bounded memory: few are kept as they are, many by their leading digits.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

EXACT_MAX = 4096
DIGITS = 8
"""The leading binary digits that are kept: 256 steps for each doubling."""


class Spread:
    """Count, sum and largest of durations, exact; percentiles by nearest rank, exact up to `EXACT_MAX`, then to half a percent."""

    __slots__ = ("_buckets", "_values", "count", "largest", "total")

    def __init__(self) -> None:
        self.count = self.total = self.largest = 0
        self._values: list[int] = []
        self._buckets: dict[int, int] = {}

    def add(self, value: int) -> None:
        """Take one duration."""
        self.count += 1
        self.total += value
        self.largest = max(self.largest, value)
        if self._buckets:
            self._put(value)
            return
        self._values.append(value)
        if len(self._values) > EXACT_MAX:
            for kept in self._values:
                self._put(kept)
            self._values = []

    def _put(self, value: int) -> None:
        shift = max(0, value.bit_length() - DIGITS)
        middle = (value >> shift << shift) + (1 << shift >> 1)
        self._buckets[middle] = self._buckets.get(middle, 0) + 1

    def quantile(self, share: float) -> int:
        """Return the smallest value that at least this share of all are not above; 0 when there are none."""
        rank = max(1, -(-self.count * int(share * 1000) // 1000))
        if not self._buckets:
            return sorted(self._values)[rank - 1] if self._values else 0
        for middle in sorted(self._buckets):
            rank -= self._buckets[middle]
            if rank <= 0:
                return min(middle, self.largest)
        return self.largest


CAUSES = (
    "engine down",
    "observing",
    "upstream",
    "inhibitor",
    "evaluation",
    "pause",
    "backoff",
    "rate",
    "quota",
    "priority",
    "adapter",
    "running",
    "collecting",
)
"""The possible causes of an interval; where several hold, the first of them."""

WORKING = frozenset({"running", "collecting"})
"""The causes that are no waiting: the job is being worked on."""


class Reason(NamedTuple):
    """A cause with its detail in words, and its run and repository where there is one."""

    cause: str
    detail: str = ""
    run: int | None = None
    repository: str | None = None


class Interval(NamedTuple):
    """A part of an episode, from `start` up to, not including, `end`, and its cause.

    `began` and `ended` are the positions of the events that begin and end it. `ended` is None while it goes on;
    where time alone ends a backoff, it is the position of the event that had set the time.
    """

    task: str
    job: str
    episode: int
    start: int
    end: int
    cause: str
    detail: str
    began: int
    ended: int | None
    run: int | None = None
    repository: str | None = None

    @property
    def nanoseconds(self) -> int:
        """How long it took."""
        return self.end - self.start

    @property
    def reason(self) -> Reason:
        """Its cause, as lines and records have it."""
        return Reason(self.cause, self.detail, self.run, self.repository)


class Episode(NamedTuple):
    """One episode of a (task, job), from the job's first appearance to its end, or, if `open`, to the end of the log.

    `sums` has the nanoseconds by (cause, day since 1970, host); day and host are 0 and the empty string where
    they are not asked for, or no run followed. `outcome` is that of the last run, `ceased` when the episode
    ended without a run, the empty string while it is open.
    """

    task: str
    job: str
    number: int
    start: int
    end: int
    began: int
    ended: int | None
    outcome: str
    open: bool
    sums: dict[tuple[str, int, str], int]
    intervals: list[Interval]


class Mark(NamedTuple):
    """Where a line stood when its cause last changed; `totals` are the sums of that day up to then."""

    since: int
    cause: str
    day: int
    totals: dict[str, int]


class Line:
    """A cause over time, or none; `reason` is the present one."""

    __slots__ = ("days", "listeners", "mark", "reason")

    def __init__(self, at: int, day: int) -> None:
        self.reason: Reason | None = None
        self.mark = Mark(at, "", day, {})
        self.days: dict[int, dict[str, int]] = {}
        self.listeners: dict[object, Callable[[int, int], None]] = {}

    def turn(self, reason: Reason | None, at: int, position: int) -> None:
        """Let a reason hold from `at` on; listeners are called before."""
        if reason == self.reason:
            return
        for listener in list(self.listeners.values()):
            listener(at, position)
        self.reason = reason
        cause = reason.cause if reason is not None else ""
        if cause != self.mark.cause:
            self.mark = Mark(at, cause, self.mark.day, self._until(at))

    def midnight(self, at: int) -> None:
        """A day ends at `at`."""
        self.days[self.mark.day] = self._until(at)
        self.mark = Mark(at, self.mark.cause, self.mark.day + 1, {})

    def _until(self, at: int) -> dict[str, int]:
        since, cause, _, totals = self.mark
        return {**totals, cause: totals.get(cause, 0) + at - since} if at > since else totals

    def shares(self, entered: Mark, start: int, end: int) -> list[tuple[str, int, int]]:
        """Return (cause, day, nanoseconds) from `start`, when `entered` was the mark, up to `end`, which is now."""
        day, found = entered.day, []
        before = dict(entered.totals)
        before[entered.cause] = before.get(entered.cause, 0) + start - entered.since
        while day <= self.mark.day:
            for cause, total in (self.days[day] if day < self.mark.day else self._until(end)).items():
                share = total - before.get(cause, 0)
                if share:
                    found.append((cause, day, share))
            before, day = {}, day + 1
        return found
