"""The episodes of jobs: opened, moved from phase to phase and closed, as the state at batch boundaries says.

In: a tracker and a job to look at; the batch's facts as attributes. Out: each `Episode` that ends, to the sink. A `Tracker`
has a task's four lines and its open `Record`s. A record is in one `Phase`, follows that phase's line, and adds up its
time when it leaves: the line's cause comes first, else the phase's own. `WatchedState` notes the jobs to look at;
`ledger` says when.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from typing import NamedTuple

from datatask.engine.core.cells import get_at
from datatask.engine.core.decide import value_position
from datatask.engine.core.leaves import LeafState
from datatask.engine.core.quotas import Constraint
from datatask.engine.core.state import State
from datatask.engine.core.tasks import TaskState
from datatask.engine.waits.intervals import Blame, Episode, Interval, Line, Mark, Reading, Reason, blame
from datatask.schema import definition as d
from datatask.schema import events as e


class WatchedState(State):
    """A state that notes in `touched` which trackers have to look at which jobs; `readers` has a leaf's trackers, by its index."""

    def __init__(self, base: State, only: str | None) -> None:
        super().__init__()
        vars(self).update(vars(base))
        self.only = only
        self.readers: dict[int, tuple[Tracker, ...]] = {}
        self.before: dict[int, int] = {}
        self.touched: dict[tuple[Tracker, int], int] = {}

    def flip(self, leaf: LeafState, job: int, present: bool, position: int) -> bool:
        if leaf.index not in self.readers:
            return State.flip(self, leaf, job, present, position)
        self._keep(job)  # first: what follows from this change is noted before it
        changed = State.flip(self, leaf, job, present, position)
        if changed:
            self.touch(leaf, job, position)
        return changed

    def value_changed(self, leaf: LeafState, job: int, position: int) -> None:
        super().value_changed(leaf, job, position)
        self.touch(leaf, job, position)

    def touch(self, leaf: LeafState, job: int, position: int) -> None:
        """Note that something about a job in a leaf has changed."""
        trackers = self.readers.get(leaf.index)
        if trackers and (self.only is None or self.jobs[job] == self.only):
            for tracker in trackers:
                self.touched[tracker, job] = position

    def _keep(self, job: int) -> None:
        """Keep the mask that a job had at the last boundary."""
        if job not in self.before and (self.only is None or self.jobs[job] == self.only):
            self.before[job] = self.masks[job]


class Episodes:
    """Compares jobs with their records; hands each episode that ends to `sink`, with intervals for the one `job`.

    `at` is the time up to which all is accounted for, `boundary` the last batch boundary, `batch` what was folded since.
    `ended` and `asked` are the batch's ends of runs and requests, `over` the runs that are over at their targets.
    """

    def __init__(
        self, base: State, sink: Callable[[Episode], None], *, job: str | None, since: int, by_host: bool
    ) -> None:
        self.state = WatchedState(base, job)
        self.at = base.at
        self.counts = since <= base.at
        self.wakes: list[tuple[int, int, Tracker, Record]] = []
        self.boundary = base.position
        self.batch = e.Batch(1, ())
        self.ended: dict[int, e.RunEnded] = {}
        self.asked: dict[tuple[Tracker, int], str] = {}
        self.over = {run.run for run in base.open_runs.values() if run.settling is not None}
        self._sink, self._job, self._since, self._by_host = sink, job, since, by_host
        self._woken = 0

    def look(self, tracker: Tracker, job: int, position: int) -> None:
        """Compare where a job is with its record."""
        state, record = self.state, tracker.records.get(job)
        mask = state.masks[job]
        phase = tracker.phase(state, job, mask, self.at, self.over)
        if phase is None or not (phase.ready or tracker.reading.waits(state, job, mask)):
            if record is not None:
                self.close(tracker, record, position)
            return
        number = get_at(tracker.task.episode_count, job) + (0 if phase.ready else 1)
        stays = False
        if record is not None and record.ready and not (phase.ready and number == record.number):
            stays = not record.phase.run
            self.close(tracker, record, position)
            record = None
        if record is None:
            if not (phase.ready or stays or self._appeared(tracker, job, mask)):
                return
            record = tracker.records[job] = Record(job, self.at, position)
            if self._job is not None:
                record.intervals = []
            self._enter(tracker, record, phase, self.at, position)
        elif phase != record.phase:
            self._leave(tracker, record, position)
            self._enter(tracker, record, phase, self.at, position)
        record.number = number
        if record.intervals is not None:
            self._explain(tracker, record, position)

    def wake(self) -> None:
        """End the backoff that ends first: the job is queued."""
        at, _, tracker, record = heapq.heappop(self.wakes)
        is_open = tracker.records.get(record.job) is record
        if is_open and record.phase.cause == "backoff" and record.phase.not_before == at:
            record.leave(at, record.position)
            self._enter(tracker, record, QUEUED, at, record.position)

    def close(self, tracker: Tracker, record: Record, position: int | None) -> None:
        """Hand over an episode that has ended, or (without a position) is open at the end of the log."""
        self._leave(tracker, record, position)
        record.place(self._host(record.where) if record.phase.run and self._by_host else "")
        del tracker.records[record.job]
        if not self.counts or (self._since and self.at <= self._since):
            return
        job, ended = self.state.jobs[record.job], self.ended.get(record.phase.run)
        outcome = ended.outcome if ended is not None else self.asked.get((tracker, record.job), "ceased")
        name, number = tracker.name, record.number
        intervals = [one._replace(task=name, job=job, episode=number) for one in record.intervals or ()]
        self._sink(
            Episode(
                name, job, number, record.start, self.at, record.began, position,
                "" if position is None else outcome, position is None, record.sums, intervals,
            )
        )  # fmt: skip

    def _appeared(self, tracker: Tracker, job: int, mask: int) -> bool:
        """Whether a job is somewhere it was not at the last boundary, or is marked as done no more."""
        was, reading = self.state.before.get(job, mask), tracker.reading
        appeared = mask & reading.arrivals & ~(was & tracker.arrivals) or was & tracker.own
        return appeared != 0 or reading.renewed(self.state, job, self.boundary)

    def _enter(self, tracker: Tracker, record: Record, phase: Phase, at: int, position: int) -> None:
        record.enter(phase, tracker.lines[phase.line], at, position)
        if phase.run:
            record.where = self.state.open_runs[phase.run].where
        elif phase.cause == "backoff":
            self._woken += 1
            heapq.heappush(self.wakes, (phase.not_before, self._woken, tracker, record))

    def _leave(self, tracker: Tracker, record: Record, position: int | None) -> None:
        record.leave(self.at, position)
        if record.phase.cause == "upstream" and record.intervals is not None:
            record.name("upstream", self._arrived(record))
        ended = self.ended.get(record.phase.run)
        if ended is not None and self._by_host:
            record.place(self._host(ended.where or record.where))

    def _host(self, where: str) -> str:
        engine = self.state.engine
        return engine.host if where in NEAR and engine is not None else where

    # --- in words, for the one job ----------------------------------------------------------------

    def _explain(self, tracker: Tracker, record: Record, position: int) -> None:
        """Bring the reason of a record's own cause up to date."""
        lacks = record.phase in LACKING.values()
        blamed: Blame | None = blame(self.state, tracker.reading.expr, record.job) if lacks else None
        reason = tracker.reason(self.state, record, blamed)
        if blamed is not None and reason.cause == "upstream":
            record.lacking, reason = tuple(blamed.missing), Reason("upstream")
        if reason != record.reason:
            record.cut(self.at, position)
            record.reason = reason

    def _arrived(self, record: Record) -> Reason:
        """Return the reason of a wait upstream: of the leaves that were missing the latest to arrive, else those missing."""
        state, job = self.state, record.job
        leaves = [state.leaves[name] for name in record.lacking if name in state.leaves]
        there = [leaf for leaf in leaves if state.masks[job] & leaf.bit]
        if not there:
            return Reason("upstream", ", ".join(record.lacking), repository=next(iter(record.lacking), None))
        leaf = max(there, key=lambda one: self._arrival(one, job)[0])
        _, task, run = self._arrival(leaf, job)
        source = f" by run {run} of {task}" if run is not None else ""
        return Reason("upstream", leaf.id + source, run, leaf.id)

    def _arrival(self, leaf: LeafState, job: int) -> tuple[int, str | None, int | None]:
        """Return when a job arrived in its leaf, and by which task's run, as far as this batch says."""
        rule = leaf.definition.derived
        if isinstance(rule, d.ViewDef):
            other = self.state.tasks.get(rule.task)
            run = get_at(other.last_run, job) if other is not None else 0
            return self.state.position, rule.task, run or None
        position = value_position(leaf, job)
        batch, fact = self.batch, None
        if batch.first <= position <= batch.last:
            fact = batch.events[position - batch.first]
        return position, fact.task if fact is not None else None, fact.run if fact is not None else None


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
    "unselected": ("pause", "a run that did not choose it"),
    "limit": ("pause", "a run that launched as many as its limit"),
}


def bound_by(recorded: str) -> Reason:
    """Return the reason that a round's constraint stands for, as long as no other round has been recorded."""
    constraint = Constraint.recorded(recorded)
    if constraint is None or constraint.kind not in _BOUND:
        return Reason("priority", "the next round")
    cause, detail = _BOUND[constraint.kind]
    return Reason(cause, detail.format(constraint.name))
