"""Large pipelines, long lists, big values: they work, or are refused with the limit's name before anything is done."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import BinaryIO

import pytest

from datatask import (
    CallerError,
    InProcessSyncTask,
    LogBlobRepository,
    LogMetadataRepository,
    Pipeline,
    Session,
)
from datatask.engine.api import declare
from datatask.schema import messages as r
from datatask.schema.events import ABSENT
from tests.integration.cli_kit import Project
from tests.machine import with_peak
from tests.unmeasured import plain_environment

FULL = os.environ.get("DATATASK_TEST_FULL") == "1"
IDS = 1_000_000 if FULL else 100_000
MEGABYTES = 1024 if FULL else 64
SECONDS = 120


async def hand_on(job: str, inp: object, out: object) -> None:
    await out.dump(job, await inp.info(job))  # type: ignore[attr-defined]


def chain(tasks: int) -> Pipeline:
    """One task after another."""
    made = []
    before = LogMetadataRepository("r0")
    for number in range(tasks):
        task = InProcessSyncTask(f"t{number}", LogMetadataRepository(f"done{number}"), func=hand_on)
        task.link("inp", before, is_input=True)
        before = LogMetadataRepository(f"r{number + 1}")
        task.link("out", before, is_output=True)
        made.append(task)
    return Pipeline(made, Session(), log="memory:")


def wide(links: int, needed: int) -> Pipeline:
    """One task with many links."""

    async def nothing(job: str) -> None:
        pass

    task = InProcessSyncTask("wide", LogMetadataRepository("done"), func=nothing)
    for number in range(links):
        task.link(f"l{number}", LogMetadataRepository(f"r{number}"), required_for_start=number < needed)
    return Pipeline([task], Session(), log="memory:")


async def test_a_pipeline_of_a_thousand_tasks() -> None:
    """A job goes through all of them."""
    async with chain(1_000) as pipe:
        await pipe.put("r0", "j", 7)
        outcome = await pipe.run(timeout=SECONDS)
        assert outcome.exit_code == 0
        assert await pipe.find("r1000").info("j") == 7


@pytest.mark.parametrize(("links", "needed"), [(500, 500), (10_000, 2)])
async def test_a_task_with_many_links_and_repositories(links: int, needed: int) -> None:
    async with wide(links, needed) as pipe:
        for number in range(needed - 1):
            await pipe.put(f"r{number}", "j", 1)
        await pipe.run(timeout=SECONDS)
        assert pipe.state.members("succeeded(wide)") == []
        await pipe.put(f"r{needed - 1}", "j", 1)
        outcome = await pipe.run(timeout=SECONDS)
        assert outcome.exit_code == 0
        assert pipe.state.members("succeeded(wide)") == ["j"]


async def test_a_long_list_of_jobs_in_one_call() -> None:
    value = type(ABSENT)(b"1")
    items = tuple(r.Item(job=f"j{number}", value=value) for number in range(IDS))
    async with wide(1, 1) as pipe:
        reply = await pipe.request(r.PutValues(id="all", actor="me", repository="r0", items=items))
        assert reply.count == IDS
        assert pipe.state.leaves["r0"].count == IDS
        gone = r.DeleteValues(id="gone", actor="me", repository="r0", jobs=tuple(item.job for item in items))
        assert (await pipe.request(gone)).count == IDS
        assert pipe.state.leaves["r0"].count == 0


async def test_a_large_value(tmp_path: Path) -> None:
    """As bytes and as a document: written, read, and by then not in the log's own rows."""
    blobs, documents = LogBlobRepository("blobs"), LogMetadataRepository("documents")
    task = InProcessSyncTask("t", LogMetadataRepository("done"))
    task.link("blobs", blobs, is_input=True)
    task.link("documents", documents)
    block = os.urandom(1 << 20)

    @task
    async def body(job: str) -> None:
        pass

    async with Pipeline([task], Session(), log=str(tmp_path / "log.db")):
        async with await blobs.open("big", "wb") as stream:
            for _ in range(MEGABYTES):
                await stream.write(block)
        async with await blobs.open("big", "rb") as stream:
            for _ in range(MEGABYTES):
                assert await stream.read(1 << 20) == block
        await documents.dump("big", {"text": "x" * (MEGABYTES << 20)})
        assert len((await documents.info("big"))["text"]) == MEGABYTES << 20
    assert (tmp_path / "log.db").stat().st_size < 1 << 20


def test_a_large_value_by_command(tmp_path: Path) -> None:
    project = Project(tmp_path)
    data = os.urandom(1 << 20) * 16
    project.ok("inject", "shout.blobs", "big", stdin=data)
    began = time.monotonic()
    assert project.ok("verify", "--json").json["divergences"] == []
    assert time.monotonic() - began < SECONDS


@pytest.mark.parametrize(("name", "what"), [("TASKS_MAX", "tasks"), ("REPOSITORIES_MAX", "repositories")])
async def test_more_than_a_limit_is_refused_with_its_name(
    monkeypatch: pytest.MonkeyPatch, name: str, what: str
) -> None:
    monkeypatch.setattr(declare, name, 3)
    with pytest.raises(CallerError, match=f"3 {what}|{what}.*3"):
        async with chain(5):
            pass


@pytest.mark.parametrize("engine", [False, True], ids=["alone", "with an engine"])
@pytest.mark.parametrize("link", ["act.blobs", "act.files"])
def test_a_large_value_goes_in_and_comes_out_in_little_memory(
    tmp_path: Path, link: str, engine: bool
) -> None:
    """Neither `inject` nor `cat` takes as much more memory as a tenth of the value; it arrives as it was."""
    project = Project(tmp_path, LARGE)
    size = 192 << 20
    with (tmp_path / "large").open("wb") as file:
        file.truncate(size)
        file.seek(size // 2)
        file.write(b"here")
    small = _peak(project, "inject", link, "small", given=b"x")
    running = project.engine() if engine else contextlib.nullcontext()
    with running, (tmp_path / "large").open("rb") as file:
        assert _peak(project, "inject", link, "large", given=file) - small < size // 10
    with (tmp_path / "out").open("wb") as out:
        assert _peak(project, "cat", link, "large", to=out) - small < size // 10
    done = subprocess.run(
        ["cmp", tmp_path / "large", tmp_path / "out"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout


LARGE = """
import datatask

blobs, files = datatask.LogBlobRepository("blobs"), datatask.FileRepository("files", extension=".bin")
act = datatask.InProcessSyncTask("act", datatask.LogMetadataRepository("done"))
act.link("blobs", blobs, is_input=True)
act.link("files", files)


@act
async def run_act(job, blobs, files):
    pass


pipeline = datatask.Pipeline([act], datatask.Session(), [])
"""


def _peak(
    project: Project, *arguments: str, given: bytes | BinaryIO = b"", to: BinaryIO | None = None
) -> int:
    """Run a command in a process of its own; return the bytes that it had resident at most."""
    process = subprocess.Popen(
        with_peak(project.folder / "peak", sys.executable, "-m", "datatask", *arguments),
        cwd=project.folder,
        env=plain_environment(),
        stdin=subprocess.PIPE if isinstance(given, bytes) else given,
        stdout=to or subprocess.DEVNULL,
    )
    if process.stdin is not None:
        assert isinstance(given, bytes)
        process.stdin.write(given)
        process.stdin.close()
    assert process.wait() == 0
    return int((project.folder / "peak").read_text())
