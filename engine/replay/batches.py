"""What a whole batch does to a job, worked out once for all jobs in the same job state: the reactor, remembered.

In: a state, and batches that are about one job (it arrives, it is launched, its run ends in some way). Out: `BatchState`s,
which are a mask and, task by task, whether the job waits, runs or is between two attempts; and for each the `BatchTransition`s
from it: the state that follows, how many events the batch has, and the few writes that depend on the job and the
position. Nothing of the reactor or the fold is repeated here: they themselves do the batch on a scratch state that
holds this one job, and what they did is read off. What does more than a transition can say (evaluations, other jobs) is
refused by `None`. Made for simulation, where no event needs to exist; `transitions` does the same for replay, event by event.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import msgspec

from datatask.engine.core.cells import get_at
from datatask.engine.core.effects import WriteStore
from datatask.engine.core.fold import apply_all
from datatask.engine.core.reactor import Reactor
from datatask.engine.core.state import State
from datatask.engine.core.tasks import Episode, OpenRun, TaskState
from datatask.engine.replay.transitions import BETWEEN, QUEUED, RESTING, RUNNING, scratch
from datatask.schema import events as e
from datatask.schema.messages import Ended, Write

PUSH, DISCARD, COUNT, DROP = range(4)
"""What is done besides: the job enters a task's queue, leaves one, an episode of it is counted, or its attempts are over."""

JOB = "j"
STORED = "simulated"
"""The version that a foreign store gives to what it is told to keep."""

READY, RUN, AFTER = 1, 10, 1 << 40


class BatchState(dict[int, Any]):
    """All that decides what a batch does to a job; holds the transitions known so far, by their key."""

    __slots__ = ("marks", "mask")

    def __init__(self, mask: int, marks: str) -> None:
        super().__init__()
        self.mask, self.marks = mask, marks


class BatchTransition(NamedTuple):
    """What a batch does, with positions counted from its first event, and how often it asked for chance.

    `cells` are (array, offset): the cell of the job takes that position, negative where the value was deleted.
    `versions` are (array, hash). `ops` are (what, index of the task, offset or number).
    """

    following: BatchState
    events: int
    cells: tuple[tuple[array[int], int], ...]
    deleted: tuple[tuple[array[int], int], ...]
    versions: tuple[tuple[array[int], int], ...]
    ops: tuple[tuple[int, int, int], ...]
    chances: int
    again: bool


class BatchTransitions:
    """The states and transitions under one definition; made anew when that changes."""

    def __init__(self, state: State) -> None:
        self._state = state
        self._twin = scratch(state)
        self._tasks = list(zip(self._twin.tasks.values(), state.tasks.values(), strict=True))
        self._known: dict[tuple[int, str], BatchState] = {}
        self._chances = 0
        self._reactor = Reactor(self._twin, self._chance)
        self.fresh = self.at(0, RESTING * len(self._tasks))

    def _chance(self) -> float:
        self._chances += 1
        return 0.5

    def at(self, mask: int, marks: str) -> BatchState:
        """Return the state of these memberships and marks."""
        found = self._known.get((mask, marks))
        if found is None:
            mask = self._state.shared(mask)
            found = self._known[mask, marks] = BatchState(mask, marks)
        return found

    def arrive(self, job_state: BatchState, writes: Sequence[Write]) -> BatchTransition | None:
        """Return what it does to put the job "j" somewhere."""
        return self._transition(job_state, lambda: self._put(writes))

    def launch(self, job_state: BatchState, task: str, attempt: int) -> BatchTransition | None:
        """Return what it does to launch the job."""
        event = e.LaunchDecided(at=0, task=task, job=JOB, episode=1, attempt=attempt)
        transition = self._transition(job_state, lambda: self._fold(event))
        if transition is None:
            return None
        own = next(index for index, (twin, _) in enumerate(self._tasks) if twin.name == task)
        return transition._replace(ops=tuple(op for op in transition.ops if op[:2] != (DISCARD, own)))

    def end(
        self,
        job_state: BatchState,
        task: str,
        ending: e.Ending,
        writes: Sequence[Write],
        tried: tuple[int, int, int],
    ) -> BatchTransition | None:
        """Return what it does when the open run of a task ends, which is attempt `tried[0]`.

        `tried[1]` were lost before, of which `tried[2]` count no more.
        """
        index = next(index for index, (twin, _) in enumerate(self._tasks) if twin.name == task)
        fact = Ended(RUN + index, ending, tuple(writes))
        return self._transition(job_state, lambda: self._reactor.runs.fact(fact, 0), task, tried)

    # --- the scratch state ------------------------------------------------------------------------

    def _put(self, writes: Sequence[Write]) -> None:
        inside = [write for write in writes if self._is_inside(write.repository)]
        if inside:
            self._reactor.tickets.change(inside, 0, origin="injected")
        for write in writes:
            if not self._is_inside(write.repository):
                self._reactor.stores.observed(write.repository, write.job, write, 0)

    def _is_inside(self, repository: str) -> bool:
        return self._twin.leaves[repository].definition.medium != "foreign"

    def _fold(self, event: e.Event) -> None:
        apply_all(self._twin, AFTER, (event,))

    def _transition(
        self,
        job_state: BatchState,
        do: Callable[[], None],
        task: str = "",
        tried: tuple[int, int, int] = (1, 0, 0),
    ) -> BatchTransition | None:
        twin, reactor = self._twin, self._reactor
        self._set(job_state, task, tried)
        reactor.take()
        self._chances = 0
        do()
        while steps := reactor.take():
            for step in steps:
                for effect in step.effects:
                    if isinstance(effect, WriteStore):
                        version = None if effect.write.op == "delete" else STORED
                        reactor.written(effect.write, effect.run, effect.ticket, 0, version=version)
        if twin.pending or twin.intents or len(twin.jobs) != 1:
            return None
        return self._read(job_state)

    def _set(self, job_state: BatchState, acting: str, tried: tuple[int, int, int]) -> None:
        twin = self._twin
        twin.position = AFTER - 1
        twin.jobs, twin.job_index, twin.masks = [JOB], {JOB: 0}, [job_state.mask]
        twin.open_runs.clear()
        twin.pending.clear()
        twin.intents.clear()
        for leaf in twin.leaves.values():
            leaf.changed.clear()
            leaf.positions, leaf.versions = array("q"), array("Q")
        for quota in twin.quotas.values():
            quota.used.clear()
            quota.recent.clear()
        for index, ((task, _), mark) in enumerate(zip(self._tasks, job_state.marks, strict=True)):
            task.queue, task.awaiting, task.episodes, task.retries = task.new_queue(), {}, {}, []
            task.contenders, task.contending = [], 0
            task.last_run, task.episode_count, task.open_runs = array("q"), array("I"), 0
            attempt, infrastructure, forgiven = tried if task.name == acting else (1, 0, 0)
            if mark == QUEUED:
                task.queue.push(0, 0.0, READY)
            elif mark == BETWEEN:
                task.episodes[0] = Episode(READY, 0.0, 1, not_before=0)
            elif mark == RUNNING:
                run, epoch = RUN + index, 0 if twin.engine is None else twin.engine.epoch
                task.episodes[0] = Episode(READY, 0.0, attempt, infrastructure, run, forgiven=forgiven)
                task.open_runs = 1
                twin.open_runs[run] = OpenRun(
                    run, task.name, 0, 1, attempt, 0, "derived", {}, None, {}, epoch=epoch
                )

    def _read(self, before: BatchState) -> BatchTransition:
        """Return what was done."""
        cells, deleted, versions = [], [], []
        for name, leaf in self._twin.leaves.items():
            real = self._state.leaves[name]
            position = get_at(leaf.positions, 0)
            if position > 0:
                cells.append((real.positions, position - AFTER))
            elif position:
                deleted.append((real.positions, -position - AFTER))
            if leaf.versions:
                versions.append((real.versions, leaf.versions[0]))
        ops: list[tuple[int, int, int]] = []
        marks, again = "", False
        for index, ((task, real_task), was) in enumerate(zip(self._tasks, before.marks, strict=True)):
            now = _changed(task, index, was, ops)
            again = again or (now == BETWEEN and was == RUNNING)
            marks += now
            if task.last_run:
                cells.append((real_task.last_run, task.last_run[0] - AFTER))
        return BatchTransition(
            self.at(self._twin.masks[0], marks),
            self._twin.position - AFTER + 1,
            tuple(cells),
            tuple(deleted),
            tuple(versions),
            tuple(ops),
            self._chances,
            again,
        )


def _changed(task: TaskState, index: int, was: str, ops: list[tuple[int, int, int]]) -> str:
    """Add to `ops` what became of the job in one task, and return its new mark."""
    episode, queued = task.episodes.get(0), 0 in task.queue
    now = QUEUED if queued else RESTING if episode is None else RUNNING if episode.run else BETWEEN
    since = task.queue.position(0) if queued else 0
    if was == QUEUED and since != READY:
        ops.append((DISCARD, index, 0))
    if queued and since != READY:
        ops.append((PUSH, index, since - AFTER))
    if was == BETWEEN and now != BETWEEN and now != RUNNING:
        ops.append((DROP, index, 0))
    counted = get_at(task.episode_count, 0)
    if counted:
        ops.append((COUNT, index, counted))
    return now


def is_simple(state: State) -> bool:
    """Whether transitions can say all that happens under this definition: nothing derived, nothing evaluated."""
    derived = any(leaf.derived is not None or leaf.followed for leaf in state.leaves.values())
    return not derived and not any(task.definition.priority for task in state.tasks.values())


def stored(write: Write) -> Write:
    """Return the write as one that its store has already."""
    return msgspec.structs.replace(write, version=STORED)
