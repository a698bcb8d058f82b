"""Distributions: the same bits for a seed, close to what their formulas say, and refusing nonsense."""

from __future__ import annotations

import math
from collections.abc import Callable
from random import Random

import pytest

from datatask.adapters.sim import distributions
from datatask.adapters.sim.distributions import (
    Constant,
    Distribution,
    Empirical,
    Exponential,
    Lognormal,
    Uniform,
    Weibull,
    chooser,
    stream,
)
from datatask.schema.errors import CallerError

KINDS: list[Distribution] = [
    Constant(2.5),
    Uniform(1.0, 4.0),
    Exponential(2.0),
    Lognormal(2.0, 0.5),
    Weibull(3.0, 1.5),
    Empirical((1.0, 1.0, 2.0, 8.0)),
]

DRAWN_UNIFORM = [3332850682, 3042038667, 1590572035]
DRAWN_EXPONENTIAL = [3006707365, 2283120306, 438445856]
DRAWN_LOGNORMAL = [2930672602, 2529311512, 1305644928]
DRAWN_WEIBULL = [3936969333, 3276829078, 1090716553]
DRAWN_EMPIRICAL = [8000000000, 2000000000, 1000000000]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: type(kind).__name__)
def test_the_mean_of_many_draws_is_the_mean(kind: Distribution) -> None:
    draw = kind.sampler(Random(5).random)
    drawn = [draw() / 1e9 for _ in range(20_000)]
    assert min(drawn) >= 0
    assert sum(drawn) / len(drawn) == pytest.approx(kind.mean, rel=0.03)


def test_what_was_drawn_once_is_drawn_for_ever() -> None:
    drawn = {}
    for kind in KINDS:
        draw = kind.sampler(stream(7, 3, "resize", "duration"))
        drawn[type(kind).__name__] = [draw() for _ in range(3)]
    assert drawn == {
        "Constant": [2500000000, 2500000000, 2500000000],
        "Uniform": DRAWN_UNIFORM,
        "Exponential": DRAWN_EXPONENTIAL,
        "Lognormal": DRAWN_LOGNORMAL,
        "Weibull": DRAWN_WEIBULL,
        "Empirical": DRAWN_EMPIRICAL,
    }


@pytest.mark.parametrize("seconds", [1e-6, 0.01, 1.0, 37.5, 3600.0, 1e6])
def test_the_platforms_logarithm_changes_no_draw(seconds: float) -> None:
    """However small or large: where it could show, the exact one is taken."""
    kind, chance = Exponential(seconds), stream(7, 0, "task", "duration")
    draw = kind.sampler(stream(7, 0, "task", "duration"))
    assert all(draw() == int(kind.seconds(chance()) * 1e9 + 0.5) for _ in range(20_000))


def test_a_logarithm_that_errs_in_its_last_digits_changes_no_draw(monkeypatch: pytest.MonkeyPatch) -> None:
    """As those of other platforms may."""
    rough = Random(3)
    monkeypatch.setattr(
        distributions, "log", lambda x: math.log(x) * (1 + rough.choice((-8, -3, 3, 8)) * 2.0**-53)
    )
    kind, chance = Exponential(100.0), stream(7, 0, "task", "duration")
    draw = kind.sampler(stream(7, 0, "task", "duration"))
    assert all(draw() == int(kind.seconds(chance()) * 1e9 + 0.5) for _ in range(50_000))


def test_a_chooser_keeps_to_its_weights() -> None:
    choose = chooser((0.0, 3.0, 1.0), Random(2).random)
    chosen = [choose() for _ in range(4_000)]
    assert chosen.count(0) == 0
    assert chosen.count(1) / 4_000 == pytest.approx(0.75, abs=0.03)


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: Constant(-1), "negative"),
        (lambda: Constant(float("nan")), "no number"),
        (lambda: Uniform(3, 2), "below"),
        (lambda: Exponential(0), "above 0"),
        (lambda: Lognormal(1, -2), "negative"),
        (lambda: Weibull(1, 0), "above 0"),
        (lambda: Empirical(()), "no values"),
        (lambda: Empirical((1, -2)), "negative"),
        (lambda: Constant("x"), "no number"),  # type: ignore[arg-type]
    ],
)
def test_nonsense_is_refused_in_one_line(make: Callable[[], object], told: str) -> None:
    with pytest.raises(CallerError) as caught:
        make()
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)
