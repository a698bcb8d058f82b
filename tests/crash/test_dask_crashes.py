"""Engines, workers and schedulers killed at random leave what undisturbed ones leave; no function begins twice for one run."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from tests.crash.dask_shop import begun, ends, lay_out
from tests.crash.harness import memberships
from tests.crash.test_crashes import told
from tests.effort import by_effort

KILLS, JOBS = by_effort(quick=(15, 600), thorough=(85, 2000), soak=(85, 2000))
PROGRAM = "__import__('tests.crash.dask_shop').crash.dask_shop."


def lived(tmp_path: Path, kills: int, jobs: int, seed: int) -> None:
    """Compare a life of many kills with one of none."""
    disturbed, calm = tmp_path / "disturbed", tmp_path / "calm"
    for folder in (disturbed, calm):
        lay_out(folder, jobs)
    assert told(f"{PROGRAM}kill_at_random(Path({str(disturbed)!r}), {kills}, {seed})") == "[]"
    assert told(f"{PROGRAM}undisturbed(Path({str(calm)!r}))") == "[]"
    assert memberships(disturbed) == memberships(calm)
    assert len(memberships(calm)["told"]) == jobs, "all but one, and the last"
    assert set(begun(disturbed).values()) == {1}
    assert ends(disturbed) == ends(calm)
    assert set(ends(disturbed).values()) == {1}
    killed = Counter((disturbed / "kills").read_text().split())
    assert killed.total() == kills
    assert set(killed) == {"engine", "worker", "scheduler"}


@pytest.mark.long
@pytest.mark.scaled
def test_tens_of_kills_change_nothing(tmp_path: Path) -> None:
    lived(tmp_path, KILLS, JOBS, seed=1)


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(2, 12))
def test_hundreds_of_kills_change_nothing(tmp_path: Path, seed: int) -> None:
    lived(tmp_path, 300, 2500, seed)
