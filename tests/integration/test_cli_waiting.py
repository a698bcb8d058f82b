"""`waiting` on the command line and in the library: sums, intervals, names, points in time, and how errors are told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from datatask.adapters.history.history import History
from datatask.adapters.history.waits import BY, INTERVAL_FIELDS, SUM_FIELDS, TASK_FIELDS
from datatask.engine.waits.intervals import CAUSES
from datatask.schema.errors import CallerError, UnknownNameError
from tests.integration.cli_kit import Project


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """Two jobs went through `double`, were held by a paused `shout`, and went on; a third job waits for an engine."""
    project = Project(tmp_path_factory.mktemp("waiting"))
    project.put(a=1, b=2)
    project.ok("pause", "shout")
    assert project.call("run").code == 6
    project.ok("resume", "shout")
    project.ok("run")
    project.put(c=3)
    return project


def spans(project: Project, *more: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = project.ok("waiting", "a", "--json", *more).json
    return found


def test_sums_by_task_and_cause(project: Project) -> None:
    """Rows in the documented shape, causes in order, and per task how long episodes waited."""
    found = project.ok("waiting", "--json").json
    assert found.keys() == {"at_position", "until", "by", "rows", "tasks"}
    assert found["by"] == ["task", "cause"]
    assert all(set(row) == {"task", "cause", *SUM_FIELDS} for row in found["rows"])
    assert list(found["tasks"]) == ["double", "shout"]
    assert all(set(told) == set(TASK_FIELDS) for told in found["tasks"].values())
    assert (found["tasks"]["double"]["episodes"], found["tasks"]["double"]["open"]) == (3, 1)
    shout = [row["cause"] for row in found["rows"] if row["task"] == "shout"]
    assert shout == sorted(shout, key=CAUSES.index)
    assert {"pause", "engine down", "running"} <= set(shout)
    assert sum(row["share"] for row in found["rows"]) == pytest.approx(2)


def test_the_intervals_of_a_job_are_its_sums(project: Project) -> None:
    """To the nanosecond; each follows on the one before, and its positions are those of events of that time."""
    found = spans(project)
    assert all(tuple(one) == INTERVAL_FIELDS for one in found)
    for task in ("double", "shout"):
        mine = [one for one in found if one["task"] == task]
        assert [one["to"] for one in mine[:-1]] == [one["from"] for one in mine[1:]]
        assert [one["ended"] for one in mine[:-1]] == [one["began"] for one in mine[1:]]
        rows = project.ok("waiting", "a", "--by", "cause,task", "--json").json["rows"]
        for row in rows:
            if row["task"] == task:
                same = [one["nanoseconds"] for one in mine if one["cause"] == row["cause"]]
                assert sum(same) == row["nanoseconds"]
    events = {one["position"]: one["at"] for one in map(_parsed, project.ok("log", "--json").lines)}
    assert all(events[one["began"]] == one["from"] and events[one["ended"]] == one["to"] for one in found)


def _parsed(line: str) -> dict[str, Any]:
    import json

    found: dict[str, Any] = json.loads(line)
    return found


@pytest.mark.parametrize("by", [*BY, ",".join(BY)])
def test_every_way_of_telling_sums_apart_comes_to_the_same(project: Project, by: str) -> None:
    whole = sum(row["nanoseconds"] for row in project.ok("waiting", "--json").json["rows"])
    rows = project.ok("waiting", "--by", by, "--json").json["rows"]
    assert sum(row["nanoseconds"] for row in rows) == whole
    assert all(list(row)[: by.count(",") + 1] == by.split(",") for row in rows)


def test_a_task_or_a_job_by_its_name(project: Project) -> None:
    """A task's name restricts the sums to it; `--job` says that a job is meant."""
    rows = project.ok("waiting", "shout", "--json").json["rows"]
    assert {row["task"] for row in rows} == {"shout"}
    assert project.ok("waiting", "--job", "a", "--json").json == spans(project)
    wrong = project.call("waiting", "--job", "shout")
    assert (wrong.code, wrong.err) == (2, "datatask: there is no job shout in the log; see: datatask ls\n")


def test_as_of_then_and_from_then_on(project: Project) -> None:
    """What goes on counts up to then; what was before is left out."""
    whole = spans(project)
    middle = whole[2]
    early = spans(project, "--at", str(middle["began"]))
    assert [one["cause"] for one in early] == [one["cause"] for one in whole[:2]]
    assert early[-1]["to"] == middle["from"]
    late = spans(project, "--since", str(middle["began"]))
    assert sum(one["nanoseconds"] for one in late) == sum(one["nanoseconds"] for one in whole[2:])
    assert spans(project, "--until", middle["from"])[-1]["to"] == middle["from"]


def test_what_waits_with_no_engine_waits_for_one(project: Project) -> None:
    """With a time behind the head what is open goes on up to it."""
    rows = project.ok("waiting", "c", "--at", "-0s", "--json").json
    assert rows[-1]["cause"] == "engine down"
    assert rows[-1]["ended"] is None


def test_for_people_and_for_programs(project: Project) -> None:
    """Tab-separated lines with a header, two tables; CSV has the rows alone; `--fields` chooses."""
    lines = project.ok("waiting").lines
    assert lines[0].split("\t") == ["task", "cause", *(name for name in SUM_FIELDS if name != "nanoseconds")]
    assert lines[lines.index("") + 1].split("\t") == ["task", *TASK_FIELDS]
    assert project.ok("waiting", "--csv").lines[0] == ",".join(("task", "cause", *SUM_FIELDS))
    assert "" not in project.ok("waiting", "--csv").lines
    assert project.ok("waiting", "a", "--fields", "cause,nanoseconds").lines[0] == "cause\tnanoseconds"
    drawn = project.ok("--color", "always", "waiting", "a")
    assert " ms" in drawn.out


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("cat",), "there is no task and no job cat in the log; tasks are: double, shout"),
        (("--by", "colour"), "there is no colour to tell sums apart by; use some of: task, host, day, job, cause"),
        (("--by", "task,task"), "sums are by each name once; use some of: task, host, day, job, cause"),
        (("--at", "99999"), "position 99999 is beyond the head"),
        (("--csv", "--json"), "--csv and --json contradict each other"),
        (("--job",), "--job needs the job's name"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_told_in_one_line(project: Project, arguments: tuple[str, ...], told: str) -> None:
    found = project.call("waiting", *arguments)
    assert found.code == 2
    assert told in found.err + found.out


def test_the_library_says_the_same(project: Project) -> None:
    """A table to compute with, and intervals for one task or all."""
    with History(project.log) as history:
        table = history.waiting(by="task")
        assert table.columns == ("task", *SUM_FIELDS)
        assert table.column("task") == ["double", "shout"]
        assert history.waiting("shout", "a").column("task")[0] == "shout"
        both = history.intervals(None, "a")
        assert [one for one in both if one.task == "shout"] == history.intervals("shout", "a")
        with pytest.raises(UnknownNameError):
            history.waiting("nothing")
        with pytest.raises(CallerError):
            history.waiting(by="moon")


def test_a_renamed_task_is_asked_for_by_either_name(tmp_path: Path) -> None:
    """Its time counts for the name that it has now."""
    project = Project(tmp_path)
    project.put(a=1)
    project.ok("run")
    text = (tmp_path / "pipeline.py").read_text()
    changed = text.replace(
        'InProcessSyncTask("double", done)', 'InProcessSyncTask("twice", done, was="double")'
    )
    (tmp_path / "pipeline.py").write_text(changed)
    project.ok("run")
    for name in ("twice", "double"):
        rows = project.ok("waiting", name, "--json").json["rows"]
        assert {row["task"] for row in rows} == {"twice"}


def test_an_empty_log_has_nothing_to_tell(tmp_path: Path) -> None:
    project = Project(tmp_path)
    project.ok("run")
    assert project.ok("waiting", "--json").json["rows"] == []
