"""Local runs outlive engines, launchers, keepers and the machine's restart, and happen once."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from datatask.adapters.execute.base import proctable
from datatask.adapters.execute.local.process_tree import MARK
from datatask.schema.events import MACHINE
from datatask.schema.messages import Adopted, Ended, Fact, Started
from tests.integration.local_kit import (
    LOG,
    ends,
    keepers,
    kill_launcher,
    launcher_pid,
    run_all,
    spec,
    task_of,
)
from tests.run_kit import until

ENGINE = """
import asyncio, sys
sys.path.insert(0, {root!r})
from tests.integration.local_kit import task_of, spec
async def main():
    task = task_of({path!r}, {script!r})
    await task.validate()
    facts = []
    await task.runner.open(facts.append)
    for run in range(1, {runs} + 1):
        task.runner.start(spec(run))
    while len(facts) < {runs}:
        await asyncio.sleep(0.01)
    print("started", flush=True)
    await asyncio.sleep(60)
asyncio.run(main())
"""


def kill_at_once(*pids: int) -> None:
    """Kill these, none of which sees another one die."""
    for number in (signal.SIGSTOP, signal.SIGKILL):
        for pid in pids:
            os.kill(pid, number)


async def test_runs_survive_a_killed_engine_and_happen_once(tmp_path: Path) -> None:
    """kill -9 of the engine's whole process group; each run's side effect is counted once, outputs are collected."""
    script = f"echo {{{{job}}}} >> {tmp_path}/effects; sleep 1; echo out {{{{job}}}}"
    root = str(Path(__file__).parents[2])
    program = ENGINE.format(root=root, path=str(tmp_path), script=script, runs=8)
    engine = subprocess.Popen(  # noqa: ASYNC220 - starts in a moment
        [sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    assert engine.stdout is not None
    assert await asyncio.to_thread(engine.stdout.readline) == "started\n"
    os.killpg(engine.pid, signal.SIGKILL)
    engine.wait()
    engine.stdout.close()
    task = task_of(tmp_path, script)
    facts: list[Fact] = []
    await task.runner.open(facts.append)
    await task.runner.recover([spec(run) for run in range(1, 9)])
    assert any(isinstance(fact, Adopted) for fact in facts)
    await until(lambda: len(ends(facts)) == 8)
    assert {ended.ending.outcome for ended in ends(facts).values()} == {"succeeded"}
    assert sorted((tmp_path / "effects").read_text().split()) == [f"j{run}" for run in range(1, 9)]
    (write,) = ends(facts)[3].writes
    assert write.source is not None
    assert write.source.read_text() == "out j3\n"
    for run in range(1, 9):
        task.runner.forget(run)
    await task.runner.close()
    assert list((tmp_path / "app" / LOG).iterdir()) == []


@pytest.mark.parametrize("times", [1, 3])
async def test_runs_survive_a_killed_launcher(tmp_path: Path, times: int) -> None:
    """The next launcher reads the exit code, whatever the kernel; again and again."""
    task = task_of(tmp_path, "sleep 1.5; exit 5")
    facts: list[Fact] = []
    await task.runner.open(facts.append)
    task.runner.start(spec(1))
    await until(lambda: facts)
    for _ in range(times):
        await kill_launcher(tmp_path)
    await until(lambda: ends(facts))
    ending = ends(facts)[1].ending
    assert (ending.outcome, ending.exit_code) == ("failed", 5)
    assert [type(fact) for fact in facts] == [Started, Ended]
    await task.runner.close()


async def kill_keeper(path: Path, number: int) -> None:
    """Kill the parent (0) or the top one (-1), and wait until the launcher has two again."""
    pid = keepers(path)[number]
    os.kill(pid, signal.SIGKILL)
    await until(lambda: len(found := keepers(path)) == 2 and pid not in found)


@pytest.mark.parametrize("before", [[], [0], [-1], [0, 0], [-1, -1], [0, -1], [-1, 0], [0, "L", 0]])
async def test_what_ends_while_there_is_no_launcher_is_told_by_the_next(
    tmp_path: Path, before: list[int | str]
) -> None:
    """Whichever of its keepers have been killed before, one after the other: each has been replaced."""
    script = f"echo once >> {tmp_path}/effects; while [ ! -e {tmp_path}/go ]; do sleep 0.02; done; exit 5"
    task = task_of(tmp_path, script)
    facts: list[Fact] = []
    await task.runner.open(facts.append)
    task.runner.start(spec(1))
    await until(lambda: facts)
    assert isinstance(facts[0], Started)
    for one in before:
        await (kill_launcher(tmp_path) if isinstance(one, str) else kill_keeper(tmp_path, one))
    keeper = keepers(tmp_path)[0]
    os.kill(keeper, signal.SIGSTOP)
    os.kill(launcher_pid(tmp_path), signal.SIGKILL)
    run, start = int(facts[0].handle["pid"]), int(facts[0].handle["start"])
    (tmp_path / "go").touch()
    await until(lambda: not proctable.is_alive(run, start))
    assert (proctable.stat_fields(run) or [""])[0] == "Z", "somebody keeps it"
    os.kill(keeper, signal.SIGCONT)
    await until(lambda: ends(facts))
    assert ends(facts)[1].ending.exit_code == 5
    await task.runner.close()
    assert (tmp_path / "effects").read_text() == "once\n"


RESTARTED = """
import asyncio, sys
sys.path.insert(0, {root!r})
from tests.integration.local_kit import ends, spec, task_of
from tests.run_kit import until
async def main():
    runner, facts = task_of({path!r}, {script!r}).runner, []
    await runner.open(facts.append)
    await runner.recover([spec(1), spec(2)])
    runner.start(spec(3, epoch=2))
    await until(lambda: len(ends(facts)) == 3)
    for run, end in sorted(ends(facts).items()):
        print(run, end.ending.outcome, end.ending.error and end.ending.error.message, [w.source.read_text() for w in end.writes])
    await runner.close()
asyncio.run(main())
"""


@pytest.mark.machine("mounts")
async def test_after_a_restart_of_the_machine_what_ran_is_lost_and_what_had_ended_is_not(
    tmp_path: Path,
) -> None:
    """All processes die at once; the next engine and launcher see another boot id, from a /proc of their own."""
    script = "{% if job == 'j1' %}sleep 60{% else %}echo out{% endif %}"
    told = {"root": str(Path(__file__).parents[2]), "path": str(tmp_path), "script": script}
    engine = subprocess.Popen(  # noqa: ASYNC220 - starts in a moment
        [sys.executable, "-c", ENGINE.format(**told, runs=2)], start_new_session=True
    )
    journal, signs = (
        tmp_path / "app/journal",
        (f'"id":"{LOG}.1.2","ended"', f'"id":"{LOG}.1.1","task":"t","intended":'),
    )
    await until(lambda: journal.exists() and all(sign in journal.read_text() for sign in signs))
    await until(lambda: any(folder.startswith(str(tmp_path)) for folder in proctable.marked(MARK)))
    (running,) = [folder for folder in proctable.marked(MARK) if folder.startswith(str(tmp_path))]
    first = launcher_pid(tmp_path)
    os.kill(engine.pid, signal.SIGKILL)
    kill_at_once(*keepers(tmp_path), first, *proctable.marked(MARK)[running])
    engine.wait()
    (tmp_path / "boot").write_text("11111111-2222-3333-4444-555555555555\n")
    mount = 'mount --bind "$0" /proc/sys/kernel/random/boot_id && exec "$@"'
    after = [sys.executable, "-c", RESTARTED.format(**told)]
    done = await asyncio.to_thread(
        subprocess.run,
        ["unshare", "--mount", "sh", "-c", mount, str(tmp_path / "boot"), *after],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines() == [
        "1 lost the machine was restarted while it ran []",
        "2 succeeded None ['out\\n']",
        "3 succeeded None ['out\\n']",
    ]


async def test_runs_survive_a_launcher_and_its_keepers(tmp_path: Path) -> None:
    """All killed at once: the exit code is told by kernels from 6.15 on, else the run is lost."""
    task = task_of(tmp_path, "sleep 1; exit 5")
    facts: list[Fact] = []
    await task.runner.open(facts.append)
    task.runner.start(spec(1))
    await until(lambda: facts)
    first = launcher_pid(tmp_path)
    kill_at_once(*keepers(tmp_path), first)
    await until(lambda: ends(facts))
    assert launcher_pid(tmp_path) != first
    ending = ends(facts)[1].ending
    assert (ending.outcome, ending.exit_code) in [("failed", 5), ("lost", None)]
    assert [type(fact) for fact in facts] == [Started, Ended]
    await task.runner.close()


@pytest.mark.parametrize("seconds", [0.2, 2])
async def test_a_start_that_the_dead_launcher_had_taken_is_not_repeated(
    tmp_path: Path, seconds: float
) -> None:
    """The launcher dies between the start and its answer: the run is found by its command line, or as a zombie."""
    task = task_of(tmp_path, f"echo once >> {tmp_path}/effects; sleep {seconds}; exit 5")
    facts: list[Fact] = []
    await task.runner.open(facts.append)
    task.runner.start(spec(1))
    await until(lambda: facts)
    pid = launcher_pid(tmp_path)
    journal = tmp_path / "app" / "journal"
    os.kill(pid, signal.SIGSTOP)
    kept = [line for line in journal.read_text().splitlines(keepends=True) if '"pid"' not in line]
    journal.write_text("".join(kept))
    assert any('"intended"' in line for line in kept)
    if seconds < 1:
        await asyncio.sleep(1)
    os.kill(pid, signal.SIGKILL)
    await until(lambda: ends(facts))
    assert ends(facts)[1].ending.exit_code == 5
    await task.runner.close()
    assert (tmp_path / "effects").read_text() == "once\n"


async def test_what_was_settled_as_absent_can_never_start(tmp_path: Path) -> None:
    """A delayed start under a barred identity is refused by the launcher."""
    task = task_of(tmp_path, f"touch {tmp_path}/started")
    facts: list[Fact] = []
    await task.runner.open(facts.append)
    await task.runner.recover([spec(1)])
    assert ends(facts)[1].ending.outcome == "lost"
    assert ends(facts)[1].ending.detail == {MACHINE: "unstarted"}, "it uses up no budget"
    await task.runner.close()
    again = await run_all(task_of(tmp_path, f"touch {tmp_path}/started"), spec(1))
    assert again[1].ending.outcome == "lost"
    assert not (tmp_path / "started").exists()
