"""What others use: quotas and their open runs, launch windows, a task's own concurrency, and the jobs that come first.

In: a `Case`; for the order also a what-if in which only the order is left in the way. Out: `Blocker`s, with the amounts
that are lacking and the open runs that use them. Whether others come first is asked of the decider, not foretold.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Set
from typing import Any

from datatask.engine.core import decide as deciding
from datatask.engine.core.queues import Entry
from datatask.engine.core.quotas import QuotaState
from datatask.engine.core.state import State
from datatask.engine.core.tasks import OpenRun, TaskState
from datatask.engine.explain.blockers import Case
from datatask.engine.explain.explanations import Amount, Blocker, iso_up, usage_of, usage_text
from datatask.engine.explain.what_if import WhatIf
from datatask.schema.units import NANO, in_units

AHEAD_MAX = 1000
SHOWN_MAX = 5
RUNS_MAX = 50


# --- limits -----------------------------------------------------------------------------------------


def limits(case: Case) -> Iterator[Blocker]:
    """Yield the limits that the job would exceed now; its own open run counts against none of them."""
    task, own = case.task, 0 if case.run is None else 1
    limit, name = task.definition.concurrency, task.definition.quota
    if limit is not None and task.open_runs - own >= limit:
        runs, shown = _using(case, lambda run: run.task == task.name)
        reason = f"{task.name} runs {task.open_runs} of at most {limit} at once: {shown}"
        yield Blocker("concurrency", reason, **runs)
    if name is not None:
        yield from _amounts(case, name, case.state.quotas[name])
        yield from _rate(case, name, case.state.quotas[name])


def _amounts(case: Case, name: str, quota: QuotaState) -> Iterator[Blocker]:
    freed = case.run.resources if case.run is not None and case.run.quota == name else {}
    for part, amount in case.task.definition.resources.items():
        limit, used = quota.limits.get(part, 0), quota.used.get(part, 0) - freed.get(part, 0)
        lacking = {part: Amount(needed=in_units(amount), used=in_units(used), limit=in_units(limit))}
        if amount > limit:
            reason = f"{amount / NANO:g} {part} is asked for, {name} grants {limit / NANO:g} in all"
            yield Blocker("infeasible", reason, quota=name, amounts=lacking)
        elif amount and used + amount > limit:
            runs, shown = _using(case, lambda run: run.quota == name, part)
            reason = f"{name} has {used / NANO:g} of {limit / NANO:g} {part} in use, {amount / NANO:g} is needed: {shown}"
            yield Blocker("quota", reason, quota=name, amounts=lacking, **runs)


def _rate(case: Case, name: str, quota: QuotaState) -> Iterator[Blocker]:
    free_at = quota.next_launch(case.now)
    if free_at is None:
        yield Blocker("infeasible", f"{name} allows no launches at all", quota=name)
    elif free_at > case.now:
        seconds, at = quota.definition.window / NANO, iso_up(free_at)
        reason = f"{name} allows {quota.launches} launches in {seconds:g} s, the next at {at}"
        yield Blocker("rate", reason, quota=name, until=at)


def _using(case: Case, of: Callable[[OpenRun], bool], part: str = "") -> tuple[dict[str, Any], str]:
    """Return the other open runs that use what is lacking, as fields of a blocker and in words."""
    found = [
        run
        for run in case.state.open_runs.values()
        if of(run) and run is not case.run and (not part or run.resources.get(part))
    ]
    runs = [usage_of(case.state, run) for run in found[:RUNS_MAX]]
    words = ", ".join(usage_text(run) for run in runs[:SHOWN_MAX])
    more = f" and {len(found) - SHOWN_MAX} more" if len(found) > SHOWN_MAX else ""
    return {"runs": runs, "more": len(found) - len(runs)}, words + more or "nothing runs"


# --- the order --------------------------------------------------------------------------------------


def order(case: Case, what_if: WhatIf) -> Blocker:
    """Return the blocker of a job that is queued and within its limits: a reservation, or the jobs that come first."""
    state, task = what_if.state, what_if.state.tasks[case.task.name]
    mine = _entry(task, case.job)
    reserved = reservation(state, task, what_if.now, mine, what_if.unavailable)
    if reserved is not None:
        return reserved
    ahead = {other.name: _ahead(other, what_if, mine, task) for other in state.tasks.values()}
    same, count = ahead[task.name], sum(ahead.values())
    over = "at least " if count >= AHEAD_MAX else ""
    return Blocker("priority", f"{over}{count} waiting jobs come first, {same} of them in {task.name}")


def _entry(task: TaskState, job: int) -> Entry:
    episode = task.episodes.get(job)
    if episode is not None and not episode.run:
        return (-episode.priority, episode.position, job)
    return (-task.queue.priority(job), task.queue.position(job), job)


def _ahead(task: TaskState, what_if: WhatIf, mine: Entry, own: TaskState) -> int:
    """Return how many jobs of a task come before this one, at most `AHEAD_MAX`."""
    if deciding.closed(task, what_if.unavailable):
        return 0
    count = 0
    for entry in deciding.entries(task, what_if.now, AHEAD_MAX):
        if count >= AHEAD_MAX or (entry, task.index) >= (mine, own.index):
            break
        count += 1
    return count


def reservation(
    state: State, task: TaskState, now: int, mine: Entry, unavailable: Set[str]
) -> Blocker | None:
    """Return the blocker of an entry whose quota is kept for an earlier one that lacks more, None where it is not.

    The earliest, before `mine`, that lacks an amount and has waited for longer than `starvation_after`; and only where
    the task would have what it needs without that.
    """
    name = task.definition.quota
    if name is None:
        return None
    decided = deciding.decide(state, now, unavailable=unavailable)
    constraint = decided.constraints.get(task.name)
    if constraint is None or constraint.kind != "quota":
        return None
    sharing = {other.name: other for other in state.tasks.values() if other.definition.quota == name}
    left, launched = state.quotas[name].copy(), set[tuple[str, int]]()
    for launch in decided.decisions:
        if launch.task in sharing:
            launched.add((launch.task, state.job_index[launch.job]))
            left.use(launch.resources)
    if left.shortfall(task.definition.resources) is not None:
        return None
    found: list[tuple[Entry, int, TaskState]] = []
    for other in sharing.values():
        if deciding.closed(other, unavailable):
            continue
        line = deciding.entries(other, now, deciding.BOUND)
        head = next((entry for entry in line if (other.name, entry[2]) not in launched), None)
        if head is None or (head, other.index) >= (mine, task.index):
            continue
        request, waited = other.definition.resources, now - state.time_of(head[1])
        if waited >= left.definition.starvation_after and left.shortfall(request) is not None:
            if left.infeasible(request) is None:
                found.append((head, other.index, other))
    if not found:
        return None
    (_, position, job), _, other = min(found, key=lambda each: each[:2])
    reason = f"{name} keeps what becomes free for {other.name} {state.jobs[job]}, which has waited longest (since position {position})"
    return Blocker("reserved", reason, position or None, quota=name)
