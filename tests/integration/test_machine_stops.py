"""Somebody stops a service, a container or the machine: what that ends is no failure of the scripts, and is done later."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

from datatask.adapters.execute.base import proctable, shutdowns
from datatask.adapters.execute.base.endings import exit_ending
from datatask.adapters.execute.local.process_tree import MARK
from datatask.adapters.history.history import History
from datatask.schema.events import MACHINE
from datatask.schema.messages import Fact, Started
from tests.integration.local_kit import ends, keepers, launcher_pid, spec, task_of
from tests.run_kit import until

PIPELINE = """
from pathlib import Path
from datatask import *

HERE = Path(__file__).parent
task = ProcessTask(
    "t", LocalLinuxManager("app", HERE / "base"), None, Resources.parse(1, "1Mi"), LogMetadataRepository("pids"),
    (HERE / "script").read_text(), stdout=LogBlobRepository("out"), done=LogMetadataRepository("done"),
    retry=Retry(infrastructure_attempts=0),
)
task.link("given", InProcessMetadataRepository({"a": {}}), is_input=True)
pipeline = Pipeline([task], Session())
"""
ONCE = "[ -e {folder}/again ] && exit 0; touch {folder}/again; "


class Service:
    """A pipeline in a folder of its own, run by the command like a service."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.runs: list[subprocess.Popen[bytes]] = []
        (folder / "pipeline.py").write_text(PIPELINE)

    def start(self, script: str) -> None:
        """Run until the script runs; the second time it succeeds at once."""
        (self.folder / "script").write_text(ONCE.format(folder=self.folder) + script + "\n")
        self.engine = self.run()
        self.until(lambda: (self.folder / "again").exists() and self.scripts())

    def run(self) -> subprocess.Popen[bytes]:
        engine = subprocess.Popen(
            [sys.executable, "-m", "datatask", "run", "--failures-ok"],
            cwd=self.folder, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        self.runs.append(engine)
        return engine

    def until(self, holds: Callable[[], object], seconds: float = 100.0) -> None:
        deadline = time.monotonic() + seconds
        while not holds():
            assert time.monotonic() < deadline
            time.sleep(0.05)

    def scripts(self) -> list[int]:
        """Return the processes of scripts."""
        marked = proctable.marked(MARK).items()
        return [pid for folder, pids in marked if folder.startswith(str(self.folder)) for pid in pids]

    def launchers(self) -> list[int]:
        """Return the launcher and its keepers."""
        base = self.folder / "base"
        return [launcher_pid(base), *keepers(base)]

    def ended(self) -> list[str]:
        """Let another engine finish; return the states of all runs."""
        self.engine.wait(100)
        assert self.run().wait(100) == 0
        with History(self.folder / ".datatask" / "log.db") as history:
            runs = list(history.runs())
        assert all(str(run["again"]).startswith("machine") for run in runs if run["state"] == "lost"), runs
        return [str(run["state"]) for run in runs]


def send(number: int, *pids: int) -> None:
    """Send it to those that are there still."""
    for pid in pids:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            pass


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    made = Service(tmp_path)
    yield made
    for engine in made.runs:
        engine.kill()
        engine.wait()


@pytest.mark.parametrize("engine_first", [True, False])
def test_all_are_told_to_end_and_killed_a_while_later(service: Service, engine_first: bool) -> None:
    """As systemd does it, and a shutdown."""
    service.start("trap '' TERM; while :; do sleep 0.1; done")
    engine, others = [service.engine.pid], [*service.scripts(), *service.launchers()]
    every = engine + others if engine_first else others + engine
    send(signal.SIGTERM, *every)
    time.sleep(1.0)
    send(signal.SIGKILL, *every, *service.scripts())
    assert service.ended() == ["lost", "succeeded"]


@pytest.mark.parametrize("launchers_too", [True, False])
def test_all_are_killed_at_once(service: Service, launchers_too: bool) -> None:
    """As a container is, when its first process has ended; the launcher may be that of another session."""
    service.start("sleep 60")
    send(signal.SIGTERM, service.engine.pid)
    scripts, launchers = service.scripts(), service.launchers()
    send(signal.SIGKILL, *scripts, service.engine.pid)
    time.sleep(0.1)
    send(signal.SIGKILL, *(launchers if launchers_too else ()))
    assert service.ended() == ["lost", "succeeded"]


def test_the_launcher_is_of_another_session(service: Service) -> None:
    """Engine and scripts are told to end, the launcher is not."""
    service.start("sleep 60")
    send(signal.SIGTERM, *service.scripts(), service.engine.pid)
    assert service.ended() == ["lost", "succeeded"]


# --- without an engine of its own ---------------------------------------------------------------------


@contextlib.asynccontextmanager
async def running(path: Path, script: str) -> AsyncIterator[tuple[int, list[Fact]]]:
    """A script that runs: its process and what is told of it."""
    task = task_of(path, script.replace("HERE", f"touch {path}/there"))
    facts: list[Fact] = []
    await task.runner.open(facts.append)
    task.runner.start(spec(1))
    await until(lambda: facts and (path / "there").exists())
    assert isinstance(facts[0], Started)
    yield int(facts[0].handle["pid"]), facts
    await task.runner.close()


async def outcome(facts: list[Fact]) -> tuple[str, int | None]:
    """Wait for the end; return how it was."""
    await until(lambda: ends(facts))
    ending = ends(facts)[1].ending
    if ending.outcome == "lost":
        assert ending.error is not None
        assert "was being stopped" in ending.error.message
        assert ending.detail == {MACHINE: "stopped"}
    return ending.outcome, ending.exit_code


@pytest.mark.parametrize(
    ("script", "how"),
    [
        ("HERE; exec sleep 60", ("lost", None)),
        ("HERE; set -e; sleep 60; true", ("lost", None)),
        ("trap 'exit 1' TERM; HERE; sleep 60 & wait", ("lost", None)),
        ("trap 'exit 0' TERM; HERE; sleep 60 & wait", ("succeeded", 0)),
        ("trap '' TERM; HERE; sleep 0.5; exit 3", ("lost", None)),
    ],
)
@pytest.mark.parametrize("script_first", [True, False])
async def test_an_exit_code_of_zero_is_the_scripts_own_word_while_all_is_stopped(
    tmp_path: Path, script: str, how: tuple[str, int | None], script_first: bool
) -> None:
    async with running(tmp_path, script) as (pid, facts):
        launchers = [launcher_pid(tmp_path), *keepers(tmp_path)]
        send(signal.SIGTERM, *([pid, *launchers] if script_first else [*launchers, pid]))
        assert await outcome(facts) == how


@pytest.mark.parametrize("pause", [0.0, 0.2])
async def test_a_script_is_killed_with_its_launcher(tmp_path: Path, pause: float) -> None:
    """The launcher sees the end of the one before its own; nobody is told of it."""
    async with running(tmp_path, "HERE; exec sleep 60") as (pid, facts):
        launchers = [launcher_pid(tmp_path), *keepers(tmp_path)]
        os.kill(pid, signal.SIGKILL)
        await asyncio.sleep(pause)
        assert not ends(facts)
        send(signal.SIGKILL, *launchers)
        await until(lambda: ends(facts))
        assert ends(facts)[1].ending.outcome == "lost"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL, signal.SIGHUP])
async def test_a_signal_to_one_script_alone_is_its_end(tmp_path: Path, number: signal.Signals) -> None:
    async with running(tmp_path, "HERE; exec sleep 60") as (pid, facts):
        os.kill(pid, number)
        assert await outcome(facts) == ("failed", 128 + number)


async def test_a_launcher_that_alone_is_told_to_end_waits_for_its_scripts(tmp_path: Path) -> None:
    async with running(tmp_path, "HERE; sleep 0.5") as (_, facts):
        launcher, *above = launcher_pid(tmp_path), *keepers(tmp_path)
        send(signal.SIGTERM, launcher, *above)
        assert await outcome(facts) == ("succeeded", 0)
        await until(lambda: not proctable.command_line(launcher))  # with nothing to wait for it ends at once


def test_what_an_exit_code_says_of_a_stop() -> None:
    """128 and more is how shells tell of signals."""
    codes = [-15, 143, -9, 137, -1, 129, -2, 130]
    assert all(shutdowns.of_a_signal(code) for code in codes)
    assert not any(shutdowns.of_a_signal(code) for code in (0, 1, 2, 15, 128, -11, 139, 255))
    assert exit_ending(143).outcome == "failed"
