"""Capacity for one more launch: the fewest limits raised, waits and priorities, on top of changes made already.

In: a what-if, a (task, job), and the changes that queue it. Out: these and what makes the next round launch it. A set
that cannot suffice, by the limits alone, is not tried. Raised amounts are as large as it takes for this job and for
those that come first, found by deciding without the limit.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations

from datatask.engine.core.decide import BOUND
from datatask.engine.core.quotas import QuotaState
from datatask.engine.explain.explanations import Change, iso_up
from datatask.engine.explain.what_if import WhatIf, end_of_run, index_of
from datatask.schema.events import LaunchDecided

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
            infeasible = self.quota.infeasible(definition.resources)
            self.infeasible = infeasible is not None and infeasible.dimension != "launches"
            self.full = self.quota.shortfall(definition.resources) is not None
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
        endless: list[Change] = []
        if slots:
            endless.append(Change(op="raise_concurrency", task=self.name, concurrency=PLENTY))
        if limits:
            quota = self._quota()
            parts = what_if.state.tasks[self.name].definition.resources
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
        return self._enough(changes, decided.decisions[: at + 1], slots=slots, limits=limits)

    def _enough(
        self, changes: list[Change], taken: list[LaunchDecided], *, slots: bool, limits: bool
    ) -> list[Change] | None:
        """Return the changes with limits that suffice for these launches, the last of which is the job's."""
        task, exact = self.what_if.state.tasks[self.name], list(changes)
        if slots:
            mine = sum(1 for launch in taken if launch.task == self.name)
            exact.append(Change(op="raise_concurrency", task=self.name, concurrency=task.open_runs + mine))
        if not limits:
            return exact
        self.what_if.reset(*changes)
        quota = self._quota()
        name = quota.definition.name
        owners = {other.name for other in self.what_if.state.tasks.values() if other.definition.quota == name}
        shared = [launch for launch in taken if launch.task in owners]
        enough = {
            part: quota.used.get(part, 0) + sum(launch.resources.get(part, 0) for launch in shared)
            for part in task.definition.resources
        }
        launches = quota.launches
        if launches is not None:
            recent = sum(1 for at in quota.recent if at > self.what_if.now - quota.definition.window)
            launches = max(launches, recent + len(shared))
        for margin in (0, 1):  # with some more: what is passed over may reserve what it lacks
            spare = {
                part: margin
                * sum(self.what_if.state.tasks[owner].definition.resources.get(part, 0) for owner in owners)
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

    def _quota(self) -> QuotaState:
        name = self.what_if.state.tasks[self.name].definition.quota
        assert name is not None, "only a task with a quota is held by one"
        return self.what_if.state.quotas[name]
