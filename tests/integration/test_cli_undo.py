"""Undoing what people changed: what is put back, what stays and is told, and that an undo can be undone."""

from __future__ import annotations

from pathlib import Path

from datatask import History
from tests.integration.cli_kit import PIPELINE, Project


def changes(project: Project) -> list[int]:
    """Return the positions of what people changed, in order."""
    with History(project.log) as history:
        return [
            position for position, event in history.events() if event.actor != "engine" and event.run is None
        ]


def numbers(project: Project) -> dict[str, int]:
    """Return the values of the repository that people put into."""
    jobs = project.ok("ls", "double.numbers").lines
    return {job: project.ok("cat", "double.numbers", job, "--json").json["value"]["n"] for job in jobs}


def last(project: Project, kind: str) -> int:
    """Return the position of the last event of a kind."""
    with History(project.log) as history:
        return max(position for position, _ in history.events(kind=kind))


def test_values_are_as_they_were_and_an_undo_can_be_undone(tmp_path: Path) -> None:
    project = Project(tmp_path)
    project.put(a=1, b=2)
    project.put(a=5, c=3)
    assert numbers(project) == {"a": 5, "b": 2, "c": 3}
    position = last(project, "ValuePut")
    assert project.ok("undo", str(position), "--dry-run").lines == [
        "would put numbers a",
        "would delete numbers c",
    ]
    assert project.ok("undo", str(position)).lines == ["put numbers a", "delete numbers c"]
    assert numbers(project) == {"a": 1, "b": 2}
    project.ok("undo", "--since", str(position))
    assert numbers(project) == {"a": 5, "b": 2, "c": 3}
    project.ok("rm", "double.numbers", "b")
    project.ok("undo", str(last(project, "ValueDeleted")))
    assert numbers(project) == {"a": 5, "b": 2, "c": 3}


def test_pauses_and_limits_are_taken_back(tmp_path: Path) -> None:
    text = PIPELINE.replace(
        'InProcessSyncTask("double", done)',
        'InProcessSyncTask("double", done)\n'
        "double.resource_manager = datatask.ResourceManager(datatask.Resources.parse(4, '1Gi'), name='pool')",
    )
    project = Project(tmp_path, text)
    project.ok("pause", "double")
    start = last(project, "TaskPaused")
    assert project.ok("undo", str(start)).lines == ["resume double"]
    project.ok("quota", "pool", "cpu=8", "launches=3")
    project.ok("quota", "pool", "cpu=6")
    assert project.ok("status", "--json").json["quotas"]["pool"]["limit"]["cpu"] == 6
    project.ok("undo", "--since", str(start))
    limit = project.ok("status", "--json").json["quotas"]["pool"]["limit"]
    assert limit == {"cpu": 4, "mem": 2**30}
    assert project.ok("status", "--json").json["tasks"]["double"]["paused"] is True


def test_what_ran_or_was_changed_since_is_told_first(tmp_path: Path) -> None:
    project = Project.after_a_run(tmp_path)
    project.ok("retry", "double", "a")
    position = last(project, "RetryRequested")
    project.ok("run")
    refused = project.call("undo", str(position))
    assert refused.code == 2
    assert "cannot be taken back: double a: run " in refused.err
    assert "cannot be taken back: done a: it was changed again at position " in refused.err
    assert "2 of these changes cannot be taken back" in refused.err
    project.put(a=7)
    first = changes(project)[0]
    shown = project.ok("undo", "--since", str(first - 1), "--dry-run")
    assert "cannot be taken back: double a: run " in shown.err
    assert "would delete numbers a" in shown.lines
    assert project.ok("undo", "--since", str(first - 1), "--partly").lines == ["delete numbers a"]
    assert numbers(project) == {}


def test_what_is_no_change_of_a_person_is_refused(tmp_path: Path) -> None:
    project = Project.after_a_run(tmp_path)
    for arguments, words in (
        ([str(last(project, "RunEnded"))], "is no change that a person made"),
        (["999999"], "there is no event at position 999999"),
        ([], "undo takes a position, or --since"),
    ):
        refused = project.call("undo", *arguments)
        assert (refused.code, words in refused.err) == (2, True), refused
