"""Results that a person accepts: fresh until something else changes, told by `why`, and taken back by `undo`."""

from __future__ import annotations

from pathlib import Path

import pytest

from datatask import History
from tests.integration.cli_kit import PIPELINE, Project
from tests.integration.test_cli_stale import DOUBLE
from tests.integration.test_cli_undo import last


def edited(project: Project, factor: str) -> None:
    (project.folder / "pipeline.py").write_text(PIPELINE.replace(DOUBLE, DOUBLE.replace("2", factor)))
    project.ok("run")


def stale(project: Project, task: str) -> list[str]:
    return project.ok("ls", f"stale({task})").lines


@pytest.fixture
def project(tmp_path: Path) -> Project:
    """Two jobs are done, and the function of `double` is another one since."""
    project = Project(tmp_path)
    project.put(a=1, b=2)
    project.ok("run")
    edited(project, "3")
    assert stale(project, "double") == stale(project, "shout") == ["a", "b"]
    return project


def test_what_was_accepted_is_fresh_until_something_else_changes(project: Project) -> None:
    assert project.ok(
        "accept", "double", "--jobs", "double.numbers - shout.failed", "--dry-run", "--reason", "x"
    ).lines == [
        "would accept double a",
        "would accept double b",
    ]
    assert project.ok("accept", "double", "a", "--reason", "rounding only").lines == ["accept double a"]
    assert (stale(project, "double"), stale(project, "shout")) == (["b"], ["b"])
    (line,) = [line for line in project.ok("why", "double", "a").lines if "accepted" in line]
    assert line.strip().startswith("its result was accepted by ")
    assert line.endswith(f"(position {last(project, 'ResultAccepted')}): rounding only")
    project.ok("verify")
    edited(project, "4")
    assert stale(project, "double") == ["a", "b"]
    project.ok("accept", "double", "--reason", "again")
    project.put(a=7)
    assert (stale(project, "double"), stale(project, "shout")) == (["a"], ["a"])
    project.put(a=1)
    assert stale(project, "double") == []
    project.ok("retry", "double", "a")
    project.ok("run")
    assert project.ok("cat", "double.doubled", "a", "--json").json["value"]["n"] == 4
    assert stale(project, "shout") == ["a"]


def test_a_result_of_something_stale_is_accepted_by_itself(project: Project) -> None:
    """Until what it is made of becomes stale anew."""
    project.ok("accept", "shout", "--reason", "good enough")
    assert (stale(project, "double"), stale(project, "shout")) == (["a", "b"], [])
    with History(project.log) as history:
        assert {row["task"] for row in history.stale()} == {"double"}
    project.put(b=5)
    assert stale(project, "shout") == ["b"]
    edited(project, "4")
    assert stale(project, "shout") == ["a", "b"]


def test_an_acceptance_is_undone_and_that_too(project: Project) -> None:
    project.ok("accept", "double", "--reason", "looked")
    accepted = last(project, "ResultAccepted")
    assert project.ok("undo", str(accepted)).lines == ["accept no more double a", "accept no more double b"]
    assert stale(project, "double") == ["a", "b"]
    project.ok("undo", str(last(project, "ResultAccepted")))
    assert stale(project, "double") == []
    assert project.call("undo", str(accepted)).code == 2


def test_what_cannot_be_accepted_is_said(project: Project) -> None:
    refused = project.call("accept", "double")
    assert (refused.code, "accept needs a reason" in refused.err) == (2, True)
    refused = project.call("accept", "double", "zebra", "--reason", "x")
    assert (refused.code, "zebra has no result of double that is out of date" in refused.err) == (2, True)
    assert project.call("accept", "dubble", "--reason", "x").code == 2
    assert project.ok("accept", "shout", "--reason", "x").lines == ["accept shout a", "accept shout b"]
    project.ok("accept", "shout", "--reason", "nothing is left")
    assert len(project.ok("log", "--kind", "ResultAccepted").lines) == 2
