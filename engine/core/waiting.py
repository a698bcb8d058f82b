"""Where the time of jobs went: batches in, episodes out whose every nanosecond is put down to exactly one cause.

An episode of a (task, job) begins when the job first appears in a repository that the task reads: one that its
condition wants or that is an input, or one that these are derived from. It ends with the final end of a run, when a
person cancels it or asks for a new one, or when its conditions cease: the job has left all that the task reads, has
been marked as done, or, having been ready, is so no more (then the next one begins at once if the job still has
reason to wait). After the end of a run the next one begins when the job becomes ready again, is forced, loses its
mark as done, or appears anew. Looked at are batch boundaries.

Each job is in a phase of its own; what holds for a whole task or the engine is a line that all jobs in that phase
share (`phases`, `timelines`). An event so costs what it changes, whatever the number of waiting jobs. While no run is
open the cause is the first that holds, in the order of `CAUSES`; while one is, only an engine that is down comes first.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Collection
from typing import Any

from datatask.engine.core.causes import Blame, Reading, blame
from datatask.engine.core.decide import value_position
from datatask.engine.core.fold import apply_all
from datatask.engine.core.members import LeafState, get_at
from datatask.engine.core.phases import LACKING, NEAR, QUEUED, Phase, Record, Tracker
from datatask.engine.core.state import MAX_TIME, State
from datatask.engine.core.tasks import TaskState
from datatask.engine.core.timelines import DAY, Episode, Reason
from datatask.schema import definition as d
from datatask.schema import events as e


class Watched(State):
    """A state that tells who has to look at a job again: `seen` has the trackers of a leaf, by its index."""

    def __init__(self, base: State, only: str | None) -> None:
        super().__init__()
        vars(self).update(vars(base))
        self.only = only
        self.seen: dict[int, tuple[Tracker, ...]] = {}
        self.before: dict[int, int] = {}
        self.touched: dict[tuple[Tracker, int], int] = {}

    def flip(self, leaf: LeafState, job: int, present: bool, position: int) -> bool:
        if leaf.index not in self.seen:
            return State.flip(self, leaf, job, present, position)
        before = self.masks[job]
        changed = State.flip(self, leaf, job, present, position)
        if changed:
            self.tell(leaf, job, before, position)
        return changed

    def value_changed(self, leaf: LeafState, job: int, position: int) -> None:
        super().value_changed(leaf, job, position)
        self.tell(leaf, job, self.masks[job], position)

    def tell(self, leaf: LeafState, job: int, before: int, position: int) -> None:
        """Something about a job in a leaf has changed; `before` was its mask."""
        trackers = self.seen.get(leaf.index)
        if trackers and (self.only is None or self.jobs[job] == self.only):
            self.before.setdefault(job, before)
            for tracker in trackers:
                self.touched[tracker, job] = position


class Waits:
    """Follows a log batch by batch from `base` on and hands each episode that ends to `sink`.

    `tasks` and `job` restrict what is looked at; for the one `job` episodes come with their intervals. `since`
    (UTC nanoseconds) leaves out what was before; `by_day` and `by_host` tell sums apart.
    """

    def __init__(
        self, base: State, sink: Callable[[Episode], None], *, tasks: Collection[str] | None = None,
        job: str | None = None, since: int = 0, by_day: bool = False, by_host: bool = False,
    ) -> None:  # fmt: skip
        self.state = Watched(base, job)
        self.at = base.at
        self._sink, self._tasks, self._job = sink, tasks, job
        self._since, self._by_day, self._by_host = since, by_day, by_host
        self._counts = since <= base.at
        self._trackers: dict[TaskState, Tracker] = {}
        self._wakes: list[tuple[int, int, Tracker, Record]] = []
        self._woken = 0
        self._midnight = 0
        self._next = 0
        self._boundary = base.position
        self._batch = e.Batch(1, ())
        self._ended: dict[int, e.RunEnded] = {}
        self._asked: dict[tuple[Tracker, int], str] = {}
        self._over = {run.run for run in base.open_runs.values() if run.settling is not None}
        self._wide = self._redefined = 0
        if base.position:
            self._redefine(seeding=True)

    def take(self, batch: e.Batch) -> None:
        """Follow one batch."""
        state, events, alone = self.state, batch.events, self._job
        marked: list[tuple[int, e.Event]] = []
        for position, event in enumerate(events, batch.first):
            kind = type(event)
            if kind in _WIDE or (kind in _NARROW and (alone is None or event.job == alone)):
                marked.append((position, event))
                if kind is e.EngineOpened:
                    self.died()
        at = events[-1].at
        if at > self.at:
            if at >= self._next:
                self._pass(at)
            self.at = at
        self._batch, self._boundary = batch, state.position
        apply_all(state, batch.first, events)
        for position, event in marked:
            _MARKED[type(event)](self, position, event)
        if self._redefined:
            self._redefine()
        if self._wide:
            self._turn(self._down(), self.at, self._wide)
            self._wide = self._redefined = 0
        if state.touched:
            for (tracker, job), position in state.touched.items():
                if tracker.task in self._trackers:
                    self._look(tracker, job, position)
            state.touched.clear()
            state.before.clear()
        if self._ended or self._asked:
            self._ended.clear()
            self._asked.clear()

    def died(self) -> None:
        """The engine, unless it was closed, has done nothing since the last batch and never will."""
        if self.state.engine is not None and not self.state.closed:
            told = f"the engine of epoch {self.state.engine.epoch} died"
            self._turn(Reason("engine down", told), self.at, self.state.position)

    def finish(self, at: int = 0) -> None:
        """Hand over what is open, as it is at the last batch's time or at `at` if that is later."""
        end = max(self.at, at)
        self._pass(end)
        self.at = end
        for tracker in self._trackers.values():
            for record in list(tracker.records.values()):
                self._close(tracker, record, None)

    # --- time -------------------------------------------------------------------------------------

    def _pass(self, until: int) -> None:
        """Let time pass: what happens at its own time, and not by an event."""
        if self._by_day and not self._midnight:
            self._midnight = (until // DAY + 1) * DAY
        while True:
            at = min(
                self._wakes[0][0] if self._wakes else MAX_TIME,
                MAX_TIME if self._counts else self._since,
                self._midnight or MAX_TIME,
            )
            if at > until:
                self._next = at
                return
            if at == self._midnight:
                self._midnight += DAY
                for tracker in self._trackers.values():
                    for line in tracker.lines:
                        line.midnight(at)
            elif not self._counts and at == self._since:
                self._counts = True
                for tracker in self._trackers.values():
                    for record in tracker.records.values():
                        record.forget(at)
            else:
                self._wake()

    def _wake(self) -> None:
        """A backoff is over, and the job waits in line."""
        at, _, tracker, record = heapq.heappop(self._wakes)
        there = tracker.records.get(record.job) is record
        if there and record.phase.cause == "backoff" and record.phase.not_before == at:
            record.leave(at, record.position)
            self._enter(tracker, record, QUEUED, at, record.position)

    def _down(self) -> Reason | None:
        if self.state.engine is None:
            return Reason("engine down", "no engine has run yet")
        return Reason("engine down", "the engine was closed") if self.state.closed else None

    def _turn(self, down: Reason | None, at: int, position: int) -> None:
        for tracker in self._trackers.values():
            tracker.turn(self.state, down, at, position)

    # --- what events are about --------------------------------------------------------------------

    def _touch(self, position: int, event: Any) -> None:
        task, job = self.state.tasks.get(event.task), self.state.job_index.get(event.job)
        tracker = self._trackers.get(task) if task is not None else None
        if tracker is not None and job is not None:
            self.state.touched[tracker, job] = position
            if type(event) in _ASKED:
                self._asked[tracker, job] = _ASKED[type(event)]

    def _run_ended(self, position: int, event: e.RunEnded) -> None:
        self._ended[event.run] = event
        self._over.discard(event.run)
        self._touch(position, event)

    def _observed(self, position: int, event: e.RunObserved) -> None:
        if event.phase == "collecting" and event.run in self.state.open_runs:
            self._over.add(event.run)
            self._touch(position, event)

    def _intended(self, position: int, event: e.StoreWriteIntended) -> None:
        run = (
            self.state.open_runs.get(event.run)
            if event.settles is not None and event.run is not None
            else None
        )
        if run is None or (self._job is not None and self.state.jobs[run.job] != self._job):
            return
        self._over.add(run.run)
        tracker = self._trackers.get(self.state.tasks[run.task])
        if tracker is not None:
            self.state.touched[tracker, run.job] = position

    def _evaluated(self, position: int, event: e.Evaluated) -> None:
        if event.task is not None:
            self._touch(position, event)
            return
        leaf, job = self.state.leaves.get(event.repository or ""), self.state.job_index.get(event.job)
        if leaf is not None and job is not None:
            self.state.tell(leaf, job, self.state.masks[job], position)

    def _round(self, position: int, event: e.DecisionRound) -> None:
        for tracker in self._trackers.values():
            constraint = event.constraints.get(tracker.name, "")
            if constraint != tracker.constraint:
                tracker.constraint, self._wide = constraint, position

    def _opened(self, position: int, event: e.EngineOpened) -> None:
        self._wide = position
        for tracker in self._trackers.values():
            tracker.constraint = ""  # what bound another engine's rounds binds nobody now

    def _changed(self, position: int, event: e.Event) -> None:
        self._wide = position

    def _defined(self, position: int, event: e.Event) -> None:
        self._wide = self._redefined = position

    # --- definitions ------------------------------------------------------------------------------

    def _redefine(self, seeding: bool = False) -> None:
        """Bring the trackers up to date, and look at every job of those that have changed."""
        state, known, self._trackers = self.state, self._trackers, {}
        day = self.at // DAY if self._by_day else 0
        for task in state.tasks.values():
            tracker = known.pop(task, None)
            if tracker is None and (self._tasks is None or task.name in self._tasks):
                tracker = Tracker(task, self.at, day)
            if tracker is not None:
                self._trackers[task] = tracker
        for gone in known.values():
            for record in list(gone.records.values()):
                self._close(gone, record, state.position)
        changed = [tracker for tracker in self._trackers.values() if self._reads_anew(tracker)]
        seen: dict[int, list[Tracker]] = {}
        for tracker in self._trackers.values():
            for index in tracker.reading.tracked:
                seen.setdefault(index, []).append(tracker)
        state.seen = {index: tuple(trackers) for index, trackers in seen.items()}
        self._turn(self._down(), self.at, state.position)
        for tracker in changed:
            self._look_at_all(tracker, seeding)

    def _reads_anew(self, tracker: Tracker) -> bool:
        """Compile what a task reads; return whether its jobs have to be looked at."""
        before, task = tracker.definition, tracker.task
        tracker.name = task.name
        tracker.reading = reading = Reading(self.state, task)
        tracker.definition = task.definition if reading.current else None
        if before != tracker.definition or reading.derived:
            return True
        return (reading.arrivals, reading.own) != (tracker.arrivals, tracker.own)

    def _look_at_all(self, tracker: Tracker, seeding: bool) -> None:
        state, task, position = self.state, tracker.task, self.state.position
        one = state.job_index.get(self._job) if self._job is not None else None
        for job in range(len(state.masks)) if self._job is None else () if one is None else (one,):
            state.touched.pop((tracker, job), None)
            if not (seeding and get_at(task.last_run, job) and job not in task.episodes):
                self._look(tracker, job, position)
        tracker.arrivals, tracker.own = tracker.reading.arrivals, tracker.reading.own

    # --- one job of a task ------------------------------------------------------------------------

    def _look(self, tracker: Tracker, job: int, position: int) -> None:
        """Compare where a job is with its record."""
        state, record = self.state, tracker.records.get(job)
        mask = state.masks[job]
        phase = tracker.phase(state, job, mask, self.at, self._over)
        if phase is None or not (phase.ready or tracker.reading.waits(state, job, mask)):
            if record is not None:
                self._close(tracker, record, position)
            return
        number = get_at(tracker.task.episode_count, job) + (0 if phase.ready else 1)
        stays = False
        if record is not None and record.ready and not (phase.ready and number == record.number):
            stays = not record.phase.run
            self._close(tracker, record, position)
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
            self._tell(tracker, record, position)

    def _appeared(self, tracker: Tracker, job: int, mask: int) -> bool:
        """Whether a job is somewhere it was not at the last boundary, or is marked as done no more."""
        was, reading = self.state.before.get(job, mask), tracker.reading
        appeared = mask & reading.arrivals & ~(was & tracker.arrivals) or was & tracker.own
        return appeared != 0 or reading.renewed(self.state, job, self._boundary)

    def _enter(self, tracker: Tracker, record: Record, phase: Phase, at: int, position: int) -> None:
        record.enter(phase, tracker.lines[phase.line], at, position)
        if phase.run:
            record.where = self.state.open_runs[phase.run].where
        elif phase.cause == "backoff":
            self._woken += 1
            heapq.heappush(self._wakes, (phase.not_before, self._woken, tracker, record))
            self._next = min(self._next, phase.not_before)

    def _leave(self, tracker: Tracker, record: Record, position: int | None) -> None:
        record.leave(self.at, position)
        if record.phase.cause == "upstream" and record.intervals is not None:
            record.name("upstream", self._latest(record))
        ended = self._ended.get(record.phase.run)
        if ended is not None and self._by_host:
            record.place(self._host(ended.where or record.where))

    def _host(self, where: str) -> str:
        engine = self.state.engine
        return engine.host if where in NEAR and engine is not None else where

    def _close(self, tracker: Tracker, record: Record, position: int | None) -> None:
        """Hand over an episode that has ended, or (without a position) is open at the end of what is known."""
        self._leave(tracker, record, position)
        record.place(self._host(record.where) if record.phase.run and self._by_host else "")
        del tracker.records[record.job]
        if not self._counts or (self._since and self.at <= self._since):
            return
        job, ended = self.state.jobs[record.job], self._ended.get(record.phase.run)
        outcome = ended.outcome if ended is not None else self._asked.get((tracker, record.job), "ceased")
        name, number = tracker.name, record.number
        told = [one._replace(task=name, job=job, episode=number) for one in record.intervals or ()]
        self._sink(
            Episode(
                name, job, number, record.start, self.at, record.began, position,
                "" if position is None else outcome, position is None, record.sums, told,
            )
        )  # fmt: skip

    # --- in words, for the one job ----------------------------------------------------------------

    def _tell(self, tracker: Tracker, record: Record, position: int) -> None:
        """Bring what is told about a record's own cause up to date."""
        lacks = record.phase in LACKING.values()
        blamed: Blame | None = blame(self.state, tracker.reading.expr, record.job) if lacks else None
        reason = tracker.reason(self.state, record, blamed)
        if blamed is not None and reason.cause == "upstream":
            record.lacking, reason = tuple(blamed.missing), Reason("upstream")
        if reason != record.reason:
            record.cut(self.at, position)
            record.reason = reason

    def _latest(self, record: Record) -> Reason:
        """Return what a job has waited for: of what was missing last the latest to arrive, else what is missing."""
        state, job = self.state, record.job
        leaves = [state.leaves[name] for name in record.lacking if name in state.leaves]
        there = [leaf for leaf in leaves if state.masks[job] & leaf.bit]
        if not there:
            return Reason("upstream", ", ".join(record.lacking), repository=next(iter(record.lacking), None))
        leaf = max(there, key=lambda one: self._arrival(one, job)[0])
        _, task, run = self._arrival(leaf, job)
        told = leaf.id + (f" by run {run} of {task}" if run is not None else "")
        return Reason("upstream", told, run, leaf.id)

    def _arrival(self, leaf: LeafState, job: int) -> tuple[int, str | None, int | None]:
        """Return when a job arrived in a leaf it is in, and by which task's run, as far as this batch tells."""
        rule = leaf.definition.derived
        if isinstance(rule, d.ViewDef):
            other = self.state.tasks.get(rule.task)
            run = get_at(other.last_run, job) if other is not None else 0
            return self.state.position, rule.task, run or None
        position = value_position(leaf, job)
        batch, fact = self._batch, None
        if batch.first <= position <= batch.last:
            fact = batch.events[position - batch.first]
        return position, fact.task if fact is not None else None, fact.run if fact is not None else None


_ASKED: dict[type[e.Event], str] = {e.CancelRequested: "cancelled", e.RetryRequested: "retried"}

_WIDE: dict[type[e.Event], Callable[[Waits, int, Any], None]] = {
    e.EngineOpened: Waits._opened,
    e.EngineClosed: Waits._changed,
    e.RepositorySynced: Waits._changed,
    e.ObservationHeld: Waits._changed,
    e.TaskPaused: Waits._changed,
    e.TaskResumed: Waits._changed,
    e.PipelineDefined: Waits._defined,
    e.Renamed: Waits._defined,
    e.DecisionRound: Waits._round,
    e.StoreWriteIntended: Waits._intended,
}
_NARROW: dict[type[e.Event], Callable[[Waits, int, Any], None]] = {
    e.Evaluated: Waits._evaluated,
    e.RunEnded: Waits._run_ended,
    e.LaunchDecided: Waits._touch,
    e.RunStarted: Waits._touch,
    e.RunObserved: Waits._observed,
    e.RunAdopted: Waits._touch,
    e.RetryScheduled: Waits._touch,
    e.CancelRequested: Waits._touch,
    e.RetryRequested: Waits._touch,
}
"""What is about the job that it names: nothing else needs to be looked at for it."""

_MARKED = _WIDE | _NARROW
