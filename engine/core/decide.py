"""Launch decisions, derived from the state: `decide(state, now) -> Round`, and `choose`, which it rests on.

Pure: nothing visible changes, and the same state, time and bound give the same round. Order is priority, then the
position of becoming ready, over all tasks together. Greedy by prefix: each decision is admissible given those before
it, so a round can be checked decision by decision. Work-conserving: what does not fit is passed over; the oldest passed
over for longer than its quota's `starvation_after` reserves the dimensions that it lacks. Costs
O(tasks + decisions * log tasks), whatever the number of waiting jobs. Simulations without events call `choose` too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Set
from heapq import heappop, heapreplace
from itertools import islice
from typing import Literal, NamedTuple, TypeVar

from datatask.engine.core.cells import get_at
from datatask.engine.core.expressions import leaves_of
from datatask.engine.core.leaves import DerivedState, LeafState
from datatask.engine.core.quotas import Constraint, Identities, QuotaState
from datatask.engine.core.selection import Chosen
from datatask.engine.core.state import State
from datatask.engine.core.tasks import Entry, TaskState
from datatask.schema.definition import In, LinkDef, Selection
from datatask.schema.events import LaunchDecided

DECIDER_VERSION = 1
BOUND = 1000
CONCURRENCY = Constraint("concurrency")
BOUNDED = Constraint("bound")
LIMITED = Constraint("limit")
UNSELECTED = Constraint("unselected")


Amounts = dict[str, int]


class Round(NamedTuple):
    """The launches, the constraint of each task, and the time of the next round without events."""

    decisions: list[LaunchDecided]
    constraints: dict[str, Constraint]
    wake_at: int | None

    @property
    def recorded(self) -> dict[str, str]:
        """The constraints as an event records them."""
        return {task: constraint.text for task, constraint in self.constraints.items()}


class Line:
    """A task in a round: `choose` counts its launches here and in its quota."""

    __slots__ = (
        "closed",
        "concurrency",
        "full",
        "index",
        "infeasible",
        "lacks",
        "name",
        "open_runs",
        "quota",
        "request",
        "reserves",
        "seen",
        "task",
        "varies",
    )

    def __init__(
        self,
        task: TaskState,
        quota: QuotaState | None,
        unavailable: Set[str] = frozenset(),
        selection: Selection | None = None,
    ) -> None:
        definition = task.definition
        self.task, self.name, self.index = task, definition.name, task.index
        self.quota, self.request = quota, definition.resources
        self.concurrency, self.open_runs = definition.concurrency, task.open_runs
        self.closed, self.seen = closed(task, unavailable, selection), task.seen
        self.infeasible: Constraint | Literal[False] | None = None
        """Whether the request can ever be met; None before the first check."""
        self.lacks: dict[str | None, Constraint] = {}
        """The constraint of a quota without a window, by the dimension that is short; a line of many rounds fills it."""
        self.varies = bool(definition.later)
        self.full: list[Amounts] = []
        """The requests of a task whose attempts take different amounts that this round has no room for."""
        self.reserves = True
        """Whether other tasks ask the quota for other amounts: else it makes no difference what is reserved."""

    def ask(self, request: Amounts) -> None:
        """Take what the next attempt takes for the request."""
        if request != self.request:
            self.request, self.infeasible, self.lacks = request, None, {}


L = TypeVar("L", bound=Line)

Launches = tuple[list[tuple[L, Entry]], dict[str, Constraint], int | None]
"""The queue entries to launch in order, the constraint of each task, and the time of the next round."""

Head = tuple[Entry, int, L, Iterator[Entry] | None]
"""The next job of a task, and its line; compared by order, then by the task's place. None: the queue's first."""

SECOND: Iterator[Entry] = iter(())
"""Stands for what follows on the second job of a queue."""


def decide(
    state: State,
    now: int,
    *,
    bound: int = BOUND,
    unavailable: Set[str] = frozenset(),
    actor: str = "engine",
    selection: Selection | None = None,
    members: bool = True,
) -> Round:
    """Return the launches that may start now; `unavailable` names tasks whose runner cannot take any.

    With a `selection` only what it chooses is launched, and waited for. `members`: the leaves know theirs, which finds few
    chosen jobs among many; without them all waiting jobs are looked at, with the same result.
    """
    jobs = None if selection is None or selection.jobs is None else Chosen(state, selection.jobs, members)
    left = None if selection is None else selection.left
    lines, quotas = [], _Copies(state.quotas)
    for task in state.tasks.values():
        if task.queue or task.retries or task.contenders:
            name = task.definition.quota
            lines.append(Line(task, None if name is None else quotas[name], unavailable, selection))
    if left is None or left > bound:
        launches, constraints, wake_at = choose(state, lines, now, bound=bound, jobs=jobs)
    else:
        launches, constraints, wake_at = choose(state, lines, now, bound=left, bounded=LIMITED, jobs=jobs)
        wake_at = wake_at if len(launches) < left else None
    decisions = []
    for line, entry in launches:
        own = {}
        if line.quota is not None and line.quota.definition.identities:
            own = line.quota.assign(line.task.request(entry[2]))
            line.quota.hold(own)
        decisions.append(_decision(state, line.task, entry, now, actor, own))
    return Round(decisions, constraints, wake_at)


class _Copies(dict[str, QuotaState]):
    """The quotas of a round."""

    def __init__(self, quotas: dict[str, QuotaState]) -> None:
        self._quotas = quotas

    def __missing__(self, name: str) -> QuotaState:
        made = self[name] = self._quotas[name].copy()
        return made


def choose(
    state: State,
    lines: Iterable[L],
    now: int,
    *,
    bound: int = BOUND,
    bounded: Constraint = BOUNDED,
    mask_of: Callable[[int], int] | None = None,
    jobs: Chosen | None = None,
) -> Launches[L]:
    """Return which jobs (of `jobs`) to launch, and count them in their lines and in the amounts of their quotas.

    `mask_of` is asked for a job's mask where `state.masks` does not hold it. A launch may change what other tasks see
    (`live(other)` inhibits, for one): jobs that do not fit any more are passed by. Where a derived leaf follows such a
    view the round is over instead.
    """
    launches: list[tuple[L, Entry]] = []
    constraints: dict[str, Constraint] = {}
    heads: list[Head[L]] = []
    wake: list[int] = []
    for line in lines:
        task = line.task
        head, following = task.queue.first() if jobs is None else None, None
        if jobs is not None:
            retry_at = task.next_retry(jobs)
            if retry_at is not None and retry_at > now:
                wake.append(retry_at)
            following = entries(task, now, bound, jobs)
            head = next(following, None)
            if head is None and task.queue:
                constraints[line.name] = line.closed or UNSELECTED
        elif task.retries or task.contenders:
            retry_at = task.next_retry()
            if retry_at is not None:
                if retry_at > now:
                    wake.append(retry_at)
                else:
                    following = entries(task, now, bound)
                    head = next(following, None)
        if head is not None:
            if line.closed:
                constraints[line.name] = line.closed
            else:
                heads.append((head, line.index, line, following))
    if len(heads) > 1:
        heads.sort()  # which makes a heap
    launched: dict[str, int] = {}
    reserved: dict[str, Amounts] = {}
    masks: dict[int, int] = {}
    over = False
    while heads:
        entry, index, line, following = heads[0]
        if over or len(launches) >= bound:
            constraints.update((line.name, bounded) for _, _, line, _ in heads)
            break
        job, task, quota = entry[2], line.task, line.quota
        if not masks or job not in masks or task.condition.test(masks[job]):
            if line.concurrency is not None and line.open_runs >= line.concurrency:
                constraints[line.name] = CONCURRENCY
                heappop(heads)
                continue
            if quota is not None:
                if line.varies:
                    line.ask(task.request(job))
                kept = reserved.get(quota.name) if reserved else None
                lacking = quota.shortfall(line.request, kept)
                if lacking is not None or quota.launches is not None:
                    constraint = line.lacks.get(lacking) or _limited(
                        line, quota, lacking, now, launched, wake
                    )
                    if constraint is not None and line.varies and constraint.kind != "rate":
                        constraints.setdefault(line.name, constraint)
                        if constraint.kind == "quota":
                            _reserve_if_starved(state, line, entry, now, reserved)
                        following, head = _others(line, entry, following, now, bound, jobs)
                        if head is None:
                            heappop(heads)
                        else:
                            heapreplace(heads, (head, index, line, following))
                        continue
                    if constraint is not None:
                        constraints[line.name] = constraint
                        heappop(heads)
                        if heads and line.reserves and constraint.kind == "quota":
                            _reserve_if_starved(state, line, entry, now, reserved)
                        continue
                used = quota.used
                for name, amount in line.request.items():
                    if amount:
                        used[name] = used.get(name, 0) + amount
                if quota.launches is not None:
                    launched[quota.name] = launched.get(quota.name, 0) + 1
            launches.append((line, entry))
            line.open_runs += 1
            if line.seen:
                mask = masks.get(job)
                if mask is None:
                    mask = state.masks[job] if mask_of is None else mask_of(job)
                mask |= task.live.bit
                masks[job] = mask if job in task.episodes else mask & ~task.outcomes
                over = any(view.followed for view in (task.live, task.succeeded, task.failed))
        if (
            following is None
        ):  # most rounds take one job of a queue: a generator would cost more than all the rest
            following, head = SECOND, task.queue.second()
        else:
            if following is SECOND:
                following = islice(task.queue.entries(), 2, None)
            head = next(following, None)
        if head is None:
            heappop(heads)
            if jobs is not None and len(task.queue) > line.open_runs - task.open_runs:
                constraints[line.name] = UNSELECTED
        else:
            heapreplace(heads, (head, index, line, following))
    return launches, constraints, min(wake) if wake else None


def _others(
    line: Line,
    entry: Entry,
    following: Iterator[Entry] | None,
    now: int,
    bound: int,
    jobs: Chosen | None,
) -> tuple[Iterator[Entry] | None, Entry | None]:
    """Return the entries of a task behind this one, and the first of them that takes other amounts than those without room.

    Who waits for a first attempt takes what all these take: past them, only the retries that are due are looked at.
    """
    task, full = line.task, line.full
    full.append(line.request)
    if following is None or following is SECOND:
        return following, None
    if task.definition.resources in full:
        following = iter([each for each in task.due(now, bound, jobs) if each > entry])
    return following, next((each for each in following if task.request(each[2]) not in full), None)


def closed(task: TaskState, unavailable: Set[str], selection: Selection | None = None) -> Constraint | None:
    """Return the constraint on the whole task, or None."""
    if task.paused:
        return Constraint("paused")
    if task.definition.disabled:
        return Constraint("disabled")
    if selection is not None and selection.tasks and task.name not in selection.tasks:
        return UNSELECTED
    for leaf in task.reads:
        if not leaf.synced:
            return Constraint("observing", leaf.id)
    return Constraint("adapter") if task.name in unavailable else None


def entries(task: TaskState, now: int, most: int, jobs: Chosen | None = None) -> Iterator[Entry]:
    """Yield the jobs of a task (of `jobs`) that may be launched, in order; of those due for a retry at most `most`."""
    due = task.due(now, most, jobs)
    waiting = task.queue.entries() if jobs is None else jobs.of(task.queue)
    return _merged(due, waiting) if due else waiting


def _merged(due: list[Entry], waiting: Iterator[Entry]) -> Iterator[Entry]:
    """Yield both in order: `heapq.merge` in half the time."""
    entry = next(waiting, None)
    for each in due:
        while entry is not None and entry < each:
            yield entry
            entry = next(waiting, None)
        yield each
    if entry is not None:
        yield entry
        yield from waiting


def constraint_on(state: State, task: TaskState, now: int, job: int | None = None) -> Constraint | None:
    """Return what keeps one more launch of this task, of this job, from being within its limits now, or None."""
    line = Line(task, None if task.definition.quota is None else state.quotas[task.definition.quota])
    if job is not None:
        line.ask(task.request(job))
    if line.concurrency is not None and line.open_runs >= line.concurrency:
        return CONCURRENCY
    if line.quota is None:
        return None
    return _limited(line, line.quota, line.quota.shortfall(line.request), now, {}, [])


def _limited(
    line: Line, quota: QuotaState, lacking: str | None, now: int, launched: dict[str, int], wake: list[int]
) -> Constraint | None:
    """Return the constraint of a quota on a task's next job, `lacking` a dimension or not, or None."""
    if line.infeasible is None:
        line.infeasible = quota.infeasible(line.request) or False
    if line.infeasible:
        return line.infeasible
    if quota.launches is not None:
        at = quota.next_launch(now, launched.get(quota.name, 0))
        if at is not None and at > now:
            wake.append(at)
            return Constraint("rate", quota.name)
    if lacking is None:
        return None
    constraint = Constraint("quota", quota.name, lacking)
    if quota.launches is None:
        line.lacks[lacking] = constraint
    return constraint


def _reserve_if_starved(
    state: State, line: Line, entry: Entry, now: int, reserved: dict[str, Amounts]
) -> None:
    quota = line.quota
    if quota is None or quota.name in reserved:
        return
    if now - state.time_of(entry[1]) >= quota.definition.starvation_after:
        reserved[quota.name] = quota.lacking(line.request)


def _decision(
    state: State, task: TaskState, entry: Entry, now: int, actor: str, identities: Identities
) -> LaunchDecided:
    order, ready, job = entry
    episode = task.episodes.get(job)
    return LaunchDecided(
        at=now,
        actor=actor,
        cause=ready if episode is None else get_at(task.last_run, job),
        task=task.name,
        job=state.jobs[job],
        episode=get_at(task.episode_count, job),
        attempt=episode.attempt + 1 if episode is not None else 1,
        resources=task.request(job),
        priority=-order if order else 0,
        inputs=inputs_of(state, task, job),
        identities=identities,
    )


def inputs_of(state: State, task: TaskState, job: int) -> dict[str, int]:
    """Return, per input link, the position of the value that a run of this job reads now."""
    inputs: dict[str, int] = {}
    for link in task.definition.links:
        if link.is_input:
            _add_inputs(state, link, job, inputs)
    return inputs


def _add_inputs(state: State, link: LinkDef, job: int, inputs: dict[str, int]) -> None:
    if isinstance(link.expr, In):
        position = value_position(state.leaves[link.expr.leaf], job)
        if position:
            inputs[link.name] = position
        return
    for name in leaves_of(link.expr):
        position = value_position(state.leaves[name], job)
        if position:
            inputs[f"{link.name}.{name}"] = position


def value_position(leaf: LeafState, job: int) -> int:
    """Return the position of the value that `job` has in a leaf, through filters and translations; 0 if none."""
    derived: DerivedState | None = leaf.derived
    while derived is not None:
        if derived.translator is not None:
            target = derived.forward.get(job)
            if target is None:
                return 0
            job = target
        if derived.base_leaf is None:
            return 0
        leaf = derived.base_leaf
        derived = leaf.derived
    return max(0, get_at(leaf.positions, job))


def own_entries(state: State, task: TaskState, job: str) -> list[str]:
    """Return the leaves in which the task itself left an entry that keeps the job from starting again."""
    found = []
    for link in task.definition.links:
        leaf = getattr(link.expr, "leaf", None)
        if link.is_status and link.inhibits_start and leaf is not None:
            stored = state.leaves[leaf].definition.medium not in ("view", "derived")
            if stored and state.contains(leaf, job):
                found.append(leaf)
    return found
