"""The critical path: from the arrival to the end, and it adds up to the makespan."""

from __future__ import annotations

import random

import pytest

from datatask import (
    simulate,
)
from datatask.adapters.sim.bottleneck import critical_path, in_sum, path_table
from datatask.adapters.sim.result import Result
from datatask.simulation import Arrivals, Exponential, Machines, Scenario, TaskScenario
from tests.unit.sim_kit import chain


def lengths(result: Result) -> dict[str, float]:
    """Return the seconds of the critical path by what, after checking that it has no gap."""
    steps = critical_path(result)
    at = 0.0
    for step in steps:
        assert step.begin == pytest.approx(at)
        at = step.end
    assert at == pytest.approx(result.makespan)
    found: dict[str, float] = {}
    for step in steps:
        found[step.what] = found.get(step.what, 0.0) + step.seconds
    return found


def test_a_job_alone_is_its_own_critical_path() -> None:
    scenario = Scenario(
        jobs=1, tasks={"fetch": TaskScenario(duration=3), "crunch": TaskScenario(duration=5, latency=2)}
    )
    result = simulate(chain(), scenario)
    steps = critical_path(result)
    assert [(step.what, step.task, step.seconds) for step in steps] == [
        ("running", "fetch", 3.0),
        ("starting", "crunch", 2.0),
        ("running", "crunch", 5.0),
    ]
    assert in_sum(steps) == {"running crunch": 5.0, "running fetch": 3.0, "starting crunch": 2.0}
    assert path_table(steps)[0] == {
        "from": 0.0,
        "to": 3.0,
        "seconds": 3.0,
        "what": "running",
        "task": "fetch",
        "job": "job-0",
    }


def test_where_runs_wait_for_room_the_path_goes_through_those_that_had_it() -> None:
    """Ten runs of 3 seconds one after another: nothing but running."""
    result = simulate(
        chain(1),
        Scenario(jobs=10, tasks={"fetch": TaskScenario(duration=3), "crunch": TaskScenario(duration=1)}),
    )
    assert lengths(result) == {"running": pytest.approx(31.0)}
    assert len(critical_path(result)) == 11


def test_a_path_begins_where_its_job_arrives() -> None:
    result = simulate(
        chain(), Scenario(jobs=3, arrivals=Arrivals("even", 0.01), default=TaskScenario(duration=1))
    )
    assert lengths(result)["running"] == pytest.approx(2.0)
    assert lengths(result)["arriving"] == pytest.approx(result.makespan - 2.0)


@pytest.mark.parametrize("seed", range(6))
def test_the_steps_add_up_to_the_makespan(seed: int) -> None:
    """With chance in everything: durations, failures, retries, arrivals, machines."""
    rng = random.Random(seed)
    scenario = Scenario(
        jobs=60,
        arrivals=Arrivals("poisson", rng.choice([0.5, 5.0])),
        default=TaskScenario(
            duration=Exponential(rng.choice([0.5, 3.0])),
            failure=0.2,
            attempts=3,
            latency=rng.choice([0.0, 0.3]),
        ),
        machines=[Machines(count=3, mtbf=50.0, repair=5.0)] if seed % 2 else [],
        seed=seed,
    )
    assert sum(lengths(simulate(chain(rng.choice([2, None, 15])), scenario)).values()) > 0
