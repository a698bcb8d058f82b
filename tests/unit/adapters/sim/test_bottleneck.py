"""Relieving what binds is simulated."""

from __future__ import annotations

import pytest

from datatask import (
    simulate,
)
from datatask.adapters.sim.bottleneck import relieve
from datatask.simulation import Machines, Scenario, TaskScenario, inputs
from tests.unit.sim_kit import chain


def test_relieving_the_bottleneck_is_simulated() -> None:
    """Twice the places halve the time; then the other task binds."""
    definition, recording = inputs(chain(2))
    scenario = Scenario(
        jobs=100, tasks={"fetch": TaskScenario(duration=1), "crunch": TaskScenario(duration=4)}
    )
    result = simulate(definition, scenario)
    relief = relieve(definition, recording, result)
    assert relief is not None
    assert relief.change == "crunch.concurrency 2 → 4"
    assert relief.before == result.makespan
    assert relief.saved == pytest.approx(0.5, abs=0.02)


def test_relieving_machines() -> None:
    definition, recording = inputs(chain(None))
    scenario = Scenario(
        jobs=100, default=TaskScenario(duration=1), machines=[Machines("nodes", 2, speed=[1, 1])]
    )
    relief = relieve(definition, recording, simulate(definition, scenario))
    assert relief is not None
    assert relief.change == "machines nodes 2 → 4"
    assert relief.saved == pytest.approx(0.5, abs=0.02)


def test_where_nothing_binds_nothing_can_be_relieved() -> None:
    definition, recording = inputs(chain(None))
    assert (
        relieve(
            definition, recording, simulate(definition, Scenario(jobs=1, default=TaskScenario(duration=1)))
        )
        is None
    )
