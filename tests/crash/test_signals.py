"""Engines that are interrupted, stopped, put to sleep: by the command that a user types, over all kinds of tasks."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.crash.harness import effects, finish, losses, memberships, verified
from tests.crash.shop import lay_out

ROOT = Path(__file__).resolve().parents[2]
JOBS = 60
PIPELINE = f"""
import sys
from pathlib import Path

sys.path.insert(0, {str(ROOT)!r})
from tests.crash.shop import shop

pipeline = shop(Path(__file__).parent)
"""


class Shop:
    """The shop in a folder of its own, run by the command."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        lay_out(folder, JOBS)
        (folder / "pipeline.py").write_text(PIPELINE)

    def start(self, **environment: str) -> subprocess.Popen[str]:
        """Start `datatask run`, and wait until some work is done."""
        process = subprocess.Popen(
            [sys.executable, "-m", "datatask", "run", "--failures-ok"],
            cwd=self.folder, env={**os.environ, **environment}, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        deadline = time.monotonic() + 60
        while len(list((self.folder / "told").iterdir())) < 5:
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.01)
        return process

    def ended(self, process: subprocess.Popen[str]) -> tuple[int, str]:
        """Wait for the end; return the exit code and what was said on stderr."""
        _, told = process.communicate(timeout=90)
        return process.returncode, told

    def finished(self) -> None:
        """Let another engine finish."""
        assert finish(self.folder) == 0


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What an undisturbed engine leaves."""
    folder = tmp_path_factory.mktemp("calm") / "shop"
    made = Shop(folder)
    made.finished()
    return folder


@pytest.fixture
def shop(tmp_path: Path) -> Shop:
    return Shop(tmp_path / "shop")


def same(shop: Shop, calm: Path) -> None:
    """All is as an undisturbed engine leaves it, each script's effect once."""
    assert memberships(shop.folder) == memberships(calm)
    assert effects(shop.folder) == effects(calm) == {f"j{number}": 1 for number in range(JOBS)}
    assert verified(shop.folder) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_first_signal_lets_what_runs_end(shop: Shop, calm: Path, number: signal.Signals) -> None:
    engine = shop.start()
    engine.send_signal(number)
    code, told = shop.ended(engine)
    assert code == 130, told
    assert memberships(shop.folder)  # no run is open
    assert not losses(shop.folder)
    shop.finished()
    same(shop, calm)
    assert not losses(shop.folder)


def test_a_second_interrupt_abandons_and_the_next_engine_goes_on(shop: Shop, calm: Path) -> None:
    engine = shop.start()
    engine.send_signal(signal.SIGINT)
    time.sleep(0.02)
    engine.send_signal(signal.SIGINT)
    code, told = shop.ended(engine)
    assert code == 130, told
    shop.finished()
    same(shop, calm)


def test_an_engine_that_is_stopped_for_a_while_goes_on(shop: Shop, calm: Path) -> None:
    """Nobody takes its place meanwhile: it holds the log as long as it lives."""
    engine = shop.start()
    engine.send_signal(signal.SIGSTOP)
    time.sleep(1.5)
    refused = subprocess.run(
        [sys.executable, "-m", "datatask", "run"],
        cwd=shop.folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert refused.returncode == 4
    assert str(engine.pid) in refused.stderr
    engine.send_signal(signal.SIGCONT)
    code, told = shop.ended(engine)
    assert code == 0, told
    same(shop, calm)
    assert not losses(shop.folder)


@pytest.mark.server("gcc")
def test_a_machine_that_slept_for_a_day(shop: Shop, calm: Path, faults: Path) -> None:
    """Asleep, nothing runs and the monotonic clock stands still; awake, the wall clock is a day ahead."""
    clock = shop.folder / "clock"
    clock.write_text("0")
    engine = shop.start(LD_PRELOAD=str(faults), FAULTS_CLOCK=str(clock))
    engine.send_signal(signal.SIGSTOP)
    clock.write_text("86400")
    time.sleep(0.3)
    engine.send_signal(signal.SIGCONT)
    code, told = shop.ended(engine)
    assert code == 0, told
    same(shop, calm)
    assert not losses(shop.folder)


def test_many_interrupts_at_random_moments_change_nothing(shop: Shop, calm: Path) -> None:
    """Drained, abandoned, stopped and killed by turns."""
    for number in (signal.SIGTERM, signal.SIGKILL, signal.SIGINT, signal.SIGKILL):
        if len(list((shop.folder / "told").iterdir())) > JOBS - 15:
            break
        engine = shop.start()
        engine.send_signal(number)
        shop.ended(engine)
    shop.finished()
    same(shop, calm)
