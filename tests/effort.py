"""How much the tests do: `quick` at each change, `thorough` before it lands, `soak` for hours.

DATATASK_TEST_EFFORT chooses; it is in the environment so that worker processes and modules that are being imported
know it. docs/testing.md says which effort proves what.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import TypeVar

import pytest
from hypothesis import is_hypothesis_test

T = TypeVar("T")

EFFORTS = ("quick", "thorough", "soak")
EFFORT = os.environ.get("DATATASK_TEST_EFFORT") or "quick"

TESTS = Path(__file__).parent
SAMPLED = {TESTS / "integration": 3, TESTS / "kube": 3, TESTS / "damage": 3}
"""Folders whose tests start processes and wait for them: the quick effort runs each third test of a file."""


def by_effort(*, quick: T, thorough: T, soak: T) -> T:
    """Return the figure of this effort; a test that uses it is marked `scaled`, to be run in each."""
    return {"quick": quick, "thorough": thorough, "soak": soak}[EFFORT]


def share(cases: Iterable[object], *, quick: int) -> list[object]:
    """Return parameters of which some, spread evenly, are for the quick effort; the others are `slow`."""
    every = list(cases)
    chosen = {round(at * len(every) / quick) for at in range(quick)}
    return [
        case if at in chosen else pytest.param(case, marks=pytest.mark.slow) for at, case in enumerate(every)
    ]


def mark(items: Iterable[pytest.Item]) -> None:
    """Mark what tries examples as `scaled`, and what the sample of a folder leaves out as `slow`."""
    seen: Counter[object] = Counter()
    for item in items:
        if is_hypothesis_test(getattr(item, "obj", None)):
            item.add_marker("scaled")
        if seen[item.path] % SAMPLED.get(item.path.parent, 1):
            item.add_marker("slow")
        seen[item.path] += 1


def is_chosen(item: pytest.Item, *, named: bool) -> bool:
    """Whether a test is run in this effort: what is slow waits for `thorough`, which repeats nothing but what grows.

    A file that is `named` is run whole, but for what soaks.
    """
    marks = {mark.name for mark in item.iter_markers()}
    if EFFORT == "quick":
        return not marks & ({"soak"} if named else {"slow", "soak"})
    if EFFORT == "thorough":
        return "soak" not in marks and bool(marks & {"slow", "scaled"})
    return bool(marks & {"soak", "scaled"})
