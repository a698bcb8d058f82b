"""Quota arithmetic: what fits, what never does, when the next launch is allowed; and constraints as rounds record them."""

from __future__ import annotations

import pytest

from datatask.engine.core.quotas import Constraint, QuotaState
from datatask.schema.definition import QuotaDef

WINDOW = 10


def quota(launches: int | None = None, **limits: int) -> QuotaState:
    """A quota named q."""
    return QuotaState.of(QuotaDef(name="q", limits=limits, launches=launches, window=WINDOW))


def test_what_is_reserved_is_not_free() -> None:
    """The first dimension that lacks is named; amounts of 0 lack nowhere."""
    own = quota(cpu=4, mem=8)
    own.use({"cpu": 3, "mem": 0})
    assert own.shortfall({"cpu": 1, "mem": 8, "gpu": 0}) is None
    assert own.shortfall({"cpu": 1}, {"cpu": 1}) == "cpu"
    assert own.lacking({"cpu": 2, "mem": 8}) == {"cpu": 2}


def test_a_copy_leaves_the_amounts_in_use_alone() -> None:
    """What a round takes of it is not taken of the quota."""
    own = quota(cpu=4)
    own.copy().use({"cpu": 3})
    assert own.used == {}


@pytest.mark.parametrize(
    ("launches", "recent", "launched", "expected"),
    [
        (None, [], 5, 20), (0, [], 0, None), (2, [], 0, 20), (2, [15], 0, 20), (2, [15], 1, 25),
        (2, [12, 15], 0, 22), (2, [5, 10], 0, 20), (2, [12, 15, 18], 0, 25), (2, [], 2, 30),
    ],
)  # fmt: skip
def test_next_launch(launches: int | None, recent: list[int], launched: int, expected: int | None) -> None:
    """It is when so many of the launches have left the window, whatever was recorded before it."""
    own = quota(launches)
    own.recent.extend(recent)
    assert own.next_launch(20, launched) == expected


def test_infeasible_names_the_dimension_or_the_launches() -> None:
    """A request above a whole limit, or any where no launch is allowed."""
    assert quota(cpu=4).infeasible({"cpu": 5}) == Constraint("infeasible", "q", "cpu")
    assert quota(0, cpu=4).infeasible({"cpu": 4}) == Constraint("infeasible", "q", "launches")
    assert quota(1, cpu=4).infeasible({"cpu": 4}) is None


@pytest.mark.parametrize(
    ("constraint", "text"),
    [
        (Constraint("paused"), "paused"),
        (Constraint("observing", "inputs.raw"), "observing: inputs.raw"),
        (Constraint("quota", "q", "cpu"), "quota: q.cpu"),
    ],
)
def test_constraints_as_rounds_record_them(constraint: Constraint, text: str) -> None:
    """The text keeps the kind and what it is about."""
    assert constraint.text == text
    read = Constraint.recorded(text)
    assert read is not None
    assert (read.kind, read.about) == (constraint.kind, constraint.about)
    assert Constraint.recorded("") is None
