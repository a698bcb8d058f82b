"""Functions take resources of quotas, and are tried again for what their policy lists."""

from __future__ import annotations

import asyncio
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest

from datatask import (
    ExecutorTask,
    InProcessMetadataRepository,
    InProcessSyncTask,
    LogMetadataRepository,
    ResourceManager,
    Resources,
    Retry,
)
from datatask.schema.errors import InvalidValueError
from tests.integration.pipeline_kit import pipeline


class FlakyError(ConnectionResetError):
    """An exception below a type that is listed."""


def test_resources_that_nothing_counts_are_refused() -> None:
    """A quota would be believed that is not there."""
    with pytest.raises(InvalidValueError, match=r"cpu 1, mem 1Gi of task a are counted by no quota; pass"):
        InProcessSyncTask("a", LogMetadataRepository("done"), resources=Resources.parse(1, "1Gi"))


async def test_functions_of_two_kinds_share_a_quota() -> None:
    """Four cores: at no time does a coroutine of three run beside a thread of two."""
    box = ResourceManager(Resources.parse(4, "1Gi"), name="box")
    source = InProcessMetadataRepository({f"j{number}": number for number in range(4)})
    taken: list[int] = []
    most: list[int] = []

    async def wide(job: str) -> None:
        taken.append(3)
        most.append(sum(taken))
        await asyncio.sleep(0.01)
        taken.remove(3)

    async def narrow(job: str) -> None:
        taken.append(2)
        most.append(sum(taken))
        await asyncio.sleep(0.01)
        taken.remove(2)

    one = InProcessSyncTask(
        "wide",
        LogMetadataRepository("wide.done"),
        func=wide,
        resource_manager=box,
        resources=Resources.parse(3, "1Mi"),
    )
    with ThreadPoolExecutor(4) as threads:
        two = ExecutorTask(
            "narrow",
            threads,
            LogMetadataRepository("narrow.done"),
            func=narrow,
            resource_manager=box,
            resources=Resources.parse(2, "1Mi"),
        )
        for task in (one, two):
            task.link("source", source, is_input=True)
        async with pipeline(one, two) as opened:
            await opened.run(timeout="1m")
    assert len(most) == 8
    assert max(most) <= 4


async def test_only_listed_exceptions_are_tried_again() -> None:
    """One below a listed type is; another is not."""
    source = InProcessMetadataRepository({"flaky": 1, "wrong": 2})
    calls: Counter[str] = Counter()

    async def called(job: str) -> None:
        calls[job] += 1
        raise FlakyError if job == "flaky" else ValueError

    task = InProcessSyncTask(
        "task",
        LogMetadataRepository("done"),
        func=called,
        retry=Retry(3, backoff="1ms", on=[ConnectionError]),
    )
    task.link("source", source, is_input=True)
    async with pipeline(task) as opened:
        await opened.run(timeout="1m")
    assert calls == {"flaky": 3, "wrong": 1}
