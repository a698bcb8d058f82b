"""Which jobs a `run` was asked for: the condition of a `Selection`, over leaves and over the names of jobs.

In: a state, and a condition. Out: whether it chooses a job, and the chosen ones of a queue, in its order. The chosen jobs are
found from the leaves' members, at O(jobs / 64) a round; a pattern is matched with each name once. A queue is walked unless
few of the jobs are chosen.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cached_property

from pyroaring import BitMap

from datatask.engine.core.expressions import compile_condition, jobs_where, leaves_of
from datatask.engine.core.state import State
from datatask.engine.core.tasks import Entry, ReadyQueue
from datatask.schema.definition import AnyExpr

FEW, SHORT = 8, 64
"""A queue is walked unless it is longer than this multiple of the chosen jobs; a shorter one in any case."""

_NAMED = re.compile(r"job\((.*)\)", re.DOTALL)


def pattern_of(leaf: str) -> str | None:
    """Return the pattern of names that a selection's leaf stands for; None for a repository or a view."""
    found = _NAMED.fullmatch(leaf)
    return None if found is None else found[1]


def is_name(pattern: str) -> bool:
    """Whether a pattern stands for one job."""
    return not any(wild in pattern for wild in "*?")


class Chosen:
    """The jobs of a state for which a condition holds, as a container of their numbers."""

    def __init__(self, state: State, expr: AnyExpr, members: bool = True) -> None:
        self._state, self._expr, self._members = state, expr, members
        self._names: list[tuple[int, re.Pattern[str]]] = []
        bits: dict[str, int] = {}
        for number, leaf in enumerate(leaves_of(expr)):
            known = state.leaves.get(leaf)
            bits[leaf] = known.bit if known is not None else 1 << (state.bits + number)
            pattern = pattern_of(leaf)
            if known is None and pattern is not None:
                self._names.append((bits[leaf], compiled(pattern)))
        self._test = compile_condition(expr, bits).test

    def __contains__(self, job: object) -> bool:
        assert isinstance(job, int), "jobs are numbers inside"
        mask, name = self._state.masks[job], self._state.jobs[job]
        for bit, pattern in self._names:
            if pattern.fullmatch(name):
                mask |= bit
        return self._test(mask)

    def of(self, queue: ReadyQueue) -> Iterator[Entry]:
        """Yield the chosen ones of the waiting jobs in their order."""
        if not self._members or len(queue) < SHORT:
            return (entry for entry in queue.entries() if entry[2] in self)
        found = self._found
        if len(found) * FEW > len(queue):
            return (entry for entry in queue.entries() if entry[2] in found)
        few = ((-queue.priority(job), queue.position(job), job) for job in found if job in queue)
        return iter(sorted(few))

    @cached_property
    def _found(self) -> BitMap:
        state = self._state
        everyone = BitMap(range(len(state.jobs)))

        def members(leaf: str) -> BitMap:
            known = state.leaves.get(leaf)
            return known.members(state.masks) if known is not None else named(state, leaf)

        return jobs_where(self._expr, members, everyone)


def named(state: State, leaf: str) -> BitMap:
    """Return the jobs that a selection's leaf names (shared: do not change it)."""
    pattern = pattern_of(leaf)
    if pattern is None:
        return BitMap()
    if is_name(pattern):
        job = state.job_index.get(pattern)
        return BitMap() if job is None else BitMap([job])
    looked_at, found = state.named.get(pattern, (0, BitMap()))
    if looked_at < len(state.jobs):
        fits = compiled(pattern).fullmatch
        found |= BitMap(job for job in range(looked_at, len(state.jobs)) if fits(state.jobs[job]))
        state.named[pattern] = (len(state.jobs), found)
    return found


def compiled(pattern: str) -> re.Pattern[str]:
    """Return a pattern of names as a regular expression."""
    parts = {"*": ".*", "?": "."}
    return re.compile("".join(parts.get(one, re.escape(one)) for one in pattern))
