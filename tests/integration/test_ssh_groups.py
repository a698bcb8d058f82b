"""Control groups on SSH targets: what they bound and tell, that nothing is left of them, and what is said where there are none."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from datatask import Resources
from datatask.adapters.execute.base.endings import OUT_OF_MEMORY_PERHAPS
from datatask.adapters.execute.local.cgroups import Groups, remove
from datatask.adapters.execute.ssh import ground
from datatask.adapters.execute.ssh.folders import remove_runs
from tests.machine import BUSY, throttled
from tests.run_kit import contents, spec
from tests.ssh_kit import server
from tests.ssh_runs import SECOND, ended, message, on_each_server, on_server

pytestmark = pytest.mark.server("sshd")
AGENT = Path(__file__).parents[2] / "adapters/execute/ssh/agent.sh"
HOG = "#!/usr/bin/python3\nheld = [bytearray(1 << 20) for _ in range({})]\n"


grouped = pytest.mark.machine("groups")


def left() -> list[str]:
    """Return the groups of this test's runs that are there."""
    name = spec(1).identity
    return [folder for folder, _, _ in os.walk("/sys/fs/cgroup") if Path(folder).name == name]


@on_each_server
@grouped
async def test_memory_is_bounded_by_the_kernel_and_its_end_says_so(tmp_path: Path) -> None:
    end = await ended(
        on_server(tmp_path), HOG.format(200), enforce=True, resources=Resources.parse(1, "64Mi")
    )
    assert (end.ending.outcome, end.ending.exit_code) == ("failed", 137)
    assert "out of memory: the kernel killed at the 67108864 bytes" in message(end)
    assert not left()


@grouped
async def test_cores_are_shared_out(tmp_path: Path) -> None:
    """A tenth of a core takes three tenths of a second of work three seconds, and waits for its turns; a whole one does not."""
    waits, took = [], []
    for cpu in ("0.1", "1"):
        resources = Resources.parse(cpu, "1Gi")
        end = await ended(on_server(tmp_path / cpu), BUSY, enforce=True, resources=resources)
        assert end.ending.outcome == "succeeded"
        waits.append(throttled(contents(end.writes[0])))
        took.append((end.ending.ended_at or 0) - (end.ending.started_at or 0))
    assert took[0] > 1.5 * SECOND
    assert waits[0] >= 10
    assert waits[0] > 4 * waits[1]


@grouped
async def test_memory_of_all_processes_of_a_run_counts(tmp_path: Path) -> None:
    """Those in sessions of their own as well; a run within its limits is left alone."""
    script = "#!/bin/sh\nsetsid python3 -c 'held = [bytearray(1 << 20) for _ in range(200)]'\n"
    small, large = Resources.parse(1, "64Mi"), Resources.parse(1, "600Mi")
    assert (await ended(on_server(tmp_path / "a"), script, enforce=True, resources=small)).ending.outcome == (
        "failed"
    )
    assert (await ended(on_server(tmp_path / "b"), script, enforce=True, resources=large)).ending.outcome == (
        "succeeded"
    )


@on_each_server
@grouped
async def test_a_run_in_groups_tells_its_peak_and_leaves_nothing(tmp_path: Path) -> None:
    script = HOG.format(40) + "import subprocess\nsubprocess.Popen(['setsid', 'sleep', '1234.5'])\n"
    end = await ended(on_server(tmp_path), script, enforce=True, resources=Resources.parse(1, "128Mi"))
    assert end.ending.outcome == "succeeded"
    assert end.ending.usage is not None
    assert 40 << 20 < end.ending.usage["memory_bytes_max"] <= 128 << 20
    assert not left()


@grouped
async def test_a_kill_by_the_kernel_is_told_where_nothing_was_enforced(tmp_path: Path) -> None:
    (*_, group) = made = Groups().make(f"somebodys-ssh-{os.getpid()}", 0, 1 << 26)
    script = f"echo $$ >{group}/cgroup.procs\nexec python3 -c 'bytearray(1 << 28)'\n"
    try:
        end = await ended(on_server(tmp_path), script)
    finally:
        remove(made)
    assert (end.ending.outcome, end.ending.exit_code) == ("failed", 137)
    assert message(end) == f"killed by SIGKILL: {OUT_OF_MEMORY_PERHAPS}"


@grouped
async def test_cleaning_a_target_removes_the_groups_of_a_run_and_no_other(tmp_path: Path) -> None:
    """As where the shell that waited for the run was killed."""
    at = server()
    names = [f"clean{os.getpid()}.1.7", f"clean{os.getpid()}.1.71"]
    made = {name: Groups().make(name, 1, 1 << 26) for name in names}
    for name in names:
        log, _, run = name.partition(".")
        (tmp_path / "app/target" / log / run).mkdir(parents=True)
    try:
        assert await remove_runs(at.host(), "app", str(tmp_path), names[:1]) == names[:1]
        assert not any(Path(group).exists() for group in made[names[0]])
        assert all(Path(group).exists() for group in made[names[1]])
    finally:
        for groups in made.values():
            remove(groups)


async def test_without_groups_no_peak_is_guessed(tmp_path: Path) -> None:
    end = await ended(on_server(tmp_path), "true\n")
    assert end.ending.usage is not None
    assert set(end.ending.usage) == {"cpu_seconds"}


def found(tmp_path: Path, mounts: str, own: str) -> str:
    """Return what the agent says of these tables of the kernel."""
    (tmp_path / "mounts").write_text(mounts)
    (tmp_path / "own").write_text(own)
    (tmp_path / "agent").write_text(ground.joined(AGENT))
    command = [
        "sh",
        str(tmp_path / "agent"),
        "groups",
        str(tmp_path),
        str(tmp_path / "mounts"),
        str(tmp_path / "own"),
    ]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def unified(tmp_path: Path, handed: str) -> str:
    """Make a tree as version 2 has it, with a group of ours; return the line of its mount."""
    ours = tmp_path / "cgroup/user/session"
    ours.mkdir(parents=True)
    for folder in (tmp_path / "cgroup", ours.parent, ours):
        (folder / "cgroup.procs").touch()
        (folder / "cgroup.controllers").write_text("cpu io memory pids\n")
        (folder / "cgroup.subtree_control").write_text("\n")
    (ours.parent / "cgroup.subtree_control").write_text(f"{handed}\n")
    return f"30 20 0:26 / {tmp_path}/cgroup rw,nosuid - cgroup2 cgroup2 rw\n"


def test_version_two_is_taken_where_it_hands_the_controllers_down(tmp_path: Path) -> None:
    home = tmp_path / "cgroup/user/datatask"
    assert found(tmp_path, unified(tmp_path, "cpu memory"), "0::/user/session\n") == str(home)
    assert (home / "cgroup.subtree_control").read_text() == "+cpu +memory\n"


def test_what_version_two_does_not_hand_down_is_named(tmp_path: Path) -> None:
    said = found(tmp_path, unified(tmp_path, "pids"), "0::/user/session\n")
    assert said == f"lacks {tmp_path}/cgroup does not hand cpu and memory down to the groups in it"


def test_a_kernel_without_groups_is_told(tmp_path: Path) -> None:
    assert found(tmp_path, "21 1 0:19 / /proc rw - proc proc rw\n", "0::/\n") == (
        "lacks its kernel has no control groups for cpu and memory"
    )


async def test_a_target_without_groups_refuses_the_run_and_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The agent is made to look where there are none."""
    setup, _ = ground._scripts()
    blind = setup.replace("find_groups /proc/self/mountinfo", "find_groups /dev/null")
    assert blind != setup
    monkeypatch.setattr(ground, "_scripts", lambda: (blind, "blind"))
    end = await ended(on_server(tmp_path), "true\n", enforce=True, resources=Resources.parse(1, "64Mi"))
    assert end.ending.outcome == "refused"
    assert "enforce=True is not possible on target: its kernel has no control groups" in message(end)
