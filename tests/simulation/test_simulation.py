"""Many lives without a fault, and faults that many lives find.

`python -m tests.simulation SEED` lives one again and makes it smaller; `… FIRST LAST` lives more than these.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import astuple

import pytest

from tests.effort import by_effort
from tests.simulation.life import Life, wrong
from tests.simulation.many import many, shrink
from tests.simulation.mutants import MUTANTS, no_backoff
from tests.simulation.plans import Plan, draw

pytestmark = [
    pytest.mark.long,
    pytest.mark.filterwarnings(
        "ignore::pytest.PytestUnraisableExceptionWarning"  # what a dead engine leaves behind is never awaited
    ),
]
LIVES = by_effort(quick=400, thorough=2_000, soak=20_000)
MUTANT_LIVES = 500


@pytest.fixture(autouse=True)
def _the_dead_are_gone() -> Iterator[None]:
    """What a dead engine leaves to the collector is collected here, not during somebody else's test."""
    yield
    gc.collect()


@pytest.mark.scaled
def test_no_life_breaks_a_promise() -> None:
    assert many(0, LIVES - 1) == []


def test_a_life_is_lived_again_to_the_last_event() -> None:
    for seed in range(20):
        first, second = Life(draw(seed)), Life(draw(seed))
        assert first.run() == second.run() == []
        assert [batch.events for batch in first.log._batches] == [
            batch.events for batch in second.log._batches
        ]


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.__name__)
def test_a_planted_bug_is_found(mutant: Callable[[], AbstractContextManager[None]]) -> None:
    with mutant():
        assert any(wrong(draw(seed)) for seed in range(MUTANT_LIVES))


def test_a_failing_life_is_made_smaller() -> None:
    with no_backoff():
        plan = next(plan for plan in map(draw, range(MUTANT_LIVES)) if wrong(plan))
        small = shrink(plan)
        assert wrong(small)
    assert _size(small) < _size(plan)


def _size(plan: Plan) -> int:
    faults = sum(map(bool, astuple(plan.faults)))
    return plan.jobs + len(plan.stages) + len(plan.actions) + len(plan.crashes) + faults
