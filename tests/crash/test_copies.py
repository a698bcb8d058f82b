"""One world, and logs that think it is theirs: copies, moved files, other pipelines. None takes what is another's."""

from __future__ import annotations

import json
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from integration.cli_kit import Project

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
def world(tmp_path: Path) -> World:
    return World(tmp_path)


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
