"""What a log still knows of a run whose events were moved into an archive."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.integration.cli_kit import Project


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    """A log in which one job was run and archived, and another one never was."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    project = Project(tmp_path)
    project.put(old=1)
    project.ok("run")
    head = project.ok("log", "--last", "1", "--fields", "position", "--json").json["position"]
    project.put(fresh=2)
    project.ok("log-archive", "--before", str(head))
    return project


def test_why_does_not_say_of_an_archived_run_that_there_was_none(project: Project) -> None:
    """The state at the cut remembers the position; the archive has the rest."""
    told = project.ok("why", "double", "old").out
    assert "never been run" not in told
    assert "it was archived; ask again with --with-archives" in told
    assert "succeeded" in project.ok("--with-archives", "why", "double", "old").out


def test_why_says_of_a_job_that_never_ran_that_it_never_did(project: Project) -> None:
    """With the same cut before it."""
    assert "it has never been run" in project.ok("why", "double", "fresh").out
