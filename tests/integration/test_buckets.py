"""Pipelines over a bucket of a real server: jobs that others put there, outputs with the end of their runs, and what is in the log."""

from __future__ import annotations

import asyncio
import urllib.request
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from datatask import (
    BucketRepository,
    History,
    InProcessSyncTask,
    LogMetadataRepository,
    Pipeline,
    S3BucketRepository,
    Session,
    YamlMetadataBucketRepository,
    YamlMetadataS3Repository,
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


async def test_a_script_of_pydatatasks_runs_over_the_client_that_it_makes(
    server: Service, tmp_path: Path
) -> None:
    from aiobotocore.session import get_session

    session = Session()

    @session.resource
    async def client() -> AsyncIterator[Any]:
        made = get_session().create_client(
            "s3",
            endpoint_url=server.endpoint,
            aws_access_key_id=KEY,
            aws_secret_access_key=KEY,
            region_name="us-east-1",
        )
        async with made as opened:
            yield opened

    bucket = f"made-{tmp_path.name.lower().replace('_', '-')}"
    texts = S3BucketRepository(client, bucket, prefix="books/", suffix=".txt", mimetype="text/plain")
    meta = YamlMetadataS3Repository(client, bucket, "meta/")
    task = InProcessSyncTask("count", LogMetadataRepository("done"))
    task.link("texts", texts, is_input=True)
    task.link("meta", meta, is_output=True)

    @task
    async def count(job: str, texts: S3BucketRepository, meta: YamlMetadataS3Repository) -> None:
        async with texts.open(job, "r") as stream:
            await meta.dump(job, {"letters": len(await stream.read())})

    async with Pipeline([task], session, [], log=f"sqlite:///{tmp_path / 'log.db'}") as pipeline:
        async with texts.open("a", "w") as stream:
            await stream.write("seven!!")
        info = await texts.info("a")
        assert (str(info), info.uri) == (f"s3://{bucket}/books/a.txt",) * 2
        assert (info.endpoint, info.bucket, info.prefix, info.suffix) == (
            server.endpoint,
            bucket,
            "books/",
            ".txt",
        )
        await pipeline.run()
        assert await meta.info("a") == {"letters": 7}
        assert await meta.info("b") == {}
        assert texts.object_name("a") == "books/a.txt"
        head = server.client().head_object(Bucket=bucket, Key="books/a.txt")
        assert head["ContentType"] == "text/plain"
        await texts.delete("a")
        await texts.delete("a")
        assert not await texts.contains("a")


async def test_an_address_in_a_template_needs_no_key_and_is_not_in_the_log(
    server: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket, client = server.bucket(), server.client()
    client.put_object(Bucket=bucket, Key="in/a.txt", Body=b"abc")
    source = BucketRepository(f"s3://{bucket}/in", ".txt", endpoint=server.endpoint)
    info = await source.info("a")
    url, upload_url = info.url, info.upload_url
    for name in environment():
        monkeypatch.delenv(name)

    def asked(request: str | urllib.request.Request) -> bytes:
        with urllib.request.urlopen(request) as answer:
            return bytes(answer.read())

    assert await asyncio.to_thread(asked, url) == b"abc"
    header = {"Content-Type": "application/octet-stream"}
    put = urllib.request.Request(upload_url, data=b"new", method="PUT", headers=header)
    await asyncio.to_thread(asked, put)
    assert client.get_object(Bucket=bucket, Key="in/a.txt")["Body"].read() == b"new"
    assert "Signature" not in f"{info} {info!r} {vars(source)}"
    for name, value in environment().items():
        monkeypatch.setenv(name, value)
    inner = BucketRepository(
        f"s3://{bucket}/in", endpoint=server.endpoint, incluster_endpoint="http://minio.ns.svc:9000"
    )
    assert (await inner.info("a")).url.startswith(f"http://minio.ns.svc:9000/{bucket}/in/a?")
