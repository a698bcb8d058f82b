"""A state over another one: reads show the one below until something is folded, and writes never reach it.

In: a state. Out: `Overlay.state`, on which events can be folded and `decide` asked as on any other; `reset` takes back
all that was folded. It costs what was changed, and the number of tasks and leaves, whatever the number of jobs: each
container of what is kept per job holds the changes only. Bitmaps of members are the one thing that it does not have.
"""

from __future__ import annotations

import copy
import heapq
from array import array
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any, TypeVar, cast

from pyroaring import BitMap

from datatask.engine.core.gathering import Gathering, Group
from datatask.engine.core.leaves import DerivedState, LeafState
from datatask.engine.core.state import State
from datatask.engine.core.tasks import Entry, ReadyQueue, TaskState

K = TypeVar("K")
V = TypeVar("V")
ENDLESS = 1 << 60


class OverlayDict(dict[K, V]):
    """A dict over `below`; `copied` copies a value that may be changed in place when it is first read."""

    def __init__(self, below: dict[K, V], copied: Callable[[V], V] | None = None) -> None:
        super().__init__()
        self._below, self._copied = below, copied
        self._gone: set[K] = set()

    def reset(self) -> None:
        """Forget all changes."""
        super().clear()
        self._gone.clear()

    def __missing__(self, key: K) -> V:
        if key in self._gone:
            raise KeyError(key)
        value = self._below[key]
        if self._copied is not None:
            value = self._copied(value)
            super().__setitem__(key, value)
        return value

    def __contains__(self, key: object) -> bool:
        return super().__contains__(key) or (key in self._below and key not in self._gone)

    def get(self, key: K, default: Any = None) -> Any:
        if key not in self:
            return default
        return self[key]

    def setdefault(self, key: K, default: Any = None) -> Any:
        if key not in self:
            self[key] = default
        return self[key]

    def __delitem__(self, key: K) -> None:
        if key not in self:
            raise KeyError(key)
        super().pop(key, None)
        if key in self._below:
            self._gone.add(key)

    def pop(self, key: K, *default: Any) -> Any:
        if key not in self:
            if default:
                return default[0]
            raise KeyError(key)
        value = self[key]
        del self[key]
        return value

    def __len__(self) -> int:
        own = sum(1 for key in super().__iter__() if key in self._gone or key not in self._below)
        return len(self._below) - len(self._gone) + own

    def __iter__(self) -> Iterator[K]:
        for key in self._below:
            if key not in self._gone or super().__contains__(key):
                yield key
        for key in super().__iter__():
            if key not in self._below:
                yield key

    def keys(self) -> Any:
        return iter(self)

    def values(self) -> Any:
        return (self[key] for key in self)

    def items(self) -> Any:
        return ((key, self[key]) for key in self)


class OverlayList(list[V]):
    """A list that can be appended to, and whose items can be replaced."""

    def __init__(self, below: list[V]) -> None:
        super().__init__()
        self._below, self._own = below, dict[int, V]()
        self._offset = len(below)

    def reset(self) -> None:
        """Forget all changes."""
        super().clear()
        self._own.clear()

    def __getitem__(self, index: Any) -> Any:
        if index >= self._offset:
            return super().__getitem__(index - self._offset)
        own = self._own.get(index)
        return self._below[index] if own is None else own

    def __setitem__(self, index: Any, value: Any) -> None:
        if index >= self._offset:
            super().__setitem__(index - self._offset, value)
        else:
            self._own[index] = value

    def __len__(self) -> int:
        return self._offset + super().__len__()


class OverlayArray(array):  # type: ignore[type-arg]
    """An array of integers without an end; cells that were never written are 0."""

    _below: array[int]
    _own: dict[int, int]

    def __new__(cls, below: array[int]) -> OverlayArray:
        made = super().__new__(cls, below.typecode)
        made._below, made._own = below, {}
        return made

    def reset(self) -> None:
        """Forget all changes."""
        self._own.clear()

    def __getitem__(self, index: Any) -> Any:
        own = self._own.get(index)
        if own is not None:
            return own
        return self._below[index] if index < len(self._below) else 0

    def __setitem__(self, index: Any, value: Any) -> None:
        self._own[index] = value

    def __len__(self) -> int:
        return ENDLESS


class OverlayQueue:
    """A ready queue over another one; any job in it may have a priority."""

    def __init__(self, below: ReadyQueue) -> None:
        self._below = below
        self._added: dict[int, tuple[float, int]] = {}
        self._gone: set[int] = set()

    def reset(self) -> None:
        """Forget all changes."""
        self._added.clear()
        self._gone.clear()

    def push(self, job: int, priority: float, position: int) -> None:
        self._added[job] = (-priority, position)

    def discard(self, job: int) -> bool:
        if self._added.pop(job, None) is not None:
            return True
        if job not in self:
            return False
        self._gone.add(job)
        return True

    def __contains__(self, job: object) -> bool:
        return job in self._added or (job in self._below and job not in self._gone)

    def __len__(self) -> int:
        return len(self._below) - len(self._gone) + len(self._added)

    def first(self) -> Entry | None:
        return next(self.entries(), None)

    def second(self) -> Entry | None:
        return next(islice(self.entries(), 1, None), None)

    def entries(self) -> Iterator[Entry]:
        gone, below = self._gone, self._below.entries()
        left = (entry for entry in below if entry[2] not in gone) if gone else below
        if not self._added:
            return left
        return heapq.merge(left, sorted((*order, job) for job, order in self._added.items()))

    def position(self, job: int) -> int:
        return self._added[job][1] if job in self._added else self._below.position(job)

    def priority(self, job: int) -> float:
        return -self._added[job][0] if job in self._added else self._below.priority(job)


class Overlay:
    """`state` shows the state below until something is folded."""

    def __init__(self, below: State) -> None:
        self.below = below
        state = self.state = State.__new__(State)
        vars(state).update(vars(below))
        self._containers: list[Any] = []
        self._leaves = [(leaf, self._leaf(leaf)) for leaf in below.leaves.values()]
        own = {id(leaf): made for leaf, made in self._leaves}
        self._tasks = [(task, self._task(task, own)) for task in below.tasks.values()]
        tasks = {id(task): made for task, made in self._tasks}
        derived = {
            id(leaf.derived): self._derived(leaf.derived, own) for leaf, _ in self._leaves if leaf.derived
        }
        for leaf, made in self._leaves:
            made.feeds = [derived[id(one)] for one in leaf.feeds]
            made.translates = [derived[id(one)] for one in leaf.translates]
            made.gathers = [derived[id(one)] for one in leaf.gathers]
            made.derived = derived[id(leaf.derived)] if leaf.derived else None
        state.watchers = [[tasks[id(task)] for task in watchers] for watchers in below.watchers]
        state.leaves = {name: own[id(leaf)] for name, leaf in below.leaves.items()}
        state.tasks = {name: tasks[id(task)] for name, task in below.tasks.items()}
        state.jobs = self._resettable(OverlayList(below.jobs))
        state.masks = self._resettable(OverlayList(below.masks))
        state.job_index = self._resettable(OverlayDict(below.job_index))
        state.open_runs = self._resettable(OverlayDict(below.open_runs, copy.copy))
        state.pending = self._resettable(OverlayDict(below.pending))
        state.intents = self._resettable(OverlayDict(below.intents))
        state._interned, state._later, state.named, state.fingerprints, state.accepted = {}, [], {}, {}, {}
        self._scalars()

    def reset(self) -> None:
        """Take back all that was folded."""
        for container in self._containers:
            container.reset()
        for leaf, made in self._leaves:
            made.count, made.synced, made.held = leaf.count, leaf.synced, leaf.held
            made.trouble, made.missed = leaf.trouble, leaf.missed
            made.changed.clear()
        for task, mine in self._tasks:
            mine.definition, mine.condition = task.definition, task.condition
            mine.open_runs, mine.paused = task.open_runs, task.paused
            mine.retries, mine.contenders = list(task.retries), list(task.contenders)
            mine.contending = task.contending
        self._scalars()

    def _scalars(self) -> None:
        state, below = self.state, self.below
        state.position, state.at, state.closed = below.position, below.at, below.closed
        state.marks, state.mark_every = list(below.marks), below.mark_every
        state.quotas = {name: quota.copy() for name, quota in below.quotas.items()}

    def _resettable(self, container: Any) -> Any:
        self._containers.append(container)
        return container

    def _leaf(self, leaf: LeafState) -> LeafState:
        made = LeafState(leaf.definition, leaf.index, leaf.bit, leaf.count, leaf.synced, leaf.incarnation)
        made.held, made.trouble, made.missed = leaf.held, leaf.trouble, leaf.missed
        made.positions = self._resettable(OverlayArray(leaf.positions))
        made.versions = self._resettable(OverlayArray(leaf.versions))
        made._members = cast(BitMap, None)  # there is none: asking an overlay for members is a mistake
        return made

    def _task(self, task: TaskState, leaves: dict[int, LeafState]) -> TaskState:
        live, succeeded, failed = (leaves[id(view)] for view in (task.live, task.succeeded, task.failed))
        made = TaskState(task.definition, task.index, task.condition, task.claim, live, succeeded, failed)
        made.reads = tuple(leaves[id(leaf)] for leaf in task.reads)
        made.queue = self._resettable(OverlayQueue(task.queue))
        made.awaiting = self._resettable(OverlayDict(task.awaiting))
        made.episodes = self._resettable(OverlayDict(task.episodes, copy.copy))
        made.retries, made.contenders = list(task.retries), list(task.contenders)
        made.contending, made.seen = task.contending, task.seen
        made.last_run = self._resettable(OverlayArray(task.last_run))
        made.episode_count = self._resettable(OverlayArray(task.episode_count))
        made.open_runs, made.paused, made.constraint = task.open_runs, task.paused, task.constraint
        return made

    def _derived(self, one: DerivedState, leaves: dict[int, LeafState]) -> DerivedState:
        base = leaves[id(one.base_leaf)] if one.base_leaf is not None else None
        forward = self._resettable(OverlayDict(one.forward))
        reverse = self._resettable(OverlayDict(one.reverse, set))
        gathering = None if one.gathering is None else self._gathering(one.gathering)
        return DerivedState(leaves[id(one.leaf)], one.base, base, one.translator, forward, reverse, gathering)

    def _gathering(self, one: Gathering) -> Gathering:
        made = copy.copy(one)
        made.groups = self._resettable(OverlayDict(one.groups, Group.copy))
        made.numbers = self._resettable(OverlayDict(one.numbers))
        made.by_job = self._resettable(OverlayDict(one.by_job))
        made.group_of = self._resettable(OverlayArray(one.group_of))
        return made
