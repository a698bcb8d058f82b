"""Scenarios that cannot be, and what is neither pipeline nor log: refused in one line."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from datatask import (
    CallerError,
    simulate,
)
from datatask.simulation import (
    Arrivals,
    Machines,
    Scenario,
    TaskScenario,
)
from tests.integration.simulate_kit import PLAIN, POOL, shop


def test_jobs_that_cannot_go_on_are_told_with_what_they_wait_for() -> None:
    greedy = PLAIN.with_(default=TaskScenario(duration=1.0, resources={"cpu": 5}))
    (line,) = simulate(shop(), greedy).stuck
    assert line.startswith("cut: 40 jobs (job-00, job-01, job-02, …) wait: it asks for 5 cores")
    small = PLAIN.with_(machines=[Machines("hosts", count=2, amounts={"cpu": 0.5})])
    (line,) = simulate(shop(), small).stuck[:1]
    assert line.startswith("cut: 4 runs (job-00, job-01, job-02, …) wait for a machine of hosts")
    assert simulate(shop(), PLAIN).stuck == ()
    assert simulate(shop(), PLAIN.with_(until=3.0)).stuck == ()


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"tasks": {"cutt": TaskScenario()}}, "there is no task cutt"),
    ({"quotas": {"al": {"cpu": 1}}}, "there is no quota al"),
    ({"quotas": {"all": {"cpu": -1}}}, "negative"),
    ({"default": TaskScenario()}, "there is no duration for cut"),
    ({"default": TaskScenario(duration={"job-00": 1.0})}, "there is no duration for cut of job-01"),
    ({"jobs": None}, "number of jobs"),
    ({"entries": ["half", "no"]}, "there is no stored repository no"),
    ({"default": TaskScenario(duration=1, outputs=["no"])}, "has no output no"),
    ({"default": TaskScenario(duration=1, spawns={"no": 1})}, "there is no stored repository no"),
    ({"default": TaskScenario(duration=1, machines="no")}, "there are no machines"),
    ({"default": TaskScenario(duration=1, machines="no"), "machines": [POOL]}, "no such machines"),
    ({"arrivals": Arrivals("recorded")}, "arrivals are recorded"),
]


@pytest.mark.parametrize(("change", "told"), WRONG)
def test_what_a_scenario_has_wrong_is_named_in_one_line(change: dict[str, Any], told: str) -> None:
    with pytest.raises(CallerError) as caught:
        simulate(shop(), PLAIN.with_(**change))
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)


UNMAKEABLE: list[tuple[Any, str]] = [
    (
        lambda: Scenario(tasks={"cut": TaskScenario(duration=-1)}),
        "cut: constant: seconds is -1, which is negative",
    ),
    (lambda: Scenario(default=TaskScenario(failure=2)), "failure is 2"),
    (lambda: Scenario(default=TaskScenario(failure=0.1, outcomes=["failed"])), "both failure and outcomes"),
    (lambda: Scenario(default=TaskScenario(outcomes={"broken": 1})), "'broken' is not an outcome"),
    (lambda: Scenario(default=TaskScenario(outcomes={"failed": -1})), "the weight of failed is -1"),
    (lambda: Scenario(default=TaskScenario(outcomes={"failed": 0})), "no outcome has a weight"),
    (lambda: Scenario(default=TaskScenario(outputs={"out": 2})), "filled by 2"),
    (lambda: Scenario(default=TaskScenario(attempts=0)), "attempts is 0"),
    (lambda: Scenario(default=TaskScenario(timeout=0)), "timeout is 0"),
    (lambda: Scenario(jobs=-1), "-1 jobs"),
    (lambda: Scenario(jobs=["a", "a"]), "named twice"),
    (lambda: Scenario(jobs=["../a"]), "not a job id"),
    (lambda: Scenario(replications=0), "0 replications"),
    (lambda: Scenario(until=0), "until is 0"),
    (lambda: Arrivals("often"), "cannot arrive 'often'"),  # type: ignore[arg-type]
    (lambda: Arrivals("poisson"), "0 jobs a second"),
    (lambda: Scenario(machines=[Machines(count=0)]), "machines machines: there are 0"),
    (lambda: Scenario(machines=[Machines(speed=0)]), "speed 0"),
    (lambda: Scenario(machines=[Machines(count=3, amounts=[{"cpu": 1}])]), "1 amounts are given for 3"),
    (lambda: Scenario(machines=[Machines(mtbf=-5)]), "mtbf is -5"),
    (lambda: Scenario(machines=[Machines(), Machines()]), "one name"),
]


@pytest.mark.parametrize(("make", "told"), UNMAKEABLE)
def test_what_can_be_no_scenario_is_refused_at_once(make: Any, told: str) -> None:
    with pytest.raises(CallerError) as caught:
        make()
    assert told in str(caught.value)


def test_what_is_neither_pipeline_nor_log_is_refused() -> None:
    with pytest.raises(CallerError, match="int is nothing to simulate"):
        simulate(5)


def test_a_task_that_repeats_for_ever_needs_an_end() -> None:
    definition = shop().declare().definition
    repeating = msgspec.structs.replace(
        definition, tasks=tuple(msgspec.structs.replace(task, repeat=True) for task in definition.tasks)
    )
    with pytest.raises(CallerError, match="repeats for ever"):
        simulate(repeating, PLAIN)
    assert simulate(repeating, PLAIN.with_(until=60.0)).summaries[0].runs > 0
