"""Runs that read and write one key at once: no update is lost, in no store and by no way of calling a function."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest

import datatask
from datatask import (
    ExecutorTask,
    FileRepository,
    History,
    InProcessBlobRepository,
    InProcessMetadataRepository,
    InProcessSyncTask,
    LogBlobRepository,
    LogMetadataRepository,
    Pipeline,
    ProcessTask,
    Repository,
    ResourceManager,
    Resources,
    Session,
    YamlMetadataFileRepository,
)
from datatask.schema.errors import CallerError, ConflictError

ROOT = Path(__file__).resolve().parents[2]
STORES: dict[str, Callable[[Path], Repository]] = {
    "log documents": lambda folder: LogMetadataRepository("shared"),
    "log bytes": lambda folder: LogBlobRepository("shared"),
    "documents in process": lambda folder: InProcessMetadataRepository(name="shared"),
    "bytes in process": lambda folder: InProcessBlobRepository(name="shared"),
    "yaml": lambda folder: YamlMetadataFileRepository(folder / "shared", name="shared"),
    "yaml, recorded": lambda folder: YamlMetadataFileRepository(
        folder / "shared", name="shared", record="value"
    ),
    "files": lambda folder: FileRepository(folder / "shared", ".txt", name="shared"),
}
EXECUTORS: dict[str, Callable[[], Executor]] = {
    "threads": lambda: ThreadPoolExecutor(4),
    "workers": lambda: ProcessPoolExecutor(3, mp_context=get_context("fork")),
}


async def append(
    repository: Any, key: str, line: str, wait: float = 0.0, more: int = 0, read: Any = None
) -> None:
    """Add a line to a key: read it, say so, wait, write it."""
    if repository.is_metadata():
        lines = (await repository.info(key))["lines"] if await repository.contains(key) else []
        if read is not None:
            read.set()
        await asyncio.sleep(wait)
        await repository.dump(key, {"lines": [*lines, line]})
        return
    text = ""
    if await repository.contains(key):
        async with repository.open(key, "r") as stream:
            text = await stream.read()
    if read is not None:
        read.set()
    await asyncio.sleep(wait)
    async with repository.open(key, "w") as stream:
        await stream.write(f"{text}{line}{' ' * more}\n")


async def write(repository: Any, key: str, line: str) -> None:
    """Write a key unread."""
    if repository.is_metadata():
        await repository.dump(key, {"lines": [line]})
        return
    async with repository.open(key, "w") as stream:
        await stream.write(f"{line}\n")


async def lines_of(repository: Any, key: str) -> list[str]:
    """Return what was added."""
    if repository.is_metadata():
        return list((await repository.info(key))["lines"])
    async with repository.open(key, "r") as stream:
        return [line.strip() for line in (await stream.read()).splitlines()]


async def adds_itself(job: str, shared: Any) -> None:
    await append(shared, "k", job, 0.003)


def made(
    folder: Path, func: Callable[..., Any], how: str = "loop", **linked: Repository
) -> tuple[Pipeline, Any]:
    """Return a pipeline of one task over links, and the repository of its jobs."""
    options = {name: linked.pop(name) for name in ("conflicts", "retry") if name in linked}
    jobs, done = LogMetadataRepository("jobs"), LogMetadataRepository("done")
    task: Any = (
        InProcessSyncTask("t", done, func=func, **options)  # type: ignore[arg-type]
        if how == "loop"
        else ExecutorTask("t", EXECUTORS[how], done, func=func, **options)  # type: ignore[arg-type]
    )
    task.link("jobs", jobs, is_input=True)
    for name, repository in linked.items():
        task.link(name, repository, is_output=True)
    return Pipeline([task], Session(), log=str(folder / "log.db")), jobs


async def ran(pipeline: Pipeline, jobs: Any, names: list[str]) -> None:
    """Put jobs, and run until all is quiet."""
    for name in names:
        await jobs.dump(name, {})
    await asyncio.wait_for(pipeline.run(), 60)


def ends(folder: Path) -> Counter[str]:
    """Return how many runs ended how; what the log says of them must hold."""
    replayed = datatask.replay(folder / "log.db", verify=True)
    assert replayed.ok, replayed.divergences
    with History(folder / "log.db") as history:
        return Counter(run["state"] for run in history.runs())


JOBS = [f"j{number}" for number in range(9)]


@pytest.mark.parametrize(
    ("how", "store"),
    [
        *(("loop", store) for store in STORES),
        *(("threads", store) for store in ("log documents", "documents in process", "files")),
        *(("workers", store) for store in ("log documents", "bytes in process", "yaml")),
    ],
)
async def test_no_update_is_lost(how: str, store: str, tmp_path: Path) -> None:
    """Each run that succeeded is in the value once; one that was in conflict is run again."""
    shared = STORES[store](tmp_path)
    pipeline, jobs = made(tmp_path, adds_itself, how, shared=shared)
    async with pipeline:
        await ran(pipeline, jobs, JOBS)
        assert sorted(await lines_of(shared, "k")) == JOBS
    ended = ends(tmp_path)
    assert ended.keys() <= {"succeeded", "conflicted"}
    assert "conflicted" in ended or how == "workers", (
        "the first worker may have done all before there is another"
    )
    assert ended["succeeded"] == len(JOBS)


async def test_a_conflict_is_told_with_who_and_where(tmp_path: Path) -> None:
    """The row of `runs` says which key, by which run, and how far the log was when it was read."""
    shared = LogMetadataRepository("shared")
    pipeline, jobs = made(tmp_path, adds_itself, shared=shared)
    async with pipeline:
        await ran(pipeline, jobs, ["a", "b"])
    with History(tmp_path / "log.db") as history:
        first, second, third = history.runs()
        (again,) = history.events(kind="RetryScheduled")
    assert (first["state"], second["state"], third["state"]) == ("succeeded", "conflicted", "succeeded")
    assert second["error_type"] == "Conflict"
    assert second["error"].startswith("key k of shared was overwritten at position ")
    assert (
        f" by run {first['run']} of t, after this run had read it (the log was at position "
        in second["error"]
    )
    assert (again.event.budget, again.event.spent, again.event.attempt) == ("conflict", 1, 2)  # type: ignore[attr-defined]


async def test_who_writes_without_reading_or_reads_without_writing_is_never_in_conflict(
    tmp_path: Path,
) -> None:
    async def blind(job: str, shared: Any, files: Any) -> None:
        await shared.info("only-read")
        await asyncio.sleep(0.003)
        await shared.dump("k", {"lines": [job]})
        async with files.open("k", "w") as stream:
            await stream.write(job)

    files = FileRepository(tmp_path / "files", ".txt")
    pipeline, jobs = made(tmp_path, blind, shared=LogMetadataRepository("shared"), files=files)
    async with pipeline:
        await ran(pipeline, jobs, JOBS)
    assert ends(tmp_path) == {"succeeded": len(JOBS)}


@pytest.mark.parametrize("store", ["log documents", "documents in process", "yaml", "files"])
async def test_a_key_that_two_runs_saw_absent_is_made_by_one(store: str, tmp_path: Path) -> None:
    """Absence is read by `contains`, by a listing and by an error; who finds the key taken takes the next."""

    async def takes_a_number(job: str, shared: Any) -> None:
        taken = {name async for name in shared}
        await asyncio.sleep(0.003)
        free = next(f"n{number}" for number in range(100) if f"n{number}" not in taken)
        if shared.is_metadata():
            await shared.dump(free, {"lines": [job]})
        else:
            async with shared.open(free, "w") as stream:
                await stream.write(job)

    shared = STORES[store](tmp_path)
    pipeline, jobs = made(tmp_path, takes_a_number, shared=shared)
    async with pipeline:
        await ran(pipeline, jobs, JOBS)
        keys = {key async for key in shared}
        assert keys == {f"n{number}" for number in range(len(JOBS))}
        assert sorted([(await lines_of(shared, key))[0] for key in keys]) == JOBS


@pytest.mark.parametrize("store", ["log documents", "documents in process", "yaml", "files"])
async def test_what_two_runs_would_take_away_is_taken_by_one(store: str, tmp_path: Path) -> None:
    """A deletion is a write: of a store of tickets each is used once."""

    async def takes_a_ticket(job: str, shared: Any, taken: Any) -> None:
        tickets = sorted([name async for name in shared])
        if tickets:
            await asyncio.sleep(0.003)
            await shared.delete(tickets[0])
            assert not await shared.contains(tickets[0])
            await taken.dump(job, tickets[0])

    shared, taken = STORES[store](tmp_path), LogMetadataRepository("taken")
    pipeline, jobs = made(tmp_path, takes_a_ticket, shared=shared, taken=taken)
    async with pipeline:
        for number in range(6):
            await append(shared, f"ticket{number}", "ticket")
        await ran(pipeline, jobs, JOBS)
        used = [await taken.info(job) async for job in taken]
        assert sorted(used) == [f"ticket{number}" for number in range(6)]
        assert [key async for key in shared] == []


async def test_several_files_of_a_run_are_written_all_or_none(tmp_path: Path) -> None:
    """What was written before a conflict was found is not added to again by the next attempt."""

    async def adds_twice(job: str, files: Any, documents: Any) -> None:
        for key in ("a", "b"):
            await append(files, key, job, 0.002)
        await append(documents, "c", job, 0.002)

    files, documents = STORES["files"](tmp_path), YamlMetadataFileRepository(tmp_path / "y")
    pipeline, jobs = made(tmp_path, adds_twice, files=files, documents=documents)
    async with pipeline:
        await ran(pipeline, jobs, JOBS)
        found = [await lines_of(files, "a"), await lines_of(files, "b"), await lines_of(documents, "c")]
    assert sorted(found[0]) == JOBS
    assert found[0] == found[1] == found[2], "in one order"


async def test_conflicts_may_be_allowed(tmp_path: Path) -> None:
    """Then the last write wins, unread, as in pydatatask."""
    shared = LogMetadataRepository("shared")
    pipeline, jobs = made(tmp_path, adds_itself, shared=shared, conflicts="allow")  # type: ignore[arg-type]
    async with pipeline:
        await ran(pipeline, jobs, JOBS)
        assert len(await lines_of(shared, "k")) < len(JOBS)
    assert ends(tmp_path) == {"succeeded": len(JOBS)}
    with pytest.raises(CallerError, match="'rerun' or 'allow'"):
        InProcessSyncTask("u", LogMetadataRepository("d"), conflicts="ignore")  # type: ignore[arg-type]


@pytest.mark.parametrize("store", list(STORES))
async def test_a_writer_that_is_no_run_is_not_overwritten_either(store: str, tmp_path: Path) -> None:
    """A program writes between a run's read and its write."""
    read = asyncio.Event()

    async def slow(job: str, shared: Any) -> None:
        await append(shared, "k", job, 0.0 if read.is_set() else 0.1, read=read)

    shared = STORES[store](tmp_path)
    pipeline, jobs = made(tmp_path, slow, shared=shared)
    async with pipeline:
        await append(shared, "k", "before")
        running = asyncio.create_task(ran(pipeline, jobs, ["job"]))
        await read.wait()
        await append(shared, "k", "program")
        await running
        assert await lines_of(shared, "k") == ["before", "program", "job"]
    assert ends(tmp_path) == {"conflicted": 1, "succeeded": 1}


@pytest.mark.parametrize("more", [0, 100_000], ids=["with the end", "at once"])
async def test_a_file_that_somebody_changed_is_not_overwritten(more: int, tmp_path: Path) -> None:
    """The engine compares the file with what was read right before it replaces it, also what it writes at once."""
    read = asyncio.Event()
    path = tmp_path / "shared" / "k.txt"

    async def slow(job: str, shared: Any) -> None:
        with contextlib.suppress(ConflictError):  # the run is in conflict all the same
            await append(shared, "k", job, 0.0 if read.is_set() else 0.1, more, read)

    shared = STORES["files"](tmp_path)
    pipeline, jobs = made(tmp_path, slow, shared=shared)
    async with pipeline:
        path.write_text("before\n")
        running = asyncio.create_task(ran(pipeline, jobs, ["job"]))
        await read.wait()
        path.write_text("before\nsomebody\n")
        await running
    assert [line.strip() for line in path.read_text().splitlines()] == ["before", "somebody", "job"]
    assert ends(tmp_path) == {"conflicted": 1, "succeeded": 1}


async def test_who_knows_the_path_finds_the_file_there(tmp_path: Path) -> None:
    """A file that the run has read is written with its end, but for one whose path the run has asked for."""
    found: list[str] = []

    async def looks(job: str, shared: Any) -> None:
        await append(shared, job, "one")
        found.append(shared.fullpath(job).read_text())
        await append(shared, job, "two")
        found.append(Path(await shared.info(job)).read_text())

    shared = STORES["files"](tmp_path)
    pipeline, jobs = made(tmp_path, looks, shared=shared)
    async with pipeline:
        await ran(pipeline, jobs, ["job"])
    assert found == ["one\n", "one\ntwo\n"]
    assert ends(tmp_path) == {"succeeded": 1}


@pytest.mark.parametrize("store", list(STORES))
async def test_a_run_is_not_in_conflict_with_itself(store: str, tmp_path: Path) -> None:
    """Whatever it does to a key, one after another: unread, read, deleted, at once and with its end."""

    async def busy(job: str, shared: Any) -> None:
        for key in (job, "k"):
            await shared.delete(key)
            await write(shared, key, "blind")
            await append(shared, key, "read")
            await asyncio.sleep(0.05)  # what a folder tells of it comes in between
            await append(shared, key, "again")
            await shared.delete(key)
            assert not await shared.contains(key)
            await append(shared, key, "anew")
            assert {name async for name in shared} >= {key}
            if hasattr(shared, "fullpath"):
                assert shared.fullpath(key).exists()
            await append(shared, key, "more")
            await append(shared, key, "large", more=0 if shared.is_metadata() else 70_000)
            if hasattr(shared, "fullpath"):
                await shared.delete(key)
                assert not shared.fullpath(key).exists()
                await append(shared, key, "anew")
                await append(shared, key, "more")
                await append(shared, key, "large")

    shared = STORES[store](tmp_path)
    pipeline, jobs = made(tmp_path, busy, shared=shared)
    async with pipeline:
        await append(shared, "k", "before")
        await ran(pipeline, jobs, ["job"])
        assert await lines_of(shared, "k") == await lines_of(shared, "job") == ["anew", "more", "large"]
    assert ends(tmp_path) == {"succeeded": 1}


async def test_a_run_that_fails_over_what_it_misread_is_run_again(tmp_path: Path) -> None:
    """Its failure counts as little as its success would, and its writes are dropped; the user's one attempt is left."""

    reading, written = set(), asyncio.Event()

    async def picky(job: str, shared: Any) -> None:
        lines = (await shared.info("k"))["lines"] if await shared.contains("k") else []
        reading.add(job)
        while job == "a" and len(reading) < 3:
            await asyncio.sleep(0.001)
        if job != "a":
            await written.wait()
        await shared.dump("k", {"lines": [*lines, job]})
        if job == "fails" or (job == "b" and not lines):
            raise ValueError("only `a` may be first")

    async def see_what_a_wrote() -> None:
        while not await shared.contains("k"):
            await asyncio.sleep(0.001)
        written.set()

    shared = LogMetadataRepository("shared")
    pipeline, jobs = made(tmp_path, picky, shared=shared)
    async with pipeline, asyncio.timeout(60):
        await asyncio.gather(ran(pipeline, jobs, ["a", "b", "fails"]), see_what_a_wrote())
        assert sorted(await lines_of(shared, "k")) == ["a", "b", "fails"]
    with History(tmp_path / "log.db") as history:
        runs = list(history.runs())
    assert Counter(run["state"] for run in runs if run["job"] == "fails")["failed"] == 1
    assert [run["state"] for run in runs if run["job"] == "b"][-1] == "succeeded"
    for job in ("b", "fails"):
        first = next(run for run in runs if run["job"] == job)
        assert first["state"] == "conflicted"
        assert "it had ended with ValueError" in first["error"]


@pytest.mark.parametrize("store", ["log bytes", "files", "files, edited"])
async def test_a_process_that_reads_what_it_writes_is_run_again(store: str, tmp_path: Path) -> None:
    """Its input is read from the launch on; another's write in between is not undone by its output."""
    text: Any = STORES[store.removesuffix(", edited")](tmp_path)
    jobs = LogMetadataRepository("jobs")
    task = ProcessTask(
        "t",
        datatask.LocalLinuxManager("conflicts", tmp_path / "local"),
        ResourceManager(Resources.parse("2", "1Gi", 10)),
        Resources.parse("1", "1Mi"),
        LogMetadataRepository("pids"),
        f"#!/bin/sh\ncat; touch {tmp_path}/read\nwhile ! test -e {tmp_path}/go; do sleep 0.05; done; echo {{{{ job }}}}\n",
        done=LogMetadataRepository("done"),
        stdin=text,
        stdout=text,
        timeout=30,
    )
    task.link("jobs", jobs, is_input=True)
    pipeline = Pipeline([task], Session(), log=str(tmp_path / "log.db"))
    async with pipeline:
        await append(text, "job", "before")
        running = asyncio.create_task(ran(pipeline, jobs, ["job"]))
        while not (tmp_path / "read").exists():
            await asyncio.sleep(0.01)
        if store.endswith("edited"):
            (tmp_path / "shared" / "job.txt").write_text("before\nprogram\n")
            await asyncio.sleep(0.3)  # the folder tells of it
        else:
            await append(text, "job", "program")
        (tmp_path / "go").touch()
        await running
        assert await lines_of(text, "job") == ["before", "program", "job"]
    assert ends(tmp_path) == {"conflicted": 1, "succeeded": 1}


KILLED = """
import asyncio, os, random, sys, threading
from datatask import *
from tests.integration.test_conflicts import append
folder = sys.argv[1]
jobs, done = LogMetadataRepository("jobs"), LogMetadataRepository("done")
log, files = LogMetadataRepository("log"), YamlMetadataFileRepository(folder + "/files", name="files")
task = InProcessSyncTask("t", done, retry=Retry(infrastructure_attempts=1000))
for name, repository in {"log": log, "files": files}.items():
    task.link(name, repository, is_output=True)
task.link("jobs", jobs, is_input=True)

@task
async def both(job, log, files):
    for key in random.sample(["a", "b"], 2):
        await append(log, key, job, random.random() / 200)
        await append(files, key, job, random.random() / 200)

async def main():
    async with Pipeline([task], Session(), log=folder + "/log.db") as pipeline:
        if not await jobs.contains("j0"):
            for number in range(20):
                await jobs.dump(f"j{number}", {})
        if len(sys.argv) == 2:
            threading.Timer(random.uniform(0.005, 0.2), os.kill, (os.getpid(), 9)).start()
        await pipeline.run()
        if len(sys.argv) > 2:
            for repository in (log, files):
                for key in "ab":
                    print(" ".join((await repository.info(key))["lines"]))

asyncio.run(main())
"""


@pytest.mark.long
def test_updates_outlive_engines_that_are_killed(tmp_path: Path) -> None:
    """Whatever was killed when: each run's update is in each key once, in the log as in the files, in one order."""
    command = [sys.executable, "-c", KILLED, str(tmp_path)]
    for _ in range(4):
        subprocess.run(command, cwd=ROOT, check=False, timeout=60)
    told = subprocess.run(
        [*command, "tell"], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True, timeout=60
    )
    orders = [line.split() for line in told.stdout.splitlines()]
    assert len(orders) == 4
    for order in orders:
        assert sorted(order) == sorted(f"j{number}" for number in range(20))
    assert orders[0] == orders[1] == orders[2] == orders[3]
    assert "lost" in ends(tmp_path)
