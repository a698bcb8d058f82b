"""When the log, a store, a runner or a subscriber fails: what stops, what goes on, and what is lost (nothing)."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from datatask import (
    DatataskError,
    InProcessSyncTask,
    LogError,
    LogMetadataRepository,
    Pipeline,
    Session,
    TemporaryError,
    YamlMetadataFileRepository,
)
from datatask.adapters.wiring.rounds import Interrupts
from datatask.schema.events import EngineClosed, RunEnded, StopReason
from datatask.schema.messages import RunSpec, Write
from datatask.testing import MemoryLog, RecordingRunner, memory_log, recording


def over(log: MemoryLog, done: Any = None) -> tuple[Pipeline, RecordingRunner]:
    """Return a pipeline of one task and the runner that succeeds at everything."""

    async def body(job: str) -> None:
        """Do nothing."""

    task = InProcessSyncTask("task", done or LogMetadataRepository("done"), func=body)
    task.link("source", LogMetadataRepository("source"), is_input=True)
    pipeline = Pipeline([task], Session(), log=log)
    return pipeline, recording(pipeline, "succeeded")


async def test_a_failed_append_stops_the_engine_and_the_next_one_goes_on() -> None:
    """Whoever waits is told; what was folded ahead of the disk is not believed."""
    log = memory_log()
    pipeline, runner = over(log)
    async with pipeline:
        await pipeline.put("task.source", "a", 1)
        log.fail(LogError("the disk is full", where="log.db", remedy="free some space"))
        with pytest.raises(DatataskError, match="the disk is full"):
            await pipeline.put("task.source", "b", 1)
        with pytest.raises(DatataskError, match="the disk is full"):
            await pipeline.run(timeout=100)
    assert runner.jobs == []


async def test_a_runner_that_raises_refuses_the_run() -> None:
    """With the reason in the log, and the pipeline goes on."""

    class Broken(RecordingRunner):
        def start(self, spec: RunSpec) -> None:
            """Raise for one job."""
            if spec.job == "bad":
                raise OSError("no more processes")
            super().start(spec)

    pipeline, _ = over(memory_log())
    pipeline.tasks["task"].runner = Broken("succeeded")
    async with pipeline:
        await pipeline.put("task.source", "bad", 1)
        await pipeline.put("task.source", "good", 1)
        outcome = await pipeline.run(timeout=100)
        assert outcome.failed == 1
        assert pipeline.state.members("succeeded(task)") == ["good"]
        done = await pipeline.find("task.done").info("bad")
        assert "no more processes" in done["exception"]


async def test_a_subscriber_that_raises_is_told_of_the_next_batch() -> None:
    """It stops nobody."""
    pipeline, runner = over(memory_log())
    seen: list[int] = []

    def listen(batch: Any) -> None:
        seen.append(batch.first)
        raise ValueError("listener")

    async with pipeline:
        end = pipeline.subscribe(listen)
        await pipeline.put("task.source", "a", 1)
        await pipeline.run(timeout=100)
        count = len(seen)
        end()
        await pipeline.put("task.source", "b", 1)
        assert runner.jobs == [("task", "a")]
        assert len(seen) == count > 1


class Failing:
    """A store whose puts fail: for a while, or for good."""

    def __init__(self, store: Any, errors: list[Exception]) -> None:
        self._store = store
        self._errors = errors

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    async def put(self, write: Write) -> str | None:
        """Put, once the errors are used up."""
        if self._errors:
            raise self._errors.pop(0)
        version: str | None = await self._store.put(write)
        return version


async def test_a_store_that_is_away_is_waited_for(tmp_path: Path) -> None:
    """The run stays open, collecting, and ends when the store is back."""
    done = YamlMetadataFileRepository(tmp_path / "done", name="done")
    pipeline, _ = over(memory_log(), done)
    async with pipeline:
        stores: Any = pipeline.runtime._performer._stores
        stores["done"] = Failing(
            stores["done"], [TemporaryError("the server is away"), TemporaryError("still")]
        )
        await pipeline.put("task.source", "a", 1)
        outcome = await pipeline.run(timeout=100)
        assert outcome.failed == 0
        assert pipeline.state.members("done") == ["a"]
    assert (tmp_path / "done" / "a.yaml").exists()


async def test_a_store_that_refuses_for_good_fails_the_run(tmp_path: Path) -> None:
    """And the reason is in the run's end."""
    done = YamlMetadataFileRepository(tmp_path / "done", name="done")
    pipeline, _ = over(memory_log(), done)
    async with pipeline:
        stores: Any = pipeline.runtime._performer._stores
        stores["done"] = Failing(stores["done"], [PermissionError("not yours")] * 5)
        await pipeline.put("task.source", "a", 1)
        async with asyncio.timeout(100):
            outcome = await pipeline.run()
        assert outcome.failed == 1
        log = pipeline.log
        assert log is not None
        ends = [each.event async for each in log.read() if isinstance(each.event, RunEnded)]
        assert [(end.outcome, "not yours" in str(end.error)) for end in ends] == [("failed", True)]


class SlowRunner(RecordingRunner):
    """Its runs end a moment after they were stopped, and it takes a while to close."""

    def stop(self, run: int, reason: StopReason, grace: int) -> None:
        """End the run a little later."""
        asyncio.get_running_loop().call_later(0.005, super().stop, run, reason, grace)

    async def close(self, *, abandon: bool = False) -> None:
        """Be closed while the interrupts look whether anything still runs."""
        await asyncio.sleep(0.3)


async def test_an_engine_that_closes_by_itself_after_two_interrupts_says_goodbye() -> None:
    """The work ends before the interrupts cut it: the closing that follows is not cut instead."""
    log = memory_log()
    pipeline, _ = over(log)
    pipeline.tasks["task"].runner = runner = SlowRunner()
    pipeline.actor = "ada"

    async def interrupt_twice() -> None:
        while not runner.started:
            await asyncio.sleep(0.01)
        for count in (1, 2):
            os.kill(os.getpid(), signal.SIGINT)
            while interrupts.count < count:
                await asyncio.sleep(0.001)

    with Interrupts(pipeline, lambda line: None) as interrupts:
        async with pipeline:
            await pipeline.put("task.source", "a", 1)
            interrupting = asyncio.create_task(interrupt_twice())
            outcome = await pipeline.run()
            await interrupting
        await asyncio.sleep(0)
    assert (outcome.interrupted, interrupts.given_up) == (True, False)
    closed = [event async for _, event in log.read(0) if isinstance(event, EngineClosed)]
    assert [(event.actor, event.reason) for event in closed] == [("ada", "abandoned")]
