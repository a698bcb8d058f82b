"""The episodes of jobs, opened, moved on and closed as their tasks' states at batch boundaries say.

`Watched` is a state that tells who has to be looked at again; `Occasions` looks, and keeps the records. What makes
it look, and time, come from `waiting`, the layer above.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable

from datatask.engine.core.decide import value_position
from datatask.engine.core.leaves import LeafState, get_at
from datatask.engine.core.state import State
from datatask.engine.waits.causes import Blame, blame
from datatask.engine.waits.intervals import Episode, Reason
from datatask.engine.waits.phases import LACKING, NEAR, Phase, Record, Tracker
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
        self._keep(job)  # first: what follows from this change is told before it
        changed = State.flip(self, leaf, job, present, position)
        if changed:
            self.tell(leaf, job, position)
        return changed

    def value_changed(self, leaf: LeafState, job: int, position: int) -> None:
        super().value_changed(leaf, job, position)
        self.tell(leaf, job, position)

    def tell(self, leaf: LeafState, job: int, position: int) -> None:
        """Something about a job in a leaf has changed."""
        trackers = self.seen.get(leaf.index)
        if trackers and (self.only is None or self.jobs[job] == self.only):
            for tracker in trackers:
                self.touched[tracker, job] = position

    def _keep(self, job: int) -> None:
        """Remember the mask that a job had at the last boundary."""
        if job not in self.before and (self.only is None or self.jobs[job] == self.only):
            self.before[job] = self.masks[job]


class Occasions:
    """Compares jobs with their records; hands each episode that ends to `sink`, with intervals for the one `job`."""

    def __init__(
        self, base: State, sink: Callable[[Episode], None], *, job: str | None, since: int, by_host: bool
    ) -> None:
        self.state = Watched(base, job)
        self.at = base.at
        self._sink, self._job, self._since, self._by_host = sink, job, since, by_host
        self._counts = since <= base.at
        self._wakes: list[tuple[int, int, Tracker, Record]] = []
        self._woken = self._next = 0
        self._boundary = base.position
        self._batch = e.Batch(1, ())
        self._ended: dict[int, e.RunEnded] = {}
        self._asked: dict[tuple[Tracker, int], str] = {}
        self._over = {run.run for run in base.open_runs.values() if run.settling is not None}

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
