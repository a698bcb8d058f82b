"""Limits by name, what more of the bottleneck would bring, and the critical path of a simulated history.

A limit is `cluster.cpu` or `cluster.launches` (a quota), `fetch.concurrency` (a task) or `machines nodes` (a pool). In: a
definition and a scenario, or the records of a replication. Out: `Relief`, and `Step`s without gaps whose lengths add
up to the makespan. Backwards from the run that ended last, each run waited for the end of the run that freed capacity,
the end of the run that made its job ready, its own previous attempt, or else the arrival of its job.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from datatask.adapters.history.shapes import Table
from datatask.adapters.sim.scenario import Machines, Scenario
from datatask.adapters.sim.simulate import simulate_inputs
from datatask.schema.definition import PipelineDef
from datatask.schema.errors import UnknownNameError, one_of
from datatask.schema.units import NANO, SECOND

if TYPE_CHECKING:
    from datatask.adapters.sim.recording import Recording
    from datatask.adapters.sim.result import Result


POOL = "machines "


def limits_of(definition: PipelineDef, scenario: Scenario) -> dict[str, float]:
    """Return every limit and how much there is; `definition` has been `changed` by the scenario."""
    found: dict[str, float] = {}
    for quota in definition.quotas:
        asked = {
            name
            for task in definition.tasks
            if task.quota == quota.name
            for request in task.requests
            for name in request
        }
        found |= {
            f"{quota.name}.{name}": limit / NANO for name, limit in quota.limits.items() if name in asked
        }
        if quota.launches is not None:
            found[f"{quota.name}.launches"] = float(quota.launches)
    for task in definition.tasks:
        if task.concurrency is not None:
            found[f"{task.name}.concurrency"] = float(task.concurrency)
    return found | {f"{POOL}{pool.name}": float(pool.count) for pool in scenario.machines}


def least_of(definition: PipelineDef, name: str) -> float:
    """Return the least of a limit with which every task that needs it can run at all."""
    needed = [
        request[amount] / NANO
        for task in definition.tasks
        for request in task.requests
        for amount in request
        if f"{task.quota}.{amount}" == name
    ]
    return max(needed, default=1.0)


def is_whole(name: str) -> bool:
    """Whether there can only be whole numbers of it."""
    return name.startswith(POOL) or name.endswith((".concurrency", ".launches"))


def with_limit(definition: PipelineDef, scenario: Scenario, name: str, value: float) -> Scenario:
    """Return the scenario with another amount of one limit; `UnknownNameError` for an unknown limit."""
    for quota in definition.quotas:
        for amount in (*quota.limits, "launches"):
            if name == f"{quota.name}.{amount}":
                given: int | str = round(value) if amount == "launches" else f"{round(value * NANO)}n"
                own = {**scenario.quotas.get(quota.name, {}), amount: given}
                return replace(scenario, quotas={**scenario.quotas, quota.name: own})
    for task in definition.tasks:
        if name == f"{task.name}.concurrency":
            changed = replace(scenario.of(task.name), concurrency=round(value))
            return replace(scenario, tasks={**scenario.tasks, task.name: changed})
    if any(name == f"{POOL}{pool.name}" for pool in scenario.machines):
        pools = [
            _sized(pool, round(value)) if name == f"{POOL}{pool.name}" else pool for pool in scenario.machines
        ]
        return replace(scenario, machines=pools)
    raise UnknownNameError(
        f"there is no limit {name}",
        where=f"scenario {scenario.name}",
        remedy=one_of(limits_of(definition, scenario), name),
    )


def _sized(pool: Machines, count: int) -> Machines:
    """Return the pool with another count; machines that differ are repeated in their order."""
    again = [index % pool.count for index in range(count)]
    more: dict[str, Any] = {}
    if not isinstance(pool.speed, int | float):
        more["speed"] = [pool.speed[index] for index in again]
    if not isinstance(pool.amounts, Mapping):
        more["amounts"] = [pool.amounts[index] for index in again]
    return replace(pool, count=count, **more)


FACTOR = 2
REPLICATIONS_MAX = 20


@dataclass(frozen=True)
class Relief:
    """`change` in words, the mean makespans in seconds, and what binds next."""

    change: str
    before: float
    after: float
    next: str

    @property
    def saved(self) -> float:
        """The share of the time that is saved."""
        return 1 - self.after / self.before if self.before else 0.0


def relieve(definition: PipelineDef, recording: Recording | None, result: Result) -> Relief | None:
    """Return what twice as much of the bottleneck brings; None where more of it cannot be had."""
    found = with_more(result)
    if found is None:
        return None
    change, scenario = found
    many = min(scenario.replications, REPLICATIONS_MAX)
    again = simulate_inputs(definition, recording, replace(scenario, replications=many), keep_runs=False)
    before = sum(each.makespan for each in result.summaries[:many]) / many
    return Relief(change, before, again.makespan, again.bottleneck)


def with_more(result: Result) -> tuple[str, Scenario] | None:
    """Return the change in words and the scenario with it; `result.definition` has the limits that it ran under."""
    scenario, name = result.scenario, result.bottleneck
    now = limits_of(result.definition, scenario).get(name)
    if now is None:
        return None
    change = f"{name} {now:g} → {FACTOR * now:g}"
    return change, with_limit(result.definition, scenario, name, FACTOR * now)


LOOKED_AT_MAX = 100_000
"""Runs looked at when the cause of a wait is sought; it is nearly always among those that ended at that instant."""

COLUMNS = ("from", "to", "seconds", "what", "task", "job")


@dataclass(frozen=True)
class Step:
    """One stretch, seconds since the beginning: `what` is running, starting, waiting, backoff or arriving."""

    begin: float
    end: float
    what: str
    task: str
    job: str

    @property
    def seconds(self) -> float:
        """How long it is."""
        return self.end - self.begin


def critical_path(result: Result) -> list[Step]:
    """Return the steps of the first replication's critical path, the first one first; none without runs."""
    steps = list(_Walk(result).steps())
    steps.reverse()
    return steps


def path_table(steps: list[Step]) -> Table:
    """Return a row for each step."""
    rows = [(step.begin, step.end, step.seconds, step.what, step.task, step.job) for step in steps]
    return Table(COLUMNS, rows)


def in_sum(steps: list[Step]) -> dict[str, float]:
    """Return the seconds of the path by what and task (`running fetch`), the largest first."""
    found: dict[str, float] = {}
    for step in steps:
        name = f"{step.what} {step.task}"
        found[name] = found.get(name, 0.0) + step.seconds
    return dict(sorted(found.items(), key=lambda item: (-item[1], item[0])))


class _Walk:
    """Goes back through the records of a result."""

    def __init__(self, result: Result) -> None:
        assert result.records is not None, "the runs were not kept"
        self.records, self.names, self.begin = result.records, result.names, result.begin
        self.tasks = result.definition.tasks

    def steps(self) -> Iterator[Step]:
        """Yield the steps, the last one first."""
        records = self.records
        index: int | None = len(records) - 1
        while index is not None and index >= 0:
            ended, started = records.ended_at[index], records.started_at[index]
            decided, ready = records.decided_at[index], records.ready_at[index]
            yield from self._step("running", index, started, ended)
            yield from self._step("starting", index, decided, started)
            giver = self._giver(index) if decided > ready else None
            if giver is not None:
                index = giver
                continue
            yield from self._step("waiting", index, ready, decided)
            if records.attempt[index] > 1:
                before = self._attempt_before(index)
                if before is not None:
                    yield from self._step("backoff", index, records.ended_at[before], ready)
                    index = before
                    continue
            maker = self._maker(index)
            if maker is None:
                yield from self._step("arriving", index, self.begin, ready)
            index = maker

    def _step(self, what: str, index: int, begin: int, end: int) -> Iterator[Step]:
        begin = max(begin, self.begin)  # what was going on at the beginning counts from there
        if end > begin:
            records = self.records
            yield Step(
                (begin - self.begin) / SECOND,
                (end - self.begin) / SECOND,
                what,
                self.tasks[records.task[index]].name,
                self.names[records.job[index]],
            )

    def _ended_at(self, at: int, before: int) -> Iterator[int]:
        """Yield the runs that ended at an instant; records are in the order of their ends."""
        ends = self.records.ended_at
        index = bisect_left(ends, at)
        while index < len(ends) and ends[index] == at:
            if index != before:
                yield index
            index += 1

    def _giver(self, index: int) -> int | None:
        """Return the run whose end freed the capacity for this one."""
        records = self.records
        mine = self.tasks[records.task[index]]
        for other in self._ended_at(records.decided_at[index], index):
            task = self.tasks[records.task[other]]
            same_quota = mine.quota is not None and task.quota == mine.quota
            if (same_quota or (task is mine and mine.concurrency)) and self._is_earlier(other, index):
                return other
        return None

    def _maker(self, index: int) -> int | None:
        """Return the run whose end made this one's job ready: one of the same job, else one of a job it came from."""
        records = self.records
        ready, job = records.ready_at[index], self.names[records.job[index]]
        found = None
        for other in self._ended_at(ready, index):
            if not self._is_earlier(other, index):
                continue
            name = self.names[records.job[other]]
            if name == job:
                return other
            if found is None and (job.startswith(name) or name.startswith(job)):
                found = other
        return found

    def _attempt_before(self, index: int) -> int | None:
        records = self.records
        wanted = (records.task[index], records.job[index], records.attempt[index] - 1)
        last = bisect_left(records.ended_at, records.ready_at[index] + 1) - 1
        for other in range(last, max(-1, last - LOOKED_AT_MAX), -1):
            if (records.task[other], records.job[other], records.attempt[other]) == wanted:
                return other
        return None

    def _is_earlier(self, other: int, index: int) -> bool:
        """Whether going on there leads back: runs that take no time could otherwise explain each other."""
        records = self.records
        return (records.decided_at[other], records.run[other]) < (
            records.decided_at[index],
            records.run[index],
        )
