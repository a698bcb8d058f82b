"""Ready queues: which job of a task is next.

Order is priority (larger first), then the position at which the job became ready. Jobs are dense integers.
Tasks without a priority function have a plain FIFO, since positions only grow; the others a heap with lazy
deletion. Both keep `order(job)` = (-priority, position), the key by which heads of tasks are compared.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict
from collections.abc import Iterator
from typing import Protocol

Entry = tuple[float, int, int]
"""(-priority, position, job)"""


class ReadyQueue(Protocol):
    """The waiting jobs of one task, in order."""

    def push(self, job: int, priority: float, position: int) -> None:
        """Add a job that is not queued."""

    def discard(self, job: int) -> bool:
        """Remove a job; return whether it was queued."""

    def __contains__(self, job: object) -> bool: ...

    def __len__(self) -> int: ...

    def first(self) -> Entry | None:
        """Return the first of `entries`."""

    def entries(self) -> Iterator[Entry]:
        """Yield the waiting jobs in order; the queue must not change meanwhile."""

    def position(self, job: int) -> int:
        """Return the position at which a queued job became ready."""

    def priority(self, job: int) -> float:
        """Return the priority of a queued job."""


class FifoQueue:
    """Jobs in the order of becoming ready."""

    __slots__ = ("_waiting",)

    def __init__(self) -> None:
        self._waiting: OrderedDict[int, int] = OrderedDict()

    @property
    def waiting(self) -> OrderedDict[int, int]:
        """The jobs in order, with the position at which each became ready (for `bulk`, which writes it)."""
        return self._waiting

    def push(self, job: int, priority: float, position: int) -> None:
        self._waiting[job] = position

    def discard(self, job: int) -> bool:
        return self._waiting.pop(job, None) is not None

    def __contains__(self, job: object) -> bool:
        return job in self._waiting

    def __len__(self) -> int:
        return len(self._waiting)

    def first(self) -> Entry | None:
        for job in self._waiting:
            return 0.0, self._waiting[job], job
        return None

    def entries(self) -> Iterator[Entry]:
        for job, position in self._waiting.items():
            yield 0.0, position, job

    def position(self, job: int) -> int:
        return self._waiting[job]

    def priority(self, job: int) -> float:
        return 0.0


class PriorityQueue:
    """Jobs by priority, then in the order of becoming ready."""

    __slots__ = ("_heap", "_waiting")

    def __init__(self) -> None:
        self._heap: list[Entry] = []
        self._waiting: dict[int, tuple[float, int]] = {}

    def push(self, job: int, priority: float, position: int) -> None:
        self._waiting[job] = (-priority, position)
        heapq.heappush(self._heap, (-priority, position, job))

    def discard(self, job: int) -> bool:
        if self._waiting.pop(job, None) is None:
            return False
        if len(self._heap) > 64 and len(self._heap) > 2 * len(self._waiting):
            self._rebuild()
        return True

    def __contains__(self, job: object) -> bool:
        return job in self._waiting

    def __len__(self) -> int:
        return len(self._waiting)

    def first(self) -> Entry | None:
        heap = self._heap
        while heap and not self._current(heap[0]):
            heapq.heappop(heap)
        return heap[0] if heap else None

    def entries(self) -> Iterator[Entry]:
        """Pop lazily from a copy of the frontier: the first k entries cost O(k log k), not the queue's size.

        A job pushed again as it was before lies in the heap twice; equal entries come one after another.
        """
        heap, first = self._heap, self.first()
        frontier = [(first, 0)] if first is not None else []
        last: Entry | None = None
        while frontier:
            entry, index = heapq.heappop(frontier)
            if entry != last and self._current(entry):
                last = entry
                yield entry
            for child in (2 * index + 1, 2 * index + 2):
                if child < len(heap):
                    heapq.heappush(frontier, (heap[child], child))

    def position(self, job: int) -> int:
        return self._waiting[job][1]

    def priority(self, job: int) -> float:
        return -self._waiting[job][0]

    def _current(self, entry: Entry) -> bool:
        return self._waiting.get(entry[2]) == entry[:2]

    def _rebuild(self) -> None:
        self._heap = [(*order, job) for job, order in self._waiting.items()]
        heapq.heapify(self._heap)
