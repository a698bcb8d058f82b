"""`log`, `runs` and `query`: every filter, alone and with others, sorting, grouping, following; and how fast."""

from __future__ import annotations

import csv
import io
import json
import re
import signal
import socket
import subprocess
import time
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

from datatask.adapters.history.events import Selection, causes, consequences, select
from datatask.adapters.history.history import History
from datatask.adapters.history.moments import When
from datatask.adapters.history.runs import GROUP_FIELDS, RUN_FIELDS, percentile
from datatask.adapters.log import queries
from datatask.adapters.log.reader import LogReader
from datatask.engine.ports import Filters
from tests.integration.cli_kit import Project

PIPELINE = """
import asyncio
import datatask

numbers = datatask.LogMetadataRepository("numbers")
halves = datatask.LogMetadataRepository("halves")
half = datatask.InProcessSyncTask("half", datatask.LogMetadataRepository("done"), retry=datatask.Retry(2, backoff=0.01))
half.link("numbers", numbers, is_input=True)
half.link("halves", halves, is_output=True)


@half
async def run_half(job, numbers, halves):
    value = await numbers.info(job)
    await asyncio.sleep(value.get("seconds", 0))
    await halves.dump(job, {"n": value["n"] // 2})


show = datatask.InProcessSyncTask("show", datatask.LogMetadataRepository("shown"))
show.plug(half, require_success=True)


@show
async def run_show(job, halves):
    await halves.info(job)


pipeline = datatask.Pipeline([half, show], datatask.Session(), [])
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """Two jobs that went through, one slower than the other, and one that failed twice."""
    project = Project(tmp_path_factory.mktemp("project"), PIPELINE)
    lines = [
        '{"job": "a", "n": 2}',
        '{"job": "b", "n": 4, "seconds": 0.2}',
        json.dumps({"job": "bad", "note": 'Zürich "x"'}, ensure_ascii=False),
    ]
    (project.folder / "jobs.jsonl").write_text("\n".join(lines))
    project.ok("inject", "numbers", "--from", "jobs.jsonl", "--reason", "first lot")
    assert project.call("run").code == 1
    return project


def found(project: Project, *options: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in project.ok("log", "--json", *options).lines]


def positions(project: Project, *options: str) -> list[int]:
    return [event["position"] for event in found(project, *options)]


# --- log --------------------------------------------------------------------------------------------


def test_filters_hold_alone_and_together(project: Project) -> None:
    """Two options of one kind are alternatives, options of different kinds all hold; each pair is tried."""
    everything = found(project)
    actor = next(event["actor"] for event in everything if event["actor"] != "engine")
    middle = everything[len(everything) // 2]
    first_run = next(event["run"] for event in everything if event["run"])
    options: dict[tuple[str, ...], Any] = {
        ("--task", "half"): lambda event: event["task"] == "half",
        ("--task", "half", "--task", "show"): lambda event: event["task"] in ("half", "show"),
        ("--job", "a"): lambda event: event["job"] == "a",
        ("--job", "a", "--job", "bad"): lambda event: event["job"] in ("a", "bad"),
        ("--repository", "halves"): lambda event: event["repository"] == "halves",
        ("--kind", "RunEnded"): lambda event: event["kind"] == "RunEnded",
        ("--kind", "RunEnded", "--kind", "ValuePut"): lambda event: event["kind"] in ("RunEnded", "ValuePut"),
        ("--run", str(first_run)): lambda event: event["run"] == first_run,
        ("--actor", actor): lambda event: event["actor"] == actor,
        ("--actor", actor.split("@")[0]): lambda event: event["actor"] != "engine",
        ("--actor", actor.split(":")[0]): lambda event: event["actor"] != "engine",
        ("--actor", "engine"): lambda event: event["actor"] == "engine",
        ("--actor", "eng"): lambda event: False,
        ("--since", str(middle["position"])): lambda event: event["position"] >= middle["position"],
        ("--since", middle["at"]): lambda event: event["at"] >= middle["at"],
        ("--until", str(middle["position"])): lambda event: event["position"] <= middle["position"],
        ("--until", middle["at"]): lambda event: event["at"] <= middle["at"],
        ("--grep", "succeeded"): lambda event: "succeeded" in json.dumps(event),
        ("--grep", "RunEnd"): lambda event: event["kind"] == "RunEnded",
        ("--grep", '"outcome":"failed"'): lambda event: event["data"].get("outcome") == "failed",
        ("--grep", 'Zürich "x"'): lambda event: event["repository"] == "numbers" and event["job"] == "bad",
        ("--grep", "runended"): lambda event: False,
        ("--grep", "runENDED", "--ignore-case"): lambda event: event["kind"] == "RunEnded",
        ("--grep", "^Run(Start|End)ed$", "--regex"): lambda event: (
            event["kind"] in ("RunStarted", "RunEnded")
        ),
    }
    for (one, holds), (other, also) in combinations(options.items(), 2):
        if one[0] == other[0]:
            continue
        expected = [event["position"] for event in everything if holds(event) and also(event)]
        assert positions(project, *one, *other) == expected, (one, other)
    for one, holds in options.items():
        assert positions(project, *one) == [event["position"] for event in everything if holds(event)], one


def test_the_last_ones_and_the_newest_first(project: Project) -> None:
    """--last counts from the end, --reverse turns the order, --limit is another name."""
    everything = positions(project)
    assert positions(project, "--last", "3") == everything[-3:]
    assert positions(project, "--limit", "3", "--reverse") == everything[:-4:-1]
    assert positions(project, "--reverse") == everything[::-1]
    of_a = positions(project, "--job", "a")
    assert positions(project, "--job", "a", "--last", "2", "--reverse") == of_a[:-3:-1]
    assert (
        positions(project, "--grep", "RunEnded", "-i", "--last", "1")
        == positions(project, "--kind", "RunEnded")[-1:]
    )


def test_wrong_calls_of_log_are_one_line(project: Project) -> None:
    """What contradicts itself, what is no regular expression, what is no position."""
    for arguments, what in (
        (("--follow", "--reverse"), "--follow goes on"),
        (("--regex",), "about --grep"),
        (("--grep", "(", "--regex"), "no regular expression"),
        (("--caused-by", "99999"), "no event at position 99999"),
        (("--csv", "--json"), "contradict"),
    ):
        result = project.call("log", *arguments)
        told = result.err if "--json" not in arguments else result.out
        assert result.code == 2
        assert what in told
        assert told.count("\n") == 1


def test_consequences_and_causes(project: Project) -> None:
    """From a value that was put to what was made of it, and back."""
    put = next(
        event
        for event in found(project, "--job", "b", "--kind", "ValuePut")
        if event["repository"] == "numbers"
    )
    led = found(project, "--caused-by", str(put["position"]))
    kinds = [(event["kind"], event["task"] or event["repository"]) for event in led]
    assert kinds == [
        ("LaunchDecided", "half"),
        ("RunStarted", "half"),
        ("ValuePut", "half"),
        ("ValuePut", "half"),
        ("RunEnded", "half"),
        ("LaunchDecided", "show"),
        ("RunStarted", "show"),
        ("ValuePut", "show"),
        ("RunEnded", "show"),
    ]
    assert {event["job"] for event in led} == {"b"}
    assert positions(
        project, "--caused-by", str(put["position"]), "--kind", "RunEnded", "--task", "show"
    ) == [led[-1]["position"]]
    back = found(project, "--causes-of", str(led[-1]["position"]))
    assert put["position"] in [event["position"] for event in back]
    assert {event["kind"] for event in back} >= {"LaunchDecided", "ValuePut", "RunEnded"}
    with LogReader(project.log) as reader:
        everything = list(reader.read())
        for position, _ in everything:
            for later in consequences(reader, position):
                assert later > position
                assert position in causes(reader, later), (position, later)


def test_log_as_csv_is_what_json_says(project: Project) -> None:
    """A header, a line an event, documents as JSON."""
    rows = list(csv.DictReader(io.StringIO(project.ok("log", "--csv").out)))
    for row, event in zip(rows, found(project), strict=True):
        assert int(row["position"]) == event["position"]
        assert (row["kind"], row["job"]) == (event["kind"], event["job"] or "")
        assert json.loads(row["data"]) == event["data"]


def test_a_jobs_events_come_from_the_index(project: Project) -> None:
    """Whatever else is asked for with it, in either order."""
    for filters in (Filters(jobs=("a",)), Filters(jobs=("a", "b"), kinds=("RunEnded",), text="x")):
        for newest_first in (False, True):
            query = queries.page(0, 10**9, filters, newest_first=newest_first)
            with LogReader(project.log) as reader:
                plan = reader.query(f"EXPLAIN QUERY PLAN {query.sql}", query.parameters).rows
            steps = [step for *_, step in plan if " log" in step]
            assert steps
            assert all("log_job_position (job=?" in step for step in steps), plan


# --- following --------------------------------------------------------------------------------------


def reading(process: subprocess.Popen[bytes], kind: bytes) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        if kind in line:
            return
    raise AssertionError(kind)


def test_following_goes_on_across_engines_until_interrupted(tmp_path: Path) -> None:
    """Ctrl-C ends it with 130; what is filtered out does not show."""
    project = Project(tmp_path, PIPELINE)
    project.ok("run")
    process = project.spawn("log", "--follow", "--kind", "EngineOpened", "--kind", "RunEnded", "--last", "1")
    reading(process, b"EngineOpened")
    for job in ("x", "y"):
        project.ok("inject", "numbers", job, stdin=b"n: 2")
        project.ok("run", "--failures-ok")
        reading(process, b"job=" + job.encode())
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=100)
    assert process.returncode == 130
    assert told.strip() == b"interrupted"


def test_following_ends_when_nobody_reads_any_more(tmp_path: Path) -> None:
    """Also while nothing is appended."""
    project = Project(tmp_path, PIPELINE)
    project.ok("run")
    process = project.spawn("log", "--follow", "--last", "1")
    assert process.stdout is not None
    process.stdout.readline()
    process.stdout.close()
    assert process.wait(100) == 0
    assert process.stderr is not None
    with process.stderr as told:
        assert told.read() == b""


def test_following_ends_at_the_time_or_position_that_was_said(project: Project) -> None:
    """A time that is over, a position that has been reached."""
    assert positions(project, "--follow", "--until", "3") == [1, 2, 3]
    assert positions(project, "--follow", "--until", "-1s") == positions(project, "--until", "-1s")


# --- runs -------------------------------------------------------------------------------------------


def runs(project: Project, *options: str) -> list[dict[str, Any]]:
    listed: list[dict[str, Any]] = project.ok("runs", "--json", *options).json
    return listed


def test_runs_tell_waits_and_durations(project: Project) -> None:
    """Seconds, by engine time; the view has the same numbers."""
    everything = runs(project)
    assert all(list(run) == [*RUN_FIELDS, "last_lines"] for run in everything)
    by_job = {(run["task"], run["job"], run["attempt"]): run for run in everything}
    assert by_job["half", "b", 1]["duration"] >= 0.2
    assert by_job["half", "bad", 2]["error_type"] == "KeyError"
    asked = "SELECT run, wait, duration FROM runs ORDER BY run"
    assert project.ok("query", "--json", asked).json["rows"] == [
        [run["run"], run["wait"], run["duration"]] for run in everything
    ]


def test_runs_are_filtered(project: Project) -> None:
    """By place, state, time of decision, and by when they ran."""
    everything = runs(project)
    (slow,) = [run for run in everything if (run["task"], run["job"]) == ("half", "b")]
    assert {run["where"] for run in everything} == {"in-process"}
    assert runs(project, "--where", "in-*") == everything
    host = socket.gethostname()
    assert runs(project, "--where", host) == runs(project, "--where", f"{host[:2]}*") == everything
    assert [group["host"] for group in runs(project, "--by", "host")] == [host]
    assert runs(project, "--where", "node-7") == []
    assert runs(project, "--state", "failed", "--state", "lost") == [
        run for run in everything if run["state"] == "failed"
    ]
    assert runs(project, "--since", str(slow["run"]), "--task", "half") == [
        run for run in everything if run["run"] >= slow["run"] and run["task"] == "half"
    ]
    assert runs(project, "--active-between", slow["started_at"], slow["ended_at"]) == [
        run
        for run in everything
        if run["started_at"] <= slow["ended_at"] and run["ended_at"] >= slow["started_at"]
    ]
    assert runs(project, "--active-between", "-2h", "-1h") == []
    assert runs(project, "--job", "a", "--state", "succeeded", "--last", "1")[0]["task"] == "show"


def test_runs_as_known_at_an_earlier_point(project: Project) -> None:
    """What ended later is running, what was decided later is not there."""
    everything = runs(project)
    slow = next(run for run in everything if (run["task"], run["job"]) == ("half", "b"))
    started = next(
        event for event in found(project, "--run", str(slow["run"])) if event["kind"] == "RunStarted"
    )
    then = runs(project, "--at", str(started["position"]))
    known = {run["run"]: run for run in then}
    assert (known[slow["run"]]["state"], known[slow["run"]]["ended_at"]) == ("running", None)
    assert known[slow["run"]]["duration"] is None
    assert set(known) <= {run["run"] for run in everything if run["run"] <= started["position"] + 100}
    assert runs(project, "--at", "2") == []
    assert runs(project, "--at", started["at"], "--state", "running", "--job", "b")[0]["run"] == slow["run"]


@pytest.mark.parametrize(
    "field", ["decided", "started", "ended", "duration", "wait", "attempt", "exit_code", "state", "where"]
)
def test_runs_are_sorted(project: Project, field: str) -> None:
    """The unknown first; --last takes the greatest, --reverse turns the order."""
    column = {"decided": "decided_at", "started": "started_at", "ended": "ended_at"}.get(field, field)
    values = [
        (run[column] is not None, run[column] or 0, run["run"]) for run in runs(project, "--sort", field)
    ]
    assert values == sorted(values)
    ordered = [run["run"] for run in runs(project, "--sort", field)]
    assert [run["run"] for run in runs(project, "--sort", field, "--last", "2", "--reverse")] == ordered[
        :-3:-1
    ]


def test_runs_are_grouped(project: Project) -> None:
    """Counts, shares and durations are those of the rows."""
    groups = runs(project, "--by", "task,state")
    everything = runs(project)
    assert [(group["task"], group["state"]) for group in groups] == sorted(
        {(run["task"], run["state"]) for run in everything}
    )
    for group in groups:
        mine = [run for run in everything if (run["task"], run["state"]) == (group["task"], group["state"])]
        durations = sorted(run["duration"] for run in mine)
        assert list(group) == ["task", "state", *GROUP_FIELDS]
        assert (group["runs"], group["ended"]) == (len(mine), len(mine))
        assert group["failed"] == sum(run["state"] == "failed" for run in mine)
        assert group["failed_share"] == group["failed"] / group["ended"]
        assert group["duration_total"] == pytest.approx(sum(durations), abs=1e-5)
        assert group["duration_p95"] == group["duration_max"] == durations[-1]
    (longest,) = runs(project, "--by", "job", "--sort", "duration_total", "--last", "1")
    assert longest["job"] == "b"
    (day,) = runs(project, "--by", "day")
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", day["day"])
    assert [group["error_type"] for group in runs(project, "--by", "error_type")] == [None, "KeyError"]


def test_percentiles_are_by_nearest_rank() -> None:
    """A duration that was, never one in between."""
    assert percentile([], 0.5) is None
    assert percentile([1.0, 2.0, 3.0, 4.0], 0.5) == 2.0
    assert percentile([float(number) for number in range(1, 101)], 0.95) == 95.0


def test_wrong_calls_of_runs_are_one_line(project: Project) -> None:
    """With what there is."""
    for arguments, what in (
        (("--sort", "speed"), "cannot be sorted by speed"),
        (("--by", "colour"), "cannot be grouped by colour"),
        (("--by", "task", "--sort", "wait"), "groups cannot be sorted by wait"),
    ):
        result = project.call("runs", *arguments)
        assert (result.code, result.err.count("\n")) == (2, 1)
        assert what in result.err
        assert "use one of: " in result.err


# --- query ------------------------------------------------------------------------------------------


def test_query_takes_parameters_stdin_and_prints_csv(project: Project) -> None:
    """Numbers compare as numbers, and text stays text."""
    sql = "SELECT job, state FROM runs WHERE task = :task AND attempt = :n ORDER BY run"
    assert project.ok("query", sql, "--param", "task=half", "--param", "n=2", "--csv").lines == [
        "job,state",
        "bad,failed",
    ]
    typed = "SELECT typeof(:a), typeof(:b), typeof(:c), typeof(:d), typeof(:e)"
    values = ("a=5", "b=1.5", "c=null", 'd="5"', "e=five")
    options = [word for value in values for word in ("--param", value)]
    assert project.ok("query", "--json", "-", *options, stdin=typed.encode()).json["rows"] == [
        ["integer", "real", "null", "text", "text"]
    ]
    quoted = project.ok("query", "--csv", "SELECT 'a,\"b' AS x, NULL AS y, x'00ff' AS z").out
    assert list(csv.reader(io.StringIO(quoted))) == [["x", "y", "z"], ['a,"b', "", "00ff"]]
    assert project.ok("query", "SELECT count(*) FROM lineage").lines[1] != "0"
    assert project.ok("query", "SELECT value FROM json_each('[7]')").lines == ["value", "7"]


@pytest.mark.parametrize(
    "sql",
    ["DELETE FROM log", "UPDATE log SET at = 0", "INSERT INTO names VALUES (1, 'x')", "DROP VIEW runs", "CREATE TABLE t (x)",
     "ATTACH 'x.db' AS x", "PRAGMA journal_mode = DELETE", "BEGIN IMMEDIATE", "VACUUM", "CREATE TEMP TABLE t (x)", ""],
)  # fmt: skip
def test_query_refuses_what_writes_in_one_line(project: Project, sql: str) -> None:
    """And the file stays as it is."""
    before = project.log.read_bytes()
    result = project.call("query", sql)
    assert (result.code, result.out, result.err.count("\n")) == (2, "", 1), result
    assert project.call("query", "SELECT :x").code == 2
    assert project.log.read_bytes() == before


# --- the library, and speed -------------------------------------------------------------------------


def test_history_answers_the_same(project: Project) -> None:
    """As Python values: events one by one, runs as a table."""
    with History(project.log) as history:
        assert [at for at, _ in history.events(job="a", kind=["RunEnded"])] == positions(
            project, "--job", "a", "--kind", "RunEnded"
        )
        told = runs(project, "--task", "half", "--sort", "duration")
        assert [{**row, "last_lines": None} for row in history.runs(task="half", sort="duration")] == told
        assert list(history.runs(by="task")) == runs(project, "--by", "task")
        assert history.runs(active_between=("-1h", None), at=history.head).columns == RUN_FIELDS
        assert history.query("SELECT :n AS n", {"n": 7}).column("n") == [7]


def test_a_jobs_events_among_many_are_found_at_once(tmp_path: Path) -> None:
    """Among 100,000 events within 50 ms, as among millions: by the index, whatever the size."""
    from benchmarks.logs import make_log

    path = tmp_path / "log.db"
    make_log(path, 6_250)
    with LogReader(path) as reader:
        list(select(reader, Selection(Filters(jobs=("job-0000001",)))))
        began = time.perf_counter()
        told = list(select(reader, Selection(Filters(jobs=("job-0003000",)))))
        assert time.perf_counter() - began < 0.05
        assert len(told) == 16
        assert len(list(select(reader, Selection(since=When(position=reader.head - 4))))) == 5
