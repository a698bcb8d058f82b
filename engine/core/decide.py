"""Launch decisions, derived from the state: `decide(state, now) -> Round`.

Pure: it changes nothing that anybody can see, and the same state, time and bound give the same round. Order is
priority, then the position of becoming ready, over all tasks together. Greedy by prefix: each decision is
admissible given those before it, so a round can be checked decision by decision. Work-conserving: what does
not fit is passed over; the oldest passed over for longer than its quota's `starvation_after` reserves the
dimensions that it lacks. Costs O(tasks + decisions * log tasks), whatever the number of waiting jobs.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Set
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


@dataclass(slots=True)
class Plan:
    """What the decisions of this round have taken so far, on top of what runs.

    `masks` holds the jobs whose launch changes what other tasks see (`live(other)` inhibits, for one): who does
    not fit them any more is passed by. Where a derived leaf follows such a view the round is `over` instead.
    """

    used: dict[str, dict[str, int]] = field(default_factory=dict)
    launched: dict[str, int] = field(default_factory=dict)
    open_runs: dict[str, int] = field(default_factory=dict)
    reserved: dict[str, dict[str, int]] = field(default_factory=dict)
    masks: dict[int, int] = field(default_factory=dict)
    over: bool = False


def decide(
    state: State, now: int, *, bound: int = BOUND, unavailable: Set[str] = frozenset(), actor: str = "engine"
) -> Round:
    """Return the launches that may start now; `unavailable` names tasks whose runner cannot take any."""
    plan = Plan()
    decisions: list[LaunchDecided] = []
    constraints: dict[str, str] = {}
    wake: list[int] = []
    heads: list[Head] = []
    for task in state.tasks.values():
        retry_at = task.next_retry()
        if retry_at is not None and retry_at > now:
            wake.append(retry_at)
        if not task.queue and (retry_at is None or retry_at > now):
            continue
        constraint = closed(task, unavailable)
        if constraint:
            constraints[task.name] = constraint
            continue
        line = entries(task, now, bound)
        head = next(line, None)
        if head is not None:
            heads.append((head, task.index, task, line))
    heapq.heapify(heads)
    while heads:
        entry, _, task, _ = heads[0]
        if len(decisions) >= bound or plan.over:
            constraints.update((task.name, "bound") for _, _, task, _ in heads)
            break
        request = task.definition.resources or {}
        if entry[2] in plan.masks and not task.condition.test(plan.masks[entry[2]]):
            _advance(heads)
            continue
        constraint = _refused(state, plan, task, request, now, wake)
        if constraint:
            constraints[task.name] = constraint
            _reserve_if_starved(state, plan, task, request, entry, constraint, now)
            heapq.heappop(heads)
            continue
        decisions.append(_decision(state, plan, task, entry, request, now, actor))
        _advance(heads)
    return Round(decisions, constraints, min(wake, default=None))


def _advance(heads: list[Head]) -> None:
    """Let the next job of the first head's task take its place among the heads."""
    _, index, task, line = heads[0]
    following = next(line, None)
    if following is None:
        heapq.heappop(heads)
    else:
        heapq.heapreplace(heads, (following, index, task, line))


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
    """Yield who of a task may be launched, in order; of those due for a retry at most so many."""
    due = task.due(now, most)
    return heapq.merge(due, task.queue.entries()) if due else task.queue.entries()


def constraint_on(state: State, task: TaskState, now: int) -> str:
    """Return what keeps one more launch of this task from being within its limits now, or the empty string."""
    return _refused(state, Plan(), task, task.definition.resources, now, [])


def _refused(
    state: State, plan: Plan, task: TaskState, request: dict[str, int], now: int, wake: list[int]
) -> str:
    """Return the constraint that keeps a job with this request from starting, or the empty string."""
    limit = task.definition.concurrency
    if limit is not None and task.open_runs + plan.open_runs.get(task.name, 0) >= limit:
        return "concurrency"
    name = task.definition.quota
    if name is None:
        return ""
    quota = state.quotas[name]
    dimension = quota.infeasible(request)
    if dimension is not None:
        return f"infeasible: {name}.{dimension}"
    if quota.launches is not None:
        if quota.launches <= 0:
            return f"infeasible: {name}.launches"
        at = _next_launch(quota, plan.launched.get(name, 0), now)
        if at > now:
            wake.append(at)
            return f"rate: {name}"
    dimension = _exceeded(quota, plan, name, request)
    return f"quota: {name}.{dimension}" if dimension else ""


def _next_launch(quota: QuotaState, planned: int, now: int) -> int:
    """Return the earliest time at which the window has room for one more launch."""
    assert quota.launches is not None
    window = quota.definition.window
    if planned >= quota.launches:
        return now + window
    recent, room = quota.recent, quota.launches - planned
    return max(now, recent[-room] + window) if len(recent) >= room else now


def _exceeded(quota: QuotaState, plan: Plan, name: str, request: dict[str, int]) -> str:
    planned, reserved = plan.used.get(name, {}), plan.reserved.get(name, {})
    for dimension, amount in request.items():
        taken = quota.used.get(dimension, 0) + planned.get(dimension, 0) + reserved.get(dimension, 0)
        if amount and taken + amount > quota.limits.get(dimension, 0):
            return dimension
    return ""


def _reserve_if_starved(
    state: State,
    plan: Plan,
    task: TaskState,
    request: dict[str, int],
    entry: Entry,
    constraint: str,
    now: int,
) -> None:
    name = task.definition.quota
    if name is None or name in plan.reserved or not constraint.startswith("quota: "):
        return
    quota = state.quotas[name]
    if now - state.time_of(entry[1]) < quota.definition.starvation_after:
        return
    planned = plan.used.get(name, {})
    plan.reserved[name] = {
        dimension: amount
        for dimension, amount in request.items()
        if quota.used.get(dimension, 0) + planned.get(dimension, 0) + amount > quota.limits.get(dimension, 0)
    }


def _decision(
    state: State, plan: Plan, task: TaskState, entry: Entry, request: dict[str, int], now: int, actor: str
) -> LaunchDecided:
    order, ready, job = entry
    name = task.definition.quota
    plan.open_runs[task.name] = plan.open_runs.get(task.name, 0) + 1
    if name is not None:
        used = plan.used.setdefault(name, {})
        for dimension, amount in request.items():
            used[dimension] = used.get(dimension, 0) + amount
        plan.launched[name] = plan.launched.get(name, 0) + 1
    episode = task.episodes.get(job)
    if task.seen:
        mask = plan.masks.get(job, state.masks[job]) | task.live.bit
        plan.masks[job] = mask if episode is not None else mask & ~task.outcomes
        plan.over |= any(view.feeds or view.translates for view in (task.live, task.succeeded, task.failed))
    return LaunchDecided(
        at=now,
        actor=actor,
        cause=ready if episode is None else get_at(task.last_run, job),
        task=task.name,
        job=state.jobs[job],
        episode=get_at(task.episode_count, job),
        attempt=episode.attempt + 1 if episode is not None else 1,
        resources=request,
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
