"""The phase that a job is in for a task, the lines that its jobs share, and the account of one open episode.

A `Tracker` has a task's four lines and its open `Record`s. A record is in one `Phase`, follows that phase's line, and
adds up its time when it leaves: the line's cause comes first, else the phase's own.
"""

from __future__ import annotations

from typing import NamedTuple

from datatask.engine.core.quotas import Constraint
from datatask.engine.core.state import State
from datatask.engine.core.tasks import TaskState
from datatask.engine.waits.causes import Blame, Reading
from datatask.engine.waits.intervals import Interval, Line, Mark, Reason
from datatask.schema import definition as d

OVER, DATA, GATE, QUEUE = range(4)
"""The lines of a task: is an engine up · and are stores known · and is it not paused · and what binds its rounds."""

NEAR = frozenset({"", "in-process", "thread", "executor", "local"})
"""The names that runners give to the engine's own host."""


class Phase(NamedTuple):
    """A cause of its own, the line that comes before it, and its run or time."""

    cause: str
    line: int
    ready: bool = True
    run: int = 0
    not_before: int = 0


QUEUED = Phase("priority", QUEUE)
AWAITING = Phase("evaluation", DATA)
LACKING = {cause: Phase(cause, DATA, ready=False) for cause in ("upstream", "inhibitor", "evaluation")}


class Record:
    """An open episode: its start, its phase, its sums so far, and, if asked for, its intervals."""

    __slots__ = (
        "began", "cut_at", "intervals", "job", "lacking", "line", "mark", "number", "phase", "phase_first", "position", "reason",
        "ready", "since", "start", "sums", "unplaced", "where",
    )  # fmt: skip

    def __init__(self, job: int, at: int, position: int) -> None:
        self.job, self.start, self.began = job, at, position
        self.number, self.ready, self.where = 0, False, ""
        self.sums: dict[tuple[str, int, str], int] = {}
        self.unplaced: dict[tuple[str, int], int] = {}
        self.intervals: list[Interval] | None = None
        self.reason = Reason("")
        self.lacking: tuple[str, ...] = ()
        self.phase_first = 0
        self.since = self.cut_at = at
        self.position = position
        self.phase: Phase
        self.line: Line
        self.mark: Mark

    def enter(self, phase: Phase, line: Line, at: int, position: int) -> None:
        """Enter a phase at `at`."""
        self.phase, self.line, self.mark = phase, line, line.mark
        self.since, self.ready = at, phase.ready
        if self.intervals is not None:
            self.cut_at, self.position, self.phase_first = at, position, len(self.intervals)
            line.listeners[self] = self.cut

    def leave(self, at: int, position: int | None) -> None:
        """Leave the phase."""
        if self.intervals is not None:
            self.cut(at, position)
            del self.line.listeners[self]
        self.add_up(at)

    def add_up(self, at: int) -> None:
        """Add the time since the last call to the sums of its causes."""
        unplaced, own, mark = self.unplaced, self.phase.cause, self.line.mark
        if mark is self.mark:  # nothing has happened to the line meanwhile
            if at > self.since:
                key = (mark.cause or own, mark.day)
                unplaced[key] = unplaced.get(key, 0) + at - self.since
        else:
            for cause, day, share in self.line.shares(self.mark, self.since, at):
                key = (cause or own, day)
                unplaced[key] = unplaced.get(key, 0) + share
        self.since, self.mark = at, mark

    def place(self, host: str) -> None:
        """Attribute the time that led to a run, and the run itself, to its host."""
        sums = self.sums
        for (cause, day), share in self.unplaced.items():
            sums[cause, day, host] = sums.get((cause, day, host), 0) + share
        self.unplaced = {}

    def forget(self, at: int) -> None:
        """Drop the time before `at`."""
        self.add_up(at)
        self.sums, self.unplaced, self.start, self.cut_at = {}, {}, at, at
        if self.intervals is not None:
            self.intervals.clear()
            self.phase_first = 0

    def cut(self, at: int, position: int | None) -> None:
        """End an interval here; one with the same reason as the last makes that longer."""
        intervals = self.intervals
        assert intervals is not None
        if at > self.cut_at:
            reason = self.line.reason or self.reason
            last = intervals[-1] if intervals else None
            if last is not None and last.reason == reason and last.end == self.cut_at:
                intervals[-1] = last._replace(end=at, ended=position)
            else:
                intervals.append(
                    Interval("", "", 0, self.cut_at, at, *reason[:2], self.position, position, *reason[2:])
                )
        self.cut_at = at
        if position is not None:
            self.position = position

    def name(self, cause: str, reason: Reason) -> None:
        """Set the reason of the present phase's intervals with this cause."""
        intervals = self.intervals or []
        for index in range(self.phase_first, len(intervals)):
            if intervals[index].cause == cause:
                intervals[index] = intervals[index]._replace(
                    detail=reason.detail, run=reason.run, repository=reason.repository
                )


class Tracker:
    """One task: what it reads, its lines, and its open episodes by job."""

    def __init__(self, task: TaskState, at: int, day: int) -> None:
        self.task, self.name = task, task.name
        self.lines = [Line(at, day) for _ in (OVER, DATA, GATE, QUEUE)]
        self.records: dict[int, Record] = {}
        self.constraint = ""
        self.definition: d.TaskDef | None = None
        self.reading: Reading
        self.arrivals = self.own = 0

    def turn(self, state: State, down: Reason | None, at: int, position: int) -> None:
        """Bring the lines up to date."""
        for line, reason in zip(self.lines, self._reasons(state, down), strict=True):
            if reason != line.reason:
                line.turn(reason, at, position)

    def _reasons(self, state: State, down: Reason | None) -> tuple[Reason | None, ...]:
        task, data = self.task, down
        if data is None:
            for leaf in task.reads:
                if not leaf.synced:
                    why = leaf.held or leaf.trouble or f"{leaf.id} is not known yet"
                    data = Reason("observing", why, repository=leaf.id)
                    break
        gate = data
        if gate is None and task.paused:
            gate = Reason("pause", f"paused at position {task.paused}")
        if gate is None and task.definition.disabled:
            gate = Reason("pause", f"disabled at position {state.defined_at}")
        return down, data, gate, gate or bound_by(self.constraint)

    def phase(self, state: State, job: int, mask: int, at: int, over: set[int]) -> Phase | None:
        """Return the phase of a job, None where its last episode is over and nothing has changed since.

        `over` has the runs that are over at their targets.
        """
        task = self.task
        episode = task.episodes.get(job)
        if episode is not None:
            if not episode.run:
                later = (episode.not_before or 0) > at
                return Phase("backoff", GATE, not_before=episode.not_before or 0) if later else QUEUED
            run = state.open_runs[episode.run]
            cause = "adapter" if run.started_at is None else "running"
            return Phase("collecting" if run.run in over else cause, OVER, run=run.run)
        if job in task.queue:
            return QUEUED
        if job in task.awaiting:
            return AWAITING
        if mask & task.claim or task.condition.test(mask):
            return None
        return LACKING[self.reading.cause(state, job, mask)]

    def reason(self, state: State, record: Record, blamed: Blame | None) -> Reason:
        """Return a record's own cause with its detail."""
        phase = record.phase
        if phase.run:
            run = state.open_runs[phase.run]
            where = f" on {run.where}" if run.where else ""
            return Reason(phase.cause, f"run {run.run}, attempt {run.attempt}{where}", run=run.run)
        if phase.cause == "backoff":
            last = self.task.last_run[record.job]
            return Reason("backoff", f"after run {last}", run=last)
        if blamed is None:
            return Reason(phase.cause, "its priority" if phase is AWAITING else "")
        names = blamed.inhibiting if phase.cause == "inhibitor" else blamed.evaluating
        return Reason(phase.cause, ", ".join(names), repository=names[0] if names else None)


_BOUND = {
    "rate": ("rate", "{}"),
    "quota": ("quota", "{}"),
    "infeasible": ("quota", "{}: more than there is at all"),
    "concurrency": ("quota", "the task's own concurrency"),
    "adapter": ("adapter", "the runner takes nothing"),
    "bound": ("priority", "others came first"),
}


def bound_by(recorded: str) -> Reason:
    """Return the reason that a round's constraint stands for, as long as no other round has been recorded."""
    constraint = Constraint.recorded(recorded)
    if constraint is None or constraint.kind not in _BOUND:
        return Reason("priority", "the next round")
    cause, detail = _BOUND[constraint.kind]
    return Reason(cause, detail.format(constraint.name))
