"""What relieving the bottleneck would bring: the scenario again with twice as much of what bound it.

In: a result, and what it was simulated from. Out: the same scenario with more of that one resource, and its result.
Where no limit bound, but how long a task's runs take, runs of half the length are tried.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from datatask.adapters.sim.scenario import Scenario, TaskScenario
from datatask.adapters.sim.simulate import simulate_inputs

if TYPE_CHECKING:
    from datatask.adapters.sim.recorded import Recording
    from datatask.adapters.sim.result import Result
    from datatask.schema.definition import PipelineDef

FACTOR = 2
NANO = 1_000_000_000
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
    found = relieved(result)
    if found is None:
        return None
    change, scenario = found
    many = min(scenario.replications, REPLICATIONS_MAX)
    again = simulate_inputs(definition, recording, replace(scenario, replications=many), keep_runs=False)
    before = sum(each.makespan for each in result.summaries[:many]) / many
    return Relief(change, before, again.makespan, again.bottleneck)


def relieved(result: Result) -> tuple[str, Scenario] | None:
    """Return the change in words and the scenario with it; `result.definition` has the limits that it ran under."""
    scenario, name = result.scenario, result.bottleneck
    for quota in result.definition.quotas:
        for amount, limit in quota.limits.items():
            if name == f"{quota.name}.{amount}":
                more = f"{FACTOR * limit}n"
                limits = {**scenario.quotas.get(quota.name, {}), amount: more}
                told = f"{quota.name}.{amount} {limit / NANO:g} → {FACTOR * limit / NANO:g}"
                return told, replace(scenario, quotas={**scenario.quotas, quota.name: limits})
    for task in result.definition.tasks:
        if name == f"{task.name}.concurrency" and task.concurrency:
            own = replace(scenario.of(task.name), concurrency=FACTOR * task.concurrency)
            told = f"{task.name}.concurrency {task.concurrency} → {FACTOR * task.concurrency}"
            return told, _with_task(scenario, task.name, own)
    for index, pool in enumerate(scenario.machines):
        if name == f"machines {pool.name}":
            speeds = pool.speeds()
            speed = pool.speed if isinstance(pool.speed, int | float) else speeds * FACTOR
            more_of_it = replace(pool, count=FACTOR * pool.count, speed=speed)
            pools = [*scenario.machines[:index], more_of_it, *scenario.machines[index + 1 :]]
            told = f"{pool.name} {pool.count} → {FACTOR * pool.count} machines"
            return told, replace(scenario, machines=pools)
    return None


def _with_task(scenario: Scenario, name: str, task: TaskScenario) -> Scenario:
    return replace(scenario, tasks={**scenario.tasks, name: task})
