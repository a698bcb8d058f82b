"""Trying the future: what a scenario is made of, and what comes of it.

from datatask import simulate
from datatask.simulation import Arrivals, Exponential, Machines, Scenario, TaskScenario

scenario = Scenario(
    jobs=10_000,
    arrivals=Arrivals("poisson", per_second=2.0),
    tasks={"resize": TaskScenario(duration=Exponential(3.0), failure=0.01)},
    quotas={"default": {"cpu": 16}},
)
result = simulate(pipeline, scenario)
result.makespan, result.bottleneck, result.tasks()
"""

from __future__ import annotations

from datatask.adapters.sim.distributions import (
    Constant,
    Distribution,
    Empirical,
    Exponential,
    Lognormal,
    Uniform,
    Weibull,
)
from datatask.adapters.sim.result import Result, results_json
from datatask.adapters.sim.scenario import Arrivals, Machines, Scenario, TaskScenario
from datatask.adapters.sim.simulate import inputs, simulate, simulate_inputs
from datatask.adapters.sim.tables import durations_from_csv

__all__ = [
    "Arrivals",
    "Constant",
    "Distribution",
    "Empirical",
    "Exponential",
    "Lognormal",
    "Machines",
    "Result",
    "Scenario",
    "TaskScenario",
    "Uniform",
    "Weibull",
    "durations_from_csv",
    "inputs",
    "results_json",
    "simulate",
    "simulate_inputs",
]
