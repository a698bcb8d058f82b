"""Limits by the names that utilisation and bottlenecks have: read them, change them, and try more of the bottleneck.

`cluster.cpu` is an amount of a quota, `cluster.launches` its launches per window, `fetch.concurrency` the runs that a
task has at once, `machines nodes` the machines of a pool. In: a definition and a scenario, or a result. Out: numbers,
the same scenario with another number, and what twice as much of the bottleneck brings.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from datatask.adapters.sim.scenario import Machines, Scenario
from datatask.adapters.sim.simulate import simulate_inputs
from datatask.schema.definition import PipelineDef
from datatask.schema.errors import UnknownNameError, one_of
from datatask.schema.units import NANO

if TYPE_CHECKING:
    from datatask.adapters.sim.recording import Recording
    from datatask.adapters.sim.result import Result

POOL = "machines "


def limits_of(definition: PipelineDef, scenario: Scenario) -> dict[str, float]:
    """Return every limit and how much there is; `definition` has been `changed` by the scenario."""
    found: dict[str, float] = {}
    for quota in definition.quotas:
        asked = {name for task in definition.tasks if task.quota == quota.name for name in task.resources}
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
        task.resources[amount] / NANO
        for task in definition.tasks
        for amount in task.resources
        if f"{task.quota}.{amount}" == name
    ]
    return max(needed, default=1.0)


def is_whole(name: str) -> bool:
    """Whether there can only be whole numbers of it."""
    return name.startswith(POOL) or name.endswith((".concurrency", ".launches"))


def with_limit(definition: PipelineDef, scenario: Scenario, name: str, value: float) -> Scenario:
    """Return the scenario with so much of one limit; `UnknownNameError` where there is none of this name."""
    for quota in definition.quotas:
        for amount in (*quota.limits, "launches"):
            if name == f"{quota.name}.{amount}":
                told: int | str = round(value) if amount == "launches" else f"{round(value * NANO)}n"
                own = {**scenario.quotas.get(quota.name, {}), amount: told}
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
