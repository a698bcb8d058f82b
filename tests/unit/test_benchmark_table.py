"""A benchmark's line says what was measured, what was asked, and where that is missed."""

from __future__ import annotations

import pytest

from benchmarks import compare
from benchmarks.__main__ import line, rows


@pytest.mark.parametrize(
    ("name", "figure", "ends"),
    [
        ("append.single_ratio", 0.53, "0.53   at least 0.5"),
        ("append.single_ratio", 0.43, "0.43   at least 0.5        missed"),
        ("start.help_ms", 77.5, "77.5    at most 150"),
        ("start.help_ms", 151.0, "151    at most 150        missed"),
        ("pipeline.jobs", 10_000, "10,000"),
        ("replay.same_state", True, "True"),
        ("peers.not_installed", "huey", "huey"),
        ("peers.pair", [1, 2], "[1, 2]"),
        ("peers.rate", 8123.4, "8,123"),
    ],
)
def test_what_is_asked_stands_beside_what_was_measured(name: str, figure: object, ends: str) -> None:
    shown = line(name, figure)
    assert shown.startswith(name)
    assert shown.rstrip().endswith(ends)


def test_figures_have_dotted_names() -> None:
    assert list(rows({"a": {"b": 1}, "c": 2}, "x")) == [("x.a.b", 1), ("x.c", 2)]


def test_two_commits_are_compared_by_the_middle_of_their_rounds() -> None:
    shown = compare.line("pipeline.rate", [300.0, 100.0, 200.0], [100.0, 100.0, 50.0])
    assert shown.split() == ["pipeline.rate", "200", "100", "3.000", "(1.000", "to", "4.000)"]


def test_a_figure_that_is_zero_there_has_no_ratio() -> None:
    assert compare.line("pipeline.errors", [1.0], [0.0]).split() == ["pipeline.errors", "1", "0", "-"]
