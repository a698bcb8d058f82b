"""A target is shut down, or has no room for another process: over SSH too, that is no failure of the scripts."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import pytest

from datatask.adapters.execute.ssh.agent_messages import parse
from datatask.schema.messages import Noticed, Started
from tests.integration.test_back_pressure import processes_bounded
from tests.run_kit import Facts, opened, spec
from tests.ssh_runs import ssh_task

pytestmark = pytest.mark.server("sshd")


async def started(facts: Facts) -> int:
    """Wait for the start; return the pid."""
    fact = await facts.first(1, Started)
    assert isinstance(fact, Started)
    return int(fact.handle["pid"])


def agent(path: Path) -> int:
    """Return the pid of the agent that obeys."""
    (owner,) = (path / "remote").glob("app/*/owner")
    return int(owner.read_text().split()[3])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
@pytest.mark.parametrize("agent_first", [True, False])
async def test_agent_and_script_are_ended_at_once(
    tmp_path: Path, number: signal.Signals, agent_first: bool
) -> None:
    """As a shutdown does it; the agent comes back, and tells of an end that is not believed."""
    runner = ssh_task(tmp_path, "exec sleep 60").runner
    async with opened(runner) as facts:
        runner.start(spec(1))
        script = await started(facts)
        pids = [agent(tmp_path), script]
        for pid in pids if agent_first else reversed(pids):
            os.kill(pid, number)
        end = await facts.end_of(1)
    assert end.ending.outcome == "lost"
    assert end.ending.error is not None
    assert "was being stopped" in end.ending.error.message


async def test_a_signal_to_the_script_alone_is_its_end(tmp_path: Path) -> None:
    runner = ssh_task(tmp_path, "exec sleep 60").runner
    async with opened(runner) as facts:
        runner.start(spec(1))
        os.kill(await started(facts), signal.SIGTERM)
        end = await facts.end_of(1)
    assert (end.ending.outcome, end.ending.exit_code) == ("failed", 143)


@pytest.mark.parametrize(
    ("code", "more", "doubt"),
    [("143", "", True), ("137", "", True), ("137", "oom=1,", False), ("1", "", False), ("0", "", False)],
)
def test_which_records_are_in_doubt(code: str, more: str, doubt: bool) -> None:
    """Those of a signal that a shutdown sends, and that nothing else explains."""
    record = parse(f"7 8 boot 9.5 {code} - -{more} 0m0.0s 0m0.0s".split())
    assert record is not None
    assert record.is_in_doubt is doubt


async def test_a_start_that_was_cut_off_is_made_again(tmp_path: Path) -> None:
    """The agent was gone before its process could claim it, as where a target has no room for that process."""
    (tmp_path / "effects").mkdir()
    runner = ssh_task(tmp_path, f"echo once >> {tmp_path}/effects/{{{{ job }}}}").runner
    async with opened(runner) as facts:
        runner.start(spec(1))
        await facts.end_of(1)
        log, _, name = spec(2).identity.partition(".")
        (folder,) = (tmp_path / "remote").glob(f"app/*/{log}")
        (folder / name).mkdir()
        (folder / name / "asked").write_text("t\n")
        runner.start(spec(2, "later"))
        assert isinstance(await facts.first(2, Noticed), Noticed)
        end = await facts.end_of(2)
    assert end.ending.outcome == "succeeded"
    assert (tmp_path / "effects" / "later").read_text() == "once\n"


async def at_rest(count: Path) -> int:
    """Return how many processes there are once that has not changed for a while: some of the run before are still ending."""
    last, same = 0, 0
    async with asyncio.timeout(100):
        while same < 15:
            await asyncio.sleep(0.02)
            now = int(count.read_text())
            last, same = now, same + 1 if now == last else 0
    return last


@pytest.mark.machine("root")
async def test_a_target_without_room_for_a_process_is_asked_again(tmp_path: Path) -> None:
    """Its agent gets one, for the shell that is to wait, and that one none for the script."""
    (tmp_path / "effects").mkdir()
    runner = ssh_task(tmp_path, f"echo once >> {tmp_path}/effects/{{{{ job }}}}").runner
    async with opened(runner) as facts:
        runner.start(spec(1))
        await facts.end_of(1)
        with processes_bounded(1000) as group:
            (group / "cgroup.procs").write_text(str(agent(tmp_path)))
            now = await at_rest(group / "pids.current")
            (group / "pids.max").write_text(str(now + 1))
            runner.start(spec(2, "later"))
            try:
                noticed = await facts.first(2, Noticed)
            finally:
                (group / "pids.max").write_text("max")
            end = await facts.end_of(2)
    assert isinstance(noticed, Noticed)
    assert (end.ending.outcome, (tmp_path / "effects" / "later").read_text()) == ("succeeded", "once\n")
