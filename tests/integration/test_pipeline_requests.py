"""What people ask of a pipeline that is open: retry, launch, cancel, pause, and what listeners see of it."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from datatask import (
    InProcessMetadataRepository,
    RunOpenError,
)
from datatask.schema import events as e
from datatask.schema import messages as r
from tests.integration.pipeline_kit import SECONDS, Recorder, documents, jobs, pipeline, task


@pytest.fixture(params=["memory", "sqlite"])
def log(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Where the log is."""
    return "memory:" if request.param == "memory" else str(tmp_path / "log.db")


def ask(kind: type[r.Request], **fields: Any) -> Any:
    ask.count += 1  # type: ignore[attr-defined]
    return kind(id=f"request-{ask.count}", actor="ann@host: test", **fields)  # type: ignore[attr-defined]


ask.count = 0  # type: ignore[attr-defined]


async def test_retry_opens_a_failed_job_anew(log: str) -> None:
    broken = True
    flaky = task("flaky", InProcessMetadataRepository({"a": 1}))

    @flaky
    async def body() -> None:
        if broken:
            raise RuntimeError("broken")

    async with pipeline(flaky, log=log) as pipe:
        assert (await pipe.run(timeout=SECONDS)).failed == 1
        assert (await pipe.run(timeout=SECONDS)).failed == 1, "no retry unless somebody asks"
        assert await jobs(flaky.failed) == {"a"}
        broken = False
        reply = await pipe.request(ask(r.RetryJobs, task="flaky", jobs=("a",), reason="mended"))
        assert reply.refusal is None
        assert (await pipe.run(timeout=SECONDS)).failed == 0
        assert await jobs(flaky.succeeded) == {"a"}
        assert await jobs(flaky.failed) == set()


async def test_a_request_is_carried_out_once(log: str) -> None:
    count = 0
    counting = task("counting", InProcessMetadataRepository({"a": 1}))

    @counting
    async def body() -> None:
        nonlocal count
        count += 1

    async with pipeline(counting, log=log) as pipe:
        await pipe.run(timeout=SECONDS)
        again = ask(r.RetryJobs, task="counting", jobs=("a",))
        first, second = await pipe.request(again), await pipe.request(again)
        assert first.position is not None
        assert second.refusal is None
        await pipe.run(timeout=SECONDS)
        await pipe.request(again)
        await pipe.run(timeout=SECONDS)
    assert count == 2


async def test_launching_by_hand_and_a_second_time(log: str) -> None:
    started, hold = asyncio.Event(), asyncio.Event()
    held = task("held", documents("in"))

    @held
    async def body(job: str) -> None:
        started.set()
        await hold.wait()

    async with pipeline(held, log=log) as pipe:
        await held.launch("a")  # not ready: it has no input
        await asyncio.wait_for(started.wait(), SECONDS)
        assert await jobs(held.live) == {"a"}
        with pytest.raises(RunOpenError):
            await held.launch("a")
        hold.set()
        await pipe.run(timeout=SECONDS)
        assert await jobs(held.succeeded) == {"a"}
        refused = await pipe.request(ask(r.LaunchJob, task="held", job="b"))
        assert refused.refusal is not None
        assert "not ready" in refused.refusal.what


async def test_cancel_stops_a_run_and_the_job_stays_away_until_a_retry(log: str) -> None:
    count, started = 0, asyncio.Event()
    held = task("held", InProcessMetadataRepository({"a": 1}))

    @held
    async def body() -> None:
        nonlocal count
        count += 1
        if count == 1:
            started.set()
            await asyncio.sleep(3600)

    async with pipeline(held, log=log) as pipe:
        events = Recorder(pipe)
        running = asyncio.create_task(pipe.run(timeout=SECONDS))
        await asyncio.wait_for(started.wait(), SECONDS)
        await held.cancel("a")
        await running
        assert [ended.outcome for ended in events.of(e.RunEnded)] == ["cancelled"]
        assert not await held.done.contains("a")
        await pipe.run(timeout=SECONDS)
        assert count == 1
        await pipe.request(ask(r.RetryJobs, task="held", jobs=("a",)))
        await pipe.run(timeout=SECONDS)
        assert count == 2
        assert await jobs(held.succeeded) == {"a"}


async def test_deleting_from_live_stops_the_run_and_the_job_runs_anew(log: str) -> None:
    count, started = 0, asyncio.Event()
    held = task("held", InProcessMetadataRepository({"a": 1}))

    @held
    async def body() -> None:
        nonlocal count
        count += 1
        if count == 1:
            started.set()
            await asyncio.sleep(3600)

    async with pipeline(held, log=log) as pipe:
        running = asyncio.create_task(pipe.run(timeout=SECONDS))
        await asyncio.wait_for(started.wait(), SECONDS)
        await held.live.delete("a")
        assert (await running).failed == 0
    assert count == 2


async def test_removing_done_runs_the_job_again(log: str) -> None:
    count = 0
    counting = task("counting", InProcessMetadataRepository({"a": 1}))

    @counting
    async def body() -> None:
        nonlocal count
        count += 1

    async with pipeline(counting, log=log) as pipe:
        await pipe.run(timeout=SECONDS)
        await counting.done.delete("a")
        await pipe.run(timeout=SECONDS)
        await counting.done.delete("a")
        await pipe.run(timeout=SECONDS)
    assert count == 3


async def test_a_paused_task_waits_until_it_is_resumed(log: str) -> None:
    target = documents("out")
    async with pipeline(task("t", InProcessMetadataRepository({"a": 1}), target), log=log) as pipe:
        await pipe.request(ask(r.PauseTask, task="t"))
        outcome = await pipe.run(timeout=SECONDS)
        assert outcome.exit_code == 6
        assert await jobs(target) == set()
        await pipe.request(ask(r.ResumeTask, task="t"))
        assert (await pipe.run(timeout=SECONDS)).exit_code == 0
        assert await jobs(target) == {"a"}


async def test_a_disabled_task_launches_nothing(log: str) -> None:
    source, first, second = InProcessMetadataRepository({"a": 1}), documents("first"), documents("second")
    off, on = task("off", source, first), task("on", source, second)
    off.disabled = True
    async with pipeline(off, on, log=log) as pipe:
        await pipe.run(timeout=SECONDS)
        assert await jobs(first) == set()
        assert await jobs(second) == {"a"}


async def test_subscribers_see_every_durable_batch_in_order(log: str) -> None:
    async with pipeline(task("t", documents("in"), documents("out")), log=log) as pipe:
        events, heads = Recorder(pipe), []
        first = pipe.state.position + 1
        pipe.subscribe(lambda batch: heads.append(pipe.log is not None and pipe.log.head >= batch.last))
        await pipe.put("in", "a", 1)
        await pipe.run(timeout=SECONDS)
        positions = [batch.first + n for batch in events.batches for n in range(len(batch.events))]
        assert positions == list(range(first, pipe.state.position + 1))
        assert all(heads)
        assert len(events.of(e.RunEnded, task="t", job="a")) == 1
        events.stop()
        count = len(events.batches)
        await pipe.put("in", "b", 1)
        assert len(events.batches) == count
