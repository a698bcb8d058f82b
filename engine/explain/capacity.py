"""Capacity as a blocker and as a remedy: quotas, launch windows, a task's concurrency, and jobs that come first.

In: a `Case`, or a what-if with the changes that queue the job. Out: `Blocker`s with the missing amounts and the open runs
that use them; and the fewest limits raised, waits and priorities after which the next round launches the job. A set that
the limits alone rule out is not tried. Whether others come first, and how far a limit must rise, is found by deciding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Set
from itertools import combinations
from typing import Any

from datatask.engine.core import decide as deciding
from datatask.engine.core.decide import BOUND
from datatask.engine.core.quotas import QuotaState
from datatask.engine.core.selection import Chosen
from datatask.engine.core.state import State
from datatask.engine.core.tasks import Entry, OpenRun, TaskState
from datatask.engine.explain.blockers import Case
from datatask.engine.explain.explanations import Amount, Blocker, Change, iso_up, usage_of, usage_text
from datatask.engine.explain.what_if import WhatIf, end_of_run, index_of
from datatask.schema.definition import Selection
from datatask.schema.units import NANO, amount_figure, amount_words, in_units

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
    for part, amount in case.task.request(case.job).items():
        limit, used = quota.limits.get(part, 0), quota.used.get(part, 0) - freed.get(part, 0)
        lacking = {part: Amount(needed=in_units(amount), used=in_units(used), limit=in_units(limit))}
        words = amount_words(part, amount)
        if amount > limit:
            reason = f"it asks for {words}, {name} grants {amount_figure(part, limit)} in all"
            yield Blocker("infeasible", reason, quota=name, amounts=lacking)
        elif amount and used + amount > limit:
            runs, shown = _using(case, lambda run: run.quota == name, part)
            held = f"{amount_figure(part, used)} of {amount_words(part, limit)}"
            reason = f"{name} has {held} in use, it asks for {words}: {shown}"
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
    reserved = reservation(state, task, what_if.now, mine, what_if.unavailable, what_if.selection)
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
    selection = what_if.selection
    if deciding.closed(task, what_if.unavailable, selection):
        return 0
    count = 0
    for entry in deciding.entries(task, what_if.now, AHEAD_MAX, chosen(what_if.state, selection)):
        if count >= AHEAD_MAX or (entry, task.index) >= (mine, own.index):
            break
        count += 1
    return count


def chosen(state: State, selection: Selection | None) -> Chosen | None:
    """Return the jobs that a selection chooses, None for all."""
    jobs = None if selection is None else selection.jobs
    return None if jobs is None else Chosen(state, jobs, members=False)


def reservation(
    state: State,
    task: TaskState,
    now: int,
    mine: Entry,
    unavailable: Set[str],
    selection: Selection | None,
) -> Blocker | None:
    """Return the blocker of an entry whose quota is kept for an earlier one that lacks more, None where it is not.

    The earliest, before `mine`, that lacks an amount and has waited for longer than `starvation_after`; and only where
    the task would have what it needs without that.
    """
    name = task.definition.quota
    if name is None:
        return None
    decided = deciding.decide(state, now, unavailable=unavailable, selection=selection, members=False)
    constraint = decided.constraints.get(task.name)
    if constraint is None or constraint.kind != "quota":
        return None
    sharing = {other.name: other for other in state.tasks.values() if other.definition.quota == name}
    left, launched = state.quotas[name].copy(), set[tuple[str, int]]()
    for launch in decided.decisions:
        if launch.task in sharing:
            launched.add((launch.task, state.job_index[launch.job]))
            left.use(launch.resources)
    if left.shortfall(task.request(mine[2])) is not None:
        return None
    found: list[tuple[Entry, int, TaskState]] = []
    for other in sharing.values():
        if deciding.closed(other, unavailable, selection):
            continue
        line = deciding.entries(other, now, deciding.BOUND, chosen(state, selection))
        head = next((entry for entry in line if (other.name, entry[2]) not in launched), None)
        if head is None or (head, other.index) >= (mine, task.index):
            continue
        request, waited = other.request(head[2]), now - state.time_of(head[1])
        if waited >= left.definition.starvation_after and left.shortfall(request) is not None:
            if left.infeasible(request) is None:
                found.append((head, other.index, other))
    if not found:
        return None
    (_, position, job), _, other = min(found, key=lambda each: each[:2])
    reason = f"{name} keeps what becomes free for {other.name} {state.jobs[job]}, which has waited longest (since position {position})"
    return Blocker("reserved", reason, position or None, quota=name)


PLENTY = 1 << 62
ADDED_MAX = 4
ENDED_TRIED = 4
"""How many open runs of one kind are tried as the one to end."""

WAIT = Change(op="wait_until")
FRONT = Change(op="raise_priority")
SLOTS = Change(op="raise_concurrency")
LIMITS = Change(op="raise_quota")


class CapacitySearch:
    """The search for one queued job. `beaten`: nothing but the jobs that come first is in the way."""

    def __init__(self, what_if: WhatIf, name: str, job: int, prefix: list[Change]) -> None:
        self.what_if, self.name, self.job = what_if, name, job
        self.job_name = what_if.state.jobs[job]
        self.prefix = prefix
        self.beaten = False

    def run(self, most: int | None) -> list[Change] | None:
        """Return the prefix and at most `most` more changes (None: any number), None if that is too few."""
        if most is not None and most < 0:
            return None
        self.what_if.reset(*self.prefix)
        self._measure()
        if not self.needs:
            if self.what_if.launches(self.name, self.job):
                return self.prefix
            self.beaten = True
        options = list(self._options())
        sizes = ADDED_MAX if most is None else min(ADDED_MAX, most + self._waits())
        for size in range(1, sizes + 1):
            for chosen in combinations(options, size):
                found = self._try(chosen)
                if found is not None and (most is None or len(found) <= len(self.prefix) + most):
                    return found
        return None

    def _measure(self) -> None:
        """Work out from the limits alone what must give way."""
        task, what_if = self.what_if.state.tasks[self.name], self.what_if
        definition = task.definition
        self.quota = None if definition.quota is None else what_if.state.quotas[definition.quota]
        self.slots = definition.concurrency is not None and task.open_runs >= definition.concurrency
        self.infeasible, self.full = False, False
        self.free_at: int | None = None
        needs = {"slots"} if self.slots else set()
        if self.quota is not None:
            infeasible = self.quota.infeasible(task.request(self.job))
            self.infeasible = infeasible is not None and infeasible.dimension != "launches"
            self.full = self.quota.shortfall(task.request(self.job)) is not None
            self.free_at = self.quota.next_launch(what_if.now)
            needs |= {"amounts"} if self.infeasible or self.full else set()
            needs |= {"rate"} if self.free_at != what_if.now else set()
        self.needs = needs

    def _options(self) -> Iterator[Change]:
        """Yield what might help; what is easiest for people first."""
        if "rate" in self.needs and self.free_at is not None:
            yield WAIT
        yield FRONT
        if self.what_if.state.tasks[self.name].definition.concurrency is not None:
            yield SLOTS
        if self.quota is not None:
            yield LIMITS
        if self.slots and self.full and not self.infeasible:
            yield from self._endings()

    def _endings(self) -> Iterator[Change]:
        """Yield the runs whose end would free a slot and amounts at once: a few of each kind."""
        kinds: dict[object, int] = {}
        for run in self.what_if.below.open_runs.values():
            if run.task != self.name or run.run not in self.what_if.state.open_runs:
                continue
            outcome = run.settling.outcome if run.settling is not None else ""
            kind = (run.quota, tuple(sorted(run.resources.items())), run.stopping, outcome)
            kinds[kind] = kinds.get(kind, 0) + 1
            if kinds[kind] <= ENDED_TRIED:
                yield end_of_run(self.what_if.below, run.run)

    def _try(self, chosen: tuple[Change, ...]) -> list[Change] | None:
        """Return the set that these make, if the next round then launches the job."""
        ends = [change for change in chosen if change.run is not None]
        helped = {"slots": SLOTS in chosen or bool(ends), "amounts": LIMITS in chosen or bool(ends),
                  "rate": WAIT in chosen or LIMITS in chosen}  # fmt: skip
        if any(not helped[need] for need in self.needs):
            return None
        changes = [
            *self.prefix,
            *ends,
        ]  # last: the job whose run is ended becomes ready anew, behind this one
        if WAIT in chosen and self.free_at is not None:  # one wait serves all that time heals
            changes = [change for change in changes if change.op != "wait_until"]
            changes.append(Change(op="wait_until", until=iso_up(self.free_at), at=self.free_at))
        if FRONT in chosen:
            changes.append(Change(op="raise_priority", task=self.name, job=self.job_name))
        return self._raised(changes, slots=SLOTS in chosen, limits=LIMITS in chosen)

    def _waits(self) -> bool:
        return any(change.op == "wait_until" for change in self.prefix)

    # --- how much -------------------------------------------------------------------------------------

    def _raised(self, changes: list[Change], *, slots: bool, limits: bool) -> list[Change] | None:
        """Return the changes and the raised limits if the job is then launched."""
        what_if = self.what_if
        what_if.reset(*changes)
        if not slots and not limits:
            return changes if what_if.launches(self.name, self.job) else None
        # Room for this job alone may do: others that lack more are passed over then, and with more room would reserve it.
        own = what_if.state.tasks[self.name].definition.resources
        least = self._enough(changes, 1, [own], slots=slots, limits=limits, margins=(0,))
        if least is not None:
            return least
        what_if.reset(*changes)
        endless: list[Change] = []
        if slots:
            endless.append(Change(op="raise_concurrency", task=self.name, concurrency=PLENTY))
        if limits:
            quota = self._quota()
            parts = what_if.state.tasks[self.name].request(self.job)
            more = {**quota.limits, **dict.fromkeys(parts, PLENTY)}
            plenty = None if quota.launches is None else PLENTY
            endless.append(
                Change(op="raise_quota", quota=quota.definition.name, limits=more, launches=plenty)
            )
        for change in endless:
            what_if.make(change)
        first = any(change.op == "raise_priority" for change in changes)
        decided = what_if.round(self.name, self.job, bound=1 if first else BOUND)
        at = None if decided is None else index_of(decided, self.name, self.job_name)
        if decided is None or at is None:
            return None
        taken = decided.decisions[: at + 1]
        mine = sum(1 for launch in taken if launch.task == self.name)
        shared = [launch.resources for launch in taken if launch.task in self._owners()]
        return self._enough(changes, mine, shared, slots=slots, limits=limits, margins=(0, 1))

    def _enough(
        self,
        changes: list[Change],
        mine: int,
        shared: list[dict[str, int]],
        *,
        slots: bool,
        limits: bool,
        margins: tuple[int, ...],
    ) -> list[Change] | None:
        """Return the changes with limits that have room for so many launches of the task, and for what these ask of the quota.

        With a margin of 1 there is some more: what is passed over may reserve what it lacks.
        """
        task, exact = self.what_if.state.tasks[self.name], list(changes)
        if slots:
            exact.append(Change(op="raise_concurrency", task=self.name, concurrency=task.open_runs + mine))
        if not limits:
            self.what_if.reset(*exact)
            return exact if self.what_if.launches(self.name, self.job) else None
        self.what_if.reset(*changes)
        quota, owners = self._quota(), self._owners()
        name = quota.definition.name
        enough = {
            part: quota.used.get(part, 0) + sum(resources.get(part, 0) for resources in shared)
            for part in task.request(self.job)
        }
        launches = quota.launches
        if launches is not None:
            recent = sum(1 for at in quota.recent if at > self.what_if.now - quota.definition.window)
            launches = max(launches, recent + len(shared))
        for margin in margins:
            spare = {
                part: margin * sum(_most(self.what_if.state.tasks[owner], part) for owner in owners)
                for part in enough
            }
            larger = {
                part: max(quota.limits.get(part, 0), amount + spare[part]) for part, amount in enough.items()
            }
            limits_now = {**quota.limits, **larger}
            change = Change(op="raise_quota", quota=name, limits=limits_now, launches=launches)
            self.what_if.reset(*exact, change)
            if self.what_if.launches(self.name, self.job):
                return [*exact, change]
        return None

    def _owners(self) -> set[str]:
        """Return the tasks that share the quota."""
        quota = self.what_if.state.tasks[self.name].definition.quota
        tasks = self.what_if.state.tasks.values()
        return {task.name for task in tasks if quota is not None and task.definition.quota == quota}

    def _quota(self) -> QuotaState:
        name = self.what_if.state.tasks[self.name].definition.quota
        assert name is not None, "only a task with a quota is held by one"
        return self.what_if.state.quotas[name]


def _most(task: TaskState, part: str) -> int:
    """Return the most that any attempt of a task takes of something."""
    return max(request.get(part, 0) for request in task.definition.requests)
