"""Runs whose inputs, code and outputs are there already take over the outputs of an equal one, and what keeps them from it."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from datatask import (
    DirectoryRepository,
    FileRepository,
    History,
    InProcessSyncTask,
    LocalLinuxManager,
    LogBlobRepository,
    LogMetadataRepository,
    Parameter,
    Pipeline,
    ProcessTask,
    Resources,
    Session,
)
from datatask.adapters.history.replay import replay
from datatask.adapters.history.states import fold
from datatask.adapters.history.timeline import described
from datatask.adapters.history.verify.reuse import reused
from datatask.adapters.log.reader import LogReader
from datatask.adapters.store.filestore import FileStore
from datatask.adapters.wiring.caching import Caching
from datatask.engine.api.repositories import Repository
from datatask.schema.events import CONTENT, REUSED, Batch, RunEnded
from datatask.schema.messages import LaunchJob, PauseTask, RetryJobs
from tests.integration.cli_kit import Project


class Shop:
    """One task that makes `b` of `a`; `calls` are the jobs for which it was executed."""

    def __init__(self, folder: Path, a: Callable[[], Repository], b: Callable[[], Repository]) -> None:
        self.folder, self._a, self._b = folder, a, b
        self.calls: list[str] = []
        self.cache, self.factor = True, 2
        self.fails = False

    def pipeline(self) -> Pipeline:
        task = InProcessSyncTask("double", LogMetadataRepository("double.done"), cache=self.cache)
        task.link("a", self._a(), is_input=True)
        task.link("b", self._b(), is_output=True)
        calls = self.calls.append
        note = logging.getLogger("test.cache")  # stands for its name: the function can be followed
        handler = logging.Handler()
        handler.emit = lambda record: calls(record.getMessage())  # type: ignore[method-assign]
        note.handlers, note.propagate = [handler], False
        note.setLevel(logging.INFO)

        @task
        async def double(job: str, a: Any, b: Any, factor: int) -> None:
            note.info("%s", job)
            if isinstance(a, LogMetadataRepository):
                await b.dump(job, await a.info(job) * factor)
            else:
                async with a.open(job) as source, b.open(job, "w") as target:
                    await target.write((await source.read()) * factor)

        return Pipeline(
            [task], Session(), log=self.folder / "log.db", parameters=[Parameter("factor", self.factor)]
        )

    async def run(self, change: Callable[[Pipeline], Any] | None = None) -> list[str]:
        """Run until it is quiet, after a change; return the jobs that were executed."""
        self.calls.clear()
        async with self.pipeline() as pipeline:
            if change is not None:
                await change(pipeline)
            await pipeline.run()
        return sorted(self.calls)

    def ends(self) -> dict[str, RunEnded]:
        """Return the last end of each job."""
        with LogReader(self.folder / "log.db") as reader:
            return {
                found.event.job: found.event for found in reader.read() if isinstance(found.event, RunEnded)
            }

    def reused(self, job: str) -> bool:
        return REUSED in (self.ends()[job].detail or {})


def documents(folder: Path) -> Shop:
    return Shop(folder, lambda: LogMetadataRepository("a"), lambda: LogMetadataRepository("b"))


def files(folder: Path) -> Shop:
    return Shop(
        folder,
        lambda: FileRepository(folder / "a", ".txt", name="a"),
        lambda: FileRepository(folder / "b", ".txt", name="b"),
    )


def put(**values: int) -> Callable[[Pipeline], Any]:
    async def change(pipeline: Pipeline) -> None:
        for job, value in values.items():
            await pipeline.tasks["double"].links["a"].repo.dump(job, value)  # type: ignore[attr-defined]

    return change


def again(*jobs: str) -> Callable[[Pipeline], Any]:
    async def change(pipeline: Pipeline) -> None:
        await pipeline.request(RetryJobs(id="again", actor="me", task="double", jobs=jobs))

    return change


def write(folder: Path, place: str, text: str) -> None:
    path = folder / f"{place}.txt"
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)


async def test_equal_inputs_of_another_job_are_not_computed_twice(tmp_path: Path) -> None:
    """The outputs are the same, the end says from which run, and the log replays."""
    shop = documents(tmp_path)
    assert await shop.run(put(x=1)) == ["x"]
    first = shop.ends()["x"]
    assert await shop.run(put(y=1, z=2)) == ["z"]
    ended = shop.ends()["y"]
    assert (ended.outcome, ended.where) == ("succeeded", "cache")
    assert ended.detail == {REUSED: str(first.run), CONTENT: (first.detail or {})[CONTENT]}
    async with shop.pipeline() as pipeline:
        repository = pipeline.tasks["double"].links["b"].repo
        assert [await repository.info(job) for job in "xyz"] == [2, 2, 4]
    assert not replay(tmp_path / "log.db", verify=True).divergences


async def test_another_parameter_is_another_content_and_the_first_one_comes_back(tmp_path: Path) -> None:
    shop = documents(tmp_path)
    await shop.run(put(x=1))
    shop.factor = 3
    assert await shop.run(put(y=1)) == ["y"]
    shop.factor = 2
    assert await shop.run(put(z=1)) == []


async def test_who_asks_for_a_result_again_has_it_computed(tmp_path: Path) -> None:
    shop = documents(tmp_path)
    await shop.run(put(x=1))
    assert await shop.run(again("x")) == ["x"]


async def test_who_launches_a_job_has_it_computed(tmp_path: Path) -> None:
    shop = documents(tmp_path)
    await shop.run(put(x=1))

    async def launched(pipeline: Pipeline) -> None:
        await pipeline.request(PauseTask(id="pause", actor="me", task="double"))
        await put(y=1)(pipeline)
        await pipeline.request(LaunchJob(id="launch", actor="me", task="double", job="y", force=True))

    assert await shop.run(launched) == ["y"]


async def test_a_removed_result_is_restored_from_the_log(tmp_path: Path) -> None:
    shop = documents(tmp_path)
    await shop.run(put(x=1))

    async def removed(pipeline: Pipeline) -> None:
        await pipeline.tasks["double"].links["b"].repo.delete("x")
        await again("x")(pipeline)

    assert await shop.run(removed) == []
    assert shop.reused("x")


async def test_files_are_copied_where_their_digests_are_those_recorded(tmp_path: Path) -> None:
    """A touched file is as good; one that was changed, or removed, is not taken over."""
    shop = files(tmp_path)
    write(tmp_path, "a/x", "ab")
    assert await shop.run() == ["x"]
    write(tmp_path, "a/y", "ab")
    assert await shop.run() == []
    assert (tmp_path / "b" / "y.txt").read_text() == "abab"
    for job in "xy":
        write(tmp_path, f"b/{job}", "spoilt")
    write(tmp_path, "a/z", "ab")
    assert await shop.run() == ["z"]
    assert (tmp_path / "b" / "z.txt").read_text() == "abab"
    (tmp_path / "b" / "z.txt").unlink()
    write(tmp_path, "a/v", "ab")
    assert await shop.run() == ["v"]
    (tmp_path / "b" / "v.txt").touch()
    write(tmp_path, "a/w", "ab")
    assert await shop.run() == []


async def test_a_copied_file_is_its_own(tmp_path: Path) -> None:
    """A change of one job's file leaves that of the job that took over alone, and the other way round."""
    shop = files(tmp_path)
    write(tmp_path, "a/x", "ab")
    await shop.run()
    write(tmp_path, "a/y", "ab")
    await shop.run()
    with (tmp_path / "b" / "y.txt").open("a") as file:
        file.write("!")
    assert (tmp_path / "b" / "x.txt").read_text() == "abab"


async def test_what_has_no_digest_is_run_and_said_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shop = Shop(
        tmp_path,
        lambda: LogMetadataRepository("a"),
        lambda: DirectoryRepository(tmp_path / "b", name="b"),
    )

    async def change(pipeline: Pipeline) -> None:
        task = pipeline.tasks["double"]

        async def make(job: str, a: Any, b: Any) -> None:
            async with await b.mkdir(job) as made, made.mkfile("n") as file:
                await file.write(str(await a.info(job)).encode())

        task.func = make  # type: ignore[attr-defined]
        await put(x=1, y=1, z=1)(pipeline)

    async with shop.pipeline() as pipeline:
        await change(pipeline)
        await pipeline.run()
    assert not any(REUSED in (end.detail or {}) for end in shop.ends().values())
    said = [record.message for record in caplog.records if "nothing is taken over" in record.message]
    assert said == [
        "double: nothing is taken over from earlier runs: the values of output b cannot be copied"
    ]


async def test_a_function_that_cannot_be_followed_is_always_run(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    import threading

    lock = threading.Lock()
    calls = []

    def pipeline() -> Pipeline:
        task = InProcessSyncTask("one", LogMetadataRepository("one.done"))
        task.link("a", LogMetadataRepository("a"), is_input=True)

        @task
        async def one(job: str, a: Any) -> None:
            with lock:
                calls.append(job)

        return Pipeline([task], Session(), log=tmp_path / "log.db", cache=True)

    async with pipeline() as opened:
        for job in "xy":
            await opened.tasks["one"].links["a"].repo.dump(job, 1)  # type: ignore[attr-defined]
        await opened.run()
    assert sorted(calls) == ["x", "y"]
    said = [record.message for record in caplog.records if "nothing is taken over" in record.message]
    assert len(said) == 1
    assert said[0].startswith("one: ")
    assert "lock" in said[0]


async def test_a_run_that_reads_beside_its_inputs_is_no_source(tmp_path: Path) -> None:
    """What is taken over depends on the recorded inputs alone."""

    def pipeline(extra: int) -> Pipeline:
        a, b, other = (LogMetadataRepository(name) for name in ("a", "b", "other"))
        task = InProcessSyncTask("one", LogMetadataRepository("one.done"), cache=True)
        task.link("a", a, is_input=True)
        task.link("b", b, is_output=True)
        task.link("other", other)

        @task
        async def one(job: str, a: Any, b: Any, other: Any) -> None:
            await b.dump(job, await a.info(job) + await other.info("shared"))

        return Pipeline([task], Session(), log=tmp_path / "log.db")

    for extra, job in ((10, "x"), (20, "y")):
        async with pipeline(extra) as opened:
            links = opened.tasks["one"].links
            await links["other"].repo.dump("shared", extra)  # type: ignore[attr-defined]
            await links["a"].repo.dump(job, 1)  # type: ignore[attr-defined]
            await opened.run()
            assert await links["b"].repo.info(job) == 1 + extra


async def test_large_values_are_taken_over_by_their_digest(tmp_path: Path) -> None:
    shop = Shop(tmp_path, lambda: LogBlobRepository("a"), lambda: LogBlobRepository("b"))

    def blob(job: str) -> Callable[[Pipeline], Any]:
        async def change(pipeline: Pipeline) -> None:
            async with pipeline.tasks["double"].links["a"].repo.open(job, "wb") as file:  # type: ignore[attr-defined]
                await file.write(b"0123456789" * 20_000)

        return change

    assert await shop.run(blob("x")) == ["x"]
    assert await shop.run(blob("y")) == []
    async with shop.pipeline() as pipeline, pipeline.tasks["double"].links["b"].repo.open("y", "rb") as file:  # type: ignore[attr-defined]
        assert len(await file.read()) == 400_000


def test_commands_tell_of_it(tmp_path: Path) -> None:
    shop = documents(tmp_path)
    asyncio.run(shop.run(put(x=1)))
    asyncio.run(shop.run(put(y=1)))
    source = shop.ends()["x"].run
    project, log = Project(tmp_path), ("--log", str(tmp_path / "log.db"))
    rows = project.ok(*log, "runs", "--json").json
    assert [(row["job"], row["reused"]) for row in rows] == [("x", None), ("y", source)]
    with History(tmp_path / "log.db") as history:
        spans = [span for lane in history.trace("y").lanes for span in lane.spans]
    told = [described(span, 0) for span in spans if span.reused == source]
    assert any(f"on cache; taken over from run {source}; succeeded" in line for line in told)


STEPS: list[tuple[Any, str, bool]] = [
    (Caching, "look", False),
    (Caching, "_copied", True),
    (FileStore, "_put", False),
    (FileStore, "_put", True),
]
"""What is under way when the engine is killed, and whether it is done by then."""


@pytest.mark.parametrize(("owner", "name", "is_done"), STEPS)
def test_a_kill_between_hit_and_outputs_loses_nothing(
    tmp_path: Path, owner: Any, name: str, is_done: bool
) -> None:
    """The next engine finishes it, or does it again; the outputs are there once, and the log verifies."""
    shop = files(tmp_path)
    write(tmp_path, "a/x", "ab")
    asyncio.run(shop.run())
    write(tmp_path, "a/y", "ab")
    child = os.fork()
    if not child:
        kill_at(owner, name, is_done)
        asyncio.run(shop.run())
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert asyncio.run(shop.run()) == []
    assert (tmp_path / "b" / "y.txt").read_text() == "abab"
    assert shop.reused("y")
    told = replay(tmp_path / "log.db", verify=True)
    assert not told.divergences


def kill_at(owner: Any, name: str, is_done: bool) -> None:
    """Have this process killed where it calls a method, before or after."""
    real = getattr(owner, name)

    def killed(*arguments: Any) -> Any:
        if not is_done:
            os.kill(os.getpid(), signal.SIGKILL)
        found = real(*arguments)
        if not asyncio.iscoroutine(found):
            os.kill(os.getpid(), signal.SIGKILL)

        async def then() -> Any:
            await found
            os.kill(os.getpid(), signal.SIGKILL)

        return then()

    setattr(owner, name, killed)


def test_an_output_that_is_not_the_one_of_the_run_is_told(tmp_path: Path) -> None:
    """Verification holds runs that took over outputs against the runs that these are of."""
    shop = documents(tmp_path)
    asyncio.run(shop.run(put(x=1)))
    asyncio.run(shop.run(put(y=2)))
    source, run = (shop.ends()[job].run for job in "xy")
    about = f"run {run} takes over"
    assert forged(tmp_path, run, "") == []
    assert forged(tmp_path, run, str(source)) == [f"{about}: input a", f"{about}: output b"]
    assert forged(tmp_path, run, str(run)) == [about]
    assert forged(tmp_path, run, str(source - 1)) == [about]


def forged(folder: Path, run: int, source: str) -> list[str]:
    """Return what is told of a run whose end says that it took over the outputs of another one."""
    with LogReader(folder / "log.db") as reader:
        state = fold(reader, reader.head)
        (end,) = (
            found for found in reader.read() if isinstance(found.event, RunEnded) and found.event.run == run
        )
        event = msgspec.structs.replace(end.event, detail={REUSED: source} if source else None)
        return sorted(one.what for one in reused(reader, state, Batch(end.position, (event,))))


@pytest.mark.parametrize("names_job", [False, True])
async def test_local_processes_are_spared_unless_their_script_names_the_job(
    tmp_path: Path, names_job: bool
) -> None:
    """What goes in and out by streams is compared and copied as other files are."""
    for job, text in (("x", "ab"), ("y", "ab"), ("z", "cd")):
        write(tmp_path, f"a/{job}", text)
    script = f"#!/bin/sh\necho . >> {tmp_path}/ran\ntr a-z A-Z\n" + (
        "echo '{{ job }}'\n" if names_job else ""
    )

    def pipeline() -> Pipeline:
        task = ProcessTask(
            "shout",
            LocalLinuxManager("app", tmp_path / "runs"),
            None,
            Resources(),
            LogMetadataRepository("pids"),
            script,
            stdin=FileRepository(tmp_path / "a", ".txt", name="a"),
            stdout=FileRepository(tmp_path / "b", ".txt", name="b"),
            done=LogMetadataRepository("done"),
            cache=True,
        )
        return Pipeline([task], Session(), log=tmp_path / "log.db")

    async with pipeline() as opened:
        await opened.run(jobs="x")
    async with pipeline() as opened:
        await opened.run()
    assert len((tmp_path / "ran").read_text().split()) == (3 if names_job else 2)
    if not names_job:
        assert [(tmp_path / "b" / f"{job}.txt").read_text() for job in "xyz"] == ["AB", "AB", "CD"]
    assert not replay(tmp_path / "log.db", verify=True).divergences
