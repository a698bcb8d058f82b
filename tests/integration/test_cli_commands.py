"""Every command without an engine: what it prints, its JSON, what it leaves in the log."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.integration.cli_kit import Project

STATUS = (
    "double\ndouble.numbers 3\ndouble.done 3\ndouble.doubled 3\n\n"
    "shout\nshout.doubled 3\nshout.done 3\nshout.blobs 3\n\n"
)


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path)


@pytest.fixture
def finished(project: Project) -> Project:
    """A project in which three jobs went through both tasks."""
    project.put(a=1, b=2, c=3)
    assert project.call("run").code == 0
    return project


def test_run_tells_how_it_began_and_ended(project: Project) -> None:
    """Piped, a run is a line at the start and a summary; `status` says how far the log was verified."""
    project.put(a=1, b=2)
    result = project.ok("run")
    assert result.lines[0] == "started: 2 tasks, 2 ready, log .datatask/log.db"
    assert result.lines[-1].startswith("done after ")
    assert result.lines[-1].endswith("4 runs (4 succeeded)")
    head = project.ok("status", "--json").json["log"]["head"]
    assert result.err == ""
    assert project.ok("status").err == f"verified up to position 0 of {head}\n"
    assert project.ok("run", "--json").json["verified"]["position"] == 0 < head


def test_a_log_that_only_the_pipeline_names_is_found_by_all(tmp_path: Path) -> None:
    """Also beside another log at the usual place; the advice that is printed needs no --log then."""
    project = Project.after_a_run(tmp_path)
    file = project.folder / "pipeline.py"
    file.write_text(file.read_text().replace("session, [])", "session, [], log='own.db')"))
    project.put(a=1, b=2)
    assert project.ok("run").lines[0].endswith("log own.db")
    assert project.ok("ls", "doubled").lines == ["a", "b"]
    assert project.ok("status", "--json").json["log"]["url"].endswith("/own.db")
    assert project.ok("why", "double", "b").lines[0].startswith("double b: ")
    assert project.ok("--log", ".datatask/log.db", "ls", "doubled").lines == ["a"]


def test_status_is_pydatatasks_text(finished: Project) -> None:
    """Piped status is task, `task.link COUNT` (inputs, status, outputs), an empty line."""
    assert finished.ok("status").out == STATUS
    assert "double_done 3" in finished.ok("status", "-a").out


def test_status_as_json(finished: Project) -> None:
    """The documented shape, and --fields chooses parts of it."""
    shape = finished.ok("status", "--json").json
    assert shape.keys() == {"log", "tasks", "quotas", "troubles", "stale", "verified"}
    assert shape["verified"] == {
        "position": 0, "head": shape["log"]["head"], "events_at": None, "blobs_at": None
    }  # fmt: skip
    assert shape["log"].keys() == {"url", "head", "at"}
    assert shape["tasks"]["double"] == {
        "ready": 0,
        "live": 0,
        "succeeded": 3,
        "failed": 0,
        "paused": False,
        "links": {
            "numbers": {"repository": "numbers", "count": 3, "kinds": ["is_input", "required_for_start"]},
            "done": {
                "repository": "done",
                "count": 3,
                "kinds": ["is_status", "inhibits_start", "required_for_output"],
            },
            "doubled": {"repository": "doubled", "count": 3, "kinds": ["is_output", "required_for_output"]},
        },
    }
    assert finished.ok("--json", "status", "--fields", "quotas").json == {"quotas": {}}


def test_the_past_is_there_at_positions_times_and_ages(finished: Project) -> None:
    """--at folds up to a batch boundary; before anything was defined there is nothing."""
    events = [json.loads(line) for line in finished.ok("log", "--json").lines]
    first_put = next(event for event in events if event["kind"] == "ValuePut")
    at = str(first_put["position"])
    assert "double.numbers 3\ndouble.done 0" in finished.ok("status", "--at", at).out
    assert "double.numbers 3\ndouble.done 0" in finished.ok("status", "--at", first_put["at"]).out
    assert finished.ok("status", "--at", "-5h").out == ""
    assert finished.ok("ls", "double.ready", "--at", at).lines == ["a", "b", "c"]


def test_ls_lists_set_expressions(finished: Project) -> None:
    """Several arguments are joined, as with pydatatask."""
    finished.ok("rm", "double.done", "b")
    assert finished.ok("ls", "double.numbers", "-", "double.done").lines == ["b"]
    assert finished.ok("ls", "double.numbers & (done | doubled) - double.ready").lines == ["a", "c"]
    assert finished.ok("ls", "double.ready", "--json").json == ["b"]


def test_cat_prints_documents_as_yaml_and_bytes_as_they_are(finished: Project) -> None:
    """And the value of a file that only its store has."""
    (finished.folder / "files" / "a.txt").write_text("on disk\n")
    finished.ok("update")
    assert finished.ok("cat", "double.doubled", "b").out == "n: 4\n"
    assert finished.ok("cat", "shout.blobs", "b").out == "4!"
    assert finished.ok("cat", "shout.files", "a").out == "on disk\n"
    shape = finished.ok("cat", "--json", "double.doubled", "b").json
    assert shape.keys() == {"repository", "job", "position", "value"}
    assert finished.ok("cat", "--json", "shout.blobs", "b").json["base64"] == "NCE="


def test_inject_takes_one_value_from_stdin(project: Project) -> None:
    """Documents are YAML; bytes are taken as they are."""
    assert (
        project.ok("inject", "double.numbers", "x-1", stdin=b"n: 21\nwhen: !!timestamp '2026-01-02'\n").out
        == "put numbers x-1\n"
    )
    assert project.ok("cat", "numbers", "x-1").out == "n: 21\nwhen: !!timestamp '2026-01-02'\n"
    refused = project.call("inject", "double.numbers", "x-2", stdin=b"n: 01234\n")
    assert (refused.code, "quote it ('01234'), or write 1234" in refused.err) == (2, True)
    project.ok("inject", "shout.blobs", "x-1", stdin=b"\x00\xff")
    assert project.ok("cat", "--json", "blobs", "x-1").json["base64"] == "AP8="


def test_inject_takes_many_from_a_folder_csv_and_json_lines(project: Project) -> None:
    """A file a job, a row a job, a line a job."""
    many = project.folder / "many"
    many.mkdir()
    (many / "f1.yaml").write_text("n: 1\n")
    (many / "f2.yaml").write_text("n: 2\n")
    (project.folder / "rows.csv").write_text("job,n,note\nc1,3,007\nc2,4.5,\n")
    (project.folder / "lines.jsonl").write_text('{"job": "l1", "value": [1]}\n\n{"job": "l2", "n": 5}\n')
    for source in ("many", "rows.csv", "lines.jsonl"):
        assert len(project.ok("inject", "numbers", "--from", source).lines) == 2
    assert project.ok("ls", "numbers").lines == ["c1", "c2", "f1", "f2", "l1", "l2"]
    assert project.ok("cat", "--json", "numbers", "c1").json["value"] == {"n": 3, "note": "007"}
    assert project.ok("cat", "--json", "numbers", "c2").json["value"] == {"n": 4.5, "note": None}
    assert project.ok("cat", "--json", "numbers", "l1").json["value"] == [1]


def test_inject_of_large_values_and_many_jobs(project: Project) -> None:
    """What does not fit an event is a blob; more jobs than one request takes are several."""
    large = json.dumps({"text": "x" * 100_000})
    project.ok("inject", "numbers", "large", stdin=large.encode())
    assert project.ok("cat", "--json", "numbers", "large").json["value"] == json.loads(large)
    lines = "".join(f'{{"job": "j{i}", "n": {i}}}\n' for i in range(2500))
    (project.folder / "many.jsonl").write_text(lines)
    project.ok("inject", "numbers", "--from", "many.jsonl")
    assert len(project.ok("ls", "numbers").lines) == 2501


def test_rm_deletes_from_a_link_a_task_or_downstream(finished: Project) -> None:
    """A line `JOB REPOSITORY` for each deletion; done entries last, so that nothing starts on what is half gone."""
    assert finished.ok("rm", "double.doubled", "a").lines == ["a doubled"]
    assert finished.ok("rm", "double", "b").lines == ["b doubled", "b done"]
    downstream = finished.ok("rm", "-r", "double", "c").lines
    assert set(downstream[:2]) == {"c doubled", "c blobs"}
    assert set(downstream[2:]) == {"c done", "c shouted"}
    assert finished.ok("rm", "double.numbers", "__all__").lines == ["a numbers", "b numbers", "c numbers"]
    assert finished.ok("rm", "double.numbers", "__all__").out == ""


def test_launch_needs_a_ready_job_or_force(finished: Project) -> None:
    """--sync tells by its exit code how the run ended."""
    refused = finished.call("launch", "double", "a")
    assert refused.code == 2
    assert "Task is not ready to launch - use -f to force" in refused.err
    assert "datatask why double a" in refused.err
    assert finished.ok("launch", "double", "a", "--force", "--sync").out == "launch double a\n"
    finished.ok("inject", "numbers", "bad", stdin=b"{}")
    assert finished.call("launch", "double", "bad", "--sync").code == 1
    assert finished.ok("runs", "--job", "a", "--task", "double", "--json").json[-1]["state"] == "succeeded"


def test_retry_cancel_pause_resume(finished: Project) -> None:
    """Each leaves an event that says who asked, and why."""
    assert finished.ok("retry", "double", "a", "--reason", "again").out == "retry double a\n"
    assert finished.ok("ls", "double.ready").lines == ["a"]
    assert finished.ok("cancel", "double", "a", "b").out == "cancel double a\n"
    assert finished.ok("ls", "double.ready").lines == []
    assert finished.ok("pause", "double", "shout").lines == ["pause double", "pause shout"]
    assert finished.ok("pause", "double").err == "nothing to do\n"
    finished.ok("rm", "double.done", "b")
    stuck = finished.call("run")
    assert stuck.code == 6
    assert "stuck: double: paused: 1 job; see: datatask why double" in stuck.lines
    why, cancelled = finished.ok("why", "double").lines
    assert re.fullmatch(r"1 held by paused: double was paused .*; no engine is running: .* \(b\)", why)
    assert cancelled == "1 held by cancelled: cancelled, and no new occasion since (a)"
    assert finished.ok("resume", "double", "shout").lines == ["resume double", "resume shout"]
    assert finished.call("run").code == 0
    (event,) = [json.loads(line) for line in finished.ok("log", "--kind", "RetryRequested", "--json").lines]
    assert event["actor"].endswith(": datatask retry")
    assert event["data"]["reason"] == "again"


def test_failures_show_in_the_exit_code_also_when_there_is_nothing_to_do(project: Project) -> None:
    """And the summary names a command that works as printed."""
    project.put(good=1)
    project.ok("inject", "numbers", "bad", stdin=b"{}")
    first = project.call("run")
    assert first.code == 1
    assert "failed: double: 1 job; see: datatask why double bad" in first.lines
    assert project.call("run").code == 1
    assert project.call("update").code == 1
    assert project.call("run", "--failures-ok").code == 0
    told = project.ok("why", "double", "bad").out
    assert "last run" in told
    assert "KeyError" in told
    assert project.ok("retry", "double", "--failed").out == "retry double bad\n"


def test_dry_runs_change_nothing(finished: Project) -> None:
    """Not a byte; with --exit-code they tell whether there is something to do."""
    before = finished.log.read_bytes()
    for arguments in (
        ("rm", "-r", "double", "a"),
        ("retry", "double", "a"),
        ("pause", "double"),
        ("launch", "double", "a", "-f"),
        ("inject", "numbers", "zz"),
    ):
        result = finished.ok(*arguments, "--dry-run", stdin=b"n: 1")
        assert result.lines
        assert all(line.startswith("would ") for line in result.lines)
        assert finished.call(*arguments, "--dry-run", "--exit-code", stdin=b"n: 1").code == 3
    assert finished.call("resume", "double", "--dry-run", "--exit-code").code == 0
    assert finished.log.read_bytes() == before


def test_changes_as_json(finished: Project) -> None:
    """The documented shape, the same for all of them."""
    shape = finished.ok("rm", "double.done", "a", "--json").json
    assert shape.keys() == {"command", "dry_run", "engine", "position", "count", "changes"}
    assert shape["engine"] == "opened"
    assert shape["changes"] == [{"op": "delete", "task": None, "repository": "done", "job": "a"}]
    assert finished.ok("pause", "double", "--dry-run", "--json").json["engine"] == "none"


def test_trace_and_why(finished: Project) -> None:
    """Trace is pydatatask's text; why tells what it would take."""
    finished.ok("rm", "double.done", "b")
    text = "double\ndouble.numbers a b\ndouble.done a\ndouble.doubled a b\n\n"
    assert finished.ok("trace", "a", "b").out.startswith(text)
    refused = finished.call("trace", "a", "nobody")
    assert (refused.code, "there is no job nobody" in refused.err) == (2, True)
    for arguments in (["log", "--task", "duoble"], ["runs", "--task", "duoble"]):
        refused = finished.call(*arguments)
        assert (refused.code, "there is no task duoble; use one of: double" in refused.err) == (2, True), (
            refused
        )
    assert (
        finished.call("log", "--job", "nobody").code == finished.call("log", "--repository", "none").code == 2
    )
    (path,) = finished.ok("trace", "a", "--json").json
    assert path["tasks"]["double"]["state"] == "succeeded"
    assert path["tasks"]["double"]["links"]["numbers"].keys() == {"repository", "present", "since"}
    why = finished.ok("why", "double", "a", "--json").json
    shape = {
        "task",
        "job",
        "ready",
        "at_position",
        "conditions",
        "held_by",
        "changes",
        "launching",
        "tree",
        "events",
        "stale",
    }
    assert why.keys() == shape
    assert {"op": "delete", "repository": "done", "job": "a"} in why["changes"]
    assert "NOT done: needs absent in done, is present" in finished.ok("why", "double", "a").out
    groups = finished.ok("why", "double", "--json").json["groups"]
    assert [(group["count"], group["sample"]) for group in groups] == [(1, ["b"])]


def test_log_filters(finished: Project) -> None:
    """Filters of one kind are alternatives, those of different kinds must all hold."""

    def found(*filters: str) -> list[dict[str, object]]:
        return [json.loads(line) for line in finished.ok("log", "--json", *filters).lines]

    everything = found()
    assert [event["position"] for event in everything] == list(range(1, len(everything) + 1))
    keys = {"position", "at", "kind", "actor", "cause", "task", "repository", "job", "run", "data"}
    assert all(event.keys() == keys for event in everything)
    ends = found("--kind", "RunEnded", "--task", "double")
    assert sorted(str(event["job"]) for event in ends) == ["a", "b", "c"]
    assert {str(event["kind"]) for event in found("--run", str(ends[0]["run"]))} >= {
        "LaunchDecided",
        "RunEnded",
    }
    assert len(found("--job", "a", "--job", "b", "--kind", "RunEnded")) == 4
    assert {event["actor"] for event in found("--repository", "numbers")} != {"engine"}
    assert found("--since", str(ends[0]["position"]))[0] == ends[0]
    assert found("--until", "1") == everything[:1]
    assert found("--since", "-1h", "--until", "-30m") == []
    assert found("--grep", "succeeded", "--kind", "RunEnded", "--task", "double") == ends
    assert (
        finished.ok("log", "--fields", "kind,job", "--kind", "RunEnded", "--task", "double")
        .lines[0]
        .startswith("RunEnded\t")
    )


def test_runs_and_query(finished: Project) -> None:
    """Tables are tab-separated where they are piped, and JSON in the documented shape."""
    runs = finished.ok("runs", "--json").json
    assert len(runs) == 6
    assert list(runs[0]) == [
        "run", "task", "job", "attempt", "state", "decided_at", "started_at", "ended_at", "where", "exit_code", "error",
        "wait", "duration", "episode", "error_type", "again", "reused", "identities", "last_lines",
    ]  # fmt: skip
    assert [run["run"] for run in runs] == sorted(run["run"] for run in runs)
    assert (
        len(finished.ok("runs", "--state", "succeeded", "--task", "shout", "--limit", "2", "--json").json)
        == 2
    )
    assert finished.ok("runs", "--fields", "task,job", "--job", "a").lines == [
        "task\tjob",
        "double\ta",
        "shout\ta",
    ]
    answer = finished.ok(
        "query", "--json", "SELECT task, count(*) AS n FROM runs GROUP BY task ORDER BY 1"
    ).json
    assert answer == {"columns": ["task", "n"], "rows": [["double", 3], ["shout", 3]], "more": False}
    assert finished.ok("query", "SELECT 1 AS one, NULL AS none").lines == ["one\tnone", "1\t"]
    assert finished.ok("query", "--json", "SELECT job FROM runs", "--limit", "1").json["more"] is True
    endless = "WITH RECURSIVE r(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM r) SELECT max(n) FROM r"
    assert finished.call("query", endless, "--timeout", "0.05").code == 7


def test_plan_tells_launches_and_differences_and_changes_nothing(finished: Project) -> None:
    """It sees a file that nobody has observed yet, and a definition that is not in force yet."""
    assert finished.ok("plan").out == "nothing to do\n"
    finished.ok("rm", "double.done", "b")
    before = finished.log.read_bytes()
    shape = finished.ok("plan", "--json").json
    assert shape.keys() == {"log", "launches", "held", "definition", "parameters", "stale", "unfollowed"}
    assert [(launch["task"], launch["job"]) for launch in shape["launches"]] == [("double", "b")]
    text = (finished.folder / "pipeline.py").read_text()
    (finished.folder / "pipeline.py").write_text(
        text.replace('"double", done)', '"double", done, timeout=5)')
    )
    changed = finished.call("plan", "--exit-code")
    assert changed.code == 3
    assert changed.lines == ["definition: changed task double (timeout)", "launch double b"]
    assert finished.log.read_bytes() == before


def test_graph_draws_the_recorded_or_the_declared_pipeline(finished: Project) -> None:
    """For people, for Mermaid, for Graphviz, for programs."""
    assert "  <-- numbers: numbers" in finished.ok("graph").lines
    assert finished.ok("graph", "--format", "mermaid").lines[0] == "flowchart LR"
    assert finished.ok("graph", "--format", "dot").lines[-1] == "}"
    shape = finished.ok("graph", "--json").json
    assert {"task": "double", "link": "doubled", "repository": "doubled",
            "kinds": ["is_output", "required_for_output"]} in shape["links"]  # fmt: skip
    assert finished.ok("-p", "pipeline.py", "graph", "--format", "json").json == shape


def test_replay_and_verify(finished: Project) -> None:
    """A log of ours folds without any divergence, and to the state that status shows."""
    shape = finished.ok("replay", "--verify", "--json").json
    assert shape.keys() == {"events", "head", "chain", "divergences", "differences", "seconds", "state"}
    assert (shape["chain"], shape["divergences"], shape["differences"]) == ("ok", [], [])
    assert shape["state"]["tasks"] == finished.ok("status", "--all", "--json").json["tasks"]
    told = finished.ok("replay", finished.log).lines
    assert told[0].endswith(f"head {shape['head']}: ok")
    assert "double.doubled 3" in told
    assert finished.ok("verify").out.endswith(": ok\n")


def test_init_makes_a_project_that_runs_and_overwrites_nothing(tmp_path: Path) -> None:
    """What it makes runs as it stands."""
    project = Project(tmp_path)
    made = project.ok("init", "words")
    assert "made words/pipeline.py" in made.lines
    assert project.call("-p", "words/pipeline.py", "run").code == 0
    assert "count.words 2" in project.ok("--log", "words/.datatask/log.db", "status").out
    again = project.call("init", "words")
    assert again.code == 2
    assert "is there already" in again.err


def test_doctor_and_completion(finished: Project) -> None:
    """All is well here; the script mentions what it completes."""
    checks = finished.ok("-p", "pipeline.py", "doctor", "--json").json
    assert {check["check"] for check in checks} >= {"python", "sqlite", "log", "engine", "pipeline"}
    assert all(check.keys() == {"check", "ok", "what", "remedy"} for check in checks)
    for shell in ("zsh", "fish"):
        assert "_DATATASK_COMPLETE" in finished.ok("completion", shell).out


def test_reading_needs_no_pipeline_and_writes_nothing(finished: Project) -> None:
    """With the log alone, in a folder that cannot be written, from a pipeline file that would raise."""
    (finished.folder / "pipeline.py").write_text("raise RuntimeError('loaded')")
    before = {path: path.read_bytes() for path in finished.log.parent.rglob("*") if path.is_file()}
    for arguments in (
        ("status", "-a"), ("ls", "double.done"), ("cat", "double.doubled", "a"), ("trace", "a"), ("why", "double"),
        ("why", "double", "a"), ("log",), ("runs",), ("query", "SELECT 1"), ("graph",), ("replay",), ("verify",),
        ("doctor",),
    ):  # fmt: skip
        finished.ok(*arguments)
    assert {path: path.read_bytes() for path in finished.log.parent.rglob("*") if path.is_file()} == before


def test_where_a_pipeline_has_no_log_yet_its_stores_are_looked_at(project: Project) -> None:
    """Only where -p names it, and nothing is made."""
    (project.folder / "files").mkdir()
    (project.folder / "files" / "a.txt").write_text("x")
    assert project.call("status").code == 2
    assert "shout.files 1" in project.ok("-p", "pipeline.py", "status", "--all").out
    assert project.ok("-p", "pipeline.py", "ls", "shout.files").lines == ["a"]
    assert not project.log.exists()


def test_tables_colours_and_fields(finished: Project) -> None:
    """--color always draws; NO_COLOR and pipes do not."""
    assert "\x1b[" in finished.ok("status", "--color", "always").out
    assert "\x1b[" not in finished.ok("runs").out
    assert finished.call("runs", "--fields", "nope").code == 2


def test_debug_shows_the_traceback_of_our_own_mistakes_only_when_asked(project: Project) -> None:
    """An unexpected error is one line that asks for a report."""
    from datatask.adapters.cli import commands

    broken = commands.Entry("no_such_module", "nothing", "Fails.")
    commands.COMMANDS["broken"] = broken
    try:
        result = project.call("broken")
        assert "Traceback" in project.call("--debug", "broken").err
    finally:
        del commands.COMMANDS["broken"]
    assert result.code == 1
    assert result.err.startswith("datatask: internal error: ModuleNotFoundError")
    assert "please report it" in result.err
    assert "Traceback" not in result.err
