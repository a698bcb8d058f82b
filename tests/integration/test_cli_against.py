"""`replay --against`: a log under another definition, from a file, a pipeline or a log; and `--at` of `graph`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from datatask.adapters.history.compare import OtherDefinition, compare, texts
from datatask.adapters.history.history import History
from datatask.schema.errors import CallerError
from tests.integration.cli_kit import PIPELINE, Project

NUMBERS = {"a": 1, "b": 2, "c": 3}


@pytest.fixture(scope="module")
def lived(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project in which three numbers went through both tasks."""
    project = Project(tmp_path_factory.mktemp("lived"))
    project.put(**NUMBERS)
    project.ok("run")
    return project


def other(project: Project, name: str, old: str, new: str) -> str:
    """Write the pipeline with one thing changed; return its file's name."""
    assert old in PIPELINE
    (project.folder / name).write_text(PIPELINE.replace(old, new))
    return name


def found(project: Project, *arguments: str, code: int = 3) -> list[dict[str, Any]]:
    result = project.call("replay", "--json", *arguments)
    assert result.code == code, result
    differences: list[dict[str, Any]] = result.json["differences"]
    return differences


def only(differences: list[dict[str, Any]], **wanted: Any) -> dict[str, Any]:
    (one,) = [one for one in differences if all(one[name] == value for name, value in wanted.items())]
    return one


def test_the_pipeline_itself_makes_no_difference(lived: Project) -> None:
    assert found(lived, "--against", "pipeline.py", code=0) == []
    result = lived.ok("replay", "--against", "pipeline.py")
    assert "the other definition makes no difference" in result.out


def test_a_pipeline_is_declared_and_not_run(lived: Project) -> None:
    name = other(lived, "loud.py", 'if __name__ == "__main__"', "if True")
    assert found(lived, "--against", name, code=0) == []


def test_a_removed_input_lets_jobs_start_earlier(lived: Project) -> None:
    name = other(
        lived,
        "early.py",
        "shout.plug(double)",
        'shout.link("numbers", numbers, is_input=True)\nshout.link("doubled", doubled)',
    )
    differences = found(lived, "--against", name)
    ready = only(differences, task="shout", what="ready")
    assert ready["where"] == "there"
    assert ready["jobs"]["count"] == 3
    assert {entry["job"] for entry in ready["jobs"]["sample"]} == set(NUMBERS)
    assert ready["first_position"] == min(entry["position"] for entry in ready["jobs"]["sample"])
    assert "not in" in ready["jobs"]["sample"][0]["explain"]
    launched = only(differences, task="shout", what="launched", where="there")
    assert launched["jobs"]["count"] >= 1
    text = lived.call("replay", "--against", name)
    assert text.code == 3
    assert f"the other definition makes a difference from position {ready['first_position']} on" in text.out
    assert "shout: 3 jobs ready under the other definition" in text.out


def test_a_further_condition_blocks_jobs_and_says_which(lived: Project) -> None:
    name = other(
        lived,
        "strict.py",
        'shout.link("files", files)',
        'shout.link("files", files, required_for_start=True)',
    )
    differences = found(lived, "--against", name)
    blocked = only(differences, task="shout", what="blocked")
    assert blocked["jobs"]["count"] == 3
    assert "not in FileRepository:" in blocked["jobs"]["sample"][0]["explain"]
    refused = only(differences, task="shout", what="launched", where="here")
    assert refused["jobs"]["count"] == 3


def test_what_exists_in_one_only_is_told_and_its_events_are_left_out(lived: Project) -> None:
    name = other(lived, "renamed.py", 'InProcessSyncTask("shout"', 'InProcessSyncTask("cry"')
    differences = found(lived, "--against", name)
    gone = only(differences, what="only_in", task="shout")
    assert gone["where"] == "here"
    assert only(differences, what="only_in", task="cry")["where"] == "there"
    assert "3 LaunchDecided" in lived.call("replay", "--against", name).out


def test_a_rename_that_is_said_is_no_difference(lived: Project) -> None:
    with History(lived.log) as history:
        definition = history.state().definition
        text = json.loads(_encoded(definition).replace('"shout"', '"cry"'))
        path = lived.folder / "cry.json"
        path.write_text(json.dumps(text))
        changed = history.against(path)
        assert {one["task"] for one in changed.differences} >= {"shout", "cry"}
        from datatask.adapters.history.compare import read_definition

        there = read_definition(path)
        assert there is not None
        said = compare(history.reader, OtherDefinition(there.definition, (("task", "shout", "cry"),)))
        assert said.differences == []
        assert said.skipped == {}


def test_a_definition_comes_from_json_as_log_prints_it_and_from_another_log(
    lived: Project, tmp_path: Path
) -> None:
    printed = lived.ok("log", "--kind", "PipelineDefined", "--json").lines[-1]
    (lived.folder / "defined.json").write_text(printed)
    assert found(lived, "--against", "defined.json", code=0) == []
    assert found(lived, "--against", str(lived.log), code=0) == []
    with History(lived.log) as history:
        assert history.against(history.state().definition).differences == []


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("nothing here", "this is no definition"),
        ('{"tasks": 7}', "this is no definition"),
        (
            '{"tasks": [{"name": "t", "kind": "k", "ready": {"op": "in", "leaf": "nowhere"}}]}',
            "the task t uses the repository nowhere, which is not declared",
        ),
    ],
)
def test_what_is_no_definition_is_refused_in_one_line(lived: Project, text: str, what: str) -> None:
    (lived.folder / "wrong.json").write_text(text)
    result = lived.call("replay", "--against", "wrong.json")
    assert result.code == 2
    assert what in result.err
    assert len(result.err.splitlines()) == 1


def test_a_file_that_is_not_there_is_refused(lived: Project) -> None:
    result = lived.call("replay", "--against", "absent.py")
    assert result.code == 2
    assert "there is no such pipeline file" in result.err
    with (
        History(lived.log) as history,
        pytest.raises(CallerError, match="neither a definition in JSON nor a log"),
    ):
        history.against(lived.folder / "pipeline.py")


def test_up_to_a_position_only_what_happened_by_then_counts(lived: Project) -> None:
    name = other(
        lived,
        "strict2.py",
        'shout.link("files", files)',
        'shout.link("files", files, required_for_start=True)',
    )
    whole = only(found(lived, "--against", name), task="shout", what="blocked")
    assert whole["first_position"] > 5
    assert found(lived, "--against", name, "--at", "5", code=0) == []


def test_user_code_that_has_not_answered_is_told_as_unknown(lived: Project) -> None:
    with History(lived.log) as history:
        document = json.loads(_encoded(history.state().definition))
        document["repositories"].append(
            {
                "id": "even",
                "kind": "test",
                "medium": "derived",
                "derived": {"by": "filtered", "base": {"op": "in", "leaf": "numbers"}},
            }
        )
        task = next(task for task in document["tasks"] if task["name"] == "double")
        task["ready"]["of"].append({"op": "in", "leaf": "even"})
        path = lived.folder / "even.json"
        path.write_text(json.dumps(document))
        compared = history.against(path)
    unknown = only(compared.differences, task="double", what="unknown")
    assert unknown["jobs"]["count"] == 3
    assert not [
        one for one in compared.differences if one["task"] == "double" and one["what"] in ("ready", "blocked")
    ]
    assert "not in the log" in "\n".join(texts(compared.differences, compared.skipped))


def test_another_retry_policy_and_a_limit_are_told_by_run(tmp_path: Path) -> None:
    project = Project(tmp_path)
    project.put(a=1, b=2)
    project.ok("inject", "double.numbers", "bad", stdin=b"m: 1")
    assert project.call("run").code == 1
    with History(project.log) as history:
        document = json.loads(_encoded(history.state().definition))
        task = next(task for task in document["tasks"] if task["name"] == "double")
        task |= {"retry": {"attempts": 3}, "concurrency": 1}
        path = tmp_path / "patient.json"
        path.write_text(json.dumps(document))
        differences = history.against(path).differences
    again = only(differences, task="double", what="launched", where="there")
    assert again["jobs"]["sample"][0]["job"] == "bad"
    assert "would have been tried again" in again["jobs"]["sample"][0]["explain"]
    limited = only(differences, task="double", what="launched", where="here")
    assert limited["jobs"]["count"] == 2
    assert "as many runs as it may have" in limited["jobs"]["sample"][0]["explain"]


def test_graph_at_shows_the_definition_in_force_then(tmp_path: Path) -> None:
    project = Project(tmp_path)
    project.put(a=1)
    project.ok("run")
    with History(project.log) as history:
        head = history.head
    (project.folder / "pipeline.py").write_text(
        PIPELINE.replace('InProcessSyncTask("shout"', 'InProcessSyncTask("cry"')
    )
    project.ok("run", "--accept-loss", "shout")
    names = [task["name"] for task in project.ok("graph", "--json").json["tasks"]]
    then = [task["name"] for task in project.ok("graph", "--json", "--at", str(head)).json["tasks"]]
    assert (names, then) == (["double", "cry"], ["double", "shout"])
    assert project.ok("graph", "--at", "1").out == ""


def _encoded(value: object) -> str:
    import msgspec

    return msgspec.json.encode(value).decode()
