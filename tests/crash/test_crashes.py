"""Engines killed by the hundred leave what an undisturbed one leaves."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.crash.harness import effects, finish, given_up, kill_often, memberships
from tests.crash.shop import lay_out
from tests.unmeasured import unmeasured

KILLS = 300
JOBS = 420


def lived(tmp_path: Path, kills: int, jobs: int, seed: int) -> None:
    """Compare a life of many kills with one of none."""
    disturbed, calm = tmp_path / "disturbed", tmp_path / "calm"
    for folder in (disturbed, calm):
        lay_out(folder, jobs)
    with unmeasured(1) as pool:
        assert pool.submit(kill_often, disturbed, kills, seed).result() == []
        assert pool.submit(finish, calm).result() == 0
    lost = given_up(disturbed)
    assert len(lost) < jobs / 2, "what dies with the engine is tried again, five times"
    found, expected = memberships(disturbed), memberships(calm)
    assert found.keys() == expected.keys()
    for leaf, members in expected.items():
        assert found[leaf] - lost == members - lost, leaf
    assert effects(disturbed) == effects(calm) == {f"j{number}": 1 for number in range(jobs)}


def test_three_hundred_kills_change_nothing(tmp_path: Path) -> None:
    lived(tmp_path, KILLS, JOBS, seed=1)


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(20))
def test_thousands_of_kills_change_nothing(tmp_path: Path, seed: int) -> None:
    lived(tmp_path, int(os.environ.get("DATATASK_SOAK_KILLS", "1000")), 1400, seed)
