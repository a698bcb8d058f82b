"""What takes long says how far it is, and ends when its budget is spent, with what was found so far."""

from __future__ import annotations

import pytest

from datatask.adapters.cli import progress_bar
from tests.integration.cli_kit import Project

LONG = [
    "status", "verify", "replay --verify", "export out", "why double", "waiting", "ls double.numbers", "runs", "log", "doctor", "plan",
    "lineage double.doubled", "simulate --duration 1s", "backup copy", "log-compact", "log-archive --before -1h",
    "rm -r double.numbers __all__", "retry double --failed", "trace a", "graph", "log-anchor",
]  # fmt: skip


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    made = Project(tmp_path_factory.mktemp("budget"))
    made.put(a=1, b=2)
    assert made.call("run").code == 0
    return made


@pytest.mark.parametrize("command", LONG)
def test_every_command_keeps_to_its_budget(project: Project, command: str) -> None:
    spent = project.call(*command.split(), "--budget", "0.00001")
    assert (spent.code, "not through in 1e-05 s" in spent.err) == (7, True), spent
    assert spent.err.startswith(f"datatask: {command.split()[0]}: ")


def test_nothing_is_half_done_by_it(project: Project) -> None:
    assert not (project.folder / "out").exists()
    assert not (project.folder / "copy").exists()
    assert project.ok("ls", "double.numbers").lines == ["a", "b"]
    assert project.ok("verify").code == 0
    assert project.ok("status", "--budget", "60").err.startswith("verified up to position ")


def test_run_has_a_timeout_instead(project: Project) -> None:
    refused = project.call("run", "--budget", "1")
    assert (refused.code, "`run` has --timeout" in refused.err) == (2, True)


def test_a_simulation_tells_the_replications_that_are_done(project: Project) -> None:
    asked = ["simulate", "--jobs", "200", "--duration", "1s", "--replications", "100000", "--json"]
    found = project.call(*asked, "--budget", "6")
    assert found.code == 7
    (scenario,) = found.json["scenarios"]
    assert 1 <= scenario["replications"] < 100_000
    assert scenario["makespan"]["p50"] > 0
    assert "of 100000 replications: the time was over" in found.err


def test_what_takes_long_says_how_far_it_is(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress_bar, "AFTER_SECONDS", 0.0)
    monkeypatch.setattr(progress_bar, "LINE_SECONDS", 0.1)
    asked = ["simulate", "--jobs", "200", "--duration", "1s", "--replications", "100000"]
    told = [
        line
        for line in project.call(*asked, "--budget", "6").err.splitlines()
        if line.startswith("simulate: ")
    ]
    assert "replications of as told" in told[-1]
    assert "of 100,000" in told[-1]
