"""Tasks of local processes, runs of them, and the launcher that has them."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

from datatask import (
    InProcessBlobRepository,
    InProcessMetadataRepository,
    LocalLinuxManager,
    ProcessTask,
    Resources,
)
from datatask.adapters.execute.base import proctable
from datatask.schema.messages import Ended, Fact, RunSpec
from tests.run_kit import until

LOG = "feedfacefeedface"


def task_of(path: str | Path | None, script: str, **more: Any) -> ProcessTask:
    """Return a process task below a folder, with stdout."""
    out = InProcessBlobRepository()
    out._id = "out"
    pids = InProcessMetadataRepository()
    manager = LocalLinuxManager("app", path)
    task = ProcessTask("t", manager, None, Resources(), pids, script, stdout=out, **more)
    task.link("inp", InProcessMetadataRepository(), is_input=True)
    return task


def spec(run: int, *, epoch: int = 1, job: str = "") -> RunSpec:
    """Return a run of the task."""
    return RunSpec(run, f"{LOG}.{epoch}.{run}", "t", job or f"j{run}", 1, 1, {})


def ends(facts: list[Fact]) -> dict[int, Ended]:
    """Return the ends so far by run; each run has one at most."""
    found = [fact for fact in facts if isinstance(fact, Ended)]
    assert len(found) == len({fact.run for fact in found})
    return {fact.run: fact for fact in found}


def launcher_pid(path: Path) -> int:
    """Return the pid of the folder's launcher."""
    return int((path / "app" / "launcher.lock").read_text() or 0)


def keepers(path: Path) -> list[int]:
    """Return the pids of the launcher's keepers, its parent first."""
    found, pid = [], launcher_pid(path)
    line = proctable.command_line(pid)
    while line and proctable.command_line(pid := int((proctable.stat_fields(pid) or ["", "0"])[1])) == line:
        found.append(pid)
    return found


async def kill_launcher(path: Path) -> None:
    """Kill it and wait for the next one."""
    killed = launcher_pid(path)
    os.kill(killed, signal.SIGKILL)
    await until(lambda: launcher_pid(path) != killed)


async def run_all(task: ProcessTask, *specs: RunSpec) -> dict[int, Ended]:
    """Run these to their ends."""
    facts: list[Fact] = []
    await task.runner.open(facts.append)
    for one in specs:
        task.runner.start(one)
    await until(lambda: len(ends(facts)) == len(specs))
    await task.runner.close()
    return ends(facts)
