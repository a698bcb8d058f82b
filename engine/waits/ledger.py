"""Where the time of jobs went: batches in, episodes out whose every nanosecond is put down to exactly one cause.

An episode of a (task, job) begins when the job first appears in a repository that the task reads: one that its
condition wants or that is an input, or one that these are derived from. It ends with the final end of a run, when a
person cancels it or asks for a new one, or when its conditions cease: the job has left all that the task reads, has
been marked as done, or, having been ready, is so no more (then the next one begins at once if the job still has
reason to wait). After the end of a run the next one begins when the job becomes ready again, is forced, loses its
mark as done, or appears anew. Looked at are batch boundaries.

Each job is in a phase of its own (`occasions`); what holds for a whole task or the engine is a line that all jobs in
that phase share (`phases`, `timelines`). An event so costs what it changes, whatever the number of waiting jobs. While
no run is open the cause is the first that holds, in the order of `CAUSES`; while one is, only an engine that is down
comes before what the run does.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Collection
from typing import Any

from datatask.engine.core.fold import apply_all
from datatask.engine.core.leaves import get_at
from datatask.engine.core.state import MAX_TIME, State
from datatask.engine.core.tasks import TaskState
from datatask.engine.waits.causes import Reading
from datatask.engine.waits.episodes import Occasions
from datatask.engine.waits.intervals import Episode, Reason
from datatask.engine.waits.phases import QUEUED, Tracker
from datatask.schema import events as e
from datatask.schema.units import DAY


class Waits(Occasions):
    """Follows a log batch by batch from `base` on and hands each episode that ends to `sink`.

    `tasks` and `job` restrict what is looked at; for the one `job` episodes come with their intervals. `since`
    (UTC nanoseconds) leaves out what was before; `by_day` and `by_host` tell sums apart.
    """

    def __init__(
        self, base: State, sink: Callable[[Episode], None], *, tasks: Collection[str] | None = None,
        job: str | None = None, since: int = 0, by_day: bool = False, by_host: bool = False,
    ) -> None:  # fmt: skip
        super().__init__(base, sink, job=job, since=since, by_host=by_host)
        self._tasks, self._by_day = tasks, by_day
        self._trackers: dict[TaskState, Tracker] = {}
        self._midnight = self._wide = self._redefined = 0
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
        if state.touched or state.before:
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
            self.state.tell(leaf, job, position)

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
            is_open = job in task.episodes or job in task.queue or job in task.awaiting
            if is_open or not (seeding and get_at(task.last_run, job)):
                self._look(tracker, job, position)
        tracker.arrivals, tracker.own = tracker.reading.arrivals, tracker.reading.own


_ASKED: dict[type[e.Event], str] = {e.CancelRequested: "cancelled", e.RetryRequested: "retried"}

_WIDE: dict[type[e.Event], Callable[[Waits, int, Any], None]] = {
    e.EngineOpened: Waits._opened,
    e.EngineClosed: Waits._changed,
    e.RepositorySynced: Waits._changed,
    e.ObservationHeld: Waits._changed,
    e.RepositoryUnreachable: Waits._changed,
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
