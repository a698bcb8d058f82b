"""Whether one state is consistent in itself: `check(state)`, from scratch, for tests and `verify`.

In: a state. Out: what does not follow from the rest of it: counts and bitmaps from masks, queues from readiness,
`live` and usage from open runs. Costs O(jobs * (leaves + tasks)), so `verify` asks at the end and now and then.
"""

from __future__ import annotations

from collections import Counter

from datatask.engine.core.divergences import Divergence
from datatask.engine.core.members import get_at
from datatask.engine.core.state import State
from datatask.engine.core.tasks import TaskState

TOLD_MAX = 1000


def check(state: State) -> list[Divergence]:
    """Return what does not hold in this state."""
    found = _members(state) + _runs(state) + _usage(state)
    for task in state.tasks.values():
        found += _task(state, task)
    return found[:TOLD_MAX]


def _members(state: State) -> list[Divergence]:
    found = []
    for leaf in state.leaves.values():
        bit = leaf.bit
        by_mask = [job for job, mask in enumerate(state.masks) if mask & bit]
        if leaf.count != len(by_mask):
            found.append(
                Divergence(state.position, f"{leaf.id}: number of members", len(by_mask), leaf.count)
            )
        if list(leaf.members(state.masks)) != by_mask:
            found.append(Divergence(state.position, f"{leaf.id}: members", "those of the masks", "others"))
    return found


def _runs(state: State) -> list[Divergence]:
    found = []
    pairs = Counter((run.task, run.job) for run in state.open_runs.values())
    for (task, job), number in pairs.items():
        if number > 1:
            what = f"{task} {state.jobs[job]}: open runs"
            found.append(Divergence(state.position, what, 1, number))
    for run in state.open_runs.values():
        episode = state.tasks[run.task].episodes.get(run.job)
        told = None if episode is None else episode.run
        if told != run.run:
            found.append(
                Divergence(state.position, f"the run of the episode of run {run.run}", run.run, told)
            )
        counted = get_at(state.tasks[run.task].episode_count, run.job)
        if run.episode != counted:
            found.append(Divergence(state.position, f"the episode of run {run.run}", counted, run.episode))
    return found


def _usage(state: State) -> list[Divergence]:
    used: Counter[tuple[str, str]] = Counter()
    for run in state.open_runs.values():
        for name, amount in run.resources.items() if run.quota is not None else ():
            used[run.quota or "", name] += amount
    told = {(name, part): n for name, quota in state.quotas.items() for part, n in quota.used.items() if n}
    summed = {key: amount for key, amount in used.items() if amount}
    if told == summed:
        return []
    return [Divergence(state.position, "usage of quotas", repr(summed), repr(told))]


def _task(state: State, task: TaskState) -> list[Divergence]:
    found = []
    live = task.live.members(state.masks)
    open_here = {run.job for run in state.open_runs.values() if run.task == task.name}
    if set(live) != open_here or task.open_runs != len(open_here):
        found.append(
            Divergence(state.position, f"{task.name}: live", len(open_here), f"{len(live)}, {task.open_runs}")
        )
    test, claim, queue, awaiting = task.condition.test, task.claim, task.queue, task.awaiting
    for job, mask in enumerate(state.masks):
        waits = (job in queue) + (job in awaiting)
        expected = int(test(mask) and not mask & claim)
        if waits != expected:
            what = f"{task.name} {state.jobs[job]}: places in queues"
            found.append(Divergence(state.position, what, expected, waits))
        if job in task.episodes and not mask & claim:
            what = f"{task.name} {state.jobs[job]}: claim of its episode"
            found.append(Divergence(state.position, what, "claimed", "not claimed"))
    return found
