"""`datatask.testing`: pipelines tested without their code, their processes or their waiting."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest

from datatask import (
    CallerError,
    InProcessSyncTask,
    LogMetadataRepository,
    Pipeline,
    Retry,
    RunOpenError,
    Session,
)
from datatask.schema.messages import Write
from datatask.testing import RecordingRunner, VirtualClock, memory_log, recording


def two_steps(
    clock: VirtualClock | None = None, **options: Any
) -> tuple[Pipeline, RecordingRunner, VirtualClock]:
    """Return raw -> clean -> report with a recording runner, over a log in memory."""

    async def never(job: str) -> None:
        raise AssertionError(job)

    raw, cleaned = LogMetadataRepository("raw"), LogMetadataRepository("cleaned")
    clean = InProcessSyncTask("clean", LogMetadataRepository("clean-done"), func=never, **options)
    clean.link("raw", raw, is_input=True)
    clean.link("cleaned", cleaned, is_output=True)
    report = InProcessSyncTask("report", LogMetadataRepository("report-done"), func=never)
    report.plug(clean, require_success=True)
    clock = clock or VirtualClock()
    pipeline = Pipeline([clean, report], Session(), log=memory_log(), clock=clock)
    return pipeline, recording(pipeline), clock


async def settled(pipeline: Pipeline) -> None:
    """Let the loop turn until nothing is on its way."""
    for _ in range(5):
        await asyncio.sleep(0)
        await pipeline.runtime.flushed()


async def test_a_run_is_recorded_and_ended_by_the_test() -> None:
    """What a run wrote is there when it has ended, and the next task starts."""
    pipeline, runner, _ = two_steps()
    async with pipeline:
        await pipeline.put("clean.raw", "a", {"n": 1})
        await pipeline.update()
        assert runner.jobs == [("clean", "a")]
        runner.end("clean", "a", writes=[Write(repository="cleaned", job="a", value=msgspec.Raw(b"2"))])
        await settled(pipeline)
        await pipeline.update()
        assert runner.jobs == [("clean", "a"), ("report", "a")]
        assert pipeline.state.members("succeeded(clean)") == ["a"]
        assert await pipeline.find("clean.cleaned").info("a") == 2


async def test_a_failure_does_not_reach_the_next_task() -> None:
    """`require_success` holds it back, and the outcome tells of it."""
    pipeline, runner, _ = two_steps()
    async with pipeline:
        await pipeline.put("clean.raw", "a", {})
        await pipeline.update()
        runner.end("clean", "a", "failed", error="no luck")
        await settled(pipeline)
        outcome = await pipeline.run()
        assert runner.jobs == [("clean", "a")]
        assert (outcome.failed, outcome.exit_code) == (1, 1)


async def test_virtual_time_brings_retries_and_timeouts() -> None:
    """Backoff and limits pass in no time, and in order."""
    pipeline, runner, clock = two_steps(retry=Retry(attempts=3, backoff=(10, 2, 100), jitter=0), timeout=60)
    async with pipeline:
        await pipeline.put("clean.raw", "a", {})
        await pipeline.update()
        runner.end("clean", "a", "failed")
        await settled(pipeline)
        clock.advance(9)
        await pipeline.update()
        assert len(runner.started) == 1
        clock.advance(1)
        await pipeline.update()
        assert [spec.attempt for spec in runner.started] == [1, 2]
        clock.advance(61)
        await pipeline.update()
        assert [reason for _, reason in runner.stopped] == ["timeout"]
        await settled(pipeline)
        clock.advance(20)
        await pipeline.update()
        assert [spec.attempt for spec in runner.started] == [1, 2, 3]


async def test_two_open_runs_of_a_job_cannot_be() -> None:
    """A direct launch of a running job raises."""
    pipeline, runner, _ = two_steps()
    async with pipeline:
        await pipeline.put("clean.raw", "a", {})
        await pipeline.tasks["clean"].launch("a")
        await settled(pipeline)
        assert runner.jobs == [("clean", "a")]
        with pytest.raises(RunOpenError, match="has an open run for a"):
            await pipeline.tasks["clean"].launch("a")


async def test_what_a_runner_left_is_recovered() -> None:
    """A second engine over the same log asks the runner about the open run."""
    pipeline, runner, clock = two_steps()
    log = pipeline.location
    async with pipeline:
        await pipeline.put("clean.raw", "a", {})
        await pipeline.update()
        pipeline.tasks["clean"].outlives = True
    successor, heir, _ = two_steps(clock)
    successor.location = log
    async with successor:
        await settled(successor)
        assert [(spec.task, spec.job, spec.run) for spec in heir.recovered] == [
            ("clean", "a", runner.started[0].run)
        ]
        clock.advance(1)
        await successor.update()
        assert heir.jobs == [("clean", "a")]


async def test_the_engine_is_there_only_while_the_pipeline_is_open() -> None:
    pipeline, _, _ = two_steps()
    with pytest.raises(CallerError, match="not open"):
        pipeline.state  # noqa: B018
    async with pipeline:
        with pytest.raises(CallerError, match="open already"):
            await pipeline.open()
