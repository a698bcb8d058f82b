"""The rounds of a quick simulation: `engine.core.decide.choose` on queues in columns.

In: the state, whose tasks have `ColumnQueue`s (20 bytes a waiting job), and the open runs. Out: the entries to launch, the
constraint on each task, and when to look again. Where all tasks ask one quota for the same amounts and nothing else,
the oldest jobs are launched up to the free capacity by arithmetic, in a quarter of the time; a property test compares
that with `choose`. A job that leaves a queue out of turn is marked as gone and passed over later.
"""

from __future__ import annotations

import heapq
from array import array
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sized
from functools import partial

from datatask.adapters.sim.model import NEVER, Profile
from datatask.engine.core.decide import BOUND, BOUNDED, Launches, Line, choose
from datatask.engine.core.quotas import Constraint, QuotaState
from datatask.engine.core.state import State
from datatask.engine.core.tasks import Entry, TaskState


class SimTask(Line):
    """One task in the rounds, with the keys and samplers that each of its runs needs."""

    # fmt: off
    __slots__ = ("bit", "duration", "end_keys", "episodes", "first_key", "limited", "profile", "queue", "retries", "retry",
                 "retry_key", "timeout", "usual", "usual_key")
    # fmt: on

    def __init__(self, task: TaskState, profile: Profile, state: State) -> None:
        definition = task.definition
        super().__init__(task, state.quotas[definition.quota] if definition.quota else None)
        self.queue = task.queue = ColumnQueue()
        self.episodes, self.retries = task.episodes, task.retries
        self.bit, self.profile, self.duration = 1 << task.index, profile, profile.duration
        self.timeout, self.retry = definition.timeout, definition.retry
        self.limited = self.quota if self.quota is not None and self.quota.launches is not None else None
        """Its quota, where that limits launches in a window."""
        fates, fills = (profile.fate, profile.fate_of), (profile.fill, profile.fill_of)
        more = (*fates, *fills, profile.latency, profile.duration_of, profile.durations or None)
        self.usual = self.timeout is None and more == (None,) * len(more)
        """Whether nothing but the duration of a run is open."""
        self.end_keys: dict[tuple[int, int, int, tuple[int, int]], int] = {}
        self.first_key = self.retry_key = self.usual_key = 0


class Rounds:
    """Chooses for one simulation; `uniform`: amounts in use follow from the number of open runs and are not kept."""

    def __init__(
        self, state: State, lanes: list[SimTask], open_runs: Sized, mask_of: Callable[[int], int]
    ) -> None:
        self._lanes, self._open = lanes, open_runs
        self._quota = one_quota(lanes)
        self.uniform = self._quota is not None
        self._capacity, self._short = NEVER, ""
        if self._quota is not None:
            for name, amount in lanes[0].request.items():
                if amount and self._quota.limits.get(name, 0) // amount < self._capacity:
                    self._capacity, self._short = self._quota.limits.get(name, 0) // amount, name
        for lane in lanes:
            request = list(lane.request.items())
            lane.reserves = any(
                other.quota is lane.quota and list(other.request.items()) != request for other in lanes
            )
        self._held: dict[int, dict[str, Constraint]] = {}
        self._any: Callable[[int], Launches[SimTask]] = partial(choose, state, lanes, mask_of=mask_of)
        self.choose = self._choose_oldest if self.uniform else self._any

    def settle(self) -> None:
        """Bring the amounts in use up to date."""
        if self._quota is not None:
            running = len(self._open)
            used = {name: amount * running for name, amount in self._lanes[0].request.items()}
            self._quota.used.clear()
            self._quota.used.update((name, amount) for name, amount in used.items() if amount)

    def _choose_oldest(self, now: int) -> Launches[SimTask]:
        """Choose where all tasks ask one quota for the same; retries that are due are for `choose`."""
        wake = oldest = NEVER
        waiting = 0
        for lane in self._lanes:
            if lane.retries:
                retry_at = lane.task.next_retry()
                if retry_at is not None:
                    if retry_at <= now:
                        self.settle()
                        return self._any(now)
                    if retry_at < wake:
                        wake = retry_at
            queue = lane.queue
            head = queue.head
            if head < queue.size:
                waiting |= lane.bit
                position = queue.positions[head]
                if position < oldest:
                    oldest, first = position, lane
        launches: list[tuple[SimTask, Entry]] = []
        room = self._capacity - len(self._open)
        if waiting and room > 0:
            if room == 1:
                queue = first.queue
                head = queue.head
                launches.append((first, (0.0, oldest, queue.jobs[head])))
                if queue.after(head + 1) < 0:
                    waiting ^= first.bit
            else:
                waiting = self._oldest(min(room, BOUND), launches)
                if len(launches) == BOUND and waiting:
                    return launches, self._constraints(waiting, BOUNDED), wake
        held = self._held.get(waiting)
        if held is None:
            assert self._quota is not None
            constraint = Constraint("quota", self._quota.definition.name, self._short)
            held = self._held[waiting] = self._constraints(waiting, constraint)
        return launches, held, wake

    def _constraints(self, waiting: int, constraint: Constraint) -> dict[str, Constraint]:
        return {lane.name: constraint for lane in self._lanes if waiting & lane.bit}

    def _oldest(self, count: int, launches: list[tuple[SimTask, Entry]]) -> int:
        """Choose the `count` oldest jobs over all queues; return the bits of the tasks that have more."""
        heads = []
        for lane in self._lanes:
            queue = lane.queue
            if queue.head < queue.size:
                heads.append((queue.positions[queue.head], lane.index, lane, queue.head))
        heapq.heapify(heads)
        while heads and len(launches) < count:
            position, _, lane, index = heads[0]
            queue = lane.queue
            launches.append((lane, (0.0, position, queue.jobs[index])))
            index = queue.after(index + 1)
            if index >= 0:
                heapq.heapreplace(heads, (queue.positions[index], lane.index, lane, index))
            else:
                heapq.heappop(heads)
        return sum(lane.bit for _, _, lane, _ in heads)


def one_quota(lanes: list[SimTask]) -> QuotaState | None:
    """Return the quota that alone limits all tasks, each run of which takes the same amounts, or None."""
    quota = lanes[0].quota if lanes else None
    if quota is None or quota.launches is not None or quota.infeasible(lanes[0].request) is not None:
        return None
    request = list(lanes[0].request.items())
    for lane in lanes:
        same = lane.quota is quota and list(lane.request.items()) == request
        if not same or lane.concurrency is not None or lane.seen or lane.closed:
            return None
    return quota


SPENT_MAX = 4096


class ColumnQueue:
    """The waiting jobs of one task, oldest first; `usual`: the next job may leave by a mere step of `head`."""

    __slots__ = ("_places", "gone", "head", "jobs", "positions", "size", "tidy_at", "times", "usual")

    def __init__(self) -> None:
        self.jobs = array("I")
        self.positions = array("q")
        self.times = array("q")
        self.head = 0
        self.size = 0
        self.tidy_at = SPENT_MAX
        self.usual = True
        self.gone: set[int] = set()
        self._places: dict[int, int] | None = None

    def __len__(self) -> int:
        return self.size - self.head - len(self.gone)

    def __contains__(self, job: object) -> bool:
        return job in self._by_job()

    def position(self, job: int) -> int:
        return self._by_job()[job]

    def priority(self, job: int) -> float:
        return 0.0

    def push(self, job: int, priority: float, position: int, at: int = 0) -> None:
        """Add a job that does not wait here, behind all others."""
        self.jobs.append(job)
        self.positions.append(position)
        self.times.append(at)
        self.size += 1
        if self._places is not None:
            self._places[job] = position

    def push_all(self, jobs: range, positions: range, at: int) -> None:
        """Add jobs that do not wait here, in this order."""
        self.jobs.extend(jobs)
        self.positions.extend(positions)
        self.times.extend(array("q", (at,)) * len(jobs))
        self.size += len(jobs)
        if self._places is not None:
            self._places.update(zip(jobs, positions, strict=True))

    def first(self) -> Entry | None:
        head = self.head
        return (0.0, self.positions[head], self.jobs[head]) if head < self.size else None

    def second(self) -> Entry | None:
        index = self.after(self.head + 1)
        return (0.0, self.positions[index], self.jobs[index]) if index >= 0 else None

    def entries(self) -> Iterator[Entry]:
        jobs, positions, gone = self.jobs, self.positions, self.gone
        for index in range(self.head, self.size):
            if not gone or positions[index] not in gone:
                yield 0.0, positions[index], jobs[index]

    def after(self, index: int) -> int:
        """Return the first index from this one on at which a job waits, or -1."""
        positions, gone = self.positions, self.gone
        if not gone:
            return index if index < self.size else -1
        while index < self.size:
            if positions[index] not in gone:
                return index
            index += 1
        return -1

    def take(self, position: int) -> int:
        """Remove the job that became ready at this position, and return when that was."""
        index = bisect_left(self.positions, position, self.head)
        if self._places is not None:
            del self._places[self.jobs[index]]
        self._leave(index)
        return self.times[index]

    def discard(self, job: int) -> bool:
        """Remove a job, wherever it waits; return whether it did."""
        position = self._by_job().pop(job, None)
        if position is None:
            return False
        self._leave(bisect_left(self.positions, position, self.head))
        return True

    def _by_job(self) -> dict[int, int]:
        """Return the positions by job, kept from the first question on: more follow."""
        if self._places is None:
            self.usual = False
            self._places = {job: position for _, position, job in self.entries()}
        return self._places

    def _leave(self, index: int) -> None:
        """Let the job at an index go, and with the head those behind it that are gone."""
        if index != self.head:
            self.usual = False
            self.gone.add(self.positions[index])
            return
        self.head += 1
        gone, positions = self.gone, self.positions
        while gone and self.head < self.size and positions[self.head] in gone:
            gone.discard(positions[self.head])
            self.head += 1

    def tidy(self) -> None:
        """Free the memory of the jobs that have left, when they are half of all; indexes change."""
        if self.head > SPENT_MAX and self.head * 2 > self.size:
            for column in (self.jobs, self.positions, self.times):
                del column[: self.head]
            self.size -= self.head
            self.head = 0
        self.tidy_at = max(SPENT_MAX, self.size // 2)
