"""Simulation without events: the same positions, decisions and states as `logged`, several times as fast.

In: a model and a world. Out: records of all runs, and on request the `State` that folding the events would have given,
bit for bit. What a batch does to a job is asked of the reactor once for each job state (`engine.replay.batches`); the
engine's `choose` decides (`rounds`). Pipelines with filters, translations or priorities are for `logged`. At one instant,
here and there: jobs arrive; due ends and starts come in order; overdue runs are stopped; a round is decided, and its
launches begin; again while anything is due.
"""

from __future__ import annotations

import heapq
from array import array
from collections.abc import Callable
from functools import partial

from datatask.adapters.sim.logged import opened
from datatask.adapters.sim.model import (
    CALLED,
    ENDED,
    NEVER,
    STARTED,
    SUCCESSES,
    TIMED_OUT,
    Model,
    Plain,
    Records,
    SimRun,
    World,
    output,
)
from datatask.adapters.sim.rounds import Rounds, SimTask
from datatask.engine.core.decide import BOUND
from datatask.engine.core.quotas import Constraint
from datatask.engine.core.retry import NextAttempt, after_ending, reasons_of
from datatask.engine.core.tasks import Entry, Episode
from datatask.engine.replay.batches import (
    COUNT,
    DISCARD,
    DROP,
    JOB,
    PUSH,
    BatchState,
    BatchTransition,
    BatchTransitions,
)
from datatask.schema.messages import Write

ARRIVED = 0
"""The key of an arrival; those of launches and endings follow."""


class Quick:
    """One simulation; `records` and `position` are its result."""

    def __init__(self, model: Model, world: World) -> None:
        self.model, self.world = model, world
        self.state, _ = opened(model)
        self.transitions = BatchTransitions(self.state)
        self.records = Records()
        self._record = self.records.adder()
        self.position = self.state.position
        self.now = self.state.at
        self._chance = model.chance
        self.heap: list[tuple[int, int, int, object]] = []
        self.open: dict[int, SimRun] = {}
        self.arrived, self.finished = 0, False
        self.last_at = self.now
        self._pushed = 0
        self._deadlines: list[tuple[int, int]] = []
        self._constraints: dict[str, Constraint] = {}
        self.recorded: dict[str, Constraint] = {}
        self._media = {leaf.id: leaf.definition.medium for leaf in self.state.leaves.values()}
        self.job_states: list[BatchState] = []
        self._grow(len(model.names))
        self.lanes = [
            SimTask(task, profile, self.state)
            for task, profile in zip(self.state.tasks.values(), model.profiles, strict=True)
        ]
        job_states = self.job_states
        self.rounds = Rounds(self.state, self.lanes, self.open, lambda job: job_states[job].mask)
        self._limited = any(lane.limited is not None for lane in self.lanes)
        self._choose, self._uniform = self.rounds.choose, self.rounds.uniform
        self._keys: list[Callable[[BatchState], BatchTransition | None]] = []
        self._register()
        self._mark_at = self.state.mark_due()
        self._in_plain = type(world) is Plain
        world.open(self, model.profiles)

    # --- what may happen to a job -----------------------------------------------------------------

    def _register(self) -> None:
        """Give a key to what every simulation does."""
        self._arrival_keys: dict[tuple[str, ...], int] = {}
        self._key_of_entries(self.model.entries)
        for lane in self.lanes:
            name = lane.name
            lane.first_key = self._key(partial(self.transitions.launch, task=name, attempt=1))
            lane.retry_key = self._key(partial(self.transitions.launch, task=name, attempt=2))
            lane.usual_key = self._end_key(lane, 0, 0, 1, (0, 0))

    def _key(self, work_out: Callable[[BatchState], BatchTransition | None]) -> int:
        self._keys.append(work_out)
        return len(self._keys) - 1

    def _key_of_entries(self, entries: tuple[str, ...]) -> int:
        key = self._arrival_keys.get(entries)
        if key is None:
            writes = [output(entry, JOB, self._media[entry]) for entry in entries]
            key = self._arrival_keys[entries] = self._key(
                lambda job_state: self.transitions.arrive(job_state, writes)
            )
        return key

    def _end_key(self, lane: SimTask, fate: int, fill: int, attempt: int, lost: tuple[int, int]) -> int:
        """Return the key of an ending; a success asks for no retry, whatever the attempt was."""
        about = (fate, fill, attempt, lost)
        key = lane.end_keys.get(about)
        if key is None:
            ending = lane.profile.fates[fate].ending(None, 0)
            writes: list[Write] = []
            if ending.outcome in SUCCESSES:
                for repository in lane.profile.fills[fill]:
                    writes.append(output(repository, JOB, self._media[repository]))
            key = lane.end_keys[about] = self._key(
                lambda job_state: self.transitions.end(job_state, lane.name, ending, writes, (attempt, *lost))
            )
        return key

    def _work_out(self, job_state: BatchState, key: int) -> BatchTransition:
        transition = self._keys[key](job_state)
        assert transition is not None, "this pipeline is for `logged`"
        job_state[key] = transition
        return transition

    def _grow(self, jobs: int) -> None:
        """Lengthen the columns to a number of jobs."""
        state = self.state
        self.job_states.extend([self.transitions.fresh] * (jobs - len(self.job_states)))
        cells = [
            *(leaf.positions for leaf in state.leaves.values() if leaf.definition.medium != "view"),
            *(leaf.versions for leaf in state.leaves.values() if leaf.versioned),
            *(task.last_run for task in state.tasks.values()),
            *(task.episode_count for task in state.tasks.values()),
        ]
        for column in cells:
            column.frombytes(bytes((jobs - len(column)) * column.itemsize))

    def name(self, job: int) -> str:
        """Return a job's name."""
        return self.model.names[job]

    # --- stepping ---------------------------------------------------------------------------------

    def push(self, at: int, what: int, about: object) -> None:
        """Let something come at a time: a run begins or ends, or the world is called."""
        self._pushed += 1
        heapq.heappush(self.heap, (at, self._pushed, what, about))

    def run(self) -> None:
        """Step until nothing is due any more, or the model's `until` or `runs_max` is reached."""
        heap, arrivals, deadlines = self.heap, self.model.arrivals, self._deadlines
        heappop, ended, decide, until = heapq.heappop, self._ended, self._decide, self.model.until
        runs, runs_max = self.records, self.model.runs_max  # no more runs than positions
        nothing = (NEVER, 0, 0)
        arrival_at, first, count = next(arrivals, nothing)
        wake, before = NEVER, self.position
        while True:
            now = heap[0][0] if heap else NEVER
            if wake < now:
                now = wake
            if arrival_at < now:
                now = arrival_at
            if deadlines and deadlines[0][0] < now:
                now = deadlines[0][0]
            if self.position != before:
                self.last_at, before = self.now, self.position
            if now >= until or (before >= runs_max and len(runs) >= runs_max):
                self.finished = now >= NEVER
                runs.flush()
                return
            if now < self.now:
                now = self.now
            self.now = now
            while arrival_at <= now:
                self._arrive(first, count)
                arrival_at, first, count = next(arrivals, nothing)
            while heap and heap[0][0] <= now:
                _, _, what, about = heappop(heap)
                if what == ENDED:
                    ended(about)  # type: ignore[arg-type]
                elif what == STARTED:
                    self.begin(about)  # type: ignore[arg-type]
                elif what == CALLED:
                    about()  # type: ignore[operator]
            if deadlines:
                self._stop_overdue(now)
            wake = decide(now)

    def _batch(self, job: int, key: int) -> BatchTransition:
        """Let a batch happen to a job; the position moves on."""
        job_states, first = self.job_states, self.position + 1
        job_state = job_states[job]
        transition = job_state.get(key)
        if transition is None:
            transition = self._work_out(job_state, key)
        following, events, cells, deleted, versions, ops, _, _ = transition
        for column, offset in cells:
            column[job] = first + offset
        if ops:
            for what, index, number in ops:
                lane = self.lanes[index]
                if what == PUSH:
                    lane.queue.push(job, 0.0, first + number, self.now)
                elif what == COUNT:
                    lane.task.episode_count[job] += number
                elif what == DISCARD:
                    lane.queue.discard(job)
                elif what == DROP:
                    lane.task.episodes.pop(job, None)
        if deleted or versions:
            for column, offset in deleted:
                column[job] = -(first + offset)
            for column, version in versions:
                column[job] = version
        job_states[job] = following
        self.position = first + events - 1
        if self.now >= self._mark_at:
            self._mark(first)
        return transition

    def _mark(self, position: int) -> None:
        self.state.mark(position, self.now)
        self._mark_at = self.state.mark_due()

    def _arrive(self, first: int, count: int) -> None:
        if first + count > len(self.job_states):
            self._grow(first + count)
        entries_of, batch, names = self.model.entries_of, self._batch, self.model.names
        self.arrived = first + count
        if entries_of is None and count > 1:
            self._arrive_alike(first, count)
            return
        for job in range(first, first + count):
            batch(job, ARRIVED if entries_of is None else self._key_of_entries(entries_of(names[job])))

    def _arrive_alike(self, first: int, count: int) -> None:
        """Let new jobs arrive: the same happens to each, so whole columns are written."""
        transition = self._batch(first, ARRIVED)
        following, events, cells, deleted, versions, ops, _, _ = transition
        assert not deleted, "who has never been anywhere is deleted nowhere"
        begin, more = self.position + 1, count - 1
        jobs = slice(first + 1, first + count)
        for column, offset in cells:
            column[jobs] = array("q", range(begin + offset, begin + offset + more * events, events))
        for column, version in versions:
            column[jobs] = array(column.typecode, (version,)) * more
        for what, index, number in ops:
            lane = self.lanes[index]
            if what == PUSH:
                at = begin + number
                lane.queue.push_all(
                    range(first + 1, first + count), range(at, at + more * events, events), self.now
                )
            else:
                assert what == COUNT
                lane.task.episode_count[jobs] = array("I", (number,)) * more
        self.job_states[jobs] = [following] * more
        self.position += more * events

    def begin(self, run: SimRun) -> None:
        """A run has begun at its target: one event."""
        if run.run not in self.open:
            return
        run.started_at = self.now
        self.position += 1
        if self.now >= self._mark_at:
            self._mark(self.position)
        timeout = self.lanes[run.task].timeout
        if timeout is not None:
            heapq.heappush(self._deadlines, (self.now + timeout, run.run))

    def _ended(self, run: SimRun) -> None:
        """A run is over at its target: its outputs, its end, and what follows from it."""
        if self.open.pop(run.run, None) is None:
            return
        lane = self.lanes[run.task]
        if run.fate == 0 and run.fill == 0 and run.attempt == 1:
            key = lane.usual_key
        else:
            key = self._end_key(lane, run.fate, run.fill, run.attempt, self._lost_before(lane, run))
        transition = self._batch(run.job, key)
        chance = 0.5
        if transition[6]:
            for _ in range(transition[6]):
                chance = self._chance()
        if not self._uniform:
            lane.open_runs -= 1
            if lane.quota is not None:
                lane.quota.free(lane.request)
        if transition[7]:
            self._retry(lane, run, chance)
        self._record(run, self.now)
        if not self._in_plain:
            run.over = True
            self.world.ended(run)

    def _lost_before(self, lane: SimTask, run: SimRun) -> tuple[int, int]:
        """Return how many runs before were lost, and how many of them count no more now that this one is over."""
        outcome, since = lane.profile.fates[run.fate].outcome, lane.retry.progress
        if outcome != "lost" or since is None or not run.started_at or self.now - run.started_at < since:
            return run.lost, run.forgiven
        return run.lost, run.lost

    def _retry(self, lane: SimTask, run: SimRun, chance: float) -> None:
        """The policy tries again: the job waits for its time."""
        lost, forgiven = self._lost_before(lane, run)
        episode = Episode(run.ready, 0.0, run.attempt, lost, forgiven=forgiven)
        fate = lane.profile.fates[run.fate]
        reasons = reasons_of(fate.ending(None, self.now))
        again = after_ending(lane.retry, episode, fate.outcome, self.now, chance, reasons=reasons)
        assert isinstance(again, NextAttempt)
        episode.not_before = again.not_before
        episode.infrastructure += again.budget == "infrastructure"
        lane.task.episodes[run.job] = episode
        lane.task.schedule(run.job, episode)

    def _stop_overdue(self, now: int) -> None:
        """Runs that have outlived their task's timeout are stopped; they are over at once."""
        while self._deadlines and self._deadlines[0][0] <= now:
            run = self.open.get(heapq.heappop(self._deadlines)[1])
            if run is not None and not run.stopping:
                run.stopping = True
                self.position += 1
                if now >= self._mark_at:
                    self._mark(self.position)
                self.world.stop(run, TIMED_OUT)
        while self._deadlines and self._deadlines[0][1] not in self.open:
            heapq.heappop(self._deadlines)

    # --- deciding --------------------------------------------

    def _decide(self, now: int) -> int:
        """Decide rounds until one is not full; return when to look again though nothing happens."""
        choose = self._choose
        while True:
            chosen, constraints, wake = choose(now)
            if chosen or (constraints is not self._constraints and constraints != self._constraints):
                self._constraints = self.recorded = constraints
                self.position += 1
                if now >= self._mark_at:
                    self._mark(self.position)
                if chosen:
                    self._launch(chosen, now)
            if len(chosen) < BOUND:
                return NEVER if wake is None else wake

    def _launch(self, chosen: list[tuple[SimTask, Entry]], now: int) -> None:
        """Let the round's decisions happen, one event each, and hand the runs to the world."""
        runs: list[SimRun] = []
        untidy = False
        for lane, (_, ready, job) in chosen:
            number = self.position + 1
            episode = lane.episodes.pop(job, None) if lane.episodes else None
            if episode is None:
                queue = lane.queue
                head = queue.head
                if queue.usual and queue.positions[head] == ready:
                    queue.head = head + 1
                    since = queue.times[head]
                else:
                    since = queue.take(ready)
                if head > queue.tidy_at:
                    untidy = True
                run = SimRun(number, lane.index, job, 1, 0, since, now, ready)
                self._batch(job, lane.first_key)
            else:
                attempt, since = episode.attempt + 1, episode.not_before or 0
                run = SimRun(number, lane.index, job, attempt, episode.infrastructure, since, now, ready)
                run.forgiven = episode.forgiven
                self._batch(job, lane.retry_key)
            self.open[number] = run
            runs.append(run)
        for lane, _ in chosen if self._limited else ():
            if lane.limited is not None:
                lane.limited.take({}, now)
        if untidy:
            for lane in self.lanes:
                lane.queue.tidy()
        if self._in_plain:
            self._start_in_plain(runs, now)
        else:
            for run in runs:
                self.world.start(run)

    def _start_in_plain(self, runs: list[SimRun], now: int) -> None:
        """Start runs of which only the duration is random, as `Plain.start` and `begin` do."""
        heap, lanes, pushed, heappush = self.heap, self.lanes, self._pushed, heapq.heappush
        for run in runs:
            lane = lanes[run.task]
            if lane.usual:
                run.started_at = now
                self.position += 1
                if now >= self._mark_at:
                    self._mark(self.position)
                pushed += 1
                heappush(heap, (now + lane.duration(), pushed, ENDED, run))
            else:
                self._pushed = pushed
                self.world.start(run)
                pushed = self._pushed
        self._pushed = pushed
