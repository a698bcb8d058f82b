"""`datatask simulate`: a pipeline's future from the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.integration.cli_kit import Project

PLANS = """
jobs: 40
default: {duration: 2}
scenarios:
  as it is:
  slow: {tasks: {shout: {duration: {uniform: [4, 6]}}}}
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    monkeypatch.chdir(tmp_path)
    return Project(tmp_path)


def lived(project: Project, jobs: int = 6) -> Project:
    """Let the project run some jobs."""
    lines = "".join(f'{{"job": "j{number}", "n": {number}}}\n' for number in range(jobs))
    (project.folder / "jobs.jsonl").write_text(lines)
    project.ok("inject", "double.numbers", "--from", "jobs.jsonl")
    project.ok("run")
    return project


def test_a_pipeline_that_never_ran(project: Project) -> None:
    """Two stages of 2 seconds, 15 at a time: 30 jobs take 6 seconds."""
    found = project.ok("simulate", "pipeline.py", "--jobs", "30", "--duration", "2", "--json").json
    assert found["seed"] == 0
    (only,) = found["scenarios"]
    assert set(only) == {
        "name", "jobs", "replications", "makespan", "utilisation", "tasks", "bottleneck", "stuck",
    }  # fmt: skip
    assert only["jobs"] == 30
    assert only["makespan"] == dict.fromkeys(("mean", "p50", "p95", "min", "max"), 6.0)
    assert only["tasks"]["double"] == {"runs": 30.0, "wait_p50": 0.0, "wait_p95": 2.0, "service_p50": 2.0}
    assert only["bottleneck"] == "double.concurrency"


def test_a_log_tells_all_that_is_needed(project: Project) -> None:
    """Its jobs, its definition, its durations; also by --from, and from where the project is."""
    lived(project)
    here = project.ok("simulate", "--json").json
    assert here["scenarios"][0]["jobs"] == 6
    assert here["scenarios"][0]["tasks"]["shout"]["runs"] == 6.0
    assert project.ok("simulate", "--from", ".datatask/log.db", "--json").json == here
    assert project.ok("simulate", "pipeline.py", "--from", ".datatask/log.db", "--json").json == here
    again = project.ok("simulate", "--jobs", "500", "--replications", "3", "--seed", "5", "--json").json
    assert again["seed"] == 5
    assert again["scenarios"][0]["replications"] == 3
    assert (
        again == project.ok("simulate", "--jobs", "500", "--replications", "3", "--seed", "5", "--json").json
    )


def test_scenarios_of_a_file_and_what_varies(project: Project) -> None:
    (project.folder / "plans.yaml").write_text(PLANS)
    found = project.ok("simulate", "pipeline.py", "--scenarios", "plans.yaml", "--json").json["scenarios"]
    assert [each["name"] for each in found] == ["as it is", "slow"]
    assert found[0]["makespan"]["mean"] < found[1]["makespan"]["mean"]
    varied = project.ok(
        "simulate", "pipeline.py", "--scenarios", "plans.yaml", "--vary", "shout.concurrency=1,40", "--json"
    ).json["scenarios"]
    assert [each["name"] for each in varied] == [
        f"{name}, shout.concurrency={number}" for name in ("as it is", "slow") for number in (1, 40)
    ]
    assert varied[0]["makespan"]["mean"] > 80


def test_piped_output_is_three_tables(project: Project) -> None:
    lines = project.ok("simulate", "pipeline.py", "--jobs", "4", "--duration", "2").lines
    assert lines[0].split("\t") == [
        "scenario", "jobs", "replications", "mean", "p50", "p95", "min", "max", "bottleneck",
    ]  # fmt: skip
    assert lines[1].split("\t")[:4] == ["as told", "4", "1", "4"]
    assert lines[3].split("\t") == ["scenario", "task", "runs", "wait_p50", "wait_p95", "service_p50"]
    assert lines[7] == "scenario\tresource\tutilisation"
    drawn = project.ok("simulate", "pipeline.py", "--jobs", "4", "--duration", "2", "--color", "always").out
    assert "4.0 s" in drawn
    assert project.ok(
        "simulate", "pipeline.py", "--jobs", "4", "--duration", "2", "--fields", "mean,bottleneck"
    ).lines == ["mean\tbottleneck", "4\ttask double"]


def test_a_written_history_is_an_ordinary_log(project: Project) -> None:
    done = project.ok(
        "simulate",
        "pipeline.py",
        "--jobs",
        "20",
        "--duration",
        "2",
        "--write-log",
        "future.db",
        "--html",
        "r.html",
    )
    assert "the report is in r.html" in done.err
    assert (project.folder / "r.html").read_text().startswith("<!doctype html>")
    assert project.call("--log", "future.db", "replay", "--verify").code == 0
    status: Any = project.ok("--log", "future.db", "status", "--json").json
    assert status["tasks"]["shout"]["succeeded"] == 20
    assert len(project.ok("--log", "future.db", "runs", "--json").json) == 40
    refused = project.call(
        "simulate", "pipeline.py", "--jobs", "20", "--duration", "2", "--write-log", "future.db"
    )
    assert refused.code == 2
    assert "future.db" in refused.err


def test_a_simulation_that_cannot_go_on_says_why_and_ends(project: Project) -> None:
    """No place for any run: the exit code is that of `run`, when nothing can progress."""
    (project.folder / "plan.yaml").write_text(
        "jobs: 3\nentries: [numbers]\ndefault: {duration: 1}\ntasks: {double: {machines: few, resources: {cpu: 9}}}\n"
        "machines: [{name: few, amounts: {cpu: 1}}]\n"
    )
    done = project.call("simulate", "pipeline.py", "--scenarios", "plan.yaml", "--json")
    assert done.code == 6, done
    assert done.json["scenarios"][0]["stuck"]
    assert "cannot go on" in done.err


def test_the_cheapest_limits_that_make_it_in_time(project: Project) -> None:
    """Sixty runs of two seconds, twice: 15 at a time take 10 seconds."""
    told = ("simulate", "pipeline.py", "--jobs", "60", "--duration", "2")
    found = project.ok(*told, "--finish-by", "16s", "--json").json
    assert set(found) == {
        "by", "confidence", "limits", "seconds", "cost", "binds", "knees", "curves", "simulations", "proven", "why",
    }  # fmt: skip
    assert found["limits"] == {"double.concurrency": 9.0}
    assert found["seconds"] <= 16
    axes = (
        "--vary",
        "double.concurrency=5,10,20",
        "--vary",
        "shout.concurrency=5,10,20",
        "--price",
        "shout.concurrency=9",
    )
    again = project.ok(*told, "--finish-by", "20", *axes)
    assert again.lines[0].split("\t") == ["limit", "level", "seconds", "in time", "chosen", "knee"]
    assert "in time with double.concurrency 10, shout.concurrency 10" in again.err
    never = project.call(*told, "--finish-by", "3s")
    assert never.code == 6
    assert "nothing makes it in 3.0 s: even with the most of everything it takes 4 s" in never.err
    for wrong in (
        ["--finish-by", "2020-01-01"],
        ["--finish-by", "1h", "--vary", "jobs=3"],
        ["--finish-by", "0"],
    ):
        refused = project.call(*told, *wrong)
        assert refused.code == 2
        assert len(refused.err.splitlines()) == 1


def test_when_a_log_will_be_done(project: Project) -> None:
    """What waits in it takes as long as its runs took; nothing else is simulated."""
    lived(project)
    (project.folder / "more.jsonl").write_text("".join(f'{{"job": "m{n}", "n": 1}}\n' for n in range(40)))
    project.ok("inject", "double.numbers", "--from", "more.jsonl")
    found = project.ok("simulate", "--continue", ".datatask/log.db", "--json").json
    (only,) = found["scenarios"]
    assert only["tasks"]["shout"]["runs"] == 40
    assert only["replications"] == 20
    left = only["left"]
    assert 0 < left["p10"] <= left["p50"] <= left["p90"]
    assert only["done_at"] > "2026"
    slow = project.ok(
        "simulate", "--continue", ".datatask/log.db", "--vary", "default.duration=10s", "--json"
    ).json
    assert slow["scenarios"][0]["left"]["p50"] == pytest.approx(40, abs=1)
    assert project.ok("simulate", "--continue", ".datatask/log.db").lines[0].split("\t")[3:7] == [
        "p10", "p50", "p90", "done_at",
    ]  # fmt: skip


def test_what_was_archived_is_simulated_where_that_is_asked_for(project: Project) -> None:
    """Without it nothing is known of the runs in the archive, and a note says so."""
    lived(project)
    whole = project.ok("simulate", "--json").json
    head = project.ok("status", "--json").json["log"]["head"]
    assert "moved" in project.ok("log-archive", "--before", str(head - 10)).out
    rest = project.call("simulate", "--duration", "1", "--json")
    assert "were archived" in rest.err
    assert rest.json != whole
    assert project.ok("simulate", "--with-archives", "--json").json == whole


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--duration", "soon"], "'soon' is no length of time; write seconds"),
        (["--jobs", "3"], "there is no duration for double"),
        (["--jobs", "-3", "--duration", "1"], "-3 jobs cannot be simulated"),
        (["--arrivals", "late", "--duration", "1"], "jobs cannot arrive 'late'; use at_once"),
        (["--arrivals", "even=much", "--duration", "1"], "'much' is no rate"),
        (["--vary", "nobody.concurrency=3", "--duration", "1"], "there is no task nobody"),
        (["--vary", "quota.none.cpu=3", "--duration", "1"], "there is no quota none"),
        (["--scenarios", "no.yaml"], "no.yaml: the scenarios cannot be read: No such file"),
        (["--from", "no.db"], "no.db"),
        (["--jobs", "3", "--duration", "1", "--replications", "0"], "0 replications"),
        (["--jobs", "3", "--vary", "default.duration=1,2", "--write-log", "x.db"], "2 scenarios have 2 histories"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_one_line(project: Project, options: list[str], told: str) -> None:
    done = project.call("simulate", "pipeline.py", *options)
    assert done.code == 2, done
    assert told in done.err
    assert len(done.err.splitlines()) == 1
    assert not (project.folder / "x.db").exists()
