"""`why` on a log alone: who made each thing so, whoever asks, from the command line and as values."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import datatask
from datatask.adapters.history.history import History
from datatask.schema.errors import CallerError, InvalidJobError, UnknownNameError
from tests.integration.cli_kit import Project
from tests.property.logs import write_log
from tests.unit.core_kit import Desk, pipeline, task

ODD = """
import datatask

numbers = datatask.LogMetadataRepository("numbers")
stop = datatask.LogMetadataRepository("stop")


async def odd(job):
    return (await numbers.info(job))["n"] % 2 == 1


some = datatask.MapRepository(numbers, lambda info: info, odd, name="odd ones")
work = datatask.InProcessSyncTask("work", datatask.LogMetadataRepository("done"))
work.link("all", numbers)
work.link("numbers", some, is_input=True)
work.link("stop", stop, inhibits_start=True)


@work
async def run_work(job, numbers):
    pass


pipeline = datatask.Pipeline([work], datatask.Session(), [])
"""


@pytest.fixture
def project(tmp_path: Path) -> Project:
    """A project that has run: odd numbers only."""
    made = Project(tmp_path, ODD)
    for job, n in (("one", 1), ("two", 2)):
        made.ok("inject", "work.all", job, stdin=f"n: {n}".encode())
    made.ok("run")
    return made


def test_a_filter_that_said_no_is_told_with_its_answer(project: Project) -> None:
    """The tree goes down to the value that was put and to the evaluation that left the job out."""
    why = project.ok("why", "work", "two", "--json").json
    node = why["tree"]["of"][0]
    assert (node["by"], node["answer"], node["holds"]) == ("filter", "no", False)
    cited = {event["position"]: event for event in why["events"]}
    assert cited[node["since"]]["kind"] == "Evaluated"
    assert cited[node["of"][0]["since"]]["kind"] == "ValuePut"
    assert "its filter does not want it" in project.ok("why", "work", "two").out
    assert {"filter"} == {group["what"] for group in project.ok("why", "work", "--json").json["groups"]}


def test_who_paused_and_since_when_no_engine_runs(project: Project) -> None:
    """Position, kind, actor, time and reason stand beside each hold."""
    project.ok("pause", "work", "--reason", "holiday")
    text = project.ok("why", "work", "two").out
    assert re.search(r"held by paused: .* — TaskPaused by \S+@\S+: datatask pause at \S+Z: holiday", text)
    assert re.search(
        r"held by engine: no engine is running: the last one .* has ended, its last sign is", text
    )
    assert "to let it run: start the engine; resume work; let the filter of" in text


def test_who_cancelled_is_told(project: Project) -> None:
    """A job that was cancelled while it waited cites the request."""
    project.ok("pause", "work")
    project.ok("rm", "work.done", "one")
    project.ok("cancel", "work", "one", "--reason", "no need")
    why = project.ok("why", "work", "one", "--json").json
    (hold,) = [hold for hold in why["held_by"] if hold["what"] == "cancelled"]
    (event,) = [event for event in why["events"] if event["position"] == hold["since"]]
    assert (event["kind"], event["reason"]) == ("CancelRequested", "no need")
    assert [change["op"] for change in why["changes"]] == ["start_engine", "resume", "retry"]


def test_a_job_that_nobody_has_seen(project: Project) -> None:
    """Each part is told as for any other job, and what to put is proposed."""
    why = project.ok("why", "work", "stranger", "--json").json
    assert [condition["since"] for condition in why["conditions"]] == [None] * len(why["conditions"])
    assert [change["op"] for change in why["changes"]] == ["start_engine", "put", "set_filter"]
    assert project.ok("why", "work", "stranger").lines[0] == "work stranger: is not ready"


def test_the_past_is_explained_as_it_was(project: Project) -> None:
    """With --at the answer cites nothing that was not there yet."""
    (put,) = [line for line in project.ok("log", "--job", "two").lines if "ValuePut" in line]
    position = put.split()[0]
    why = project.ok("why", "work", "two", "--at", position, "--json").json
    assert (why["at_position"], why["tree"]["of"][0]["answer"]) == (int(position), "pending")
    assert all(event["position"] <= why["at_position"] for event in why["events"])


def test_the_same_as_values(project: Project) -> None:
    """The function and History give what the command prints, with a readable form; bad input is refused in a line."""
    found = datatask.why(project.log, "work", "two")
    assert str(found).splitlines()[0] == "work two: is not ready"
    assert found._repr_html_().startswith("<p><b>work two: is not ready</b></p><pre>")
    groups = datatask.why(project.log, "work")
    assert groups.column("what") == ["filter"]
    assert groups[0]["sample"] == ["two"]
    with History(project.log) as history:
        assert history.why("work", "two").conditions == found.conditions
        with pytest.raises(UnknownNameError, match="there is no task wrok"):
            history.why("wrok")
        with pytest.raises(InvalidJobError):
            history.why("work", "../two")
    with pytest.raises(CallerError, match="there is no log here"):
        datatask.why("nowhere.db", "work")


def test_a_runner_that_takes_nothing_is_known_from_the_last_round(tmp_path: Path) -> None:
    """The log says whose runner was away when it was last decided; the state knows no more than that."""
    desk = Desk(pipeline(task("t", "a")))
    desk.put("a", "x")
    desk.reactor.unavailable = {"t"}
    desk.decide()
    path = tmp_path / "log.db"
    write_log(path, [tuple(desk.events[:1]), *desk.batches])
    with History(path) as history:
        found = history.why("t", "x", at=history.head)
    assert [hold.what for hold in found.held_by] == ["adapter"]
    assert [change.op for change in found.changes] == ["recover"]
