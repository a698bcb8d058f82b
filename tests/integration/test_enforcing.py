"""Runs held to their resources by the kernel: memory, cores, and what is said where that is not possible."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from datatask import (
    InProcessBlobRepository,
    InProcessMetadataRepository,
    LocalLinuxManager,
    ProcessTask,
    Resources,
    SSHLinuxManager,
)
from datatask.adapters.execute.base.endings import OUT_OF_MEMORY_PERHAPS
from datatask.adapters.execute.base.targets import AbstractProcessManager
from datatask.adapters.execute.local import cgroups, spawning
from datatask.adapters.execute.local import manager as cleanup
from datatask.schema.errors import CallerError
from datatask.schema.messages import Ended
from tests.integration.local_kit import run_all, spec
from tests.machine import BUSY, throttled
from tests.run_kit import until
from tests.ssh_kit import server

GREEDY = f"#!{sys.executable}\nkept = bytearray(300 << 20)\nkept[::4096] = b'x' * len(kept[::4096])\n"


grouped = pytest.mark.machine("groups")


def task_of(path: Path, script: str, resources: Resources, **more: Any) -> ProcessTask:
    out = InProcessBlobRepository()
    out._id = "out"
    manager = LocalLinuxManager("app", path)
    task = ProcessTask(
        "t", manager, None, resources, InProcessMetadataRepository(), script, stdout=out, **more
    )
    task.link("inp", InProcessMetadataRepository(), is_input=True)
    return task


async def ended(path: Path, script: str, cpu: float | str, mem: int | str, enforce: Any = True) -> Ended:
    return (await run_all(task_of(path, script, Resources.parse(cpu, mem), enforce=enforce), spec(1)))[1]


@grouped
async def test_a_kill_by_the_kernel_is_told_where_nothing_was_enforced(tmp_path: Path) -> None:
    """The whole machine ran out of memory, or a group that somebody else made: the kernel counts it."""
    (*_, group) = made = cgroups.Groups().make(f"somebodys-{os.getpid()}", 0, 1 << 26)
    assert cgroups.oom_kills() >= 0
    script = f"#!/bin/sh\necho $$ >{group}/cgroup.procs\nexec python3 -c 'bytearray(1 << 28)'\n"
    try:
        ending = (await ended(tmp_path, script, 1, "1Gi", enforce=False)).ending
    finally:
        cgroups.remove(made)
    assert (ending.outcome, ending.exit_code) == ("failed", 137)
    assert ending.error is not None
    assert ending.error.message == f"killed by SIGKILL: {OUT_OF_MEMORY_PERHAPS}"


def test_the_kernels_count_of_kills_is_read_where_there_is_one(tmp_path: Path) -> None:
    (tmp_path / "vmstat").write_text("nr_free_pages 17\noom_kill 43\n")
    assert cgroups.oom_kills(str(tmp_path / "vmstat")) == 43
    assert cgroups.oom_kills(str(tmp_path / "absent")) == 0


@grouped
def test_groups_that_are_left_are_found_and_removed_with_what_is_in_them(tmp_path: Path) -> None:
    """Those of this application's logs only."""
    log, other = f"left{os.getpid()}", f"other{os.getpid()}"
    (tmp_path / log).mkdir()
    made = {name: cgroups.Groups().make(name, 1, 1 << 26) for name in (f"{log}.1.7", f"{other}.1.7")}
    inside = subprocess.Popen(["sleep", "600"])
    try:
        for group in made[f"{log}.1.7"]:
            Path(group, "cgroup.procs").write_text(str(inside.pid))
        assert [one.identity for one in cleanup.list_runs(tmp_path, "here")] == [f"{log}.1.7"]
        reaper = threading.Thread(target=inside.wait)
        reaper.start()
        assert cleanup.remove_runs(tmp_path, [f"{log}.1.7"]) == [f"{log}.1.7"]
        reaper.join()
        assert [Path(group).exists() for group in made[f"{log}.1.7"]] == [False] * len(made[f"{log}.1.7"])
        assert all(Path(group).exists() for group in made[f"{other}.1.7"])
        assert cleanup.list_runs(tmp_path, "here") == []
    finally:
        inside.kill()
        for groups in made.values():
            cgroups.remove(groups)


def groups_left() -> list[str]:
    """Return the runs' groups that are there, wherever ours are on this machine."""
    top = Path(os.path.dirname(made[0])) if (made := cgroups.Groups().make("looked", 0, 1 << 26)) else None
    cgroups.remove(made)
    return [] if top is None else [path.name for path in top.iterdir() if path.is_dir()]


@grouped
async def test_too_much_memory_ends_the_run_and_says_so(tmp_path: Path) -> None:
    ending = (await ended(tmp_path, GREEDY, 1, "64Mi")).ending
    assert (ending.outcome, ending.exit_code) == ("failed", 137)
    assert ending.error is not None
    assert ending.error.message == (
        f"killed by SIGKILL: out of memory: the kernel killed at the {64 << 20} bytes of its resources"
    )
    assert ending.usage is not None
    assert (32 << 20) < ending.usage["memory_bytes_max"] <= 64 << 20
    await until(lambda: groups_left() == [])


@grouped
async def test_memory_of_all_processes_of_a_run_counts(tmp_path: Path) -> None:
    """Children too, in sessions of their own as well; a run within its limits is left alone."""
    script = f"#!/bin/sh\nsetsid {sys.executable} -c 'x = bytearray(300 << 20); x[::4096] = b\"x\" * len(x[::4096])'\n"
    assert (await ended(tmp_path, script, 0, "64Mi")).ending.outcome == "failed"
    assert (await ended(tmp_path / "b", script, 0, "600Mi")).ending.outcome == "succeeded"


@grouped
async def test_cores_are_shared_out(tmp_path: Path) -> None:
    """Three tenths of a second of work take a tenth of a core three seconds, less what it may begin with."""
    ending = (await ended(tmp_path, BUSY, "0.1", "1Gi")).ending
    assert ending.outcome == "succeeded"
    assert (ending.ended_at or 0) - (ending.started_at or 0) > 1_500_000_000


@grouped
async def test_a_tenth_of_a_core_waits_for_its_turn_and_a_whole_one_does_not(tmp_path: Path) -> None:
    """By the kernel's own count, whatever else the machine does."""
    waits = []
    for cpu in ("0.1", "1"):
        (write,) = (await ended(tmp_path / cpu, BUSY, cpu, "1Gi")).writes
        assert write.source is not None
        waits.append(throttled(write.source.read_bytes()))
    assert waits[0] >= 10
    assert waits[0] > 4 * waits[1]


held = pytest.mark.parametrize("enforce", [pytest.param(True, marks=grouped), "ulimit"])


@held
async def test_a_script_without_a_first_line_and_a_missing_interpreter(tmp_path: Path, enforce: Any) -> None:
    assert (await ended(tmp_path, "exit 7", 1, "1Gi", enforce)).ending.exit_code == 7
    ending = (await ended(tmp_path / "b", "#!/no/such\n", 1, "1Gi", enforce)).ending
    assert ending.outcome == "refused"
    assert ending.error is not None
    assert "the interpreter /no/such of the script's first line cannot be run" in ending.error.message
    if enforce is True:
        await until(lambda: groups_left() == [])


@held
async def test_a_shell_does_not_run_what_the_kernel_cannot(tmp_path: Path, enforce: Any) -> None:
    """An interpreter for another processor, say."""
    (tmp_path / "foreign").write_bytes(b"\x7fELF" + bytes(100))
    (tmp_path / "foreign").chmod(0o755)
    script = f"#!{tmp_path}/foreign\ntouch {tmp_path}/mark\n"
    ending = (await ended(tmp_path, script, 1, "1Gi", enforce)).ending
    assert ending.outcome == "refused"
    assert ending.error is not None
    assert f"Exec format error: the interpreter {tmp_path}/foreign" in ending.error.message
    assert not (tmp_path / "mark").exists()


def test_a_confinement_that_says_nothing_is_told_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody waits for its words."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cwd").mkdir()

    def fails(*_: int) -> None:
        raise MemoryError

    monkeypatch.setattr(resource, "setrlimit", fails)
    with pytest.raises(OSError, match="its resources cannot be enforced: Exception occurred in preexec_fn"):
        spawning.spawn(
            str(tmp_path), {}, 0o077, False, {}, False, spawning.Confinement(address_space=1 << 30)
        )


def test_what_cannot_be_entered_is_told_and_nothing_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # and back: a launcher has no place of its own
    (tmp_path / "cwd").mkdir()
    (tmp_path / "exe").write_text(f"#!/bin/sh\ntouch {tmp_path}/mark\n")
    (tmp_path / "exe").chmod(0o700)
    with pytest.raises(OSError, match="cannot be enforced") as raised:
        spawning.spawn(
            str(tmp_path), {}, 0o077, False, {}, False, spawning.Confinement([f"{tmp_path}/group"])
        )
    assert spawning.explained(raised.value, str(tmp_path)) == (
        f"its resources cannot be enforced: No such file or directory: {tmp_path}/group/cgroup.procs"
    )
    assert not (tmp_path / "mark").exists()


@grouped
async def test_what_a_run_leaves_in_its_group_is_killed(tmp_path: Path) -> None:
    """The group cannot be removed before: also what made a session of its own."""
    script = f"#!/bin/sh\nsetsid sleep 300 & echo $! > {tmp_path}/child; sleep 0.1\n"
    assert (await ended(tmp_path, script, 1, "1Gi")).ending.outcome == "succeeded"
    await until(lambda: groups_left() == [])
    assert not Path(f"/proc/{(tmp_path / 'child').read_text().strip()}/cwd").exists()


async def test_a_ulimit_bounds_each_process(tmp_path: Path) -> None:
    ending = (await ended(tmp_path, GREEDY, 1, "200Mi", "ulimit")).ending
    assert (ending.outcome, ending.exit_code) == ("failed", 1)  # Python's MemoryError
    assert (await ended(tmp_path / "b", GREEDY, 1, "2Gi", "ulimit")).ending.outcome == "succeeded"


@pytest.mark.parametrize(
    ("resources", "enforce", "what"),
    [
        (Resources(), True, "enforce=True has nothing to hold runs to"),
        (Resources.parse(1, 0), "ulimit", "enforce='ulimit' has nothing to hold runs to"),
        (Resources.parse(1, 1), "cgroup", "enforce is 'cgroup'"),
    ],
)
def test_what_cannot_be_meant_is_refused(
    tmp_path: Path, resources: Resources, enforce: Any, what: str
) -> None:
    with pytest.raises(CallerError, match="t") as raised:
        task_of(tmp_path, "true", resources, enforce=enforce)
    assert what in str(raised.value)


def test_another_kind_of_machine_says_that_it_cannot(tmp_path: Path) -> None:
    task = task_of(tmp_path, "true", Resources.parse(1, 1), enforce=True)
    with pytest.raises(CallerError) as raised:
        AbstractProcessManager.runner(task.manager, task.recipe())
    assert "enforce=True is not possible with LocalLinuxManager" in str(raised.value)


# --- where groups are made, on trees that look like a kernel's ----------------------------------------


def machine(tmp_path: Path, mounts: str, ours: str) -> cgroups.Groups:
    (tmp_path / "mounts").write_text(mounts)
    (tmp_path / "ours").write_text(ours)
    return cgroups.Groups(str(tmp_path / "mounts"), str(tmp_path / "ours"))


def unified(tmp_path: Path, *, hands_down: str = "cpu memory pids") -> tuple[Path, cgroups.Groups]:
    """A version 2 tree in which a user's service manager has a group of its own."""
    root = tmp_path / "cg"
    user = root / "user.slice" / "user@1000.service"
    (user / "app.slice").mkdir(parents=True)
    (root / "cgroup.controllers").write_text("cpuset cpu io memory pids\n")
    for group in (root, user.parent, user, user / "app.slice"):
        (group / "cgroup.procs").touch()
        (group / "cgroup.subtree_control").write_text("")
    (user / "cgroup.subtree_control").write_text(hands_down)
    mounts = f"35 31 0:32 / {root} rw - cgroup2 cgroup2 rw,nsdelegate\n"
    return user, machine(tmp_path, mounts, "0::/user.slice/user@1000.service/app.slice\n")


def made_like_a_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """New groups come with their files."""
    mkdir = os.mkdir

    def with_files(path: str, mode: int = 0o777) -> None:
        mkdir(path, mode)
        for name in ("cgroup.procs", "cgroup.subtree_control", "cpu.max", "memory.max", "memory.swap.max"):
            Path(path, name).touch()

    monkeypatch.setattr(os, "mkdir", with_files)


def test_version_2_limits_are_written_in_the_nearest_group_that_hands_controllers_down(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    user, groups = unified(tmp_path)
    made_like_a_kernel(monkeypatch)
    (group,) = groups.make("log.1.5", 1.5, 1 << 30)
    assert Path(group) == user / "datatask" / "log.1.5"
    assert (user / "datatask" / "cgroup.subtree_control").read_text() == "+cpu +memory"
    assert {name: Path(group, name).read_text() for name in ("cpu.max", "memory.max", "memory.swap.max")} == {
        "cpu.max": "150000 100000",
        "memory.max": str(1 << 30),
        "memory.swap.max": "0",
    }
    Path(group, "memory.peak").write_text("4096\n")
    Path(group, "memory.events").write_text("low 0\nmax 3\noom 1\noom_kill 2\noom_group_kill 0\n")
    assert cgroups.used([group]) == (4096, 2)


def test_nothing_delegated_is_told_with_the_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made_like_a_kernel(monkeypatch)
    _, groups = unified(tmp_path, hands_down="pids")
    with pytest.raises(OSError, match=r"does not hand .* down to the groups in it"):
        groups.make("log.1.5", 1.0, 1 << 30)


def test_a_kernel_without_the_controller(tmp_path: Path) -> None:
    groups = machine(tmp_path, "35 31 0:32 / /proc rw - proc proc rw\n", "0::/\n")
    with pytest.raises(OSError, match="this kernel has no control groups for memory"):
        groups.make("log.1.5", 0, 1 << 30)


# --- on other machines ----------------------------------------------------------------------------------


def over_ssh(path: Path, script: str, memory: str, enforce: Any) -> ProcessTask:
    manager = SSHLinuxManager("app", server().host(), path)
    out = InProcessBlobRepository()
    out._id = "out"
    pids = InProcessMetadataRepository()
    task = ProcessTask(
        "t", manager, None, Resources.parse(1, memory), pids, script, stdout=out, enforce=enforce
    )
    task.link("inp", InProcessMetadataRepository(), is_input=True)
    return task


@pytest.mark.server("sshd")
async def test_a_ulimit_holds_over_ssh(tmp_path: Path) -> None:
    said = "#!/bin/sh\nulimit -v; env | grep -c ^HOME=\n"
    (write,) = (await run_all(over_ssh(tmp_path, said, "200Mi", "ulimit"), spec(1)))[1].writes
    assert write.data == f"{200 << 10}\n1\n".encode()
    ending = (await run_all(over_ssh(tmp_path / "b", GREEDY, "200Mi", "ulimit"), spec(2)))[2].ending
    assert (ending.outcome, ending.exit_code) == ("failed", 1)
