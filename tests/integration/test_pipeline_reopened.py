"""Pipelines that are opened again in the same process, as cells of a notebook do it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from datatask import (
    ExecutorTask,
    InProcessMetadataRepository,
    LocalLinuxManager,
    LogBlobRepository,
    Parameter,
    Pipeline,
    ProcessTask,
    Resources,
    Session,
)
from tests.integration.pipeline_kit import content, documents, pipeline, task


@pytest.fixture(params=["memory", "sqlite"])
def log(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Where the log is."""
    return "memory:" if request.param == "memory" else str(tmp_path / "log.db")


async def test_what_was_done_is_known_when_it_is_opened_again(log: str) -> None:
    """The log goes on, one in memory too, and nothing is done twice."""
    calls: list[str] = []
    source, target = documents("in"), documents("out")
    copy = task("copy", source, target)

    @copy
    async def body(job: str, inp: Any, out: Any) -> None:
        calls.append(job)
        await out.dump(job, await inp.info(job))

    pipe = pipeline(copy, log=log)
    for job in ("a", "b", "c"):
        async with pipe:
            await pipe.put(source, job, {"of": job})
            assert (await pipe.run()).exit_code == 0
            assert (await content(target))[job] == {"of": job}
        assert not pipe.is_open
    assert calls == ["a", "b", "c"]


async def test_it_is_opened_again_after_an_exception(log: str) -> None:
    """One of the block, of an opening, of a resource; resources are made anew each time."""
    made: list[str] = []
    session = Session()

    @session.resource
    async def connection() -> AsyncIterator[str]:
        made.append("open")
        if len(made) == 1:
            raise OSError("unplugged")
        yield "plugged"
        made.append("close")

    source, target = documents("in"), documents("out")
    pipe = Pipeline([task("copy", source, target)], session, [], log=log)
    with pytest.raises(OSError, match="unplugged"):
        await pipe.open()
    with pytest.raises(ZeroDivisionError):
        async with pipe:
            await pipe.put(source, "a", 1)
            raise ZeroDivisionError
    async with pipe:
        assert connection() == "plugged"
        await pipe.run()
        assert await content(target) == {"a": 1}
    assert made == ["open", "open", "close", "open", "close"]


async def test_functions_are_those_of_now(log: str) -> None:
    """A cell that defines the function anew counts from the next opening on."""
    source, target = documents("in"), documents("out")
    factor = Parameter("factor", 2)
    scale = task("scale", source, target)

    @scale
    async def twice(job: str, inp: Any, out: Any, factor: int) -> None:
        await out.dump(job, factor * await inp.info(job))

    pipe = pipeline(scale, log=log, parameters=[factor])
    async with pipe:
        await pipe.put(source, "a", 1)
        await pipe.run()
    before = pipe.state.definition.tasks[0].fingerprint

    @scale
    async def with_more(job: str, inp: Any, out: Any, factor: int) -> None:
        await out.dump(job, factor * await inp.info(job) + 1000)

    async with pipe:
        await pipe.put(source, "b", 1)
        await pipe.run()
        assert await content(target) == {"a": 2, "b": 1002}
    assert pipe.state.definition.tasks[0].fingerprint != before


async def test_processes_and_executors_run_again_in_a_second_opening(tmp_path: Path) -> None:
    """Runners, and executors that a maker makes, are made anew."""
    source, printed = LogBlobRepository("texts"), LogBlobRepository("printed")
    processes = ProcessTask(
        "cat",
        LocalLinuxManager("app", tmp_path / "runs"),
        None,
        Resources(),
        InProcessMetadataRepository(),
        "#!/bin/sh\ncat",
        stdin=source,
        stdout=printed,
        done=documents("cat.done"),
    )
    taken, squares = documents("numbers"), documents("squares")
    square = ExecutorTask("square", lambda: ThreadPoolExecutor(1), documents("square.done"))
    square.link("inp", taken, is_input=True)
    square.link("out", squares, is_output=True)

    @square
    async def body(job: str, inp: Any, out: Any) -> None:
        await out.dump(job, (await inp.info(job)) ** 2)

    pipe = pipeline(processes, square, log=str(tmp_path / "log.db"))
    for job, number in (("a", 3), ("b", 4)):
        async with pipe:
            await pipe.put(source, job, b"text of " + job.encode())
            await pipe.put(taken, job, number)
            assert (await pipe.run(timeout=100)).exit_code == 0
            assert (await content(squares))[job] == number**2
            async with printed.open(job, "rb") as stream:
                assert await stream.read() == b"text of " + job.encode()


def test_run_sync_works_twice(log: str) -> None:
    """From a program without a loop, too; while it is open a second opening is refused."""
    source = documents("in")
    pipe = pipeline(task("copy", source, documents("out")), log=log)
    assert pipe.run_sync().exit_code == pipe.run_sync().exit_code == 0
