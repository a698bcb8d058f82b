"""Logarithms, exponentials and streams of chance: the same bits on every platform."""

from __future__ import annotations

import math
from random import Random
from statistics import NormalDist

import pytest

from datatask.adapters.sim.distributions import exp, ln, normal, stream


def test_logarithms_and_exponentials_are_right_to_the_last_digits() -> None:
    chance = Random(1)
    for _ in range(5_000):
        x = chance.uniform(0.01, 1.0) * 10.0 ** chance.randint(-12, 12)
        assert ln(x) == pytest.approx(math.log(x), rel=4e-15, abs=1e-15)
        y = chance.uniform(-80, 80)
        assert exp(y) == pytest.approx(math.exp(y), rel=4e-15)
    assert (exp(-1000.0), ln(1.0), exp(0.0)) == (0.0, 0.0, 1.0)
    assert exp(1e6) > 1e300


def test_normal_quantiles_are_those_of_the_normal_distribution() -> None:
    for u in (1e-9, 1e-4, 0.01, 0.3, 0.5, 0.8, 0.99, 1 - 1e-7):
        assert normal(u) == pytest.approx(NormalDist().inv_cdf(u), rel=1e-7, abs=1e-8)


def test_streams_differ_by_each_of_their_names() -> None:
    firsts = {
        stream(*names)()
        for names in [
            (0, 0, "a", "x"),
            (1, 0, "a", "x"),
            (0, 1, "a", "x"),
            (0, 0, "b", "x"),
            (0, 0, "a", "y"),
        ]
    }
    assert len(firsts) == 5
