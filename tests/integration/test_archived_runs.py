"""What a log still knows of a run whose events were moved into an archive."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from datatask import History
from tests.golden.histories import FOLDER
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


def test_why_cites_what_it_would_with_the_archives_or_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Never another event in the place of one that was archived."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    shutil.copytree(FOLDER / "archived", tmp_path / "log")
    known = unknown = 0
    with History(tmp_path / "log" / "log.db") as part, History(part.reader.path, archives=True) as whole:
        base, state = part.reader.header.base, part.state()
        for task in state.tasks:
            for job in state.jobs:
                cut, full = part.why(task, job, part.head), whole.why(task, job, part.head)
                for one, other in zip(cut.conditions, full.conditions, strict=True):
                    assert one.since in (other.since, None)
                    assert one.since is not None or (other.since or 0) <= base
                    known, unknown = known + (one.since is not None), unknown + (one.since != other.since)
    assert known > 10
    assert unknown > 0
