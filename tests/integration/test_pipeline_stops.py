"""Pipelines that run for ever, are stopped, and go on with the next opening."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from datatask import (
    CallerError,
    FileRepository,
    InProcessBlobRepository,
    InProcessMetadataRepository,
    Pipeline,
    TimeLimitError,
)
from datatask.schema import events as e
from tests.integration.pipeline_kit import SECONDS, Recorder, content, documents, jobs, pipeline, task


@pytest.fixture(params=["memory", "sqlite"])
def log(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Where the log is."""
    return "memory:" if request.param == "memory" else str(tmp_path / "log.db")


async def test_files_that_are_dropped_while_it_runs_forever_are_taken(log: str, tmp_path: Path) -> None:
    (tmp_path / "drop").mkdir()
    folder, target = FileRepository(tmp_path / "drop", ".txt"), documents("out")
    reading = task("reading", folder, target)

    @reading
    async def body(job: str, inp: Any, out: Any) -> None:
        async with inp.open(job) as stream:
            await out.dump(job, await stream.read())

    async with pipeline(reading, log=log) as pipe:
        running = asyncio.create_task(pipe.run(forever=True))
        for number in range(5):
            hidden = tmp_path / "hidden"
            hidden.write_text(f"text {number}")
            hidden.rename(tmp_path / "drop" / f"n{number}.txt")
            async with asyncio.timeout(SECONDS):
                while not await target.contains(f"n{number}"):
                    assert not running.done()
                    await asyncio.sleep(0.005)
        pipe.drain()
        outcome = await asyncio.wait_for(running, SECONDS)
        assert outcome.interrupted
        assert await content(target) == {f"n{n}": f"text {n}" for n in range(5)}


async def test_a_run_that_takes_too_long_is_left_and_goes_on_next_time(tmp_path: Path) -> None:
    done: list[str] = []

    def build(hold: asyncio.Event) -> Pipeline:
        slow = task("slow", documents("in"), documents("out"), concurrency=1)

        @slow
        async def body(job: str, out: Any) -> None:
            if len(done) == 3:
                await hold.wait()
            done.append(job)
            await out.dump(job, 1)

        return pipeline(slow, log=str(tmp_path / "log.db"))

    hold = asyncio.Event()
    async with build(hold) as pipe:
        for number in range(8):
            await pipe.put("in", str(number), number)
        with pytest.raises(TimeLimitError):
            await pipe.run(timeout=0.3)
    assert done == ["0", "1", "2"]
    hold.set()
    async with build(hold) as pipe:
        assert (await pipe.run(timeout=SECONDS)).exit_code == 0
        assert await jobs(pipe.find("out")) == {str(n) for n in range(8)}
    assert sorted(done) == [str(n) for n in range(8)], "nothing was run twice"


async def test_a_second_opening_has_nothing_to_do(tmp_path: Path) -> None:
    given = {"a": 1, "b": 2}
    for expected in (2, 0):
        source = InProcessMetadataRepository(given, name="in")
        pipe = pipeline(task("t", source, documents("out")), log=str(tmp_path / "log.db"))
        async with pipe:
            events = Recorder(pipe)
            await pipe.run(timeout=SECONDS)
            assert len(events.of(e.LaunchDecided)) == expected
            assert await content(pipe.find("out")) == given


async def test_in_process_outputs_are_gone_after_a_restart_and_known_to_be(tmp_path: Path) -> None:
    def build() -> tuple[Pipeline, InProcessBlobRepository]:
        out = InProcessBlobRepository(name="out")
        made = task("t", documents("in"))
        made.link("out", out, is_output=True)

        @made
        async def body(job: str, out: Any) -> None:
            async with out.open(job, "w") as stream:
                await stream.write("x")

        return pipeline(made, log=str(tmp_path / "log.db")), out

    pipe, out = build()
    async with pipe:
        await pipe.put("in", "a", 1)
        await pipe.run(timeout=SECONDS)
        assert out.data == {"a": b"x"}
    pipe, out = build()
    async with pipe:
        await pipe.run(timeout=SECONDS)
        assert not pipe.state.contains("out", "a")
        assert out.data == {}


async def test_another_pipelines_log_is_refused(tmp_path: Path) -> None:
    path = str(tmp_path / "log.db")
    async with pipeline(task("t", documents("in"), documents("out")), log=path, name="one"):
        pass
    with pytest.raises(CallerError, match="one"):
        async with pipeline(task("t", documents("in"), documents("out")), log=path, name="two"):
            pass


async def test_an_open_pipeline_is_not_opened_twice(log: str) -> None:
    pipe = pipeline(task("t", documents("in"), documents("out")), log=log)
    with pytest.raises(CallerError, match="not open"):
        _ = pipe.state
    async with pipe:
        with pytest.raises(CallerError, match="open already"):
            await pipe.open()
        assert pipe.is_open
