"""What of a pipeline is run, planned and foretold: `TASK...`, `--jobs`, `--until`, `--limit`, in one language for all three."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from datatask import InProcessSyncTask, LogMetadataRepository, Pipeline, Repository, Session
from datatask.schema.errors import InvalidValueError, UnknownNameError
from tests.integration.cli_kit import Project

OPAQUE = """
from datatask import InProcessSyncTask, LogMetadataRepository, Pipeline, Repository, Session

a = LogMetadataRepository("a")
t = InProcessSyncTask("t", done=LogMetadataRepository("t.done"))
t.link("a", a, is_input=True)

@t
async def f(job, a):
    pass

class All(Repository):
    async def unfiltered_iter(self):
        if all([(await a.info(job))["lr"] for job in [j async for j in a]]) and [j async for j in t.succeeded]:
            yield "all"
    async def info(self, job):
        return job
    async def delete(self, job):
        raise ValueError

u = InProcessSyncTask("u", done=LogMetadataRepository("u.done"))
u.link("all", All(name="all"), is_input=True)

@u
async def g(job, all):
    pass

pipeline = Pipeline([t, u], Session())
"""


@pytest.fixture
def project(tmp_path: Path) -> Project:
    project = Project(tmp_path)
    project.put(a=1, b=2, c=3)
    return project


def launches(project: Project, *choice: str) -> list[str]:
    """What `plan` says, which is also what a dry run says."""
    planned = project.ok("plan", "--json", *choice).json["launches"]
    found = [f"{launch['task']} {launch['job']}" for launch in planned]
    told = project.ok("run", "--dry-run", *choice).lines
    assert [line.removeprefix("would launch ") for line in told if " launch " in line] == found
    return found


def ended(project: Project) -> list[str]:
    return [f"{run['task']} {run['job']}" for run in project.ok("runs", "--json").json]


@pytest.mark.parametrize(
    ("choice", "planned", "done"),
    [
        (["double"], "double a,double b,double c", "double a,double b,double c"),
        (["shout"], "", ""),
        (["--until", "double"], "double a,double b,double c", "double a,double b,double c"),
        (["--limit", "2"], "double a,double b", "double a,double b"),
        (["--jobs", "b | c"], "double b,double c", "double b,double c,shout b,shout c"),
        (["--jobs", "double.numbers - [ab]".replace("[ab]", "(a | b)")], "double c", "double c,shout c"),
        (["--jobs", "? - b", "--until", "shout", "--limit", "3"], "double a,double c", "double a,double c,shout a"),
        (["double", "--jobs", "double.ready & a*"], "double a", "double a"),
        (["--jobs", "double.done"], "", ""),
    ],
)  # fmt: skip
def test_run_does_what_plan_says(project: Project, choice: list[str], planned: str, done: str) -> None:
    """The first round is that of the plan; jobs go on to the tasks that follow, where these are chosen; replay agrees."""
    assert launches(project, *choice) == [one for one in planned.split(",") if one]
    project.ok("run", *choice)
    assert sorted(ended(project)) == [one for one in done.split(",") if one]
    verified = project.ok("replay", "--verify", "--json").json
    assert (verified["chain"], verified["divergences"]) == ("ok", [])


def test_the_choice_is_in_the_log(project: Project) -> None:
    project.ok("run", "double", "--jobs", "a", "--limit", "5")
    events = map(json.loads, project.ok("log", "--kind", "DecisionRound", "--json").lines)
    choices = [event["data"]["selection"] for event in events]
    assert [one["left"] for one in choices] == [5, 4][: len(choices)]
    assert {(*one["tasks"], one["jobs"]["leaf"]) for one in choices} == {("double", "job(a)")}


@pytest.mark.parametrize(
    ("choice", "words"),
    [
        (["doubel"], "there is no task doubel"),
        (["--until", "shuot"], "there is no task shuot"),
        (["--jobs", "z"], "there is no repository or job z"),
        (["--jobs", "double.nubmers"], "there is no repository or job double.nubmers"),
        (["--jobs", "a &"], "a name is missing at the end"),
        (["--jobs", "'a b'"], "there is no repository or job a b"),
        (["shout", "--until", "double"], "shout: not before double"),
    ],
)
def test_plan_refuses_what_run_refuses(project: Project, choice: list[str], words: str) -> None:
    for command in (["run"], ["run", "--dry-run"], ["plan"]):
        result = project.call(*command, *choice)
        assert result.code == 2
        assert words in result.err
    assert ended(project) == []


def test_plan_accepts_a_repository_with_code_of_its_own_and_refuses_what_vanished(tmp_path: Path) -> None:
    """Its listing reads values and views from the log; a repository that has members and is no longer declared is told."""
    project = Project(tmp_path, OPAQUE)
    assert "definition: added task t" in project.ok("plan").lines
    project.ok("inject", "t.a", "x", stdin=b"{lr: 1}")
    assert project.ok("plan").lines == ["launch t x"]
    assert project.ok("update", "--dry-run").lines == ["would launch t x"]
    project.ok("run", "t")
    assert project.ok("plan").lines == ["launch u all"]
    (tmp_path / "pipeline.py").write_text(OPAQUE.replace('Repository("a")', 'Repository("b")'))
    for command in (["plan"], ["run", "--dry-run"], ["run"]):
        result = project.call(*command)
        assert result.code == 2
        assert "no longer has the repository a, which has 1 members" in result.err
    assert project.ok("plan", "--accept-loss", "a").lines[0].startswith("definition: ")


def test_plan_tells_of_an_engine_that_holds_the_log(project: Project) -> None:
    with project.engine("--jobs", "nobody*"):
        assert "`run` is refused" in project.ok("plan").err
        found = project.ok("why", "double", "a", "--json").json
        assert [held["what"] for held in found["held_by"]] == ["unselected"]
        assert found["changes"] == [{"op": "run", "task": "double"}]


def test_a_run_for_ever_has_no_limit(project: Project) -> None:
    result = project.call("run", "--forever", "--limit", "2")
    assert (result.code, "leave out one of the two" in result.err) == (2, True)


def test_what_is_not_chosen_is_not_stuck_and_failures_of_others_do_not_count(project: Project) -> None:
    """The exit code is about what was asked for."""
    text = (project.folder / "pipeline.py").read_text()
    (project.folder / "pipeline.py").write_text(text.replace('value["n"]', "value['n'] / (value['n'] - 1)"))
    assert project.call("run", "double").code == 1
    assert project.call("run", "shout").code == 0
    assert project.call("run", "--jobs", "b").code == 0
    assert project.call("run", "--jobs", "a").code == 1


async def test_the_library_chooses_too(tmp_path: Path) -> None:
    """Tasks as objects or names; a later run in the same engine chooses anew."""
    given, done = LogMetadataRepository("given"), LogMetadataRepository("done")

    async def body(job: str) -> None:
        """Do nothing."""

    task = InProcessSyncTask("t", done, func=body)
    task.link("given", given, is_input=True)
    async with Pipeline([task], Session(), log=tmp_path / "log.db") as pipe:
        for job in ("a", "b", "c"):
            await given.dump(job, 1)
        await pipe.run(tasks=[task], limit=1)
        assert await members(done) == ["a"]
        await pipe.run(until="t", jobs="c")
        assert await members(done) == ["a", "c"]
        for wrong in ({"limit": 0}, {"forever": True, "limit": 1}):
            with pytest.raises(InvalidValueError):
                await pipe.run(**wrong)  # type: ignore[arg-type]
        with pytest.raises(UnknownNameError, match="there is no repository or job d"):
            await pipe.run(jobs="d")
        outcome = await pipe.run()
        assert (await members(done), outcome.exit_code) == (["a", "b", "c"], 0)


async def members(repository: Repository) -> list[str]:
    return sorted([job async for job in repository])


@pytest.mark.parametrize("choice", [["nosuch"], ["--until", "nosuch"], ["--jobs", "double.nosuch &"]])
def test_a_wrong_name_is_refused_before_anything_begins(tmp_path: Path, choice: list[str]) -> None:
    """Nothing says that the run has started, and no log is made."""
    project = Project(tmp_path)
    result = project.call("run", *choice)
    assert (result.code, result.out) == (2, "")
    assert len(result.err.splitlines()) == 1
    assert not project.log.exists()
