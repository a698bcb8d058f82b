"""Every change that could matter to a (task, job), and the search through all small sets of them.

In: a state, a task, a job, an explanation. Out: a set of changes that is smaller than the one proposed and launches the
job, if there is one. The candidates are found from the definition alone, not by the code under test; limits are raised
beyond all bounds and a wait may last until any time at which something heals.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Set
from itertools import combinations
from math import comb

from datatask.engine.core.define import start_condition
from datatask.engine.core.expressions import leaves_of
from datatask.engine.core.state import State
from datatask.engine.explain.explanations import Change, Explanation
from datatask.engine.explain.what_if import WhatIf
from datatask.schema import definition as d

UNAVOIDABLE = {"start_engine", "resume", "enable", "recover", "observe", "accept_loss"}
"""What stands for a whole task: nothing else can replace these, so all sets begin with them."""
ORDER = (
    "end_run", "wait_for", "put", "delete", "set_filter", "set_translation", "retry", "evaluate", "raise_concurrency",
    "raise_quota", "wait_until", "raise_priority",
)  # fmt: skip
ENDLESS = 10**18
UNREACHABLE_SIZES = 3


def smaller_set(
    state: State,
    found: Explanation,
    now: int,
    *,
    engine_alive: bool,
    unavailable: Set[str],
    most: int,
    counts: Counter[str],
) -> tuple[Change, ...] | None:
    """Return a smaller set that launches the job, None if there is none or it would take more than `most` trials.

    Where nothing was proposed, sets of up to `UNREACHABLE_SIZES` changes are looked through.
    """
    fixed = [change for change in found.changes if change.op in UNAVOIDABLE]
    size = len(found.changes) - len(fixed)
    if any(hold.what == "unreachable" for hold in found.held_by):
        fixed = list(unavoidable(state, found.task, engine_alive=engine_alive, unavailable=unavailable))
        size = UNREACHABLE_SIZES + 1
    possible = sorted(
        candidates(state, found.task, found.job, now), key=lambda change: ORDER.index(change.op)
    )
    if sum(comb(len(possible), count) for count in range(size)) > most:
        counts["too many sets"] += 1
        return None
    counts[f"against sets of fewer than {size}"] += 1
    trial = WhatIf(state, now, engine_alive=engine_alive, unavailable=unavailable)
    for count in range(size):
        for chosen in combinations(possible, count):
            if _launches(trial, (*fixed, *chosen), found.task, found.job):
                return (*fixed, *chosen)
    return None


def _launches(trial: WhatIf, changes: tuple[Change, ...], task: str, job: str) -> bool:
    trial.reset()
    index = trial.state.intern(job)
    try:
        for change in changes:
            trial.make(change)
    except (KeyError, AssertionError):
        return False  # two of them cannot both be
    return trial.launches(task, index)


def unavoidable(state: State, name: str, *, engine_alive: bool, unavailable: Set[str]) -> Iterator[Change]:
    """Yield what must be so before anything of a task is launched."""
    task = state.tasks[name]
    if not engine_alive:
        yield Change(op="start_engine")
    if task.paused:
        yield Change(op="resume", task=name)
    if task.definition.disabled:
        yield Change(op="enable", task=name)
    if name in unavailable:
        yield Change(op="recover", task=name)
    for leaf in task.reads:
        if not leaf.synced:
            yield Change(op="observe", repository=leaf.id)


def candidates(state: State, name: str, job: str, now: int) -> list[Change]:
    """Return every change, other than the unavoidable ones, that could matter."""
    task = state.tasks[name]
    found: list[Change] = []
    for leaf in leaves_of(start_condition(task.definition)):
        for change in _of_leaf(state, leaf, job):
            if change not in found:
                found.append(change)
    for run in state.open_runs.values():
        op = "end_run" if run.settling is None else "wait_for"
        found.append(Change(op=op, run=run.run, task=run.task, job=state.jobs[run.job]))
    index = state.job_index.get(job, -1)
    found.append(Change(op="retry", task=name, job=job))
    found.append(Change(op="raise_priority", task=name, job=job))
    if index in task.awaiting:
        found.append(Change(op="evaluate", task=name, job=job))
    if task.definition.concurrency is not None:
        found.append(Change(op="raise_concurrency", task=name, concurrency=ENDLESS))
    episode, times = task.episodes.get(index), set[int]()
    if episode is not None and episode.not_before is not None:
        times.add(episode.not_before)
    if task.definition.quota is not None:
        quota = state.quotas[task.definition.quota]
        limits = {**quota.limits, **dict.fromkeys(task.definition.resources, ENDLESS)}
        launches = None if quota.launches is None else ENDLESS
        found.append(Change(op="raise_quota", quota=quota.definition.name, limits=limits, launches=launches))
        times |= {at + quota.definition.window for at in quota.recent}
    return found + [Change(op="wait_until", at=at) for at in sorted(times) if at > now]


def _of_leaf(state: State, name: str, job: str) -> Iterator[Change]:
    """Yield the changes of a leaf for a job, and of what it is derived from."""
    leaf, index = state.leaves[name], state.job_index.get(job)
    present = index is not None and state.masks[index] & leaf.bit != 0
    match leaf.definition.derived:
        case None:
            yield Change(op="delete" if present else "put", repository=name, job=job)
        case d.ViewDef(task=task, view=view):
            outcome = f"not {view}" if present else view
            yield Change(op="wait_for", task=task, job=job, outcome=outcome)
        case d.FilteredDef(base=base):
            yield Change(op="set_filter", repository=name, job=job, outcome=str(not present).lower())
            for below in leaves_of(base):
                yield from _of_leaf(state, below, job)
        case d.TranslatedDef(base=base, translator=translator):
            for below in leaves_of(translator):
                yield from _of_leaf(state, below, job)
            target = None if leaf.derived is None or index is None else leaf.derived.forward.get(index)
            if target is None:
                yield Change(op="set_translation", repository=name, job=job)
                return
            for below in leaves_of(base):
                yield from _of_leaf(state, below, state.jobs[target])
