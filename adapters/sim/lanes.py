"""What a quick simulation keeps for a task: who waits, who is between two attempts, and what its limits are."""

from __future__ import annotations

import heapq
from collections.abc import Iterator

from datatask.adapters.sim.model import Profile
from datatask.adapters.sim.queues import Line
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
