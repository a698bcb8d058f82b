"""What the state keeps for a task, an episode and an open run, and each task's ready queue.

At rest a (task, job) costs 12 bytes: its last run and its number of episodes. Objects exist for open things only: an
`Episode` from its first launch to its end, an `OpenRun` from its decision to its ending, both untracked by the garbage
collector. A queue orders by priority (larger first), then by the position at which the job became ready: a FIFO without
priorities, else a heap with lazy deletion. `order(job)` = (-priority, position). Jobs are dense integers.
"""

from __future__ import annotations

import heapq
from array import array
from collections import OrderedDict
from collections.abc import Container, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import NamedTuple, Protocol

import msgspec

from datatask.engine.core.expressions import MaskTest
from datatask.engine.core.leaves import LeafState
from datatask.schema.definition import TaskDef
from datatask.schema.events import Ending, StopReason, StoreWriteIntended

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

    def second(self) -> Entry | None:
        """Return the second of `entries`."""

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

    def second(self) -> Entry | None:
        for job in islice(self._waiting, 1, None):
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

    def second(self) -> Entry | None:
        return next(islice(self.entries(), 1, None), None)

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


class Intent(NamedTuple):
    """A store write that was intended and is not yet recorded as done."""

    position: int
    event: StoreWriteIntended


class OpenRun(msgspec.Struct, gc=False):
    """A run between `LaunchDecided` and `RunEnded`."""

    run: int
    task: str
    job: int
    episode: int
    attempt: int
    decided_at: int
    origin: str
    resources: dict[str, int]
    quota: str | None
    inputs: dict[str, int]
    meta: bool = True
    epoch: int = 0
    identities: dict[str, tuple[str, ...]] = {}
    started_at: int | None = None
    handle: dict[str, str | int] | None = None
    where: str = ""
    unreachable: bool = False
    stopping: StopReason | None = None
    settling: Ending | None = None
    intents: dict[tuple[str, int], Intent] = {}
    adopted: int = 0
    """The epoch of the engine that has found it alive; of no use to another engine, hence not in checkpoints."""


CONTENDING = 3
"""A job that was in conflict so often is launched again only while no other such job of its task runs."""


class Episode(msgspec.Struct, gc=False):
    """An episode that has had a launch: between attempts `run` is 0 and `not_before` may be set.

    `infrastructure` and `conflicts` are the attempts that were lost or in conflict; `forgiven` of the lost ones count
    no more: a run after them made progress, or the machine had ended them.
    """

    position: int
    priority: float
    attempt: int = 0
    infrastructure: int = 0
    run: int = 0
    not_before: int | None = None
    conflicts: int = 0
    forgiven: int = 0

    @property
    def spent(self) -> int:
        """How many attempts that count are over."""
        return self.attempt - self.infrastructure - self.conflicts - (self.run > 0)

    @property
    def lost_in_a_row(self) -> int:
        """How many lost runs count against the budget."""
        return self.infrastructure - self.forgiven


@dataclass(slots=True, eq=False)
class TaskState:
    """One task: its compiled condition, its bits, who waits, who runs, and what is remembered of the rest."""

    definition: TaskDef
    index: int
    condition: MaskTest
    claim: int
    live: LeafState
    succeeded: LeafState
    failed: LeafState
    reads: tuple[LeafState, ...] = ()
    queue: ReadyQueue = field(default_factory=FifoQueue)
    awaiting: dict[int, int] = field(default_factory=dict)
    episodes: dict[int, Episode] = field(default_factory=dict)
    retries: list[tuple[int, int]] = field(default_factory=list)
    contenders: list[tuple[int, int]] = field(default_factory=list)
    contending: int = 0
    last_run: array[int] = field(default_factory=lambda: array("q"))
    episode_count: array[int] = field(default_factory=lambda: array("I"))
    open_runs: int = 0
    paused: int = 0
    constraint: str = ""
    seen: bool = False
    """Whether any task or derived leaf looks at this one's views."""
    outcomes: int = field(init=False, default=0)

    @property
    def name(self) -> str:
        return self.definition.name

    def __post_init__(self) -> None:
        self.outcomes = self.succeeded.bit | self.failed.bit

    def request(self, job: int) -> dict[str, int]:
        """Return what the open or the next attempt at a job takes."""
        if not self.definition.later:
            return self.definition.resources
        episode = self.episodes.get(job)
        return self.definition.request(0 if episode is None else episode.spent)

    def new_queue(self) -> ReadyQueue:
        """Return an empty queue of the kind that this task needs."""
        return PriorityQueue() if self.definition.priority else FifoQueue()

    def due(self, now: int, most: int, among: Container[int] | None = None) -> list[tuple[float, int, int]]:
        """Return the jobs (of those `among`) whose retry is due, as queue entries; stale heap entries are dropped on the way.

        Of those that were in conflict again and again there is one at most: while it runs it meets only newcomers.
        """
        found = _due(self, self.retries, now, most, among)
        if self.contenders and not self.contending:
            found += _due(self, self.contenders, now, 1, among)
        return sorted(found)

    def contends(self, episode: Episode) -> bool:
        """Whether a job waits for another one's run, since both were in conflict again and again."""
        return self.contending > 0 and episode.conflicts >= CONTENDING

    def schedule(self, job: int, episode: Episode) -> None:
        """Let a job wait for the time of its next attempt."""
        heap = self.contenders if episode.conflicts >= CONTENDING else self.retries
        heapq.heappush(heap, (episode.not_before or 0, job))

    def next_retry(self, among: Container[int] | None = None) -> int | None:
        """Return when the next retry (of the jobs `among`) is due (engine time), or None."""
        if among is not None:
            heaps = [self.retries, *([self.contenders] if not self.contending else [])]
            times = (at for heap in heaps for at, job in heap if job in among and _waits(self, at, job))
            return min(times, default=None)
        retry_at = _next(self, self.retries) if self.retries else None
        if not self.contenders or self.contending:
            return retry_at
        contender_at = _next(self, self.contenders)
        return contender_at if retry_at is None or (contender_at or retry_at) < retry_at else retry_at


def _waits(task: TaskState, not_before: int, job: int) -> bool:
    """Whether an entry of a heap of retries still says when the job may be launched."""
    episode = task.episodes.get(job)
    return episode is not None and episode.run == 0 and episode.not_before == not_before


def _due(
    task: TaskState, heap: list[tuple[int, int]], now: int, most: int, among: Container[int] | None
) -> list[tuple[float, int, int]]:
    found: list[tuple[float, int, int]] = []
    held: list[tuple[int, int]] = []
    while heap and heap[0][0] <= now and len(found) < most:
        not_before, job = heapq.heappop(heap)
        episode = task.episodes.get(job)
        if episode is not None and episode.run == 0 and episode.not_before == not_before:
            if not held or held[-1] != (not_before, job):  # one that is there twice comes twice in a row
                held.append((not_before, job))
                if among is None or job in among:
                    found.append((-episode.priority, episode.position, job))
    for entry in held:
        heapq.heappush(heap, entry)
    return found


def _next(task: TaskState, heap: list[tuple[int, int]]) -> int | None:
    while heap:
        not_before, job = heap[0]
        if _waits(task, not_before, job):
            return not_before
        heapq.heappop(heap)
    return None


def contenders(runs: Iterable[OpenRun], task: TaskState) -> list[int]:
    """Return the open runs of jobs of a task that were in conflict again and again: one, unless more were forced."""
    return [
        run.run for run in runs if run.task == task.name and task.episodes[run.job].conflicts >= CONTENDING
    ]
