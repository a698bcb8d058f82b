"""One world, and logs that think it is theirs: copies, moved files, other pipelines. None takes what is another's."""

from __future__ import annotations

import contextlib
import json
import shutil
import sqlite3
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.integration.cli_kit import Project
from tests.ssh_kit import server

SLEEPS = """
import datatask
from datatask import LogMetadataRepository, ProcessTask, Resources

copy = ProcessTask(
    "copy", lambda: datatask.LocalLinuxManager("app", "{base}"), None, Resources(), LogMetadataRepository("pids"),
    "#!/bin/sh\\necho {{{{ job }}}} >> {told}\\nsleep {seconds}\\n", done=LogMetadataRepository("done"),
)
copy.link("numbers", LogMetadataRepository("numbers"), is_input=True)
pipeline = datatask.Pipeline([copy], datatask.Session(), [], name="{name}")
"""


class World:
    """Folders with logs, and one place where all of them run processes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.told = folder / "told"

    def project(self, name: str, pipeline: str = "sleeps", seconds: float = 0.05) -> Project:
        """Make a folder with the pipeline."""
        (self.folder / name).mkdir()
        text = SLEEPS.format(base=self.folder / "base", told=self.told, seconds=seconds, name=pipeline)
        return Project(self.folder / name, text)

    def effects(self) -> list[str]:
        """Return the jobs whose script has run, once for each time."""
        return sorted(self.told.read_text().split()) if self.told.exists() else []


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path)
    yield made
    Path(f"{made.told}.go").touch()  # what waits for it must not outlive its test


def put(project: Project, *jobs: str) -> None:
    (project.folder / "jobs.jsonl").write_text(
        "".join(json.dumps({"job": job, "n": 1}) + "\n" for job in jobs)
    )
    project.ok("inject", "copy.numbers", "--from", "jobs.jsonl")


def copied(project: Project, to: Project) -> None:
    """Copy the log as `backup` does, whole."""
    to.log.parent.mkdir(exist_ok=True)
    with closing(sqlite3.connect(project.log)) as source, closing(sqlite3.connect(to.log)) as target:
        source.backup(target)


def test_a_moved_log_goes_on(world: World) -> None:
    first, second = world.project("first"), world.project("second")
    put(first, "a")
    first.ok("run")
    shutil.move(first.log.parent, second.log.parent)
    put(second, "b")
    second.ok("run")
    assert world.effects() == ["a", "b"]
    assert second.ok("verify", "--json").json["divergences"] == []
    assert "there is no log" in first.call("status").err


def test_a_copy_beside_its_original_has_a_place_of_its_own(world: World) -> None:
    """While the original works, and after it has worked on: neither sees, takes or ends what is the other's."""
    first, second = world.project("first", seconds=2), world.project("second", seconds=0.1)
    put(first, "a")
    first.ok("run")
    put(first, "b")
    with first.engine():
        first.until("b", "ls", "live(copy)")
        copied(first, second)
        assert second.call("run").code == 0
        rows = second.ok("query", "SELECT state, error FROM runs WHERE job = 'b' ORDER BY run", "--json").json
        assert [state for state, _ in rows["rows"]] == ["lost", "succeeded"]
        assert "for the log of which this is a copy" in rows["rows"][0][1]
        second.call("-p", "pipeline.py", "doctor", "--clean")
        first.until("b", "ls", "done")
    assert world.effects() == ["a", "b", "b"]
    assert sorted(path.name for path in (world.folder / "base").iterdir()) == ["app", "app~2"]
    rows = first.ok("query", "SELECT state FROM runs", "--json").json["rows"]
    assert rows == [["succeeded"], ["succeeded"]]


def test_a_copy_of_long_ago_keeps_its_place_when_its_original_goes(world: World) -> None:
    first, second = world.project("first"), world.project("second")
    put(first, "a")
    first.ok("run")
    copied(first, second)
    put(second, "b")
    second.ok("run")
    shutil.rmtree(first.folder)
    put(second, "c")
    second.ok("run")
    assert world.effects() == ["a", "b", "c"]
    (owner,) = (world.folder / "base" / "app~2").glob("*.owner")
    assert json.loads(owner.read_text())["home"][0] == str(second.log)
    assert list((world.folder / "base" / "app").glob("*/*.*")) == [], "what is the original's is not used"


def test_an_old_copy_that_is_put_back_waits_until_somebody_says_so(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    """A backup of last week: of what this week's processes did it knows nothing."""
    first, kept = world.project("first"), world.project("kept")
    put(first, "a")
    first.ok("run")
    copied(first, kept)
    for job in ("b", "c", "d"):
        put(first, job)
        first.ok("run")
    for file in first.log.parent.glob("log.db*"):
        if file.is_file():
            file.unlink()
    copied(kept, first)
    put(first, "b")
    (owner,) = (world.folder / "base" / "app").glob("*.owner")
    waited = first.call("run", "--timeout", "2")
    assert waited.code == 7, waited
    assert caplog.text.count("a later state of this log has used") == 1
    assert world.effects() == ["a", "b", "c", "d"]
    with first.engine():
        first.until("a later state of this log has used", "why", "copy", "b")
        assert str(owner) in first.ok("why", "copy", "b").out
        owner.unlink()
        first.until("b", "ls", "done")
    assert world.effects() == ["a", "b", "b", "c", "d"]


WAITS = """
import datatask
from datatask import LogBlobRepository, LogMetadataRepository, ProcessTask, Resources

manager = {manager}
copy = ProcessTask(
    "copy", lambda: manager, None, Resources(), LogMetadataRepository("pids"),
    "#!/bin/sh\\necho {{{{ job }}}} >> {told}\\nwhile [ ! -e {told}.go ]; do sleep 0.05; done\\necho written {{{{ job }}}}\\n",
    stdout=LogBlobRepository("out"), done=LogMetadataRepository("done"),
)
copy.link("numbers", LogMetadataRepository("numbers"), is_input=True)
pipeline = datatask.Pipeline([copy], datatask.Session(), [], name="waits")
"""
PLACES = {
    "own": 'datatask.LocalLinuxManager("app", "{folder}/base")',
    "default": 'datatask.LocalLinuxManager("app")',
    "ssh": 'datatask.SSHLinuxManager("app", datatask.SSHHost({address!r}, None, "there", {options!r}), "{folder}/remote")',
}
places = pytest.mark.parametrize(
    "place", ["own", "default", pytest.param("ssh", marks=pytest.mark.server("sshd"))]
)


def waiting(world: World, name: str, place: str) -> Project:
    """Make a project whose scripts wait for a file."""
    host = server().host() if place == "ssh" else None
    known = {} if host is None else {"address": host.address, "options": dict(host.options)}
    manager = PLACES[place].format(folder=world.folder, **known)
    (world.folder / name).mkdir()
    return Project(world.folder / name, WAITS.format(manager=manager, told=world.told))


def left_running(project: Project, world: World, *jobs: str) -> None:
    """Have an engine start scripts and end while they go on."""
    put(project, *jobs)
    with working(project):
        until(lambda: len(states(project)) == len(jobs) == len(world.effects()))


@contextlib.contextmanager
def working(project: Project) -> Iterator[None]:
    """Have an engine at work, however long it takes to begin; it leaves behind what goes on."""
    process = project.spawn("run", "--forever", "--grace", "1")
    try:
        yield
    finally:
        process.terminate()
        process.communicate(timeout=120)


def states(project: Project) -> list[list[str]]:
    rows = project.ok("query", "SELECT job, state FROM runs ORDER BY job, run", "--json").json["rows"]
    return [list(row) for row in rows]


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@places
@pytest.mark.parametrize("how", ["rsync", "backup"])
def test_a_project_copied_while_its_scripts_go_on_leaves_them_to_the_original(
    world: World, how: str, place: str
) -> None:
    """By a program that copies folders, or from a backup: what runs is neither taken nor ended, and no job is used up."""
    first = waiting(world, "first", place)
    left_running(first, world, "a", "b")
    second = waiting(world, "second", place)
    if how == "backup":
        first.ok("backup", second.log.parent)
    elif shutil.which("rsync"):
        subprocess.run(["rsync", "-a", f"{first.folder}/", f"{second.folder}/"], check=True)
    else:
        shutil.copytree(first.folder, second.folder, dirs_exist_ok=True)
    with working(second):
        until(lambda: len(world.effects()) == 4)
    second.call("doctor", "--clean")
    Path(f"{world.told}.go").touch()
    for project in (first, second):
        project.ok("run")
        assert project.ok("cat", "copy.stdout", "a").out == "written a\n"
        assert project.ok("verify", "--json").json["divergences"] == []
    assert world.effects() == ["a", "a", "b", "b"]
    assert states(first) == [["a", "succeeded"], ["b", "succeeded"]]
    assert states(second) == [[job, state] for job in "ab" for state in ("lost", "succeeded")]


@places
def test_a_project_renamed_while_its_scripts_go_on_adopts_them(world: World, place: str) -> None:
    """Wherever they run, the command line finds them from the new place; none is started again or used up."""
    first = waiting(world, "first", place)
    left_running(first, world, "a", "b")
    first.folder.rename(world.folder / "renamed")
    renamed = Project(world.folder / "renamed", (world.folder / "renamed/pipeline.py").read_text())
    Path(f"{world.told}.go").touch()
    renamed.ok("run")
    assert world.effects() == ["a", "b"]
    assert states(renamed) == [["a", "succeeded"], ["b", "succeeded"]]
    assert renamed.ok("cat", "copy.stdout", "b").out == "written b\n"


def test_two_logs_on_one_target(world: World) -> None:
    """Two pipelines with one app name: each has a folder, and no job of either is used up by that."""
    first, second = world.project("first", seconds=2), world.project("second", seconds=0.1)
    put(first, "a")
    put(second, "b")
    with first.engine():
        first.until("RunStarted", "log", "--kind", "RunStarted")  # decided is not yet at the launcher
        second.ok("run")
        first.until("a", "ls", "done")
    assert world.effects() == ["a", "b"]
    assert second.ok("query", "SELECT state FROM runs", "--json").json["rows"] == [["succeeded"]]


def test_two_pipelines_on_one_log(world: World) -> None:
    first, other = world.project("first"), world.project("other", pipeline="others")
    put(first, "a")
    first.ok("run")
    told = other.call("--log", str(first.log), "run")
    assert told.code == 2
    assert "'sleeps'" in told.err
    assert "'others'" in told.err
    assert told.err.count("\n") == 1
    assert first.ok("verify", "--json").json["divergences"] == []
