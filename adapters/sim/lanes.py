"""What a quick simulation keeps for a task: who waits, who is between two attempts, and what its limits are.

A task's waiting jobs at 20 bytes each: what `engine.core.queues.FifoQueue` says, for a million jobs at once.

In: jobs with the position and the time at which they became ready, in order. Out: the oldest first. Who leaves out of
turn is marked as gone and passed over later.
"""

from __future__ import annotations

import heapq
from array import array
from collections.abc import Iterator

from datatask.adapters.sim.model import Profile
from datatask.engine.core.decide import BOUND, closed
from datatask.engine.core.quotas import QuotaState
from datatask.engine.core.state import State
from datatask.engine.core.tasks import Episode, TaskState

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
        self.end_keys: dict[tuple[int, int, int, tuple[int, int]], int] = {}
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


def both(lane: Lane, due: list[tuple[int, int]]) -> Iterator[Head]:
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


SPENT_MAX = 4096


class Line:
    """One queue. Indexes hold until `tidy`; while it is `usual`, nobody has left out of turn."""

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

    def push(self, job: int, position: int, at: int) -> None:
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

    def after(self, index: int) -> int:
        """Return the first live index from `index` on, or -1."""
        positions, gone = self.positions, self.gone
        if not gone:
            return index if index < self.size else -1
        while index < self.size:
            if positions[index] not in gone:
                return index
            index += 1
        return -1

    def take(self, index: int) -> None:
        """Remove the job at a live index."""
        if self._places is not None:
            del self._places[self.jobs[index]]
        if index == self.head:
            self._advance()
        else:
            self.usual = False
            self.gone.add(self.positions[index])

    def discard(self, job: int) -> None:
        """Remove a waiting job, wherever it is."""
        if self._places is None:
            self.usual = False
            self._places = {
                waiting: position for waiting, position, _ in self.entries()
            }  # kept from now on: who has done it once does it often
        self.gone.add(self._places.pop(job))
        while self.head < len(self.positions) and self.positions[self.head] in self.gone:
            self.gone.discard(self.positions[self.head])
            self._advance()

    def _advance(self) -> None:
        """The head leaves, and with it those behind it that are gone."""
        self.head += 1
        gone = self.gone
        if not gone:
            return
        positions = self.positions
        while gone and self.head < len(positions) and positions[self.head] in gone:
            gone.discard(positions[self.head])
            self.head += 1

    def tidy(self) -> None:
        """Give back the room of those that are gone, when they are half of all; indexes change."""
        if self.head > SPENT_MAX and self.head * 2 > self.size:
            for column in (self.jobs, self.positions, self.times):
                del column[: self.head]
            self.size -= self.head
            self.head = 0
        self.tidy_at = max(SPENT_MAX, self.size // 2)

    def entries(self) -> Iterator[tuple[int, int, int]]:
        """Yield (job, position, time) of the waiting ones, in order."""
        for index in range(self.head, len(self.jobs)):
            if self.positions[index] not in self.gone:
                yield self.jobs[index], self.positions[index], self.times[index]
