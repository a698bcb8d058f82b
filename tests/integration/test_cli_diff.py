"""Two runs of a job held against each other on the command line."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.integration.cli_kit import PIPELINE, Project
from tests.integration.test_cli_stale import DOUBLE


@pytest.fixture
def project(tmp_path: Path) -> Project:
    """A job was done; then its input and the function changed, one after the other, and it was done again each time."""
    project = Project.after_a_run(tmp_path)
    project.put(a=5)
    project.ok("retry", "--stale")
    project.ok("run")
    (tmp_path / "pipeline.py").write_text(PIPELINE.replace(DOUBLE, DOUBLE.replace("2", "3")))
    project.ok("run")
    project.ok("retry", "--stale")
    project.ok("run")
    return project


def runs(project: Project, task: str) -> list[int]:
    return sorted(row["run"] for row in project.ok("runs", "--task", task, "--json").json)


def test_the_last_two_runs_differ_by_their_code(project: Project) -> None:
    first, second, third = runs(project, "double")
    head, *rest = project.ok("diff", "double", "a").lines
    assert head == f"double a: run {second} -> run {third}"
    assert rest[0] == "  code function run_double (pipeline.py) is another one"
    assert rest[1].startswith("  output doubled: sha256:")
    assert [line.strip() for line in rest[2:]] == ["@@ -1 +1 @@", "-n: 10", "+n: 15"]
    found = project.ok("diff", "double", "a", "--from", str(first), "--to", str(second), "--json").json
    assert found["runs"] == [first, second]
    assert [(one["what"], one["name"]) for one in found["differences"]] == [
        ("input", "numbers"),
        ("output", "doubled"),
    ]
    assert found["differences"][0]["lines"][1:] == ["-n: 1", "+n: 5"]
    assert None not in found["differences"][0]["positions"]


def test_blobs_are_compared_by_their_text(project: Project) -> None:
    (line, *rest) = project.ok("diff", "shout", "a").lines[1:]
    assert line.startswith("  input doubled: ")
    assert rest[-2:] == ["    -10!", "    +15!"]


def test_equal_runs_and_single_ones(project: Project) -> None:
    project.ok("retry", "double", "a")
    project.ok("run")
    assert project.ok("diff", "double", "a").lines[1:] == [
        "  nothing differs: code, inputs and outputs are the same"
    ]
    first = runs(project, "double")[0]
    refused = project.call("diff", "double", "a", "--to", str(first))
    assert (refused.code, f"one run that succeeded by position {first}" in refused.err) == (2, True)
    refused = project.call("diff", "double", "zebra")
    assert (refused.code, "no run of double zebra has succeeded" in refused.err) == (2, True)
    assert project.call("diff", "dubble", "a").code == 2
