"""What relieving the bottleneck would bring: the scenario again with twice as much of what bound it.

In: a result, and what it was simulated from. Out: the same scenario with more of that one resource, and its result.
Where no limit bound, but how long a task's runs take, runs of half the length are tried.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from datatask.adapters.sim.limits import limits_of, with_limit
from datatask.adapters.sim.scenario import Scenario
from datatask.adapters.sim.simulate import simulate_inputs

if TYPE_CHECKING:
    from datatask.adapters.sim.recorded import Recording
    from datatask.adapters.sim.result import Result
    from datatask.schema.definition import PipelineDef

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
    now = limits_of(result.definition, scenario).get(name)
    if now is None:
        return None
    change = f"{name} {now:g} → {FACTOR * now:g}"
    return change, with_limit(result.definition, scenario, name, FACTOR * now)
