"""What the state keeps for a task, an episode and an open run.

At rest a (task, job) costs 12 bytes: its last run and its number of episodes. Only what is open has objects:
an `Episode` from its first launch to its end, an `OpenRun` from its decision to its ending. Both are structs that the
collector leaves alone, since nothing leads from them back to them.
"""

from __future__ import annotations

import heapq
from array import array
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

import msgspec

from datatask.engine.core.expressions import MaskTest
from datatask.engine.core.leaves import LeafState
from datatask.engine.core.queues import FifoQueue, PriorityQueue, ReadyQueue
from datatask.schema.definition import TaskDef
from datatask.schema.events import Ending, StopReason, StoreWriteIntended


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

    def new_queue(self) -> ReadyQueue:
        """Return an empty queue of the kind that this task needs."""
        return PriorityQueue() if self.definition.priority else FifoQueue()

    def due(self, now: int, most: int) -> list[tuple[float, int, int]]:
        """Return the jobs whose retry is due, as queue entries; stale heap entries are dropped on the way.

        Of those that were in conflict again and again there is one at most: while it runs it meets only newcomers.
        """
        found = _due(self, self.retries, now, most)
        if self.contenders and not self.contending:
            found += _due(self, self.contenders, now, 1)
        return sorted(found)

    def contends(self, episode: Episode) -> bool:
        """Whether a job waits for another one's run, since both were in conflict again and again."""
        return self.contending > 0 and episode.conflicts >= CONTENDING

    def schedule(self, job: int, episode: Episode) -> None:
        """Let a job wait for the time of its next attempt."""
        heap = self.contenders if episode.conflicts >= CONTENDING else self.retries
        heapq.heappush(heap, (episode.not_before or 0, job))

    def next_retry(self) -> int | None:
        """Return when the next retry is due (engine time), or None."""
        if not self.retries and not self.contenders:
            return None
        times = [_next(self, self.retries)]
        if self.contenders and not self.contending:
            times.append(_next(self, self.contenders))
        return min((at for at in times if at is not None), default=None)


def _due(task: TaskState, heap: list[tuple[int, int]], now: int, most: int) -> list[tuple[float, int, int]]:
    found: list[tuple[float, int, int]] = []
    held: list[tuple[int, int]] = []
    while heap and heap[0][0] <= now and len(found) < most:
        not_before, job = heapq.heappop(heap)
        episode = task.episodes.get(job)
        if episode is not None and episode.run == 0 and episode.not_before == not_before:
            if not held or held[-1] != (not_before, job):  # one that is there twice comes twice in a row
                held.append((not_before, job))
                found.append((-episode.priority, episode.position, job))
    for entry in held:
        heapq.heappush(heap, entry)
    return found


def _next(task: TaskState, heap: list[tuple[int, int]]) -> int | None:
    while heap:
        not_before, job = heap[0]
        episode = task.episodes.get(job)
        if episode is not None and episode.run == 0 and episode.not_before == not_before:
            return not_before
        heapq.heappop(heap)
    return None


def contenders(runs: Iterable[OpenRun], task: TaskState) -> list[int]:
    """Return the open runs of jobs of a task that were in conflict again and again: one, unless more were forced."""
    return [
        run.run for run in runs if run.task == task.name and task.episodes[run.job].conflicts >= CONTENDING
    ]
