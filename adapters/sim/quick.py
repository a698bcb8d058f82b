"""Simulation without events: the same positions, decisions and states as `logged`, several times as fast.

In: a model and a world. Out: records of all runs, and on request the `State` that folding the events would have given,
bit for bit. What a batch does to a job is asked of the reactor once for each situation (`engine.core.moves`) and then
looked up; deciding follows `engine.core.decide` line by line, on queues that cost 20 bytes a job. Pipelines whose
readiness rests on filters, translations or priorities are for `logged` (`engine.core.moves.is_simple`).

The order of things at one instant, here and in `logged`: jobs arrive; what is due comes in order; runs that are out of
time are stopped; a round is decided; what it launched begins. All of it again while anything is due.
"""

from __future__ import annotations

import heapq
from array import array
from collections.abc import Callable, Iterator
from functools import partial

from datatask.adapters.sim.model import (
    CALLED,
    ENDED,
    NEVER,
    STARTED,
    SUCCESSES,
    TIMED_OUT,
    Model,
    Profile,
    Records,
    SimRun,
    output,
)
from datatask.adapters.sim.opening import opened
from datatask.adapters.sim.queues import SPENT_MAX, Line
from datatask.adapters.sim.worlds import Plain, World
from datatask.engine.core.decide import BOUND, closed
from datatask.engine.core.moves import COUNT, DISCARD, DROP, JOB, PUSH, Move, Moves, Place
from datatask.engine.core.quotas import QuotaState
from datatask.engine.core.settle import Again, after_ending
from datatask.engine.core.state import State
from datatask.engine.core.tasks import Episode, TaskState
from datatask.engine.ports import Write

ARRIVED = 0
"""The key of an arrival; those of launches and endings follow."""

Head = tuple[int, int, int, int]
"""When a job became ready (position), the job, its task, and its place in the queue (-1: a retry)."""


class Lane:
    """One task: who waits, who is between two attempts, and what its limits are."""

    __slots__ = (
        "amounts",
        "bit",
        "between",
        "closed",
        "concurrency",
        "duration",
        "end_keys",
        "first_key",
        "index",
        "infeasible",
        "line",
        "name",
        "open_runs",
        "profile",
        "quota",
        "quota_name",
        "reserves",
        "retries",
        "retry",
        "retry_key",
        "seen",
        "task",
        "texts",
        "timeout",
        "usual",
        "usual_key",
    )

    def __init__(self, task: TaskState, profile: Profile, state: State) -> None:
        definition = task.definition
        self.task, self.profile, self.name, self.index = task, profile, task.name, task.index
        self.line = Line()
        self.bit = 1 << task.index
        self.between: dict[int, Episode] = {}
        self.retries: list[tuple[int, int]] = []
        self.closed = closed(task, frozenset())
        self.concurrency, self.timeout = definition.concurrency, definition.timeout
        self.retry, self.seen = definition.retry, task.seen
        self.open_runs = 0
        self.quota_name = definition.quota or ""
        self.quota: QuotaState | None = state.quotas[definition.quota] if definition.quota else None
        self.amounts = tuple(definition.resources.items())
        self.infeasible = self._infeasible()
        self.texts = {name: f"quota: {self.quota_name}.{name}" for name, _ in self.amounts}
        others = [
            other.definition.resources
            for other in state.tasks.values()
            if other.definition.quota == definition.quota
        ]
        self.reserves = any(list(other.items()) != list(self.amounts) for other in others)
        """Whether keeping amounts for a job that waits for long can make a difference."""
        own = (
            profile.duration_of,
            profile.fate,
            profile.fate_of,
            profile.latency,
            profile.fill,
            profile.fill_of,
        )
        self.duration = profile.duration
        self.usual = self.timeout is None and not profile.durations and own == (None,) * len(own)
        """Whether nothing but the duration of a run is open."""
        self.end_keys: dict[tuple[int, int, int, int], int] = {}
        self.first_key = self.retry_key = self.usual_key = 0

    def _infeasible(self) -> str:
        if self.quota is None:
            return ""
        dimension = self.quota.infeasible(dict(self.amounts))
        if dimension is not None:
            return f"infeasible: {self.quota_name}.{dimension}"
        if self.quota.launches is not None and self.quota.launches <= 0:
            return f"infeasible: {self.quota_name}.launches"
        return ""

    def next_retry(self) -> int | None:
        """Return when the next retry is due; what is outdated is dropped."""
        while self.retries:
            not_before, job = self.retries[0]
            episode = self.between.get(job)
            if episode is not None and episode.not_before == not_before:
                return not_before
            heapq.heappop(self.retries)
        return None

    def due(self, now: int) -> list[tuple[int, int]]:
        """Return (position, job) of the retries that are due, oldest first, at most `BOUND`."""
        found: dict[tuple[int, int], int] = {}
        while self.retries and self.retries[0][0] <= now and len(found) < BOUND:
            not_before, job = heapq.heappop(self.retries)
            episode = self.between.get(job)
            if episode is not None and episode.not_before == not_before:
                found[not_before, job] = episode.position
        for entry in found:
            heapq.heappush(self.retries, entry)
        return sorted((position, job) for (_, job), position in found.items())


class Quick:
    """One simulation. `records` and `position` are what it has come to."""

    def __init__(self, model: Model, world: World) -> None:
        self.model, self.world = model, world
        self.state, _ = opened(model)
        self.moves = Moves(self.state)
        self.records = Records()
        self._record = self.records.adder()
        self.position = self.state.position
        self.now = self.state.at
        self._chance = model.chance
        self.heap: list[tuple[int, int, int, object]] = []
        self.open: dict[int, SimRun] = {}
        self.arrived = 0
        self.finished = False
        self.last_at = self.now
        self._pushed = 0
        self._deadlines: list[tuple[int, int]] = []
        self._constraints: dict[str, str] = {}
        self.recorded: dict[str, str] = {}
        self._media = {leaf.id: leaf.definition.medium for leaf in self.state.leaves.values()}
        self.places: list[Place] = []
        self._cells: list[array[int]] = []
        self._grow(len(model.names))
        self.lanes = [
            Lane(task, profile, self.state)
            for task, profile in zip(self.state.tasks.values(), model.profiles, strict=True)
        ]
        self._shared = self._one_quota()
        self._helds: dict[tuple[int, str], dict[str, str]] = {}
        self._keys: list[Callable[[Place], Move | None]] = []
        self._register()
        self._mark_at = self.state.mark_due()
        self._in_plain = type(world) is Plain
        world.open(self, model.profiles)

    def _one_quota(self) -> tuple[QuotaState, tuple[tuple[str, int], ...]] | None:
        """Return the quota and the amounts that are all that every task is held by, or None."""
        if not self.lanes or self.lanes[0].quota is None:
            return None
        quota, amounts = self.lanes[0].quota, self.lanes[0].amounts
        for lane in self.lanes:
            same = lane.quota is quota and lane.amounts == amounts
            if not same or lane.closed or lane.concurrency is not None or lane.infeasible or lane.seen:
                return None
        return None if quota.launches is not None else (quota, amounts)

    # --- what may happen to a job -----------------------------------------------------------------

    def _register(self) -> None:
        """Give a key to what every simulation does."""
        self._arrival_keys: dict[tuple[str, ...], int] = {}
        self._key_of_entries(self.model.entries)
        for lane in self.lanes:
            name = lane.name
            lane.first_key = self._key(partial(self.moves.launch, task=name, attempt=1))
            lane.retry_key = self._key(partial(self.moves.launch, task=name, attempt=2))
            lane.usual_key = self._end_key(lane, 0, 0, 1, 0)

    def _key(self, work_out: Callable[[Place], Move | None]) -> int:
        self._keys.append(work_out)
        return len(self._keys) - 1

    def _key_of_entries(self, entries: tuple[str, ...]) -> int:
        key = self._arrival_keys.get(entries)
        if key is None:
            writes = [output(entry, JOB, self._media[entry]) for entry in entries]
            key = self._arrival_keys[entries] = self._key(lambda place: self.moves.arrive(place, writes))
        return key

    def _end_key(self, lane: Lane, fate: int, fill: int, attempt: int, lost: int) -> int:
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
                lambda place: self.moves.end(place, lane.name, ending, writes, (attempt, lost))
            )
        return key

    def _work_out(self, place: Place, key: int) -> Move:
        move = self._keys[key](place)
        assert move is not None, "this pipeline is for `logged`"
        place[key] = move
        return move

    def _grow(self, jobs: int) -> None:
        """Make room for so many jobs."""
        state = self.state
        self.places.extend([self.moves.fresh] * (jobs - len(self.places)))
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
        heap, model, arrivals = self.heap, self.model, self.model.arrivals
        arrival = next(arrivals, None)
        heappop, records, until = heapq.heappop, self.records, model.until
        wake, before = NEVER, self.position
        while True:
            now = min(heap[0][0] if heap else NEVER, wake, arrival[0] if arrival else NEVER)
            deadlines = self._deadlines
            if deadlines and deadlines[0][0] < now:
                now = deadlines[0][0]
            if now >= until or len(records) >= model.runs_max:
                self.finished = now >= NEVER
                if self.position != before:
                    self.last_at = self.now
                break
            if now < self.now:
                now = self.now
            if self.position != before:
                self.last_at, before = self.now, self.position
            self.now = now
            while arrival is not None and arrival[0] <= now:
                self._arrive(arrival[1], arrival[2])
                arrival = next(arrivals, None)
            while heap and heap[0][0] <= now:
                _, _, what, about = heappop(heap)
                if what == ENDED:
                    self._ended(about)  # type: ignore[arg-type]
                elif what == STARTED:
                    self.begin(about)  # type: ignore[arg-type]
                elif what == CALLED:
                    about()  # type: ignore[operator]
            if deadlines:
                self._stop_overdue(now)
            wake = self._decide(now)

    def _batch(self, job: int, key: int) -> Move:
        """Let a batch happen to a job; the position moves on."""
        places, first = self.places, self.position + 1
        place = places[job]
        move = place.get(key)
        if move is None:
            move = self._work_out(place, key)
        following, events, cells, deleted, versions, ops, _, _ = move
        for column, offset in cells:
            column[job] = first + offset
        if ops:
            for what, index, number in ops:
                lane = self.lanes[index]
                if what == PUSH:
                    lane.line.push(job, first + number, self.now)
                elif what == COUNT:
                    lane.task.episode_count[job] += number
                elif what == DISCARD:
                    lane.line.discard(job)
                elif what == DROP:
                    lane.between.pop(job, None)
        if deleted or versions:
            for column, offset in deleted:
                column[job] = -(first + offset)
            for column, version in versions:
                column[job] = version
        places[job] = following
        self.position = first + events - 1
        if self.now >= self._mark_at:
            self._mark(first)
        return move

    def _mark(self, position: int) -> None:
        self.state.mark(position, self.now)
        self._mark_at = self.state.mark_due()

    def _arrive(self, first: int, count: int) -> None:
        if first + count > len(self.places):
            self._grow(first + count)
        entries_of, batch, names = self.model.entries_of, self._batch, self.model.names
        self.arrived = first + count
        for job in range(first, first + count):
            batch(job, ARRIVED if entries_of is None else self._key_of_entries(entries_of(names[job])))

    def begin(self, run: SimRun) -> None:
        """A run has begun at its target: one event."""
        if run.over:
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
        if run.over:
            return
        run.over = True
        del self.open[run.run]
        lane, fate, job = self.lanes[run.task], run.fate, run.job
        if fate == 0 and run.fill == 0 and run.attempt == 1:
            key = lane.usual_key
        else:
            key = self._end_key(lane, fate, run.fill, run.attempt, run.lost)
        move = self._batch(job, key)
        chance = 0.5
        for _ in range(move[6]):
            chance = self._chance()
        lane.open_runs -= 1
        quota = lane.quota
        if quota is not None:
            used = quota.used
            for name, amount in lane.amounts:
                left = used.get(name, 0) - amount
                if left:
                    used[name] = left
                else:
                    used.pop(name, None)
        if move[7]:
            self._retry(lane, run, chance)
        self._record(run, self.now)
        if not self._in_plain:
            self.world.ended(run)

    def _retry(self, lane: Lane, run: SimRun, chance: float) -> None:
        """The policy tries again: the job waits for its time."""
        episode = Episode(run.ready, 0.0, run.attempt, run.lost)
        outcome = lane.profile.fates[run.fate].outcome
        again = after_ending(lane.retry, episode, outcome, self.now, chance)
        assert isinstance(again, Again)
        episode.not_before = again.not_before
        episode.infrastructure += again.budget == "infrastructure"
        lane.between[run.job] = episode
        heapq.heappush(lane.retries, (again.not_before, run.job))

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

    # --- deciding: engine.core.decide, on these queues --------------------------------------------

    def _decide(self, now: int) -> int:
        """Decide rounds until one is not full; return when to look again though nothing happens."""
        choose = self._choose if self._shared is None else self._choose_alike
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
                return wake

    def _choose(self, now: int) -> tuple[list[tuple[Lane, Head]], dict[str, str], int]:
        chosen: list[tuple[Lane, Head]] = []
        constraints: dict[str, str] = {}
        wake = NEVER
        heads: list[Head] = []
        retrying: dict[int, Iterator[Head]] = {}
        for lane in self.lanes:
            line = lane.line
            if lane.retries:
                retry_at = lane.next_retry()
                if retry_at is not None:
                    if retry_at <= now and not lane.closed:
                        retrying[lane.index] = both = _both(lane, lane.due(now))
                        heads.append(next(both))
                        continue
                    if retry_at > now and retry_at < wake:
                        wake = retry_at
                    elif lane.closed and retry_at <= now:
                        constraints[lane.name] = lane.closed
                        continue
            head = line.head
            if head < line.size:
                if lane.closed:
                    constraints[lane.name] = lane.closed
                else:
                    heads.append((line.positions[head], line.jobs[head], lane.index, head))
        if not heads:
            return chosen, constraints, wake
        if len(heads) > 1:
            heads.sort()
        masks: dict[int, int] = {}
        reserved: dict[str, dict[str, int]] = {}
        lanes = self.lanes
        while heads:
            head_of = heads[0]
            lane = lanes[head_of[2]]
            if len(chosen) >= BOUND:
                for each in heads:
                    constraints[lanes[each[2]].name] = "bound"
                break
            job = head_of[1]
            if masks and job in masks and not lane.task.condition.test(masks[job]):
                self._follow(heads, lane, retrying)
                continue
            constraint, again_at = self._refused(lane, now, reserved)
            if constraint:
                if again_at < wake:
                    wake = again_at
                constraints[lane.name] = constraint
                if lane.reserves and len(heads) > 1:
                    self._reserve(lane, head_of[0], constraint, now, reserved)
                heapq.heappop(heads)
                continue
            lane.open_runs += 1
            quota = lane.quota
            if quota is not None:
                used = quota.used
                for name, amount in lane.amounts:
                    if amount:
                        used[name] = used.get(name, 0) + amount
                if quota.launches is not None:
                    quota.take({}, now)
            chosen.append((lane, head_of))
            if lane.seen:
                self._see(lane, head_of, masks)
            self._follow(heads, lane, retrying)
        return chosen, constraints, wake

    def _choose_alike(self, now: int) -> tuple[list[tuple[Lane, Head]], dict[str, str], int]:
        """Choose where all tasks ask one quota for the same, and for nothing else: `_choose`, with less to look at."""
        chosen: list[tuple[Lane, Head]] = []
        wake, waiting, oldest = NEVER, 0, NEVER
        for lane in self.lanes:
            if lane.retries:
                retry_at = lane.next_retry()
                if retry_at is not None:
                    if retry_at <= now:
                        return self._choose(now)
                    wake = min(wake, retry_at)
            line = lane.line
            head = line.head
            if head < line.size:
                waiting |= lane.bit
                position = line.positions[head]
                if position < oldest:
                    oldest, first = position, lane
        if not waiting:
            return chosen, self._held(0, ""), wake
        assert self._shared is not None
        quota, amounts = self._shared
        used, limits = quota.used, quota.limits
        room, short = BOUND + 1, ""
        for name, amount in amounts:
            if amount:
                fits = (limits.get(name, 0) - used.get(name, 0)) // amount
                if fits < room:
                    room, short = fits, name
        if room <= 0:
            return chosen, self._held(waiting, self._short(amounts, used, limits)), wake
        if room == 1:
            head = first.line.head
            first.open_runs += 1
            chosen.append((first, (oldest, first.line.jobs[head], first.index, head)))
            if first.line.after(head + 1) < 0:
                waiting ^= first.bit
        else:
            waiting = self._oldest(min(room, BOUND), chosen)
        for name, amount in amounts:
            if amount:
                used[name] = used.get(name, 0) + amount * len(chosen)
        if len(chosen) >= BOUND and waiting:
            held = {lane.name: "bound" for lane in self.lanes if waiting & lane.bit}
            return chosen, held, wake
        if len(chosen) == room and waiting:
            short = self._short(amounts, used, limits) if len(amounts) > 1 else short
            return chosen, self._held(waiting, short), wake
        return chosen, self._held(0, ""), wake

    def _oldest(self, count: int, chosen: list[tuple[Lane, Head]]) -> int:
        """Choose the oldest so many jobs over all queues; return the bits of the tasks that have more."""
        heads: list[Head] = []
        for lane in self.lanes:
            line = lane.line
            if line.head < line.size:
                heads.append((line.positions[line.head], line.jobs[line.head], lane.index, line.head))
        heapq.heapify(heads)
        while heads and len(chosen) < count:
            first = heads[0]
            lane = self.lanes[first[2]]
            lane.open_runs += 1
            chosen.append((lane, first))
            line = lane.line
            index = line.after(first[3] + 1)
            if index >= 0:
                heapq.heapreplace(heads, (line.positions[index], line.jobs[index], lane.index, index))
            else:
                heapq.heappop(heads)
        return sum(self.lanes[head[2]].bit for head in heads)

    @staticmethod
    def _short(amounts: tuple[tuple[str, int], ...], used: dict[str, int], limits: dict[str, int]) -> str:
        """Return the first amount of which there is not enough for one more, or nothing."""
        for name, amount in amounts:
            if amount and used.get(name, 0) + amount > limits.get(name, 0):
                return name
        return ""

    def _held(self, waiting: int, name: str) -> dict[str, str]:
        """Return what holds the tasks in a set of bits, where it is one amount that all lack."""
        found = self._helds.get((waiting, name))
        if found is None:
            lanes = [lane for lane in self.lanes if waiting & lane.bit]
            found = self._helds[waiting, name] = {lane.name: lane.texts[name] for lane in lanes}
        return found

    def _refused(self, lane: Lane, now: int, reserved: dict[str, dict[str, int]]) -> tuple[str, int]:
        """Return the constraint that keeps a job of this task from starting, and when that is over by itself."""
        if lane.concurrency is not None and lane.open_runs >= lane.concurrency:
            return "concurrency", NEVER
        quota = lane.quota
        if quota is None:
            return "", NEVER
        if lane.infeasible:
            return lane.infeasible, NEVER
        launches = quota.launches
        if launches is not None and len(quota.recent) >= launches:
            at = quota.recent[-launches] + quota.definition.window
            if at > now:
                return f"rate: {lane.quota_name}", at
        used, limits = quota.used, quota.limits
        if reserved:
            kept = reserved.get(lane.quota_name, {})
            for name, amount in lane.amounts:
                if amount and used.get(name, 0) + kept.get(name, 0) + amount > limits.get(name, 0):
                    return lane.texts[name], NEVER
        else:
            for name, amount in lane.amounts:
                if amount and used.get(name, 0) + amount > limits.get(name, 0):
                    return lane.texts[name], NEVER
        return "", NEVER

    def _reserve(
        self, lane: Lane, ready: int, constraint: str, now: int, reserved: dict[str, dict[str, int]]
    ) -> None:
        """Keep for a job that has waited for long what it lacks."""
        quota, name = lane.quota, lane.quota_name
        if quota is None or name in reserved or not constraint.startswith("quota: "):
            return
        if now - self.state.time_of(ready) >= quota.definition.starvation_after:
            reserved[name] = {
                part: amount
                for part, amount in lane.amounts
                if quota.used.get(part, 0) + amount > quota.limits.get(part, 0)
            }

    def _see(self, lane: Lane, head: Head, masks: dict[int, int]) -> None:
        """The launch changes what other tasks see of this job."""
        job, task = head[1], lane.task
        mask = masks.get(job, self.places[job].mask) | task.live.bit
        masks[job] = mask if head[3] < 0 else mask & ~task.outcomes

    def _follow(self, heads: list[Head], lane: Lane, retrying: dict[int, Iterator[Head]]) -> None:
        """Let the next job of the first head's task take its place among the heads."""
        if retrying and lane.index in retrying:
            head = next(retrying[lane.index], None)
            if head is not None:
                heapq.heapreplace(heads, head)
                return
        else:
            line = lane.line
            index = line.after(heads[0][3] + 1)
            if index >= 0:
                heapq.heapreplace(heads, (line.positions[index], line.jobs[index], lane.index, index))
                return
        heapq.heappop(heads)

    def _launch(self, chosen: list[tuple[Lane, Head]], now: int) -> None:
        """Let the round's decisions happen, one event each, and hand the runs to the world."""
        runs: list[SimRun] = []
        for lane, (ready, job, task, index) in chosen:
            number = self.position + 1
            if index >= 0:
                line = lane.line
                run = SimRun(number, task, job, 1, 0, line.times[index], now, ready)
                if index == line.head and line.usual:
                    line.head += 1
                else:
                    line.take(index)
                self._batch(job, lane.first_key)
            else:
                episode = lane.between.pop(job)
                attempt, since = episode.attempt + 1, episode.not_before or 0
                run = SimRun(number, task, job, attempt, episode.infrastructure, since, now, ready)
                self._batch(job, lane.retry_key)
            self.open[number] = run
            runs.append(run)
        for lane in self.lanes:
            if lane.line.head > SPENT_MAX:
                lane.line.tidy()
        if self._in_plain:
            self._start_in_plain(runs, now)
        else:
            for run in runs:
                self.world.start(run)

    def _start_in_plain(self, runs: list[SimRun], now: int) -> None:
        """Do what `Plain.start` does, and `begin`, for runs of which nothing but the duration is open."""
        heap, lanes, pushed = self.heap, self.lanes, self._pushed
        for run in runs:
            lane = lanes[run.task]
            if lane.usual:
                run.duration = duration = lane.duration()
                run.started_at = now
                self.position += 1
                if now >= self._mark_at:
                    self._mark(self.position)
                pushed += 1
                heapq.heappush(heap, (now + duration, pushed, ENDED, run))
            else:
                self._pushed = pushed
                self.world.start(run)
                pushed = self._pushed
        self._pushed = pushed


def _both(lane: Lane, due: list[tuple[int, int]]) -> Iterator[Head]:
    """Yield the retries that are due and the waiting jobs of a task, oldest first."""
    line = lane.line
    index = line.after(line.head)
    for position, job in due:
        while index >= 0 and line.positions[index] < position:
            yield line.positions[index], line.jobs[index], lane.index, index
            index = line.after(index + 1)
        yield position, job, lane.index, -1
    while index >= 0:
        yield line.positions[index], line.jobs[index], lane.index, index
        index = line.after(index + 1)
