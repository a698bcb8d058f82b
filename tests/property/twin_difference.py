"""What an incremental state says otherwise than its slow twin, in words."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable

from datatask.engine.core.state import State
from datatask.schema.definition import (
    FilteredDef,
    TranslatedDef,
    view_id,
)
from tests.property.twin import Twin

Same = Callable[[str, object, object], None]


def difference(twin: Twin, state: State) -> list[str]:
    """Return what the state says otherwise, in words; empty when they agree."""
    found: list[str] = []

    def same(what: str, fast: object, slow: object) -> None:
        if fast != slow:
            found.append(f"{what}: state {fast!r}, twin {slow!r}")

    same("jobs", state.jobs, twin.jobs)
    for name, leaf in state.leaves.items():
        by_mask = {job for job, mask in zip(state.jobs, state.masks, strict=True) if mask & leaf.bit}
        same(f"mask {name}", by_mask, twin.members[name])
        same(f"bitmap {name}", set(state.members(name)), twin.members[name])
        same(f"count {name}", leaf.count, len(twin.members[name]))
        same(f"synced {name}", leaf.synced, twin.synced[name])
    same(
        "pending",
        {(k.what, k.owner, state.jobs[k.job]): v.position for k, v in state.pending.items()},
        twin.pending,
    )
    same("intents", {(leaf, state.jobs[job]) for leaf, job in state.intents}, set(twin.intents))
    same("open runs", set(state.open_runs), set(twin.open))
    same("tasks", list(state.tasks), list(twin.tasks))
    for name in state.tasks:
        _compare_task(twin, state, name, same)
    _compare_usage(twin, state, same)
    _compare_rules(twin, same)
    return found


def _compare_task(twin: Twin, state: State, name: str, same: Same) -> None:
    task = state.tasks[name]
    ready = {job for job in twin.jobs if twin.is_ready(name, job)}
    tested = {job for job, mask in zip(state.jobs, state.masks, strict=True) if task.condition.test(mask)}
    same(f"ready {name}", tested, ready)
    queued = [
        (0.0 - w.priority, w.position, twin.jobs.index(job))
        for (t, job), w in twin.waiting.items()
        if t == name and w.priority is not None
    ]
    same(f"queue {name}", sorted(task.queue.entries()), sorted(queued))
    awaiting = {
        twin.jobs.index(job): w.position
        for (t, job), w in twin.waiting.items()
        if t == name and w.priority is None
    }
    same(f"awaiting {name}", task.awaiting, awaiting)
    claimed = {job for job, mask in zip(state.jobs, state.masks, strict=True) if mask & task.claim}
    same(f"claims {name}", claimed, {job for t, job in twin.claims if t == name})
    fast = {
        state.jobs[job]: (s.position, s.run, s.attempt, s.infrastructure, s.lost_in_a_row, s.not_before)
        for job, s in task.episodes.items()
    }
    slow = {
        job: (s.position, s.run, s.attempt, s.infrastructure, s.in_a_row, s.not_before)
        for (t, job), s in twin.episodes.items()
        if t == name
    }
    same(f"episodes {name}", fast, slow)
    counts = {state.jobs[job]: n for job, n in enumerate(task.episode_count[: len(state.jobs)]) if n}
    same(f"counts {name}", counts, {job: n for (t, job), n in twin.count.items() if t == name and n})
    mine = {decided.job for decided, _ in twin.open.values() if decided.task == name}
    same(f"live {name}", twin.members[view_id(name, "live")], mine)
    same(f"open runs {name}", task.open_runs, len(mine))
    same(f"paused {name}", bool(task.paused), name in twin.paused)


def _compare_usage(twin: Twin, state: State, same: Same) -> None:
    for name, quota in state.quotas.items():
        used: defaultdict[str, int] = defaultdict(int)
        for decided, taken_from in twin.open.values():
            if taken_from == name:
                for dimension, amount in decided.resources.items():
                    used[dimension] += amount
        same(
            f"usage {name}",
            {k: v for k, v in quota.used.items() if v},
            {k: v for k, v in used.items() if v},
        )


def _compare_rules(twin: Twin, same: Same) -> None:
    for name, rule in twin.rules(TranslatedDef):
        base = twin.where(rule.base)
        same(
            f"translated {name}",
            {k for (n, k), t in twin.targets.items() if n == name and t in base},
            twin.members[name],
        )
    for name, filtered in twin.rules(FilteredDef):
        same(f"filtered {name}", twin.members[name] - twin.where(filtered.base), set())
