"""Charts stay small however much there is to show."""

from __future__ import annotations

from datatask.adapters.sim.charts import LANES_MAX, Bar, histogram, lanes


def test_lanes_stay_small_however_many_runs_there_are() -> None:
    """What is narrower than a pixel is joined; too many at a time are told."""
    many = lanes((Bar(n / 100, (n + 1) / 100, 0, "run") for n in range(100_000)), 1000.0, "runs")
    assert len(many) < 300_000
    assert "runs</title>" in many
    crowd = lanes((Bar(0.0, 1.0, 0, f"run {n}") for n in range(LANES_MAX + 7)), 1.0, "runs")
    assert "7 more runs at the same time are not shown" in crowd


def test_a_histogram_of_equal_values_has_one_bar() -> None:
    assert histogram([2.0, 2.0, 2.0], "three").count("<rect") == 1
