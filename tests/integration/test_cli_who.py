"""Who did it, and why: every command and every verb of the library, read back from the log."""

from __future__ import annotations

import getpass
import json
import signal
import socket
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from datatask import (
    FileRepository,
    InProcessSyncTask,
    LogMetadataRepository,
    Pipeline,
    ResourceManager,
    Session,
)
from datatask.adapters.log.reader import LogReader
from datatask.schema import messages as r
from datatask.schema.events import Event, Recorded
from datatask.schema.resources import Resources
from tests.integration.cli_kit import Project

ME = f"{getpass.getuser()}@{socket.gethostname()}"
PIPELINE = """
import asyncio
import datatask

numbers = datatask.LogMetadataRepository("numbers")
done = datatask.LogMetadataRepository("done")
files = datatask.FileRepository("files", extension=".txt", name="files")
quota = datatask.ResourceManager(datatask.Resources.parse(4, "1Gi", 100), name="default")

double = datatask.InProcessSyncTask("double", done)
double.resource_manager = quota
double.link("numbers", numbers, is_input=True)
double.link("files", files)


@double
async def run_double(job, numbers):
    await asyncio.sleep((await numbers.info(job)).get("seconds", 0))


pipeline = datatask.Pipeline([double], datatask.Session(), [quota])
"""


class Deed(NamedTuple):
    """A command, and the events that it must leave under the name of who gave it: kind, and what led to it."""

    command: tuple[str, ...]
    leaves: dict[str, str | None]
    stdin: bytes = b""


# `leaves`: a kind of event -> the kind of the event that it names as its cause, or None where nothing came before.
DEEDS = [
    Deed(("pause", "double"), {"TaskPaused": None}),
    Deed(("inject", "numbers", "a"), {"ValuePut": None}, b"n: 1"),
    Deed(("launch", "double", "a", "--force", "--sync"), {"LaunchDecided": None}),
    Deed(("retry", "double", "a"), {"RetryRequested": None, "ValueDeleted": "RetryRequested"}),
    Deed(("cancel", "double", "a"), {"CancelRequested": None}),
    Deed(("inject", "files", "f"), {"StoreWriteIntended": None, "ValuePut": "StoreWriteIntended"}, b"text"),
    Deed(("rm", "files", "f"), {"StoreWriteIntended": None, "ValueDeleted": "StoreWriteIntended"}),
    Deed(("rm", "double.numbers", "a"), {"ValueDeleted": None}),
    Deed(("quota", "default", "cpu=8", "launches=7"), {"QuotaChanged": None}),
    Deed(("resume", "double"), {"TaskResumed": None}),
]


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path, PIPELINE)


def events(project: Project, after: int = 0) -> list[Recorded]:
    with LogReader(project.log) as reader:
        return list(reader.read(after))


def reason_of(event: Event) -> Any:
    return getattr(event, "why", "") or getattr(event, "reason", "")


def check(project: Project, deed: Deed) -> None:
    """Give the command, and find what it left, with actor, reason, request, and cause."""
    before = events(project)[-1].position if project.log.exists() else 0
    project.ok(*deed.command, "--reason", f"because {deed.command[0]}", stdin=deed.stdin)
    told = dict(events(project, before))
    everything = dict(events(project))
    for kind, led_by in deed.leaves.items():
        found = [event for event in told.values() if type(event).__name__ == kind and event.actor != "engine"]
        assert found, (deed, kind, told)
        for event in found:
            assert event.actor == f"{ME}: datatask {deed.command[0]}"
            assert reason_of(event) == f"because {deed.command[0]}"
            assert getattr(event, "request", "")
            cause = everything.get(event.cause or 0)
            assert (type(cause).__name__ if cause is not None else None) == led_by, event


def test_every_command_without_an_engine_says_who_and_why(project: Project) -> None:
    """What opens the log for it says so too."""
    for deed in DEEDS:
        check(project, deed)
    opened = [event for _, event in events(project) if type(event).__name__ == "EngineOpened"]
    assert [event.actor for event in opened] == [f"{ME}: datatask {deed.command[0]}" for deed in DEEDS]
    assert [reason_of(event) for event in opened] == [f"because {deed.command[0]}" for deed in DEEDS]
    assert project.ok("verify").out.endswith(": ok\n")


def test_every_command_beside_an_engine_says_who_and_why(project: Project) -> None:
    """The same events, through the inbox."""
    with project.engine("--reason", "the night shift"):
        for deed in DEEDS:
            check(project, deed)
        project.ok("inject", "numbers", "slow", stdin=b"seconds: 60")
        project.until("running", "runs", "--job", "slow")
        check(
            project,
            Deed(("cancel", "double", "slow"), {"CancelRequested": None, "StopDecided": "CancelRequested"}),
        )
        project.until("cancelled", "runs", "--job", "slow")
        project.ok("retry", "double", "slow")
        project.until("running", "runs", "--job", "slow", "--last", "1")
        project.ok("pause", "double")
        check(project, Deed(("rm", "double", "slow"), {"StopDecided": "LaunchDecided"}))
        project.until("cancelled", "runs", "--job", "slow", "--last", "1")
    opened = next(event for _, event in events(project) if type(event).__name__ == "EngineOpened")
    assert (opened.actor, reason_of(opened)) == (f"{ME}: datatask run", "the night shift")
    assert project.ok("verify").out.endswith(": ok\n")


def test_a_definition_says_who_put_it_in_force(project: Project) -> None:
    """By `run`, with its reason, and as a consequence of the opening."""
    project.ok("run", "--reason", "first")
    text = (project.folder / "pipeline.py").read_text()
    (project.folder / "pipeline.py").write_text(text.replace("parse(4,", "parse(5,"))
    dry = project.ok("run", "--dry-run").out
    assert dry == "would define changed quota default\n"
    assert project.call("update", "--dry-run", "--exit-code", "--json").json["changes"] == [
        {"op": "define", "task": None, "repository": None, "job": None, "about": "changed quota default"}
    ]
    project.ok("update", "--reason", "more cores")
    defined = [found for found in events(project) if type(found.event).__name__ == "PipelineDefined"]
    assert [(event.actor, reason_of(event)) for _, event in defined] == [
        (f"{ME}: datatask run", "first"),
        (f"{ME}: datatask update", "more cores"),
    ]
    led = [
        json.loads(line)
        for line in project.ok("log", "--causes-of", str(defined[1].position), "--json").lines
    ]
    assert [event["kind"] for event in led] == ["EngineOpened"]


def test_a_dry_run_launches_nothing(project: Project) -> None:
    """It tells what the first round would launch."""
    project.ok("inject", "numbers", "a", stdin=b"{}")
    head = events(project)[-1].position
    assert project.ok("run", "--dry-run").out == "would launch double a\n"
    assert project.call("update", "--dry-run", "--exit-code").code == 3
    assert events(project)[-1].position == head
    assert project.ok("quota", "default", "cpu=4", "--dry-run").err == "nothing to do\n"


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (("nope", "cpu=1"), "there is no quota nope; use one of: default"),
        (("default", "cpux=1"), "default has no cpux; use one of: cpu"),
        (("default", "cpu"), "'cpu' is no limit; write cpu=8"),
        (("default", "cpu=many"), "'many' is not a quantity"),
        (("default", "mem=-1"), "less than nothing"),
        (("default", "launches=2.5"), "'2.5' is no number of launches"),
    ],
)
def test_a_wrong_limit_is_refused_in_one_line(
    project: Project, arguments: tuple[str, ...], what: str
) -> None:
    """And nothing is opened for it."""
    project.ok("run")
    head = events(project)[-1].position
    result = project.call("quota", *arguments)
    assert (result.code, result.err.count("\n")) == (2, 1)
    assert what in result.err
    assert events(project)[-1].position == head


def test_limits_that_are_not_named_stay(project: Project) -> None:
    """In the units that people write, in words and in the JSON; status has them."""
    told = project.ok("quota", "default", "mem=2Gi", "launches=none").lines
    assert told == ["limit default.mem 1073741824 -> 2147483648", "limit default.launches 100 -> none"]
    shape = project.ok("quota", "default", "cpu=0.5", "--json").json
    assert shape["changes"] == [
        {"op": "limit", "task": None, "repository": None, "job": None, "about": "default.cpu 4 -> 0.5"}
    ]
    assert project.ok("status", "--json").json["quotas"]["default"]["limit"] == {
        "cpu": 0.5,
        "mem": 2147483648,
    }
    assert project.ok("quota", "default", "launches=none").err == "nothing to do\n"


@pytest.mark.parametrize("beside", [False, True], ids=["without an engine", "beside an engine"])
def test_a_loss_that_was_believed_says_on_whose_word(project: Project, beside: bool) -> None:
    """The deletions, and that the store is known again."""
    folder = project.folder / "files"
    folder.mkdir()
    for number in range(150):
        (folder / f"f{number}.txt").write_text("x")
    project.ok("run")
    for number in range(149):
        (folder / f"f{number}.txt").unlink()
    accept = ("run", "--accept-loss", "files", "--reason", "cleaned up")
    if beside:
        with project.engine():
            assert project.call(*accept).code == 4
            project.until("by " + ME, "log", "--kind", "RepositorySynced")
    else:
        project.ok(*accept)
    gone = [event for _, event in events(project) if type(event).__name__ == "ValueDeleted"]
    synced = [event for _, event in events(project) if type(event).__name__ == "RepositorySynced"]
    assert len(gone) == 149
    for event in (*gone, synced[-1]):
        assert (event.actor, reason_of(event)) == (f"{ME}: datatask run", "cleaned up")


def test_an_interrupted_engine_says_who_interrupted_it(project: Project) -> None:
    """Its goodbye, and the stop of what could not outlive it."""
    project.ok("inject", "numbers", "slow", stdin=b"seconds: 60")
    process = project.spawn("run")
    project.until("running", "runs")
    project.interrupt(process, b"once more abandons")
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode == 130
    ends = {type(event).__name__: event for _, event in events(project)}
    assert (ends["EngineClosed"].actor, reason_of(ends["EngineClosed"])) == (
        f"{ME}: datatask run",
        "abandoned",
    )
    assert (ends["StopDecided"].actor, ends["StopDecided"].why) == (f"{ME}: datatask run", "abandoned")  # type: ignore[attr-defined]


# --- the library ------------------------------------------------------------------------------------


def library(folder: Path) -> Pipeline:
    numbers, files = LogMetadataRepository("numbers"), FileRepository(folder / "files", name="files")
    quota = ResourceManager(Resources.parse(4, "1Gi", 100), name="default")
    task = InProcessSyncTask("double", LogMetadataRepository("done"))
    task.resource_manager = quota
    task.link("numbers", numbers, is_input=True)
    task.link("files", files)

    @task
    async def run(job: str, numbers: LogMetadataRepository) -> None:
        await numbers.info(job)

    return Pipeline([task], Session(), [quota], log=folder / "log.db")


async def test_a_program_says_who_it_is(tmp_path: Path) -> None:
    """`user@host: PROGRAM`, or whatever it calls itself; each verb takes a reason."""
    plain = library(tmp_path)
    async with plain:
        assert plain.actor.startswith(f"{ME}: ")
    pipeline = library(tmp_path)
    pipeline.actor, pipeline.reason = "ada@lab: notebook", "a look"
    async with pipeline:
        first = pipeline.state.position
        numbers: Any = pipeline.find("numbers")
        files: Any = pipeline.find("files")
        await pipeline.put("numbers", "a", {"n": 1}, reason="put")
        await pipeline.launch("double", "a", reason="launch")
        await pipeline.run()
        await pipeline.put("numbers", "b", {"n": 2}, reason="put")
        await pipeline.cancel("double", "b", reason="cancel")
        await numbers.dump("c", {"n": 3})
        await numbers.delete("c")
        await pipeline.put(files, "f", "text", reason="put")
        await pipeline.request(r.PauseTask(id="p", actor="bob@lab: page", reason="pause", task="double"))
        assert pipeline.log is not None
        found = [(at, event) async for at, event in pipeline.log.read(first) if event.actor != "engine"]
    assert [
        (type(event).__name__, event.actor.partition("@")[0], reason_of(event)) for _, event in found
    ] == [
        ("ValuePut", "ada", "put"),
        ("LaunchDecided", "ada", "launch"),
        ("ValuePut", "ada", "put"),
        ("CancelRequested", "ada", "cancel"),
        ("ValuePut", "ada", ""),
        ("ValueDeleted", "ada", ""),
        ("StoreWriteIntended", "ada", "put"),
        ("ValuePut", "ada", "put"),
        ("TaskPaused", "bob", "pause"),
    ]
