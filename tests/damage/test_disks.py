"""Disks that are full, that cannot be written any more: the engine ends with one line, and goes on when they can."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.damage.conftest import Disk
from tests.integration.cli_kit import Project, complaints
from tests.unmeasured import plain_environment

GROW = """
import datatask

numbers = datatask.LogMetadataRepository("numbers")
texts = datatask.LogMetadataRepository("texts")

grow = datatask.InProcessSyncTask("grow", datatask.LogMetadataRepository("grown"), concurrency=16)
grow.link("numbers", numbers, is_input=True)
grow.link("texts", texts, is_output=True)


@grow
async def run_grow(job, numbers, texts):
    await texts.dump(job, "x" * 5_000)


pipeline = datatask.Pipeline([grow], datatask.Session(), [])
"""
SLOW = """
import datatask
from datatask import LogMetadataRepository, ProcessTask, Resources

slow = ProcessTask(
    "slow", lambda: datatask.LocalLinuxManager("damage", "{base}"), None, Resources(), LogMetadataRepository("pids"),
    "#!/bin/sh\\necho {{{{ job }}}} >> {told}\\nsleep 1\\n", done=LogMetadataRepository("slow.done"),
)
slow.link("numbers", LogMetadataRepository("numbers"), is_input=True)
pipeline = datatask.Pipeline([slow], datatask.Session(), [])
"""
JOBS = 900


def one_line(told: str) -> str:
    """Return the only line."""
    assert told.count("\n") == 1, told
    assert "Traceback" not in told
    return told


def spoken(project: Project, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a command in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "datatask", *arguments],
        cwd=project.folder, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


def positions(project: Project) -> int:
    """Return the head; all before it verifies."""
    told = project.ok("verify", "--json").json
    assert told["divergences"] == []
    return int(told["head"])


@pytest.fixture
def project(disk: Disk) -> Project:
    """Nine hundred numbers that become 5 MB of texts, on a disk of 4 MB."""
    project = Project(disk.path, GROW)
    (project.folder / "numbers.csv").write_text("job,n\n" + "".join(f"j{n},1\n" for n in range(JOBS)))
    project.ok("inject", "grow.numbers", "--from", "numbers.csv")
    return project


@pytest.mark.machine("mounts")
def test_a_disk_that_fills_ends_the_engine_and_nothing_durable_is_lost(disk: Disk, project: Project) -> None:
    ended = spoken(project, "run")
    assert ended.returncode == 5
    line = one_line(ended.stderr)
    assert str(project.log) in line
    assert "the disk is full" in line
    assert "free some space and start again" in line
    head = positions(project)
    done = project.ok("status", "--json").json["tasks"]["grow"]["succeeded"]
    assert 0 < done < JOBS
    assert spoken(project, "run").returncode == 5  # again, and again nothing is lost
    assert positions(project) >= head
    disk.remount("size=60m")
    assert spoken(project, "run").returncode == 0
    assert positions(project) > head
    with_each = json.loads(project.ok("query", "SELECT count(*) AS n, count(DISTINCT job) AS jobs FROM runs"
                                      " WHERE state = 'succeeded'", "--json").out)  # fmt: skip
    assert with_each["rows"] == [[JOBS, JOBS]]


@pytest.mark.machine("mounts")
def test_looking_works_on_a_full_disk(disk: Disk, project: Project) -> None:
    assert spoken(project, "run").returncode == 5
    disk.fill(0)
    for command in (
        ("status",),
        ("log", "--last", "3"),
        ("why", "grow"),
        ("runs",),
        ("verify",),
        ("replay",),
    ):
        told = spoken(project, *command)
        assert told.returncode == 0, told
        assert complaints(told.stderr) == []


@pytest.mark.machine("mounts")
def test_a_request_on_a_full_disk_is_refused_in_one_line(disk: Disk, project: Project) -> None:
    disk.fill(0)
    before = positions(project)
    told = project.call("inject", "grow.numbers", "late", stdin=b"n: 1")
    assert told.code == 5
    assert "the disk is full" in one_line(told.err)
    assert positions(project) == before
    (disk.path / "ballast").unlink()
    project.ok("inject", "grow.numbers", "late", stdin=b"n: 1")
    assert "late" in project.ok("ls", "grow.numbers").out


@pytest.mark.machine("mounts")
def test_a_disk_that_turns_read_only_under_an_engine(disk: Disk, project: Project) -> None:
    """As a kernel does after an error of the disk: told in one line, read as before, gone on when it is whole."""
    disk.remount("size=60m")
    ended = spoken(project, "run")
    assert ended.returncode == 0
    head = positions(project)
    disk.remount("ro")
    for command in (("status",), ("log", "--last", "3"), ("verify",), ("replay",)):
        assert spoken(project, *command).returncode == 0
    refused = spoken(project, "run")
    assert refused.returncode == 5, refused
    line = one_line(refused.stderr)
    assert str(project.log.parent) in line
    assert re.search(r"permission|read-only|cannot be written", line, re.IGNORECASE)
    changed = project.call("inject", "grow.numbers", "late", stdin=b"n: 1")
    assert changed.code == 5
    one_line(changed.err)
    disk.remount("rw,size=60m")
    project.ok("inject", "grow.numbers", "late", stdin=b"n: 1")
    assert spoken(project, "run").returncode == 0
    assert positions(project) > head


@pytest.mark.server("setpriv")
def test_a_folder_that_turns_read_only_under_an_engine(tmp_path: Path) -> None:
    """What is open goes on, and so does the next engine, in the files that are there; nothing is lost."""
    project = Project(tmp_path)
    project.ok("inject", "double.numbers", "a", stdin=b"n: 1")
    project.ok("run")
    as_mortal = ("setpriv", "--bounding-set", "-dac_override,-dac_read_search") if os.getuid() == 0 else ()
    with subprocess.Popen(
        [*as_mortal, sys.executable, "-m", "datatask", "run", "--forever"],
        cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=plain_environment(),
    ) as engine:  # fmt: skip
        try:
            project.until('"epoch":3', "log", "--kind", "EngineOpened", "--last", "1", "--json")
            project.log.parent.chmod(0o500)
            project.ok("inject", "double.numbers", "b", stdin=b"n: 2")
            project.until("b", "ls", "double.doubled")
            engine.terminate()
            assert "Traceback" not in engine.communicate(timeout=100)[1]
        finally:
            engine.kill()
            project.log.parent.chmod(0o700)
    assert positions(project) > 0
    assert project.ok("ls", "double.doubled").lines == ["a", "b"]


@pytest.mark.machine("mounts")
def test_processes_outlive_an_engine_whose_disk_is_full_and_are_adopted(disk: Disk, tmp_path: Path) -> None:
    told = tmp_path / "told"
    project = Project(disk.path, SLOW.format(base=tmp_path / "base", told=told))
    lines = "".join(json.dumps({"job": f"s{n}", "n": n}) + "\n" for n in range(40))
    (project.folder / "numbers.jsonl").write_text(lines)
    project.ok("inject", "slow.numbers", "--from", "numbers.jsonl")
    disk.fill(150_000)
    ended = spoken(project, "run")
    assert ended.returncode == 5, ended
    assert "the disk is full" in one_line(ended.stderr)
    (disk.path / "ballast").unlink()
    again = spoken(project, "run")
    assert again.returncode == 0, again
    assert sorted(told.read_text().split()) == sorted(f"s{n}" for n in range(40))
    positions(project)
