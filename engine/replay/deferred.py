"""What folding in bulk puts off: runs as objects, members as bitmaps, the constraints of the last round.

In: what `bulk` meets on the way. Out: the state as the fold has it, when `settle` is called or as much of it as one
event needs (`bring`). Nearly all runs end within the fold, and only the last round counts.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from typing import Any

import msgspec
from pyroaring import BitMap

from datatask.engine.core.cells import get_at
from datatask.engine.core.state import State
from datatask.engine.core.tasks import CONTENDING, Episode, OpenRun, TaskState
from datatask.engine.replay.transitions import RUNNING, JobState

GROUPS_MAX = 1024
"""With more different masks than this, members are worked out leaf by leaf."""

CHUNK = 1 << 16


class DeferredRun(msgspec.Struct, gc=False):
    """A run as it was read; `ready_at` is the position since which its job had waited, 0 where it had not."""

    task: TaskState
    job: int
    decided: Any
    decided_at: int
    ready_at: int
    started: Any = None
    started_at: int = 0


class Deferred:
    """Of one state: the open runs that are no objects yet, and the jobs whose memberships have changed."""

    def __init__(self, state: State) -> None:
        self.state = state
        self.runs: dict[int, DeferredRun] = {}
        self.round: Any = None
        self.touched = BitMap()

    def close(self, number: int, task: TaskState, job: int) -> bool:
        """Close a run that is an object; False where it is not open, or more has to happen than that."""
        run, episode = self.state.open_runs.get(number), task.episodes.get(job)
        if run is None or run.task != task.name or run.job != job or episode is None or episode.run != number:
            return False
        if run.stopping is not None or run.settling is not None or run.intents:
            return False
        if episode.conflicts >= CONTENDING:
            return False
        del self.state.open_runs[number]
        del task.episodes[job]
        task.open_runs -= 1
        if run.quota is not None:
            self.state.quotas[run.quota].free(run.resources)
        return True

    def bring(self, job: int, job_state: JobState) -> None:
        """Make objects of the job's open runs."""
        if RUNNING not in job_state.marks:
            return
        for task, mark in zip(self.state.tasks.values(), job_state.marks, strict=True):
            if mark == RUNNING:
                self.open(get_at(task.last_run, job))

    def open(self, number: int | None) -> int | None:
        """Make objects of a run if it is deferred, and return the job of an open run."""
        state = self.state
        if number is None:
            return None
        deferred = self.runs.pop(number, None)
        if deferred is None:
            run = state.open_runs.get(number)
            return None if run is None else run.job
        task, job, own, ready_at = deferred.task, deferred.job, deferred.decided, deferred.ready_at
        episode = Episode(ready_at, 0.0) if ready_at else Episode(number, own.priority)
        episode.run, episode.attempt = number, own.attempt
        task.episodes[job] = episode
        task.open_runs += 1
        run = state.open_runs[number] = OpenRun(
            number,
            task.name,
            job,
            own.episode,
            own.attempt,
            deferred.decided_at,
            own.origin,
            own.resources,
            task.definition.quota,
            own.inputs,
            own.meta,
            state.engine.epoch if state.engine is not None else 0,
            own.identities,
        )
        started = deferred.started
        if started is not None:
            run.handle, run.where, run.started_at = started.handle, started.where, deferred.started_at
        return job

    def open_all(self) -> None:
        """Make objects of all runs that are deferred."""
        for number in list(self.runs):
            self.open(number)

    def settle(self) -> None:
        """Bring the state up to date in all that was put off."""
        state = self.state
        self.open_all()
        runs = state.open_runs
        if any(one > other for one, other in zip(runs, islice(runs, 1, None), strict=False)):
            ordered = sorted(runs.items())
            runs.clear()
            runs.update(ordered)
        if self.round is not None:
            for task in state.tasks.values():
                task.constraint = self.round.constraints.get(task.name, "")
            self.round = None
        state.hold_identities()
        self._members()

    def _members(self) -> None:
        state = self.state
        touched, self.touched = self.touched, BitMap()
        if not touched:
            return
        masks = state.masks
        groups: dict[int, BitMap] = {}
        jobs = iter(touched)
        while len(groups) <= GROUPS_MAX and (chunk := list(islice(jobs, CHUNK))):
            for mask, those in _by_mask(chunk, masks).items():
                groups[mask] = groups.get(mask, BitMap()) | BitMap(those)
        for leaf in state.leaves.values():
            bit = leaf.bit
            if len(groups) <= GROUPS_MAX:
                inside = BitMap.union(BitMap(), *[those for mask, those in groups.items() if mask & bit])
            else:
                inside = BitMap([job for job in touched if masks[job] & bit])
            leaf.load((leaf.members(masks) - touched) | inside)


def _by_mask(jobs: Iterable[int], masks: list[int]) -> dict[int, list[int]]:
    groups: dict[int, list[int]] = {}
    for job in jobs:
        mask = masks[job]
        if mask in groups:
            groups[mask].append(job)
        else:
            groups[mask] = [job]
    return groups
