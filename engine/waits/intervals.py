"""Causes over time: why a condition does not hold, the lines that many jobs share, and sums of durations.

A `Line` is one cause over time, shared by all jobs in one phase of a task: a round's "quota" is one change of one line,
however many jobs wait. A job's share is the difference between two running sums, taken when it enters and leaves the
phase. Times are UTC nanoseconds. A `Spread` adds durations up in bounded memory: few exactly, many by leading digits.
`Blame` names the missing or inhibiting leaf, or the evaluation, at a batch boundary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

from datatask.engine.core.define import start_condition
from datatask.engine.core.expressions import literals, unmet
from datatask.engine.core.leaves import LeafState, Memberships
from datatask.engine.core.state import PendingKey, State
from datatask.engine.core.tasks import TaskState
from datatask.schema import definition as d

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


class Blame(NamedTuple):
    """The leaves that keep a condition from holding for a job: absent, present, or being evaluated."""

    missing: list[str]
    inhibiting: list[str]
    evaluating: list[str]

    @property
    def cause(self) -> str:
        """The first cause that holds; `upstream` for a condition that nothing can meet."""
        if self.missing or not (self.inhibiting or self.evaluating):
            return "upstream"
        return "inhibitor" if self.inhibiting else "evaluation"


class Reading:
    """What a task reads, compiled: in which leaves a job appears for it, and which entries mark it as done.

    `arrivals` are the bits of the leaves in which a job can appear: those that the condition wants or that are
    inputs, and what they are derived from. `own` are those of the task's own status entries.
    """

    __slots__ = ("arrivals", "care", "current", "derived", "expr", "own", "plain", "tracked", "want")

    def __init__(self, state: State, task: TaskState) -> None:
        definition = task.definition
        self.current = current = any(known.name == definition.name for known in state.definition.tasks)
        self.expr: d.AnyExpr = start_condition(definition) if current else d.Any(of=())
        links = definition.links if current else ()
        wanted = [name for name, want in literals(self.expr) if want]
        wanted += [name for link in links if link.is_input for name, want in literals(link.expr) if want]
        own = {d.view_id(definition.name, view) for view in d.VIEW_NAMES}
        leaves = [state.leaves[name] for name in dict.fromkeys(wanted) if name not in own]
        self.derived = tuple(leaf for leaf in leaves if leaf.derived is not None)
        self.plain = _bits(leaf for leaf in leaves if leaf.derived is None)
        self.arrivals = _bits(below for leaf in leaves for below in _sources(state, leaf))
        self.own = _bits(state.leaves[name] for name in _own_status(definition) if current)
        care, want, predicate = task.condition
        simple = current and predicate is None and not any(want & leaf.bit for leaf in self.derived)
        self.care, self.want = (care, want) if simple else (0, 0)
        under = (*task.reads, *(below for leaf in leaves for below in _sources(state, leaf)))
        status = (state.leaves[name] for name in _own_status(definition) if current)
        self.tracked = {leaf.index: leaf for leaf in (*under, *status)}

    def waits(self, state: State, job: int, mask: int) -> bool:
        """Whether a job that is not ready has reason to wait: it is in an input, or may be, and is not marked as done."""
        if mask & self.own:
            return False
        return mask & self.plain != 0 or any(likely(state, leaf, job) for leaf in self.derived)

    def cause(self, state: State, job: int, mask: int) -> str:
        """Return why the condition does not hold: `upstream`, `inhibitor` or `evaluation`."""
        if self.care:
            if self.want & ~mask:
                return "upstream"
            if self.care & mask != self.want:
                return "inhibitor"
        return blame(state, self.expr, job).cause

    def renewed(self, state: State, job: int, position: int) -> bool:
        """Whether an evaluation that the job may appear by has come due after `position`."""
        return any(_due(state, leaf, job) > position for leaf in self.derived)


def blame(state: State, expr: d.AnyExpr, job: int) -> Blame:
    """Return what keeps a condition that does not hold from holding."""
    found = Blame([], [], [])
    _lacking(state, expr, job, found)
    return Blame(*(list(dict.fromkeys(names)) for names in found))


def _lacking(state: State, expr: d.AnyExpr, job: int, found: Blame) -> None:
    for name, wanted in unmet(expr, Memberships(state.leaves, state.masks[job])) or ():
        if wanted:
            _absent(state, state.leaves[name], job, found)
        else:
            found.inhibiting.append(name)


def _absent(state: State, leaf: LeafState, job: int, found: Blame) -> None:
    """Blame a leaf that the job is not in, an evaluation that is due, or the leaves that a derived one rests on."""
    rule, derived = leaf.definition.derived, leaf.derived
    if isinstance(rule, d.DerivedDef) and derived is not None:
        if _due(state, leaf, job):
            found.evaluating.append(leaf.id)
            return
        if job not in derived.forward and not derived.candidates.test(state.masks[job]):
            _lacking(state, rule.candidates, job, found)
            return
    found.missing.append(leaf.id)


def likely(state: State, leaf: LeafState, job: int) -> bool:
    """Whether a job is in a leaf, or may come to be in it without appearing anywhere anew."""
    mask = state.masks[job]
    if mask & leaf.bit:
        return True
    rule, derived = leaf.definition.derived, leaf.derived
    if derived is None or not isinstance(rule, d.DerivedDef):
        return False
    if _due(state, leaf, job) or job in derived.forward:
        return True
    if derived.candidates.test(mask):
        return False  # user code has said no
    return any(want and likely(state, state.leaves[name], job) for name, want in literals(rule.candidates))


def _due(state: State, leaf: LeafState, job: int) -> int:
    """Return the position that made an evaluation due, 0 if none is."""
    if leaf.derived is None:
        return 0
    pending = state.pending.get(PendingKey(leaf.derived.what, leaf.id, job))
    return pending.position if pending is not None else 0


def _sources(state: State, leaf: LeafState) -> Iterator[LeafState]:
    """Yield a leaf and those below it in which the same job appears for it."""
    yield leaf
    rule = leaf.definition.derived
    if isinstance(rule, d.DerivedDef):
        for name, want in literals(rule.candidates):
            if want:
                yield from _sources(state, state.leaves[name])


def _own_status(task: d.TaskDef) -> list[str]:
    names = [
        link.expr.leaf
        for link in task.links
        if link.is_status and link.inhibits_start and isinstance(link.expr, d.In)
    ]
    return [*names, *([task.done] if task.done is not None else [])]


def _bits(leaves: Iterator[LeafState] | tuple[LeafState, ...]) -> int:
    bits = 0
    for leaf in leaves:
        bits |= leaf.bit
    return bits
