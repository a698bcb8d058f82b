"""A ready queue in columns: 20 bytes a waiting job, for a million jobs at once.

In: jobs in the order in which they become ready, with position and time. Out: what `engine.core.queues.ReadyQueue` has,
for `choose`, and the time at which a job that leaves became ready. A job that leaves out of turn is marked
as gone and passed over later.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Iterator

from datatask.engine.core.queues import Entry

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
