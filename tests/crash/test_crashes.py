"""Engines and launchers killed by the hundred leave what undisturbed ones leave."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.crash.harness import effects, given_up, losses, memberships
from tests.crash.shop import inputs, lay_out
from tests.effort import by_effort

pytestmark = pytest.mark.long

ROOT = Path(__file__).resolve().parents[2]
KILLS, JOBS = by_effort(quick=(40, 160), thorough=(300, 600), soak=(300, 600))
LAUNCHERS = by_effort(quick=8, thorough=3, soak=3)
"""One life of so many has a launcher to kill: it takes a while to start, which counts where lives are few."""
INFRASTRUCTURE_BUDGET = 5
OUTLIVES = ("copy",)


def told(call: str) -> str:
    """Call the harness in a fresh process that nobody measures; a worker process is no place to fork engines from."""
    program = f"from pathlib import Path; from tests.crash.harness import *; print({call})"
    clean = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program],
        env=clean,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return done.stdout.strip()


def lived(tmp_path: Path, kills: int, jobs: int, seed: int) -> None:
    """Compare a life of many kills with one of none."""
    disturbed, calm = tmp_path / "disturbed", tmp_path / "calm"
    lay_out(disturbed, jobs)
    assert told(f"kill_often(Path({str(disturbed)!r}), {kills}, {seed})") == "[]"
    lay_out(calm, inputs(disturbed))
    assert told(f"finish(Path({str(calm)!r}))") == "0"
    lost = losses(disturbed)
    for task, names in given_up(disturbed).items():
        assert task not in OUTLIVES, "a process does not die with its engine"
        assert all(lost[task, job] > INFRASTRUCTURE_BUDGET for job in names), (
            "not before its budget is used up"
        )
    told(f"try_again(Path({str(disturbed)!r}))")
    assert memberships(disturbed) == memberships(calm)
    assert told(f"verified(Path({str(disturbed)!r}))") == "[]"
    assert len((disturbed / "launcher-kills").read_text().splitlines()) > kills / LAUNCHERS
    assert effects(disturbed) == effects(calm) == {f"j{number}": 1 for number in range(inputs(calm))}


@pytest.mark.scaled
def test_hundreds_of_kills_change_nothing(tmp_path: Path) -> None:
    lived(tmp_path, KILLS, JOBS, seed=1)


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(20))
def test_thousands_of_kills_change_nothing(tmp_path: Path, seed: int) -> None:
    lived(tmp_path, int(os.environ.get("DATATASK_SOAK_KILLS", "1000")), 1400, seed)
