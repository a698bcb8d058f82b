"""What others take: quotas, launch windows, a task's own concurrency, and those who come first.

One quota is raised once, by all that it lacks for this job and for those before it; where waiting helps, waiting is
proposed. What the same changes would make ready elsewhere is not foreseen.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from datatask.engine.core import decide as deciding
from datatask.engine.core.explanations import NANO, Change, Explanation, iso, parts_of, run_in_words
from datatask.engine.core.obstacles import Obstacles
from datatask.engine.core.quotas import QuotaState
from datatask.engine.core.tasks import TaskState

AHEAD_MAX = 1000
SHOWN_MAX = 5


class Case(Obstacles):
    """One (task, job): all that holds it back."""

    def explanation(self) -> Explanation:
        conditions = [self._condition(part) for part in parts_of(self.expr)]
        satisfied = all(condition.satisfied for condition in conditions)
        self._live(satisfied)
        self._data(satisfied)
        self._claimed(satisfied)
        self._evaluation()
        self._task()
        self._capacity()
        self._order(satisfied)
        return Explanation(
            task=self.task.name,
            job=self.name,
            ready=satisfied and self.run is None,
            at_position=self.state.position,
            conditions=conditions,
            held_by=self.holds,
            changes=self.changes,
        )

    # --- capacity ---------------------------------------------------------------------------------

    def _capacity(self) -> None:
        own = 0 if self.run is None else 1
        limit, task = self.task.definition.concurrency, self.task
        if limit is not None and task.open_runs - own >= limit:
            ahead = self._ahead(lambda other: other is task)
            self._hold(
                "concurrency",
                f"{task.name} runs {task.open_runs} of at most {limit} at once: {self._runs_of(task.name, None)}",
                Change(op="raise_concurrency", task=task.name, concurrency=task.open_runs - own + ahead + 1),
            )
        if task.definition.quota is not None:
            self._quota(task.definition.quota, self.state.quotas[task.definition.quota])

    def _quota(self, name: str, quota: QuotaState) -> None:
        request = self.task.definition.resources
        freed = self.run.resources if self.run is not None and self.run.quota == name else {}
        demand = self._demand(name)
        raised: dict[str, int] = {}
        for part, amount in request.items():
            limit, used = quota.limits.get(part, 0), quota.used.get(part, 0) - freed.get(part, 0)
            if not amount or used + amount <= limit:
                continue
            raised[part] = used + demand.get(part, 0) + amount
            if amount > limit:
                self._hold(
                    "infeasible",
                    f"{amount / NANO:g} {part} is asked for, {name} grants {limit / NANO:g} in all",
                )
            else:
                users = self._runs_of(None, name)
                self._hold(
                    "quota",
                    f"{name} has {used / NANO:g} of {limit / NANO:g} {part} in use, {amount / NANO:g} is needed: {users}",
                )
        launches = self._rate(name, quota, raising=bool(raised))
        if raised or launches is not None:
            for (
                part
            ) in request:  # one quota is raised once, by all that it lacks for those who come first too
                raised.setdefault(
                    part,
                    max(
                        quota.limits.get(part, 0),
                        quota.used.get(part, 0) + demand.get(part, 0) + request[part],
                    ),
                )
            limits = {**quota.limits, **raised}
            self.changes.append(
                Change(
                    op="raise_quota",
                    quota=name,
                    limits=limits,
                    launches=launches if launches is not None else quota.launches,
                )
            )

    def _rate(self, name: str, quota: QuotaState, *, raising: bool) -> int | None:
        """Tell of a full launch window; return the launches it would need where waiting does not help."""
        if quota.launches is None:
            return None
        recent = [at for at in quota.recent if at > self.now - quota.definition.window]
        free_at = (
            recent[-quota.launches] + quota.definition.window if 0 < quota.launches <= len(recent) else 0
        )
        horizon, self.horizon = self.horizon, max(self.horizon, free_at)
        ahead = self._ahead(lambda other: other.definition.quota == name)
        needed = len(recent) + ahead + 1
        if quota.launches <= 0:
            self._hold("infeasible", f"{name} allows no launches at all")
            return needed
        if len(recent) < quota.launches:
            return needed if raising and needed > quota.launches else None
        seconds = quota.definition.window / NANO
        self._hold(
            "rate", f"{name} allows {quota.launches} launches in {seconds:g} s, the next at {iso(free_at)}"
        )
        if raising or ahead:
            self.horizon = horizon
            return needed
        self._wait(free_at)
        return None

    def _runs_of(self, task: str | None, quota: str | None) -> str:
        runs = [
            run for run in self.state.open_runs.values() if run.task == task or (run.quota == quota and quota)
        ]
        shown = ", ".join(run_in_words(self.state, run) for run in runs[:SHOWN_MAX])
        return (
            shown + (f" and {len(runs) - SHOWN_MAX} more" if len(runs) > SHOWN_MAX else "") or "nothing runs"
        )

    # --- the order --------------------------------------------------------------------------------

    def _before(self, task: TaskState) -> Iterator[int]:
        """Yield the jobs of a task that come before this one, at most `AHEAD_MAX`."""
        if task is not self.task and deciding.closed(task, self.unavailable):
            return
        mine = self._entry()
        for number, entry in enumerate(deciding.entries(task, self.horizon, AHEAD_MAX)):
            if number >= AHEAD_MAX or (entry, task.index) >= (mine, self.task.index):
                return
            yield entry[2]

    def _entry(self) -> tuple[float, int, int]:
        task, job = self.task, self.job
        if self.episode is not None and self.run is None:
            return (-self.episode.priority, self.episode.position, job)
        if job in task.queue:
            return (-task.queue.priority(job), task.queue.position(job), job)
        return (0.0, self.state.position + 1, job)

    def _ahead(self, among: Callable[[TaskState], bool]) -> int:
        return sum(1 for task in self.state.tasks.values() if among(task) for _ in self._before(task))

    def _demand(self, quota: str) -> dict[str, int]:
        """Return what the jobs that come before this one ask of a quota."""
        demand: dict[str, int] = {}
        for task in self.state.tasks.values():
            if task.definition.quota == quota:
                count = sum(1 for _ in self._before(task))
                for part, amount in task.definition.resources.items():
                    demand[part] = demand.get(part, 0) + amount * count
        return demand

    def _order(self, satisfied: bool) -> None:
        """What is free goes to those who come first."""
        if not self._beaten(satisfied):
            return
        same, ahead = sum(1 for _ in self._before(self.task)), self._ahead(lambda other: True)
        self._hold(
            "priority",
            f"{ahead} waiting jobs come first, {same} of them in {self.task.name}",
            Change(op="raise_priority", task=self.task.name, job=self.name),
        )

    def _beaten(self, satisfied: bool) -> bool:
        """Whether the next round passes by this job for others, all else being as it should."""
        if satisfied and not self.holds:
            found = deciding.decide(self.state, self.now, unavailable=self.unavailable)
            return all((each.task, each.job) != (self.task.name, self.name) for each in found.decisions)
        raised = {change.op for change in self.changes}
        own, task = 0 if self.run is None else 1, self.task
        limit = task.definition.concurrency
        if limit is not None and "raise_concurrency" not in raised:
            if task.open_runs - own + self._ahead(lambda other: other is task) >= limit:
                return True
        if self._ahead(lambda other: True) >= deciding.BOUND:
            return True
        return (
            task.definition.quota is not None
            and "raise_quota" not in raised
            and self._outbid(task.definition.quota)
        )

    def _outbid(self, name: str) -> bool:
        """Whether those who come first leave too little of the quota."""
        quota, demand = self.state.quotas[name], self._demand(name)
        freed = self.run.resources if self.run is not None and self.run.quota == name else {}
        for part, amount in self.task.definition.resources.items():
            used = quota.used.get(part, 0) - freed.get(part, 0) + demand.get(part, 0)
            if amount and used + amount > quota.limits.get(part, 0):
                return True
        if quota.launches is None:
            return False
        waits = max(
            (change.at or 0 for change in self.changes if change.op == "wait_until"), default=self.now
        )
        recent = sum(1 for at in quota.recent if at > waits - quota.definition.window)
        return recent + self._ahead(lambda other: other.definition.quota == name) >= quota.launches
