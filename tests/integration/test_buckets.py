"""Pipelines over a bucket of a real server: jobs that others put there, outputs with the end of their runs, and what is in the log."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from datatask import (
    BucketRepository,
    History,
    InProcessSyncTask,
    LogMetadataRepository,
    Pipeline,
    Session,
    YamlMetadataBucketRepository,
)
from tests.object_stores import KEY, Service, environment
from tests.run_kit import until

Serve = Callable[[str], Service]


@pytest.fixture
def server(object_store: Serve, monkeypatch: pytest.MonkeyPatch) -> Service:
    for name, value in environment().items():
        monkeypatch.setenv(name, value)
    return object_store("moto")


def upper(server: Service, bucket: str, log: Path, function: Any = None, **options: Any) -> Pipeline:
    task = InProcessSyncTask("upper", LogMetadataRepository("done"))
    source = BucketRepository(f"s3://{bucket}/in", ".txt", endpoint=server.endpoint, **options)
    target = YamlMetadataBucketRepository(f"s3://{bucket}/out", endpoint=server.endpoint, **options)
    task.link("source", source, is_input=True)
    task.link("result", target, is_output=True)

    async def work(job: str, source: BucketRepository, result: YamlMetadataBucketRepository) -> None:
        async with source.open(job) as stream:
            await result.dump(job, {"text": (await stream.read()).upper()})

    task(function or work)
    return Pipeline([task], Session(), [], log=f"sqlite:///{log}")


async def test_jobs_in_a_bucket_run_once_and_their_outputs_are_in_the_log(
    server: Service, tmp_path: Path
) -> None:
    bucket, client = server.bucket(), server.client()
    for n in range(5):
        client.put_object(Bucket=bucket, Key=f"in/j{n}.txt", Body=b"abc")
    client.put_object(Bucket=bucket, Key="in/sub/deep.txt", Body=b"abc")
    for _ in range(2):  # a second engine finds nothing to do
        async with upper(server, bucket, tmp_path / "log.db") as pipeline:
            await pipeline.run()
    assert sorted(server.keys(bucket))[-5:] == [f"out/j{n}.yaml" for n in range(5)]
    assert client.get_object(Bucket=bucket, Key="out/j3.yaml")["Body"].read() == b"text: ABC\n"
    with History(tmp_path / "log.db") as history:
        runs = history.runs()
    assert [run["state"] for run in runs] == ["succeeded"] * 5
    assert KEY.encode() not in (tmp_path / "log.db").read_bytes()


async def test_what_others_add_and_take_away_is_found_at_the_interval(
    server: Service, tmp_path: Path
) -> None:
    bucket, client = server.bucket(), server.client()
    pipeline = upper(server, bucket, tmp_path / "log.db", poll_seconds=0.1)
    async with pipeline:
        serving = asyncio.create_task(pipeline.run(forever=True))
        client.put_object(Bucket=bucket, Key="in/late.txt", Body=b"abc")
        await until(lambda: "out/late.yaml" in server.keys(bucket))
        client.delete_object(Bucket=bucket, Key="in/late.txt")
        serving.cancel()
        await asyncio.gather(serving, return_exceptions=True)


async def test_nothing_of_a_run_is_there_before_its_end_also_of_one_that_fails(
    server: Service, tmp_path: Path
) -> None:
    bucket = server.bucket()
    server.client().put_object(Bucket=bucket, Key="in/a.txt", Body=b"abc")

    async def work(job: str, result: YamlMetadataBucketRepository) -> None:
        await result.dump(job, {"half": True})
        assert server.keys(bucket) == ["in/a.txt"]
        raise ZeroDivisionError

    async with upper(server, bucket, tmp_path / "log.db", work) as pipeline:
        await pipeline.run()
    with History(tmp_path / "log.db") as history:
        assert [run["state"] for run in history.runs()] == ["failed"]
    assert server.keys(bucket) == ["in/a.txt", "out/a.yaml"]
