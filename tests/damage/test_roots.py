"""Folders that are not what they were: unmounted, replaced, mounted elsewhere. Nothing is deleted or launched on their word."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.damage.conftest import Disk
from tests.integration.cli_kit import Project
from tests.machine import mount

PIPELINE = """
import datatask

inputs = datatask.FileRepository("{inputs}", name="inputs")
seen = datatask.LogMetadataRepository("seen")

look = datatask.InProcessSyncTask("look", datatask.LogMetadataRepository("looked"))
look.link("inputs", inputs, is_input=True)
look.link("seen", seen, is_output=True)


@look
async def run_look(job, inputs, seen):
    async with inputs.open(job) as stream:
        await seen.dump(job, await stream.read())


pipeline = datatask.Pipeline([look], datatask.Session(), [])
"""


def members(project: Project) -> list[str]:
    return sorted(project.ok("ls", "look.inputs").out.split())


@pytest.mark.machine("mounts")
def test_an_unmounted_disk_is_held_however_few_its_members_were(disk: Disk, tmp_path: Path) -> None:
    project = Project(tmp_path, PIPELINE.format(inputs=disk.path))
    for name in ("a", "b", "c"):
        (disk.path / name).write_text(name)
    project.ok("run")
    assert members(project) == ["a", "b", "c"]
    subprocess.run(["umount", disk.path], check=True)
    (disk.path / "stray").write_text("not ours")
    held = project.call("run")
    assert members(project) == ["a", "b", "c"]
    assert "stray" not in project.ok("ls", "seen").out
    (event,) = project.ok("log", "--kind", "ObservationHeld").lines
    assert "another root than before" in event
    assert "without 3 of 3 members" in event
    told = project.call("why", "look", "stray")
    assert "inputs" in told.out + told.err
    mount(disk.path, "size=4m")  # a new one, not yet filled
    project.call("run")
    assert members(project) == ["a", "b", "c"]
    for name in ("a", "b", "c", "d"):
        (disk.path / name).write_text(name)
    project.ok("run")
    assert members(project) == ["a", "b", "c", "d"]
    assert held.code in (0, 1)


def test_a_folder_that_is_made_anew_awaits_a_persons_word(tmp_path: Path) -> None:
    inputs = tmp_path / "inputs"
    project = Project(tmp_path, PIPELINE.format(inputs=inputs))
    inputs.mkdir()
    (inputs / "a").write_text("a")
    project.ok("run")
    inputs.rename(tmp_path / "away")
    inputs.mkdir()
    project.call("run")
    assert members(project) == ["a"]
    refused = project.call("run", "--accept-loss", "inptus")
    assert (refused.code, refused.err.count("\n")) == (2, 1)
    assert "there is no repository inptus" in refused.err
    project.ok("run", "--accept-loss", "look.inputs", "--reason", "cleared away")
    assert members(project) == []
    (told,) = [
        line for line in project.ok("log", "--kind", "RepositorySynced").lines if "cleared away" in line
    ]
    assert "root" in told


def test_a_folder_that_moved_with_all_that_was_in_it_is_believed(tmp_path: Path) -> None:
    """As after a restore, or a disk with another number: nothing is missing."""
    inputs = tmp_path / "inputs"
    project = Project(tmp_path, PIPELINE.format(inputs=inputs))
    inputs.mkdir()
    for name in ("a", "b"):
        (inputs / name).write_text(name)
    project.ok("run")
    inputs.rename(tmp_path / "before")
    shutil.copytree(tmp_path / "before", inputs)
    (inputs / "c").write_text("c")
    project.ok("run")
    assert members(project) == ["a", "b", "c"]
    assert "ObservationHeld" not in project.ok("log").out


def test_a_root_that_changes_under_an_engine(tmp_path: Path) -> None:
    inputs = tmp_path / "inputs"
    project = Project(tmp_path, PIPELINE.format(inputs=inputs))
    inputs.mkdir()
    (inputs / "a").write_text("a")
    with project.engine():
        project.until("a", "ls", "seen")
        inputs.rename(tmp_path / "away")
        inputs.mkdir()
        (inputs / "stray").write_text("not ours")
        project.until("another root", "log", "--kind", "ObservationHeld")
        assert "a" in members(project)
        assert "stray" not in project.ok("ls", "seen").out
        shutil.rmtree(inputs)
        (tmp_path / "away").rename(inputs)
        (inputs / "b").write_text("b")
        project.until("b", "ls", "seen")
    assert members(project) == ["a", "b"]
    assert project.ok("verify", "--json").json["divergences"] == []
