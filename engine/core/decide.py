"""Launch decisions, derived from the state: `decide(state, now) -> Round`, and `choose`, which it rests on.

Pure: nothing visible changes, and the same state, time and bound give the same round. Order is priority, then the
position of becoming ready, over all tasks together. Greedy by prefix: each decision is admissible given those before
it, so a round can be checked decision by decision. Work-conserving: what does not fit is passed over; the oldest passed
over for longer than its quota's `starvation_after` reserves the dimensions that it lacks. Costs
O(tasks + decisions * log tasks), whatever the number of waiting jobs. Simulations without events call `choose` too.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator, Set
from dataclasses import dataclass, field
from typing import NamedTuple

from datatask.engine.core.expressions import leaves_of
from datatask.engine.core.leaves import DerivedState, LeafState, get_at
from datatask.engine.core.queues import Entry
from datatask.engine.core.quotas import QuotaState
from datatask.engine.core.state import State
from datatask.engine.core.tasks import TaskState
from datatask.schema.definition import In, LinkDef
from datatask.schema.events import LaunchDecided

DECIDER_VERSION = 1
BOUND = 1000


Head = tuple[Entry, int, TaskState, Iterator[Entry]]
"""The next job of a task, the task, and those that follow; compared by order, then by the task's place."""


class Round(NamedTuple):
    """What to launch, what held each task back, and when to look again though nothing has happened."""

    decisions: list[LaunchDecided]
    constraints: dict[str, str]
    wake_at: int | None


class Choice(NamedTuple):
    """A round before its events are made: the queue entries to launch, in order."""

    launches: list[tuple[TaskState, Entry]]
    constraints: dict[str, str]
    wake_at: int | None


@dataclass(slots=True)
class Plan:
    """What the launches of this round have taken so far; `used` holds the amounts in use of each quota touched.

    `masks` holds the jobs whose launch changes what other tasks see (`live(other)` inhibits, for one): those that do
    not fit any more are passed by. Where a derived leaf follows such a view the round is `over` instead.
    """

    used: dict[str, dict[str, int]] = field(default_factory=dict)
    launched: dict[str, int] = field(default_factory=dict)
    open_runs: dict[str, int] = field(default_factory=dict)
    reserved: dict[str, dict[str, int]] = field(default_factory=dict)
    masks: dict[int, int] = field(default_factory=dict)
    wake: list[int] = field(default_factory=list)
    over: bool = False


def decide(
    state: State, now: int, *, bound: int = BOUND, unavailable: Set[str] = frozenset(), actor: str = "engine"
) -> Round:
    """Return the launches that may start now; `unavailable` names tasks whose runner cannot take any."""
    launches, constraints, wake_at = choose(state, now, bound=bound, unavailable=unavailable)
    decisions = [_decision(state, task, entry, now, actor) for task, entry in launches]
    return Round(decisions, constraints, wake_at)


def choose(
    state: State,
    now: int,
    *,
    bound: int = BOUND,
    unavailable: Set[str] = frozenset(),
    mask_of: Callable[[int], int] | None = None,
) -> Choice:
    """Return which jobs `decide` launches; `mask_of` is asked for a job's mask where `state.masks` does not hold it."""
    plan = Plan()
    wake = plan.wake
    launches: list[tuple[TaskState, Entry]] = []
    constraints: dict[str, str] = {}
    heads: list[Head] = []
    for task in state.tasks.values():
        retry_at = task.next_retry()
        due = retry_at is not None and retry_at <= now
        if retry_at is not None and not due:
            wake.append(retry_at)
        if not due and not task.queue:
            continue
        constraint = closed(task, unavailable)
        if constraint:
            constraints[task.name] = constraint
            continue
        line = entries(task, now, bound) if due else task.queue.entries()
        head = next(line, None)
        if head is not None:
            heads.append((head, task.index, task, line))
    heapq.heapify(heads)
    masks = plan.masks
    while heads:
        entry, index, task, line = heads[0]
        if len(launches) >= bound or plan.over:
            constraints.update((task.name, "bound") for _, _, task, _ in heads)
            break
        job = entry[2]
        if not masks or job not in masks or task.condition.test(masks[job]):
            constraint = _refused(state, plan, task, now)
            if constraint:
                constraints[task.name] = constraint
                _reserve_if_starved(state, plan, task, entry, constraint, now)
                heapq.heappop(heads)
                continue
            launches.append((task, entry))
            _take(state, plan, task)
            if task.seen:
                _see(plan, task, job, state.masks[job] if mask_of is None else mask_of(job))
        following = next(line, None)
        if following is None:
            heapq.heappop(heads)
        else:
            heapq.heapreplace(heads, (following, index, task, line))
    return Choice(launches, constraints, min(wake, default=None))


def closed(task: TaskState, unavailable: Set[str]) -> str:
    """Return why the whole task may not launch, or the empty string."""
    if task.paused:
        return "paused"
    if task.definition.disabled:
        return "disabled"
    for leaf in task.reads:
        if not leaf.synced:
            return f"observing: {leaf.id}"
    return "adapter" if task.name in unavailable else ""


def entries(task: TaskState, now: int, most: int) -> Iterator[Entry]:
    """Yield the jobs of a task that may be launched, in order; of those due for a retry at most `most`."""
    due = task.due(now, most)
    return heapq.merge(due, task.queue.entries()) if due else task.queue.entries()


def constraint_on(state: State, task: TaskState, now: int) -> str:
    """Return what keeps one more launch of this task from being within its limits now, or the empty string."""
    return _refused(state, Plan(), task, now)


def _refused(state: State, plan: Plan, task: TaskState, now: int) -> str:
    """Return the constraint that keeps a job of this task from starting, or the empty string."""
    definition = task.definition
    limit, name = definition.concurrency, definition.quota
    if limit is not None and task.open_runs + plan.open_runs.get(task.name, 0) >= limit:
        return "concurrency"
    if name is None:
        return ""
    quota = state.quotas[name]
    lacking = quota.shortfall(definition.resources, plan.used.get(name), plan.reserved.get(name))
    if lacking is None and quota.launches is None:
        return ""
    dimension = quota.infeasible(definition.resources)
    if dimension is not None:
        return f"infeasible: {name}.{dimension}"
    if quota.launches is not None:
        if quota.launches <= 0:
            return f"infeasible: {name}.launches"
        at = _next_launch(quota, plan.launched.get(name, 0), now)
        if at > now:
            plan.wake.append(at)
            return f"rate: {name}"
    return f"quota: {name}.{lacking}" if lacking is not None else ""


def _next_launch(quota: QuotaState, planned: int, now: int) -> int:
    """Return the earliest time at which the window has room for one more launch."""
    assert quota.launches is not None
    window = quota.definition.window
    if planned >= quota.launches:
        return now + window
    recent, room = quota.recent, quota.launches - planned
    return max(now, recent[-room] + window) if len(recent) >= room else now


def _reserve_if_starved(
    state: State, plan: Plan, task: TaskState, entry: Entry, constraint: str, now: int
) -> None:
    name = task.definition.quota
    if name is None or name in plan.reserved or not constraint.startswith("quota: "):
        return
    quota = state.quotas[name]
    if now - state.time_of(entry[1]) < quota.definition.starvation_after:
        return
    used = plan.used.get(name, quota.used)
    plan.reserved[name] = {
        dimension: amount
        for dimension, amount in task.definition.resources.items()
        if used.get(dimension, 0) + amount > quota.limits.get(dimension, 0)
    }


def _take(state: State, plan: Plan, task: TaskState) -> None:
    """Count a launch against the task's limits."""
    definition = task.definition
    if definition.concurrency is not None:
        plan.open_runs[task.name] = plan.open_runs.get(task.name, 0) + 1
    name = definition.quota
    if name is None:
        return
    used = plan.used.get(name)
    if used is None:
        used = plan.used[name] = state.quotas[name].used.copy()
    for dimension, amount in definition.resources.items():
        used[dimension] = used.get(dimension, 0) + amount
    plan.launched[name] = plan.launched.get(name, 0) + 1


def _see(plan: Plan, task: TaskState, job: int, mask: int) -> None:
    """Note what the other tasks see of a job that is launched."""
    mask = plan.masks.get(job, mask) | task.live.bit
    plan.masks[job] = mask if job in task.episodes else mask & ~task.outcomes
    plan.over |= any(view.feeds or view.translates for view in (task.live, task.succeeded, task.failed))


def _decision(state: State, task: TaskState, entry: Entry, now: int, actor: str) -> LaunchDecided:
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
        resources=task.definition.resources,
        priority=-order if order else 0,
        inputs=inputs_of(state, task, job),
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
