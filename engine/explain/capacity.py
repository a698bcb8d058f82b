"""What others take: quotas and who uses them, launch windows, a task's own concurrency, and those who come first.

In: a case, and the trial that its proposal has left in line. Out: holds with the amounts that are lacking and the open
runs that have them. Whether others come first is asked of the decider itself, not foretold.
"""

from __future__ import annotations

from collections.abc import Callable, Set
from typing import Any

from datatask.engine.core import decide as deciding
from datatask.engine.core.queues import Entry
from datatask.engine.core.quotas import QuotaState
from datatask.engine.core.state import State
from datatask.engine.core.tasks import OpenRun, TaskState
from datatask.engine.explain.blockers import Obstacles
from datatask.engine.explain.capacity_fixes import next_launch
from datatask.engine.explain.explanations import Amount, Explanation, Hold, iso, units, user_in_words, user_of
from datatask.engine.explain.fixes import propose
from datatask.engine.explain.what_if import Trial
from datatask.schema.units import NANO

AHEAD_MAX = 1000
SHOWN_MAX = 5
USERS_MAX = 50


class Case(Obstacles):
    """One (task, job): all that holds it back."""

    def explanation(self) -> Explanation:
        """Look at everything, and try what would help."""
        self.look()
        self._capacity()
        trial = Trial(self.state, self.now, engine_alive=self.engine_alive, unavailable=self.unavailable)
        proposal = propose(trial, self.task, self.job)
        launching = proposal.changes == []
        if proposal.beaten:
            self._order(trial)
        if proposal.changes is None:
            self._unreachable()
        return Explanation(
            task=self.task.name,
            job=self.name,
            ready=self.satisfied and self.run is None,
            at_position=self.state.position,
            conditions=self.conditions,
            held_by=self.holds,
            changes=proposal.changes or [],
            launching=launching,
            tree=self.tree,
        )

    def shared(self) -> list[Hold]:
        """Return what holds every job of the task that is in line as it holds this one."""
        self._surroundings()
        self._capacity()
        return self.holds

    def _unreachable(self) -> None:
        told = "no set of changes was found that lets it run"
        own = {view.id for view in (self.task.succeeded, self.task.failed)}
        if own & {leaf.id for leaf in self.task.reads}:
            told += ": its condition looks at the outcome of its own runs, which a new occasion clears"
        self._hold("unreachable", f"{told}; `launch --force` does")

    # --- capacity ---------------------------------------------------------------------------------

    def _capacity(self) -> None:
        own = 0 if self.run is None else 1
        limit, task = self.task.definition.concurrency, self.task
        if limit is not None and task.open_runs - own >= limit:
            runs, shown = self._users(lambda run: run.task == task.name)
            told = f"{task.name} runs {task.open_runs} of at most {limit} at once: {shown}"
            self._hold("concurrency", told, **runs)
        name = task.definition.quota
        if name is not None:
            self._quota(name, self.state.quotas[name])
            self._rate(name, self.state.quotas[name])

    def _quota(self, name: str, quota: QuotaState) -> None:
        freed = self.run.resources if self.run is not None and self.run.quota == name else {}
        for part, amount in self.task.definition.resources.items():
            limit, used = quota.limits.get(part, 0), quota.used.get(part, 0) - freed.get(part, 0)
            lacking = {part: Amount(needed=units(amount), used=units(used), limit=units(limit))}
            if amount > limit:
                told = f"{amount / NANO:g} {part} is asked for, {name} grants {limit / NANO:g} in all"
                self._hold("infeasible", told, quota=name, amounts=lacking)
            elif amount and used + amount > limit:
                runs, shown = self._users(lambda run: run.quota == name, part)
                told = f"{name} has {used / NANO:g} of {limit / NANO:g} {part} in use, {amount / NANO:g} is needed: {shown}"
                self._hold("quota", told, quota=name, amounts=lacking, **runs)

    def _rate(self, name: str, quota: QuotaState) -> None:
        free_at = next_launch(quota, self.now)
        if free_at is None:
            self._hold("infeasible", f"{name} allows no launches at all", quota=name)
        elif free_at > self.now:
            seconds = quota.definition.window / NANO
            told = f"{name} allows {quota.launches} launches in {seconds:g} s, the next at {iso(free_at)}"
            self._hold("rate", told, quota=name, until=iso(free_at))

    def _users(self, of: Callable[[OpenRun], bool], part: str = "") -> tuple[dict[str, Any], str]:
        """Return the open runs that have what is lacking, as fields of a hold and in words."""
        found = [
            run
            for run in self.state.open_runs.values()
            if of(run) and run is not self.run and (not part or run.resources.get(part))
        ]
        users = [user_of(self.state, run) for run in found[:USERS_MAX]]
        words = ", ".join(user_in_words(user) for user in users[:SHOWN_MAX])
        more = f" and {len(found) - SHOWN_MAX} more" if len(found) > SHOWN_MAX else ""
        return {"runs": users, "more": len(found) - len(users)}, words + more or "nothing runs"

    # --- the order --------------------------------------------------------------------------------

    def _order(self, trial: Trial) -> None:
        """What is free goes to those who come first, or is kept for one of them."""
        state, task = trial.state, trial.state.tasks[self.task.name]
        mine = _entry(task, self.job)
        keeper = reserving(state, task, trial.now, mine, trial.unavailable)
        if keeper is not None:
            other, job, position = keeper
            told = f"{task.definition.quota} keeps what becomes free for {other.name} {state.jobs[job]}, which has waited longest (since position {position})"
            self._hold("reserved", told, position, quota=task.definition.quota or "")
            return
        ahead = {other.name: _ahead(other, trial, mine, task) for other in state.tasks.values()}
        same, count = ahead[task.name], sum(ahead.values())
        over = "at least " if count >= AHEAD_MAX else ""
        self._hold("priority", f"{over}{count} waiting jobs come first, {same} of them in {task.name}")


def _entry(task: TaskState, job: int) -> Entry:
    episode = task.episodes.get(job)
    if episode is not None and not episode.run:
        return (-episode.priority, episode.position, job)
    return (-task.queue.priority(job), task.queue.position(job), job)


def _ahead(task: TaskState, trial: Trial, mine: Entry, own: TaskState) -> int:
    """Return how many jobs of a task come before this one, at most `AHEAD_MAX`."""
    if deciding.closed(task, trial.unavailable):
        return 0
    count = 0
    for entry in deciding.entries(task, trial.now, AHEAD_MAX):
        if count >= AHEAD_MAX or (entry, task.index) >= (mine, own.index):
            break
        count += 1
    return count


def reserving(
    state: State, task: TaskState, now: int, mine: Entry | None, unavailable: Set[str]
) -> tuple[TaskState, int, int] | None:
    """Return who keeps this task's quota for itself: its task, the job, and since which position it waits.

    The first, before `mine`, that is held by an amount and has waited for longer than `starvation_after`; and only where
    the task would have room without it.
    """
    name = task.definition.quota
    if name is None:
        return None
    quota = state.quotas[name]
    decided = deciding.decide(state, now, unavailable=unavailable)
    if not decided.constraints.get(task.name, "").startswith("quota: "):
        return None
    launched = decided.decisions
    used = dict(quota.used)
    for launch in launched:
        if state.tasks[launch.task].definition.quota == name:
            for part, amount in launch.resources.items():
                used[part] = used.get(part, 0) + amount
    request = task.definition.resources
    if any(
        amount and used.get(part, 0) + amount > quota.limits.get(part, 0) for part, amount in request.items()
    ):
        return None
    gone = {(launch.task, state.job_index[launch.job]) for launch in launched}
    found: list[tuple[Entry, int, TaskState]] = []
    for other in state.tasks.values():
        if other.definition.quota != name or deciding.closed(other, unavailable):
            continue
        line = deciding.entries(other, now, deciding.BOUND)
        head = next((entry for entry in line if (other.name, entry[2]) not in gone), None)
        if head is None or (mine is not None and (head, other.index) >= (mine, task.index)):
            continue
        if now - state.time_of(head[1]) >= quota.definition.starvation_after:
            if _lacks(other, used, quota):
                found.append((head, other.index, other))
    if not found:
        return None
    entry, _, other = min(found, key=lambda each: each[:2])
    return other, entry[2], entry[1]


def _lacks(task: TaskState, used: dict[str, int], quota: QuotaState) -> bool:
    request = task.definition.resources
    return quota.infeasible(request) is None and any(
        amount and used.get(part, 0) + amount > quota.limits.get(part, 0) for part, amount in request.items()
    )
