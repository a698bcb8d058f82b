"""A task's waiting jobs at 20 bytes each: what `engine.core.queues.FifoQueue` says, for a million jobs at once.

In: jobs with the position and the time at which they became ready, in order. Out: the oldest first. Who leaves out of
turn is marked as gone and passed over later.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator

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
