"""Where the time of jobs went: batches in, episodes out whose every nanosecond is put down to exactly one cause.

In: a state to begin from, batches. Out: `Episode`s, to a sink. When an episode begins and ends, and in which order causes
count, is under `waiting` in docs/cli.md. Looked at are batch boundaries. Each job is in a phase of its own
(`episodes`); what holds for a whole task or the engine is a line that all jobs in that phase share (`phases`). So an
event costs what it changes, whatever the number of waiting jobs.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

from datatask.engine.core.cells import get_at
from datatask.engine.core.fold import apply_all
from datatask.engine.core.state import MAX_TIME, State
from datatask.engine.core.tasks import TaskState
from datatask.engine.waits.episodes import Episodes, Tracker
from datatask.engine.waits.intervals import Episode, Reading, Reason
from datatask.schema import events as e
from datatask.schema.units import DAY


class Ledger:
    """Follows a log batch by batch from `base` on and hands each episode that ends to `sink`.

    `tasks` and `job` restrict what is looked at; for the one `job` episodes come with their intervals. `since`
    (UTC nanoseconds) leaves out what was before; `by_day` and `by_host` tell sums apart.
    """

    def __init__(
        self, base: State, sink: Callable[[Episode], None], *, tasks: Collection[str] | None = None,
        job: str | None = None, since: int = 0, by_day: bool = False, by_host: bool = False,
    ) -> None:  # fmt: skip
        self._episodes = Episodes(base, sink, job=job, since=since, by_host=by_host)
        self.state = self._episodes.state
        self._tasks, self._job, self._since, self._by_day = tasks, job, since, by_day
        self._trackers: dict[TaskState, Tracker] = {}
        self._due = self._midnight = self._changed_at = self._defined_at = 0
        if base.position:
            self._redefine(seeding=True)

    @property
    def at(self) -> int:
        """The time up to which all is accounted for."""
        return self._episodes.at

    def take(self, batch: e.Batch) -> None:
        """Follow one batch."""
        episodes, state, events, alone = self._episodes, self.state, batch.events, self._job
        handled: list[tuple[int, e.Event]] = []
        for position, event in enumerate(events, batch.first):
            kind = type(event)
            if kind in _SHARED or (kind in _OF_A_JOB and (alone is None or event.job == alone)):
                handled.append((position, event))
                if kind is e.EngineOpened:
                    self.died()
        at = events[-1].at
        if at > episodes.at:
            if at >= self._due or (episodes.wakes and at >= episodes.wakes[0][0]):
                self._pass(at)
            episodes.at = at
        episodes.batch, episodes.boundary = batch, state.position
        apply_all(state, batch.first, events)
        for position, event in handled:
            _HANDLERS[type(event)](self, position, event)
        if self._defined_at:
            self._redefine()
        if self._changed_at:
            self._turn(self._down(), episodes.at, self._changed_at)
            self._changed_at = self._defined_at = 0
        if state.touched or state.before:
            for (tracker, job), position in state.touched.items():
                if tracker.task in self._trackers:
                    episodes.look(tracker, job, position)
            state.touched.clear()
            state.before.clear()
        if episodes.ended or episodes.asked:
            episodes.ended.clear()
            episodes.asked.clear()

    def died(self) -> None:
        """The engine, unless it was closed, has done nothing since the last batch and never will."""
        if self.state.engine is not None and not self.state.closed:
            detail = f"the engine of epoch {self.state.engine.epoch} died"
            self._turn(Reason("engine down", detail), self.at, self.state.position)

    def finish(self, at: int = 0) -> None:
        """Hand over what is open, as it is at the last batch's time or at `at` if that is later."""
        end = max(self.at, at)
        self._pass(end)
        self._episodes.at = end
        for tracker in self._trackers.values():
            for record in list(tracker.records.values()):
                self._episodes.close(tracker, record, None)

    # --- time -------------------------------------------------------------------------------------

    def _pass(self, until: int) -> None:
        """Let time pass: what happens at its own time, and not by an event."""
        episodes = self._episodes
        if self._by_day and not self._midnight:
            self._midnight = (until // DAY + 1) * DAY
        while True:
            self._due = min(MAX_TIME if episodes.counts else self._since, self._midnight or MAX_TIME)
            at = min(episodes.wakes[0][0] if episodes.wakes else MAX_TIME, self._due)
            if at > until:
                return
            if at == self._midnight:
                self._midnight += DAY
                for tracker in self._trackers.values():
                    for line in tracker.lines:
                        line.midnight(at)
            elif not episodes.counts and at == self._since:
                episodes.counts = True
                for tracker in self._trackers.values():
                    for record in tracker.records.values():
                        record.forget(at)
            else:
                episodes.wake()

    def _down(self) -> Reason | None:
        if self.state.engine is None:
            return Reason("engine down", "no engine has run yet")
        return Reason("engine down", "the engine was closed") if self.state.closed else None

    def _turn(self, down: Reason | None, at: int, position: int) -> None:
        for tracker in self._trackers.values():
            tracker.turn(self.state, down, at, position)

    # --- events --------------------------------------------------------------------

    def _touch(self, position: int, event: Any) -> None:
        task, job = self.state.tasks.get(event.task), self.state.job_index.get(event.job)
        tracker = self._trackers.get(task) if task is not None else None
        if tracker is not None and job is not None:
            self.state.touched[tracker, job] = position
            if type(event) in _ASKED:
                self._episodes.asked[tracker, job] = _ASKED[type(event)]

    def _run_ended(self, position: int, event: e.RunEnded) -> None:
        self._episodes.ended[event.run] = event
        self._episodes.over.discard(event.run)
        self._touch(position, event)

    def _observed(self, position: int, event: e.RunObserved) -> None:
        if event.phase == "collecting" and event.run in self.state.open_runs:
            self._episodes.over.add(event.run)
            self._touch(position, event)

    def _intended(self, position: int, event: e.StoreWriteIntended) -> None:
        run = (
            self.state.open_runs.get(event.run)
            if event.settles is not None and event.run is not None
            else None
        )
        if run is None or (self._job is not None and self.state.jobs[run.job] != self._job):
            return
        self._episodes.over.add(run.run)
        tracker = self._trackers.get(self.state.tasks[run.task])
        if tracker is not None:
            self.state.touched[tracker, run.job] = position

    def _evaluated(self, position: int, event: e.Evaluated) -> None:
        if event.task is not None:
            self._touch(position, event)
            return
        leaf, job = self.state.leaves.get(event.repository or ""), self.state.job_index.get(event.job)
        if leaf is not None and job is not None:
            self.state.touch(leaf, job, position)

    def _round(self, position: int, event: e.DecisionRound) -> None:
        for tracker in self._trackers.values():
            constraint = event.constraints.get(tracker.name, "")
            if constraint != tracker.constraint:
                tracker.constraint, self._changed_at = constraint, position

    def _opened(self, position: int, event: e.EngineOpened) -> None:
        self._changed_at = position
        for tracker in self._trackers.values():
            tracker.constraint = ""  # the constraints of another engine's rounds hold no more

    def _changed(self, position: int, event: e.Event) -> None:
        self._changed_at = position

    def _defined(self, position: int, event: e.Event) -> None:
        self._changed_at = self._defined_at = position

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
                self._episodes.close(gone, record, state.position)
        changed = [tracker for tracker in self._trackers.values() if self._reads_anew(tracker)]
        seen: dict[int, list[Tracker]] = {}
        for tracker in self._trackers.values():
            for index in tracker.reading.tracked:
                seen.setdefault(index, []).append(tracker)
        state.readers = {index: tuple(trackers) for index, trackers in seen.items()}
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
                self._episodes.look(tracker, job, position)
        tracker.arrivals, tracker.own = tracker.reading.arrivals, tracker.reading.own


_ASKED: dict[type[e.Event], str] = {e.CancelRequested: "cancelled", e.RetryRequested: "retried"}

_SHARED: dict[type[e.Event], Callable[[Ledger, int, Any], None]] = {
    e.EngineOpened: Ledger._opened,
    e.EngineClosed: Ledger._changed,
    e.RepositorySynced: Ledger._changed,
    e.ObservationHeld: Ledger._changed,
    e.RepositoryUnreachable: Ledger._changed,
    e.TaskPaused: Ledger._changed,
    e.TaskResumed: Ledger._changed,
    e.PipelineDefined: Ledger._defined,
    e.Renamed: Ledger._defined,
    e.DecisionRound: Ledger._round,
    e.StoreWriteIntended: Ledger._intended,
}
_OF_A_JOB: dict[type[e.Event], Callable[[Ledger, int, Any], None]] = {
    e.Evaluated: Ledger._evaluated,
    e.RunEnded: Ledger._run_ended,
    e.LaunchDecided: Ledger._touch,
    e.RunStarted: Ledger._touch,
    e.RunObserved: Ledger._observed,
    e.RunAdopted: Ledger._touch,
    e.RetryScheduled: Ledger._touch,
    e.CancelRequested: Ledger._touch,
    e.RetryRequested: Ledger._touch,
}
"""Events about the job that they name: no other job needs to be looked at for them."""

_HANDLERS = _SHARED | _OF_A_JOB
