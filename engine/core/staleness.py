"""Which results are out of date: a view over the state, worked out when it is asked for.

A result is the last run of a job in a task, where it succeeded. In: the state. Out: `look` gives the results whose task has another
fingerprint now, those of which none is known, and `Suspect`s: values that were put or removed after the run began, of which the
log has to tell whether their contents differ. `spread` adds what was made of stale values. A result that a person accepted is held
against what was then. At rest this costs nothing: the positions that the state keeps for memberships and runs tell it, by columns.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Literal, NamedTuple

import numpy as np
from pyroaring import BitMap

from datatask.engine.core.cells import get_at
from datatask.engine.core.expressions import leaves_of
from datatask.engine.core.leaves import DerivedState, LeafState
from datatask.engine.core.state import State
from datatask.engine.core.tasks import TaskState
from datatask.schema import definition as d

Column = np.ndarray[tuple[int], np.dtype[np.int64]]
STORED = ("native", "mirror", "foreign")


class Suspect(NamedTuple):
    """A value that was put (`position` > 0) or removed (< 0) after `run` began, which read or wrote it as `link`."""

    task: str
    job: int
    run: int
    what: Literal["input", "output"]
    link: str
    leaf: str
    key: int
    position: int


class Look(NamedTuple):
    """By task, the results of another fingerprint and those of none that is known; and all suspects."""

    code: dict[str, BitMap]
    unknown: dict[str, BitMap]
    suspects: list[Suspect]


def look(state: State, tasks: Iterable[str] | None = None) -> Look:
    """Return what can be told by positions, of these tasks or of all that do not keep their results."""
    found = Look({}, {}, [])
    for task in _tasks(state):
        if tasks is None or task.name in tasks:
            jobs = _column(task.succeeded.members(state.masks).to_array())
            runs = _at(task.last_run, jobs)
            accepted = _accepted(state, task, jobs)
            code, unknown = _by_code(state, task, np.maximum(runs, accepted))
            found.code[task.name] = _bitmap(jobs[code])
            found.unknown[task.name] = _bitmap(jobs[unknown])
            found.suspects.extend(_suspects(state, task, jobs, runs, accepted))
    return found


def spread(
    state: State, own: Mapping[str, BitMap], changed_at: Callable[[str, int], int] = lambda task, job: 0
) -> dict[str, BitMap]:
    """Return the results that are stale by themselves or made of such, by task.

    `changed_at` gives the position of the last change that makes a task's result for a job stale by itself: a result that was
    accepted later is made of nothing stale.
    """
    newest = _Newest(state, own, changed_at)
    stale = {task.name: BitMap(own.get(task.name, BitMap())) for task in _tasks(state)}
    fills = filled_by(state)
    while True:
        grown = False
        for task in _tasks(state):
            results = task.succeeded.members(state.masks)
            for maker, link, leaf in sources(state, task, fills):
                reached = _reached(state, link, leaf, stale[maker], results)
                for job in BitMap(state.accepted.get(task.name, ())) & reached:
                    if is_accepted(state, task, job) and not newest.change(task, job):
                        reached.discard(job)
                if not reached <= stale[task.name]:
                    stale[task.name] |= reached
                    grown = True
        if not grown:
            return stale


class _Newest:
    """The last change that makes results stale, by themselves or through what they were made of."""

    def __init__(
        self, state: State, own: Mapping[str, BitMap], changed_at: Callable[[str, int], int]
    ) -> None:
        self._state, self._own, self._changed_at = state, own, changed_at
        self._fills = filled_by(state)

    def change(self, task: TaskState, job: int, above: frozenset[tuple[str, int]] = frozenset()) -> int:
        """Return its position; 0 where there is none since the result was accepted."""
        if (task.name, job) in above:
            return 0
        above |= {(task.name, job)}
        newest = self._changed_at(task.name, job) if job in self._own.get(task.name, ()) else 0
        for maker, _, leaf in sources(self._state, task, self._fills):
            key = key_in(leaf, job)
            if key >= 0:
                newest = max(newest, self.change(self._state.tasks[maker], key, above))
        return newest if newest > self._state.accepted.get(task.name, {}).get(job, 0) else 0


def is_accepted(state: State, task: TaskState, job: int) -> bool:
    """Whether a person has accepted the result of a job's last run."""
    return state.accepted.get(task.name, {}).get(job, 0) > get_at(task.last_run, job)


def sources(
    state: State, task: TaskState, fills: Mapping[str, list[str]]
) -> Iterator[tuple[str, str, LeafState]]:
    """Yield the tasks that fill what a task reads, each with the link that reads it and the leaf of that link."""
    for link in task.definition.links:
        for name in leaves_of(link.expr) if link.is_input else ():
            leaf = state.leaves[name]
            for maker in fills.get(stored(leaf).id, ()):
                if maker != task.name:
                    yield maker, link.name, leaf


def filled_by(state: State) -> dict[str, list[str]]:
    """Return, by stored leaf, the tasks that fill it."""
    found: dict[str, list[str]] = {}
    for task in _tasks(state):
        for link in task.definition.links:
            if link.is_output and isinstance(link.expr, d.In):
                found.setdefault(link.expr.leaf, []).append(task.name)
    return found


def stored(leaf: LeafState) -> LeafState:
    """Return the leaf that holds the values which this one gives, through filters and translations."""
    while leaf.derived is not None and leaf.derived.base_leaf is not None:
        leaf = leaf.derived.base_leaf
    return leaf


def key_in(leaf: LeafState, job: int) -> int:
    """Return the key that stands for a job in the leaf that holds the values; -1 where none does."""
    for derived in reversed(_translations(leaf)):
        job = derived.forward.get(job, -1)
    return job


def read_by(state: State, task: TaskState) -> list[str]:
    """Return the leaves that hold what a task reads and writes, by its inputs and outputs."""
    links = task.definition.links
    inputs = [
        stored(state.leaves[name]).id for link in links if link.is_input for name in leaves_of(link.expr)
    ]
    outputs = [link.expr.leaf for link in links if link.is_output and isinstance(link.expr, d.In)]
    return list(dict.fromkeys((*inputs, *outputs)))


def suspected(state: State, task: TaskState, leaf_id: str, key: int) -> tuple[int, ...]:
    """Return the jobs whose results in a task may rest on a key's value in a leaf."""
    found = {key}
    for link in task.definition.links:
        for name in leaves_of(link.expr) if link.is_input else ():
            leaf = state.leaves[name]
            if stored(leaf).id == leaf_id:
                reached = {key}
                for derived in _translations(leaf):
                    reached = {job for each in reached for job in derived.reverse.get(each, ())}
                found |= reached
    return tuple(found)


def _tasks(state: State) -> Iterator[TaskState]:
    for definition in state.definition.tasks:
        if definition.on_change != "keep":
            yield state.tasks[definition.name]


def _accepted(state: State, task: TaskState, jobs: Column) -> Column:
    """Return, for each job, where its result was accepted last; 0 where it was not."""
    known = state.accepted.get(task.name)
    return np.array([known.get(job, 0) for job in jobs.tolist()], np.int64) if known else np.zeros_like(jobs)


def _by_code(state: State, task: TaskState, runs: Column) -> tuple[np.ndarray, np.ndarray]:
    """Return, for each run, whether its fingerprint is another one than today's, and whether that is not known."""
    history = state.fingerprints.get(task.name, [])
    now = history[-1][1] if history else ""
    digests = ["", *(digest for _, digest in history)]
    since = np.searchsorted(np.array([position for position, _ in history], np.int64), runs, side="right")
    known = np.array([bool(digest and now) for digest in digests])[since] & (runs > 0)
    other = np.array([digest != now for digest in digests])[since]
    return known & other, ~known


def _suspects(
    state: State, task: TaskState, jobs: Column, runs: Column, accepted: Column
) -> Iterator[Suspect]:
    since = ended = np.maximum(runs, accepted)
    done = task.definition.done
    if done is not None:
        ended = np.maximum(since, _at(state.leaves[done].positions, jobs))
    for link in task.definition.links:
        if link.is_input:
            for name in leaves_of(link.expr):
                leaf, keys = _keys(state.leaves[name], jobs)
                positions = _at(leaf.positions, keys)
                yield from _picked(
                    task, "input", link.name, leaf, jobs, runs, keys, positions, positions > since
                )
        elif link.is_output and isinstance(link.expr, d.In):
            leaf = state.leaves[link.expr.leaf]
            if leaf.definition.medium in STORED:
                positions = _at(leaf.positions, jobs)
                later = (positions > ended) | (-positions > ended)
                yield from _picked(task, "output", link.name, leaf, jobs, runs, jobs, positions, later)


def _picked(
    task: TaskState,
    what: Literal["input", "output"],
    link: str,
    leaf: LeafState,
    jobs: Column,
    runs: Column,
    keys: Column,
    positions: Column,
    picked: np.ndarray,
) -> Iterator[Suspect]:
    for index in np.flatnonzero(picked & (keys >= 0) & (runs > 0)).tolist():
        yield Suspect(
            task.name,
            int(jobs[index]),
            int(runs[index]),
            what,
            link,
            leaf.id,
            int(keys[index]),
            int(positions[index]),
        )


def _keys(leaf: LeafState, jobs: Column) -> tuple[LeafState, Column]:
    """Return the leaf with the values, and the key that stands for each job there; -1 where none does."""
    keys = jobs
    while leaf.derived is not None and leaf.derived.base_leaf is not None:
        if leaf.derived.translator is not None:
            forward = leaf.derived.forward
            keys = np.array([forward.get(key, -1) for key in keys.tolist()], np.int64)
        leaf = leaf.derived.base_leaf
    return leaf, keys


def _reached(state: State, link: str, leaf: LeafState, stale: BitMap, results: BitMap) -> BitMap:
    """Return the results that were made of stale values in a leaf."""
    reached = stale
    for derived in _translations(leaf):
        reached = BitMap(job for key in reached for job in derived.reverse.get(key, ()))
    return reached & results


def _translations(leaf: LeafState) -> list[DerivedState]:
    found: list[DerivedState] = []
    while leaf.derived is not None and leaf.derived.base_leaf is not None:
        if leaf.derived.translator is not None:
            found.append(leaf.derived)
        leaf = leaf.derived.base_leaf
    return found[::-1]


def _column(cells: Iterable[int]) -> Column:
    return np.array(cells, np.int64)


def _at(cells: object, jobs: Column) -> Column:
    """Return the cells of these jobs; 0 where the array has not grown to, and for the job -1."""
    held = np.frombuffer(cells, np.int64) if len(cells) else np.zeros(0, np.int64)  # type: ignore[arg-type,call-overload]
    found = np.zeros(len(jobs), np.int64)
    there = (jobs >= 0) & (jobs < len(held))
    found[there] = held[jobs[there]]
    return found


def _bitmap(jobs: Column) -> BitMap:
    return BitMap(jobs.astype(np.uint32))
