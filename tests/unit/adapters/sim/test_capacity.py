"""The cheapest limits that make it in time: those that trying everything finds, and what to say where none do."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from functools import partial
from typing import Any

import pytest

from datatask import (
    CallerError,
    InProcessSyncTask,
    LogMetadataRepository,
    Pipeline,
    Session,
    UnknownNameError,
)
from datatask.adapters.clock import SpentError
from datatask.adapters.sim.bottleneck import limits_of, with_limit
from datatask.adapters.sim.capacity import Capacity, finish_by
from datatask.adapters.sim.result import quantile
from datatask.simulation import (
    Arrivals,
    Exponential,
    Machines,
    Result,
    Scenario,
    TaskScenario,
    inputs,
    simulate_inputs,
)
from tests.unit.sim_kit import chain

DEFINITION, _ = inputs(chain(2))
run = partial(simulate_inputs, DEFINITION, None, processes=1)
FETCH, CRUNCH = "fetch.concurrency", "crunch.concurrency"


def brute(
    scenario: Scenario, by: float, axes: dict[str, Sequence[float]], confidence: float = 0.9
) -> float | None:
    """Return the least cost that trying every point finds."""
    now = limits_of(DEFINITION, scenario)
    found = []
    for levels in itertools.product(*axes.values()):
        tried = scenario
        for name, level in zip(axes, levels, strict=True):
            tried = with_limit(DEFINITION, tried, name, level)
        spans = sorted(each.makespan for each in run(tried).summaries)
        if quantile(spans, confidence) <= by:
            found.append(sum(level / now[name] for name, level in zip(axes, levels, strict=True)))
    return min(found, default=None)


@pytest.mark.parametrize("by", [15.0, 30.0, 45.0, 90.0])
@pytest.mark.parametrize(
    "scenario",
    [
        Scenario(jobs=60, tasks={"fetch": TaskScenario(duration=1), "crunch": TaskScenario(duration=3)}),
        Scenario(jobs=60, default=TaskScenario(duration=Exponential(2)), replications=5, seed=3),
        Scenario(jobs=60, arrivals=Arrivals("poisson", 3), default=TaskScenario(duration=2), replications=5),
    ],
)
def test_it_is_the_cheapest_that_a_whole_grid_has(scenario: Scenario, by: float) -> None:
    axes: dict[str, Sequence[float]] = {FETCH: [1, 2, 4, 6, 9], CRUNCH: [1, 2, 3, 5, 8, 13]}
    found = finish_by(DEFINITION, scenario, run, by, axes=axes)
    least = brute(scenario, by, axes)
    if least is None:
        assert not found.limits
        assert "even with the most of everything it takes" in found.why
    else:
        assert found.cost == pytest.approx(least)
        assert found.seconds <= by
        assert found.proven
        assert found.simulations < 30 + 11


def test_three_limits_and_their_prices() -> None:
    """What is dear is had as little of as can be."""
    scenario = Scenario(
        jobs=40,
        tasks={"fetch": TaskScenario(duration=1), "crunch": TaskScenario(duration=2)},
        machines=[Machines("nodes", 2, {"cpu": 4})],
    )
    axes = {FETCH: [1, 2, 4], CRUNCH: [1, 2, 4, 8], "machines nodes": [1, 2]}
    found = finish_by(
        DEFINITION, scenario, run, 30, axes=axes, prices={FETCH: 1, CRUNCH: 1, "machines nodes": 50}
    )
    assert found.limits["machines nodes"] == 1
    assert found.cost == 50 + found.limits[FETCH] + found.limits[CRUNCH]


def test_nobody_needs_to_say_what_may_vary() -> None:
    """What binds is varied, then what binds next; the knee is where more stops to help."""
    scenario = Scenario(
        jobs=100, tasks={"fetch": TaskScenario(duration=1), "crunch": TaskScenario(duration=5)}
    )
    found = finish_by(DEFINITION, scenario, run, 60)
    assert list(found.limits) == [CRUNCH]
    assert found.limits[CRUNCH] == 10
    assert found.seconds <= 60
    assert found.binds == FETCH
    assert found.knees[CRUNCH] == 10
    rows = list(found.table())
    assert [row["level"] for row in rows if row["chosen"]] == [10]
    assert found.to_json()["limits"] == {CRUNCH: 10}
    both = finish_by(DEFINITION, scenario, run, 30)
    assert set(both.limits) == {FETCH, CRUNCH}


def test_what_no_capacity_can_do() -> None:
    """One job alone takes six seconds."""
    scenario = Scenario(
        jobs=10, tasks={"fetch": TaskScenario(duration=1), "crunch": TaskScenario(duration=5)}
    )
    found = finish_by(DEFINITION, scenario, run, 5)
    assert not found.limits
    assert found.seconds == 6
    assert (
        found.why
        == "even with the most of everything it takes 6 s; 5 s of its critical path are running crunch"
    )


def test_a_bounded_number_of_simulations_is_said() -> None:
    scenario = Scenario(jobs=60, default=TaskScenario(duration=Exponential(2)))
    levels = [float(n) for n in range(1, 30)]
    found = finish_by(DEFINITION, scenario, run, 20, axes={FETCH: levels, CRUNCH: levels}, simulations_max=10)
    assert isinstance(found, Capacity)
    assert not found.proven
    assert found.seconds <= 20


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ({"by": 0}, "0 seconds are no time to finish in"),
        ({"confidence": 1.5}, "confidence is 1.5"),
        ({"axes": {"nobody.concurrency": [1]}}, "there is no limit nobody.concurrency; use one of: "),
        ({"axes": {FETCH: [0, 1]}}, "fetch.concurrency cannot be 0"),
        ({"axes": {FETCH: []}}, "fetch.concurrency cannot be nothing"),
        ({"prices": {"gold": 1}}, "there is no limit gold"),
        ({"prices": {FETCH: -1}}, "the price of fetch.concurrency is -1"),
        ({"knee": 0}, "knee is 0"),
    ],
)
def test_what_is_wrong_is_refused(more: dict[str, Any], told: str) -> None:
    scenario = Scenario(jobs=1, default=TaskScenario(duration=1))
    with pytest.raises((CallerError, UnknownNameError)) as caught:
        finish_by(DEFINITION, scenario, run, **{"by": 10, **more})
    assert told in f"{caught.value}" or told in f"{caught.value.what}"


def test_a_pool_of_different_machines_grows_by_what_it_has() -> None:
    scenario = Scenario(machines=[Machines("nodes", 2, [{"cpu": 4}, {"cpu": 16}], speed=[1, 3])])
    (pool,) = with_limit(DEFINITION, scenario, "machines nodes", 3).machines
    assert (pool.count, pool.speed, pool.amounts) == (3, [1, 3, 1], [{"cpu": 4}, {"cpu": 16}, {"cpu": 4}])
    result: Result = run(Scenario(jobs=2, default=TaskScenario(duration=1), machines=[pool]))
    assert result.makespan > 0


def test_many_limits_are_searched_without_making_all_combinations() -> None:
    """Sixteen levels of each of nine limits: more combinations than any memory holds."""
    names = [f"r{number}" for number in range(10)]
    made = []
    for source, target in itertools.pairwise(names):
        task = InProcessSyncTask(f"to_{target}", LogMetadataRepository(f"{target}_done"), concurrency=2)
        task.link("source", LogMetadataRepository(source), is_input=True)
        task.link("target", LogMetadataRepository(target), is_output=True)
        made.append(task)
    wide, _ = inputs(Pipeline(made, Session()))
    scenario = Scenario(jobs=8, default=TaskScenario(duration=1))
    levels = [float(number) for number in range(1, 17)]
    axes = {f"{task.name}.concurrency": levels for task in wide.tasks}
    simulated = partial(simulate_inputs, wide, None, processes=1)
    found = finish_by(wide, scenario, simulated, 12, axes=axes, simulations_max=60)
    assert found.seconds <= 12
    assert not found.proven
    assert found.simulations < 60 + 16 + 9 * 16


def test_what_lies_between_the_levels_is_not_said_to_be_proven() -> None:
    scenario = Scenario(
        jobs=100, tasks={"fetch": TaskScenario(duration=1), "crunch": TaskScenario(duration=5)}
    )
    assert finish_by(DEFINITION, scenario, run, 60).proven
    assert not finish_by(DEFINITION, scenario, run, 30).proven


def test_the_knee_is_where_one_says_that_more_is_not_worth_it() -> None:
    scenario = Scenario(
        jobs=64, tasks={"fetch": TaskScenario(duration=0), "crunch": TaskScenario(duration=4)}
    )
    axes = {CRUNCH: [1, 2, 4, 8, 16, 32, 64]}
    assert finish_by(DEFINITION, scenario, run, 300, axes=axes, knee=0.05).knees[CRUNCH] == 64
    assert finish_by(DEFINITION, scenario, run, 300, axes=axes, knee=0.6).knees[CRUNCH] == 1


@pytest.mark.parametrize("simulations", [0, 1, 3])
def test_when_the_time_is_over_the_cheapest_so_far_is_told(simulations: int) -> None:
    scenario = Scenario(
        jobs=60, tasks={"fetch": TaskScenario(duration=1), "crunch": TaskScenario(duration=3)}
    )
    tried: list[Scenario] = []

    def until_then(scenario: Scenario) -> Result:
        if len(tried) == simulations:
            raise SpentError
        tried.append(scenario)
        return run(scenario)

    found = finish_by(
        DEFINITION, scenario, until_then, 90.0, axes={FETCH: [1, 2, 4, 8], CRUNCH: [1, 2, 4, 8]}
    )
    assert (found.simulations, found.proven) == (simulations, False)
    assert bool(found.why) is not bool(found.limits)
    if simulations:
        assert found.seconds <= 90.0
        assert run(with_limit(DEFINITION, with_limit(DEFINITION, scenario, FETCH, found.limits[FETCH]), CRUNCH, found.limits[CRUNCH])).makespan <= 90.0  # fmt: skip
