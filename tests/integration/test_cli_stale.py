"""Results that are out of date, on the command line: told by status, ls, why, plan and run; asked for by retry."""

from __future__ import annotations

from pathlib import Path

from datatask import History
from tests.integration.cli_kit import PIPELINE, Project

DOUBLE = '{"n": 2 * value["n"]}'


def edited(project: Project, old: str, new: str) -> None:
    """Change the pipeline's file."""
    assert old in PIPELINE
    (project.folder / "pipeline.py").write_text(PIPELINE.replace(old, new))


def test_a_changed_function_is_told_everywhere_and_computed_again_when_asked(tmp_path: Path) -> None:
    project = Project.after_a_run(tmp_path)
    assert project.ok("status", "--json").json["stale"] == {
        "double": {"stale": 0, "unknown": 0},
        "shout": {"stale": 0, "unknown": 0},
    }
    edited(project, DOUBLE, DOUBLE.replace("2", "3"))
    one = {"stale": 1, "unknown": 0}
    foreseen = project.ok("plan", "--json").json
    assert (foreseen["stale"], foreseen["launches"]) == ({"double": one, "shout": one}, [])
    line = "has 1 result out of date: `datatask ls 'stale(double)'` lists, `datatask why double JOB` explains"
    assert f"double {line}" in project.ok("plan").lines
    assert f"double {line}" in project.ok("run").lines
    assert project.ok("status", "--json").json["stale"] == {"double": one, "shout": one}
    assert f"double {line}" in project.ok("status").err
    assert project.ok("ls", "stale(shout) & double.numbers").lines == ["a"]
    told = "its result is out of date: doubled was made by double for a, which is out of date: function run_double (pipeline.py) is another one"
    assert any(line.strip().startswith(told) for line in project.ok("why", "shout", "a").lines)
    (cause,) = project.ok("why", "shout", "a", "--json").json["stale"]
    assert (cause["what"], cause["name"], cause["task"], cause["job"]) == (
        "upstream",
        "doubled",
        "double",
        "a",
    )
    with History(project.log) as history:
        assert [(row["task"], row["job"]) for row in history.stale()] == [("double", "a"), ("shout", "a")]
    assert project.ok("retry", "--stale", "--dry-run").lines == [
        "would retry double a",
        "would retry shout a",
    ]
    assert project.ok("retry", "--stale").lines == ["retry double a", "retry shout a"]
    project.ok("run")
    assert project.ok("ls", "stale(double) | stale(shout)").lines == []
    assert project.ok("cat", "shout.blobs", "a").out == "3!"


def test_plan_has_what_run_computes_again_by_itself(tmp_path: Path) -> None:
    project = Project.after_a_run(tmp_path)
    rerun = 'InProcessSyncTask("double", done, on_change="rerun")'
    text = PIPELINE.replace('InProcessSyncTask("double", done)', rerun)
    (tmp_path / "pipeline.py").write_text(text.replace(DOUBLE, DOUBLE.replace("2", "3")))
    assert [launch["job"] for launch in project.ok("plan", "--json").json["launches"]] == ["a"]
    assert project.ok("run", "--json").json["launched"] == 1
    assert project.ok("ls", "stale(double)").lines == []
    assert project.ok("ls", "stale(shout)").lines == ["a"]


SLEEPING = "    await asyncio.sleep(0.5)\n    value = await"


def test_plan_simulates_how_long_that_takes(tmp_path: Path) -> None:
    """Also of what is computed again: one job after the other, in half a second each."""
    rerun = 'InProcessSyncTask("double", done, on_change="rerun", concurrency=1)'
    text = PIPELINE.replace('InProcessSyncTask("double", done)', rerun)
    text = "import asyncio\n" + text.replace("    value = await", SLEEPING, 1)
    project = Project(tmp_path, text)
    project.put(a=1, b=2, c=3)
    project.ok("run")
    assert project.ok("plan", "--time", "--json").json["left"]["p50"] == 0
    (tmp_path / "pipeline.py").write_text(text.replace(DOUBLE, DOUBLE.replace("2", "3")))
    assert 1.5 <= project.ok("plan", "--time", "--json").json["left"]["p50"] < 60
    assert any(line.startswith("all of it takes about ") for line in project.ok("plan", "--time").lines)
    assert project.call("plan", "double", "--time").code == 2


def test_plan_names_what_cannot_be_followed(tmp_path: Path) -> None:
    project = Project(tmp_path)
    edited(project, "value = await", "LOCK\n    value = await")
    text = (tmp_path / "pipeline.py").read_text()
    (tmp_path / "pipeline.py").write_text(f"import threading\nLOCK = threading.Lock()\n{text}")
    assert "not followed: double: LOCK: a _thread.lock" in project.ok("plan").lines


def test_retry_takes_one_choice(tmp_path: Path) -> None:
    project = Project.after_a_run(tmp_path)
    for arguments in (["double"], [], ["double", "a", "--stale"], ["--failed"]):
        result = project.call("retry", *arguments)
        assert (result.code, "retry takes a task with jobs or --failed, or --stale" in result.err) == (
            2,
            True,
        )
