"""Trying the future: what a scenario is made of, and what comes of it.

from datatask.adapters.sim.simulate import simulate
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

from datatask.adapters.sim.bottleneck import Relief, Step, critical_path, path_table, relieve
from datatask.adapters.sim.capacity import Capacity, finish_by
from datatask.adapters.sim.distributions import (
    Constant,
    Distribution,
    Empirical,
    Exponential,
    Lognormal,
    Uniform,
    Weibull,
    durations_from_csv,
)
from datatask.adapters.sim.report import save as write_report
from datatask.adapters.sim.result import Result, results_json
from datatask.adapters.sim.scenario import Arrivals, Machines, Scenario, TaskScenario
from datatask.adapters.sim.simulate import Left, Present, inputs, left, simulate, simulate_inputs
from datatask.adapters.wiring.scenarios import scenarios_from_yaml

__all__ = [
    "Arrivals",
    "Capacity",
    "Constant",
    "Distribution",
    "Empirical",
    "Exponential",
    "Left",
    "Lognormal",
    "Machines",
    "Present",
    "Relief",
    "Result",
    "Scenario",
    "Step",
    "TaskScenario",
    "Uniform",
    "Weibull",
    "critical_path",
    "durations_from_csv",
    "finish_by",
    "inputs",
    "left",
    "path_table",
    "relieve",
    "results_json",
    "scenarios_from_yaml",
    "simulate",
    "simulate_inputs",
    "write_report",
]
