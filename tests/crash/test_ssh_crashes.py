"""Engines killed at random moments, with runs on SSH hosts that go on: nothing is lost, nothing happens twice."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.crash.harness import effects, memberships
from tests.crash.remote import lay_out
from tests.crash.shop import inputs
from tests.crash.test_crashes import told
from tests.effort import by_effort
from tests.ssh_kit import server, shared

pytestmark = pytest.mark.server("sshd")
KILLS, JOBS = by_effort(quick=(12, 120), thorough=(60, 400), soak=(60, 400))
LIVES = (0.05, 0.7)
REMOTE = "make=__import__('tests.crash.remote').crash.remote.remote"


def lived(tmp_path: Path, kills: int, jobs: int, seed: int) -> None:
    """Compare a life of many kills with what was asked for."""
    folder = tmp_path / "disturbed"
    lay_out(folder, jobs, server())
    assert told(f"kill_often(Path({str(folder)!r}), {kills}, {seed}, {LIVES}, {REMOTE})") == "[]"
    jobs = inputs(folder)
    names = {f"j{number}" for number in range(jobs)}
    members = memberships(folder)
    assert members["out"] == members["told"] == members["copy.done"] == names
    assert members["copy.pids"] == set()
    assert effects(folder) == dict.fromkeys(names, 1)
    sizes = {
        path.name: path.stat().st_size for path in (folder / "out").glob("j*")
    }  # killed writers leave .*-tmp
    assert sizes == {f"j{number}": number for number in range(jobs)}
    assert told(f"verified(Path({str(folder)!r}))") == "[]"


@pytest.mark.scaled
def test_tens_of_kills_lose_and_double_nothing(tmp_path: Path) -> None:
    lived(tmp_path, KILLS, JOBS, seed=1)


@pytest.mark.slow
@pytest.mark.server("dropbear")
@pytest.mark.machine("root")
def test_tens_of_kills_lose_and_double_nothing_on_dropbear(tmp_path: Path) -> None:
    with shared("dropbear"):
        lived(tmp_path, 12, 240, seed=2)


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(10))
def test_hundreds_of_kills_lose_and_double_nothing(tmp_path: Path, seed: int) -> None:
    lived(tmp_path, int(os.environ.get("DATATASK_SOAK_KILLS", "500")), 2000, seed)
