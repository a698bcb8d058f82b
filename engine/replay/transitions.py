"""What an event does to a job, worked out once for all jobs in the same state: for `bulk`, which folds columns.

In: pages of columns (adapters/log/columns.py reads them), and events about one job. Out: `JobState`s, a mask and, task by
task, whether the job waits, runs or is between two attempts, each with its `Transition`s: the state that follows, and the
writes that depend on the job and the position. The fold itself does the event on a scratch state that holds one job, and
what it did is read off. Whatever does more than a transition can say (evaluations, priorities, a second attempt) is left
to the fold. How many are worked out grows with the events that they serve.
"""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, get_args

from datatask.engine.core.cells import get_at
from datatask.engine.core.define import NEVER, wire
from datatask.engine.core.expressions import compile_condition
from datatask.engine.core.fold import apply
from datatask.engine.core.leaves import DerivedState, LeafState
from datatask.engine.core.quotas import QuotaState
from datatask.engine.core.state import State
from datatask.engine.core.tasks import Episode, FifoQueue, OpenRun, TaskState
from datatask.schema import events as e
from datatask.schema.errors import LogDamagedError
from datatask.schema.events import Event

COLUMNAR = (
    "ValuePut",
    "ValueDeleted",
    "LaunchDecided",
    "RunStarted",
    "RunEnded",
    "DecisionRound",
    "RunObserved",
)
"""The kinds whose own fields come as columns; all others are made into events one by one."""


class Meaning(NamedTuple):
    """What the key of an event stands for: its kind, of the present version, and what it is about."""

    kind: str
    task: str | None
    repository: str | None


@dataclass(slots=True)
class Page:
    """Consecutive events from `first` on; 0 stands for no job and no run, jobs are numbers of names.

    `own` has, for each columnar kind, the own fields of its events in order, without
    their values.
    """

    first: int
    keys: list[int]
    jobs: list[int]
    runs: list[int]
    times: list[int]
    own: dict[str, list[Any]]


class Source(Protocol):
    """Where pages come from: what their numbers mean, and whatever is not in them."""

    def meaning(self, key: int) -> Meaning | None:
        """Return what a key stands for, None where the own fields are no column."""

    def texts(self, numbers: Sequence[int]) -> Mapping[int, str]:
        """Return the names with these numbers, which are in order; raises where one is missing."""

    def event(self, position: int) -> Event:
        """Return an event of the page, made as ever."""


RESTING, QUEUED, RUNNING, BETWEEN = "-qrb"
"""Where a job is in a task; one letter a task, in order."""

POP, PUSH, COUNT = range(3)
"""What is done besides: the job leaves a queue, enters one, or a new episode of it is counted."""

READY, RUN, AFTER = 1, 10, 1 << 40
"""Positions in the scratch state: became ready, was launched (plus the task's index), and the event tried."""

JOB_STATES_MAX = 20_000
"""More are not told apart: what is in another one is odd."""

Op = tuple[int, Any]


class JobState(dict[int, Any]):
    """All that decides what an event does to a job; holds the transitions known so far, by the event's key."""

    __slots__ = ("marks", "mask", "odd")

    def __init__(self, mask: int, marks: str, *, odd: bool = False) -> None:
        super().__init__()
        self.mask, self.marks, self.odd = mask, marks, odd

    def __missing__(self, key: int) -> None:
        """No transition is known for this key; `None` is not kept."""


class Transition(NamedTuple):
    """What an event does: `cells` take its position, `versions` the hash of its version."""

    following: JobState
    cells: array[int] | None
    versions: array[int] | None
    ops: tuple[Op, ...]


class JobStates:
    """The job states under one definition; made anew when that changes."""

    def __init__(self, state: State) -> None:
        self._state = state
        self._twin = scratch(state)
        self._tasks = list(zip(self._twin.tasks.values(), state.tasks.values(), strict=True))
        self._known: dict[tuple[int, str], JobState] = {}
        self.odd = JobState(0, RESTING * len(self._tasks), odd=True)
        self.fresh = self.at(0, RESTING * len(self._tasks))
        self.translated = [
            leaf
            for leaf in state.leaves.values()
            if leaf.derived is not None and leaf.derived.translator is not None
        ]
        """The leaves in which an event about one job may change others."""

    def __len__(self) -> int:
        return len(self._known)

    def at(self, mask: int, marks: str) -> JobState:
        """Return the job state of these memberships and marks."""
        found = self._known.get((mask, marks))
        if found is None and len(self._known) >= JOB_STATES_MAX:
            return self.odd
        if found is None:
            mask = self._state.shared(mask)
            found = self._known[mask, marks] = JobState(mask, marks)
        return found

    def of(self, job: int) -> JobState:
        """Return the job state that a job is in, `odd` where transitions cannot follow it."""
        marks = []
        for _, task in self._tasks:
            episode, queued = task.episodes.get(job), job in task.queue
            if job in task.awaiting or (queued and (episode is not None or task.definition.priority)):
                return self.odd
            marks.append(QUEUED if queued else _mark(episode))
        return self.at(self._state.masks[job], "".join(marks))

    def transition(self, before: JobState, event: e.Event) -> Transition | None:
        """Return what the event (about the job "j") does, or None where a transition cannot say it.

        The end of a run is that of the task's open run, whatever `event.run` is; the episode and the run that a
        launch makes are for the caller to keep.
        """
        twin = self._twin
        self._set(before)
        if isinstance(event, e.RunEnded):
            index = next((n for n, (task, _) in enumerate(self._tasks) if task.name == event.task), 0)
            event = e.RunEnded(
                at=0,
                task=event.task,
                job=event.job,
                run=RUN + index,
                outcome=event.outcome,
                final=event.final,
            )
        try:
            apply(twin, AFTER, event)
        except LogDamagedError:
            return None
        if twin.pending or twin.intents or len(twin.jobs) != 1:
            return None
        return self._read(before, event)

    # --- the scratch state ------------------------------------------------------------------------

    def _set(self, job_state: JobState) -> None:
        twin = self._twin
        twin.position = AFTER - 1
        twin.jobs, twin.job_index, twin.masks = ["j"], {"j": 0}, [job_state.mask]
        twin.open_runs.clear()
        twin.pending.clear()
        twin.intents.clear()
        for leaf in twin.leaves.values():
            leaf.changed.clear()
            leaf.positions, leaf.versions = array("q"), array("Q")
        for index, ((task, _), mark) in enumerate(zip(self._tasks, job_state.marks, strict=True)):
            task.queue, task.awaiting, task.episodes, task.retries = task.new_queue(), {}, {}, []
            task.contenders, task.contending = [], 0
            task.last_run, task.episode_count, task.open_runs = array("q"), array("I"), 0
            if mark == QUEUED:
                task.queue.push(0, 0.0, READY)
            elif mark == BETWEEN:
                task.episodes[0] = Episode(READY, 0.0, 1)
            elif mark == RUNNING:
                run = RUN + index
                task.episodes[0], task.open_runs = Episode(READY, 0.0, 1, run=run), 1
                twin.open_runs[run] = OpenRun(run, task.name, 0, 1, 1, 0, "derived", {}, None, {})

    def _read(self, before: JobState, event: e.Event) -> Transition | None:
        """Return what the fold did, or None where it did more than a transition can say."""
        written: list[array[int]] = []
        versions: array[int] | None = None
        for name, leaf in self._twin.leaves.items():
            if leaf.changed and leaf.followed:
                return None
            if leaf.positions:
                written.append(self._state.leaves[name].positions)
            if leaf.versions:
                versions = self._state.leaves[name].versions
        ops: list[Op] = []
        marks = ""
        for (task, real), was in zip(self._tasks, before.marks, strict=True):
            launched = isinstance(event, e.LaunchDecided) and event.task == task.name
            now = _changed(task, real, was, ops, launched=launched)
            if now is None:
                return None
            marks += now
            if task.last_run:
                written.append(real.last_run)
        if len(written) > 1:
            return None
        following = self.at(self._twin.masks[0], marks)
        if following.odd:
            return None
        return Transition(following, written[0] if written else None, versions, tuple(ops))


def _mark(episode: Episode | None) -> str:
    return RESTING if episode is None else RUNNING if episode.run else BETWEEN


def _changed(task: TaskState, real: TaskState, was: str, ops: list[Op], *, launched: bool) -> str | None:
    """Add to `ops` what became of the job in one task, and return its new mark, None where that is not simple."""
    episode, queued = task.episodes.get(0), 0 in task.queue
    if (
        task.awaiting
        or task.retries
        or task.contenders
        or (queued and (episode is not None or task.definition.priority))
    ):
        return None
    now = QUEUED if queued else _mark(episode)
    since = task.queue.position(0) if queued else 0
    if was == QUEUED and since != READY:
        assert isinstance(real.queue, FifoQueue)
        ops.append((POP, real.queue.waiting))
    if queued and since == AFTER:
        assert isinstance(real.queue, FifoQueue)
        ops.append((PUSH, real.queue.waiting))
    counted = get_at(task.episode_count, 0)
    if counted:
        ops.append((COUNT, real.episode_count))
    expected = READY if was == QUEUED else AFTER
    if launched:
        simple = episode is not None and episode.run == AFTER and episode.position == expected
        return now if simple and was in (RESTING, QUEUED) and counted <= 1 else None
    if now == BETWEEN or was == BETWEEN:
        return now if now == was and counted == 0 else None
    if now == RUNNING and was != RUNNING:
        return None
    return now if counted <= 1 else None


def scratch(state: State) -> State:
    """Return a state without jobs under the same definition, with the same bits."""
    twin = State()
    twin.definition, twin.bits, twin.engine = state.definition, state.bits, state.engine
    for name, leaf in state.leaves.items():
        copy = twin.leaves[name] = LeafState(leaf.definition, leaf.index, leaf.bit)
        if leaf.derived is not None:
            copy.derived = DerivedState(copy, compile_condition(NEVER, {}), None)
    for name, task in state.tasks.items():
        live, succeeded, failed = (twin.leaves[view.id] for view in (task.live, task.succeeded, task.failed))
        condition = compile_condition(NEVER, {})
        twin.tasks[name] = TaskState(
            task.definition, task.index, condition, task.claim, live, succeeded, failed
        )
    twin.quotas = {name: QuotaState.of(quota.definition) for name, quota in state.quotas.items()}
    wire(twin)
    for leaf in twin.leaves.values():
        if leaf.derived is not None:
            leaf.derived.gathering = None  # what changes groups is no transition of one job
    return twin


TRANSITIONS_FREE, EVENTS_A_TRANSITION = 4000, 100
"""Transitions are worked out while there are few, and then at most one per this number of events: each costs that of 20 events."""

PUT, DELETED, LAUNCH, STARTED, ENDED, ROUND, SILENT, PLAIN = range(8)
"""What is to be done for an event; the kinds of `COLUMNAR` in order, and whatever is left to the fold."""

CODES = dict(zip(COLUMNAR, range(PLAIN), strict=True))

OUTCOMES: tuple[e.Outcome, ...] = get_args(e.Outcome)

AnyTransition = tuple[Any, ...]


class Transitions:
    """The transitions under one definition."""

    def __init__(self, state: State) -> None:
        self.job_states = JobStates(state)
        self._state = state
        self._index = {name: index for index, name in enumerate(state.tasks)}
        self._tried = 0

    def work_out(
        self, job_state: JobState, key: int, code: int, meaning: Meaning, seen: int
    ) -> AnyTransition | None:
        """Return the transition for such events in this job state, after `seen` events; None where there is none."""
        if job_state.odd or self._tried > TRANSITIONS_FREE + seen // EVENTS_A_TRANSITION:
            return None
        self._tried += 1
        task = self._state.tasks.get(meaning.task or "")
        transition: AnyTransition | None = None
        if code in (PUT, DELETED):
            transition = self._put(job_state, code, meaning.repository or "")
        elif code == STARTED:
            transition = (STARTED,)
        elif task is not None:
            transition = self._launch(job_state, task) if code == LAUNCH else self._end(job_state, task)
        if transition is not None:
            job_state[key] = transition
        return transition

    def _put(self, job_state: JobState, code: int, leaf: str) -> AnyTransition | None:
        kind = e.ValuePut if code == PUT else e.ValueDeleted
        transition = self.job_states.transition(job_state, kind(at=0, repository=leaf, job="j"))
        if transition is None or transition.cells is None:
            return None
        return (
            code,
            transition.following,
            transition.following.mask,
            transition.cells,
            transition.ops,
            transition.versions,
            leaf,
        )

    def _launch(self, job_state: JobState, task: TaskState) -> AnyTransition | None:
        event = e.LaunchDecided(at=0, task=task.name, job="j", episode=1, attempt=1)
        transition = self.job_states.transition(job_state, event)
        if transition is None or transition.cells is None:
            return None
        waiting = task.queue.waiting if isinstance(task.queue, FifoQueue) else None
        leaves = any(op == POP and where is waiting for op, where in transition.ops)
        ops = tuple((op, where) for op, where in transition.ops if op != POP or where is not waiting)
        queue = waiting if leaves else None
        return (
            LAUNCH,
            transition.following,
            transition.following.mask,
            transition.cells,
            ops,
            task,
            queue,
            self._quota(task),
        )

    def _end(self, job_state: JobState, task: TaskState) -> AnyTransition | None:
        """Return the transition of an end: what follows on each outcome."""
        if job_state.marks[self._index[task.name]] != RUNNING:
            return None
        endings = {}
        for outcome in OUTCOMES:
            self._tried += 1
            event = e.RunEnded(at=0, task=task.name, job="j", run=0, outcome=outcome)
            transition = self.job_states.transition(job_state, event)
            if transition is not None and transition.cells is None:
                endings[outcome] = (transition.following, transition.following.mask, transition.ops)
        return ENDED, endings, task, self._quota(task)

    def _quota(self, task: TaskState) -> QuotaState | None:
        quota = task.definition.quota
        return None if quota is None else self._state.quotas[quota]
