"""What a bucket that fails does to programs and pipelines: a proxy of ours answers, cuts, loses and delays by a script."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable, Iterator
from datetime import timedelta
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
)
from datatask.adapters.store import objects, resuming, s3_clients, s3_requests
from datatask.adapters.store.inputs import NotPermittedError
from datatask.engine.run_context import ABSENT_VERSION
from datatask.schema.errors import ConflictError, DatataskError, InvalidValueError, StoreError, TemporaryError
from datatask.schema.messages import Write
from tests.effort import by_effort
from tests.object_stores import LazyClient, Service, environment
from tests.proxy import LOSE, Answer, Cut, Proxy, Wait, between, sometimes

Serve = Callable[[str], Service]
KINDS = ("address", "client")
both_kinds = pytest.mark.parametrize("kind", KINDS)


@pytest.fixture
def server(object_store: Serve, monkeypatch: pytest.MonkeyPatch) -> Service:
    for name, value in environment().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(resuming, "PAUSE_SECONDS", 0.001)
    monkeypatch.setattr(resuming, "PAUSE_SECONDS_MAX", 0.01)
    monkeypatch.setattr(objects, "RETRY", {"max_retries": 0, "retry_timeout": timedelta(seconds=60)})
    return object_store("moto")


@pytest.fixture
def proxy(server: Service) -> Iterator[Proxy]:
    with between(int(server.endpoint.rpartition(":")[2])) as running:
        yield running


def made(kind: str, proxy: Proxy, bucket: str, **options: Any) -> Any:
    if kind == "address":
        return BucketRepository(f"s3://{bucket}/p", endpoint=proxy.endpoint, **options)
    return S3BucketRepository(LazyClient(proxy.endpoint), bucket, "p/", **options)


async def listed(repository: Any) -> list[str]:
    return [job async for job in repository]


async def read(repository: Any, job: str) -> bytes:
    async with repository.open(job, "rb") as stream:
        return bytes(await stream.read())


async def write(repository: Any, job: str, data: bytes) -> None:
    async with repository.open(job, "wb") as stream:
        await stream.write(data)


# --- each answer has its outcome ---------------------------------------------------------------------


@both_kinds
@pytest.mark.parametrize(
    ("answer", "outcome", "words"),
    [
        (Answer(400, "ExpiredToken"), TemporaryError, "credentials have expired"),
        (Answer(403, "AccessDenied"), NotPermittedError, "cannot be told whether it is there"),
        (Answer(403, "InvalidAccessKeyId"), NotPermittedError, "does not accept the credentials"),
        (Answer(403, "InvalidObjectState"), StoreError, "Glacier"),
        (Answer(404, "NoSuchBucket"), TemporaryError, "no bucket of that name"),
        (Answer(400, "AuthorizationHeaderMalformed"), InvalidValueError, "AWS_REGION"),
        (Answer(429, "TooManyRequests"), TemporaryError, "answers 429"),
        (Answer(500, "InternalError"), TemporaryError, "answers 500"),
        (Answer(503, "SlowDown"), TemporaryError, "answers 503 SlowDown"),
    ],
    ids=lambda value: value.code if isinstance(value, Answer) else "",
)
async def test_an_answer_has_its_outcome_and_nothing_is_taken_for_absent(
    kind: str, answer: Answer, outcome: type[DatataskError], words: str, proxy: Proxy, server: Service
) -> None:
    bucket = server.bucket()
    repository = made(kind, proxy, bucket)
    await write(repository, "a", b"1")
    proxy.script = lambda method, path, number: answer
    for call in (
        listed(repository),
        read(repository, "a"),
        write(repository, "b", b"2"),
        repository.delete("a"),
    ):
        with pytest.raises(outcome, match=words) as raised:
            await call
        text = str(raised.value)
        assert "\n" not in text
        assert "Signature" not in text
        assert text.startswith(f"s3://{bucket}")
    with pytest.raises((outcome, NotPermittedError)):  # a HEAD has no body, and so no code
        await repository.contains("a")
    proxy.script = lambda method, path, number: None
    assert (await listed(repository), await read(repository, "a")) == (["a"], b"1")


@both_kinds
async def test_a_forbidden_look_is_no_absence(kind: str, proxy: Proxy, server: Service) -> None:
    repository = made(kind, proxy, server.bucket())
    proxy.script = lambda method, path, number: Answer(403) if method == "HEAD" else None
    with pytest.raises(NotPermittedError, match="grant the right to list"):
        await repository.contains("a")


@both_kinds
async def test_a_server_that_does_not_answer_is_given_up_and_told(
    kind: str, proxy: Proxy, server: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    if kind == "client":
        return  # its patience is its maker's
    monkeypatch.setattr(objects, "TIMEOUTS", {"timeout": "200ms", "connect_timeout": "10s"})
    monkeypatch.setattr(s3_requests, "PAGE_SECONDS", 0.2)
    monkeypatch.setattr(resuming, "TRIES", 2)
    repository = made(kind, proxy, server.bucket())
    proxy.script = lambda method, path, number: Wait(600)
    for call in (listed(repository), repository.contains("a"), write(repository, "a", b"1")):
        with pytest.raises(TemporaryError, match="tried again"):
            await call


# --- bytes that are cut, writes that fail half-way --------------------------------------------------------


@both_kinds
async def test_a_body_that_is_cut_again_and_again_is_read_whole(
    kind: str, proxy: Proxy, server: Service
) -> None:
    repository = made(kind, proxy, server.bucket())
    data = os.urandom(5_000_000)
    await write(repository, "a", data)
    cuts = iter((0, 10, 1_500_000, 70_000, 1, 1_100_000))
    proxy.script = lambda method, path, number: (
        Cut(cut) if method == "GET" and (cut := next(cuts, -1)) >= 0 else None
    )
    async with repository.open("a", "rb") as stream:
        parts = [await stream.read(700_001) for _ in range(9)]
    assert b"".join(parts) == data
    assert proxy.struck >= 5


@both_kinds
async def test_an_object_that_changes_while_it_is_read_is_not_mixed(
    kind: str, proxy: Proxy, server: Service
) -> None:
    bucket = server.bucket()
    repository = made(kind, proxy, bucket)
    await write(repository, "a", b"1" * 3_000_000)
    proxy.script = lambda method, path, number: Cut(1_200_000) if method == "GET" else None
    async with repository.open("a", "rb") as stream:
        await stream.read(10)
        server.client().put_object(Bucket=bucket, Key="p/a", Body=b"2" * 3_000_000)
        with pytest.raises(TemporaryError, match="changed while it was read"):
            await stream.read()


@both_kinds
async def test_a_large_write_that_fails_leaves_no_member_and_no_parts(
    kind: str, proxy: Proxy, server: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket = server.bucket()
    repository = made(kind, proxy, bucket)
    for module in (objects, s3_clients):
        monkeypatch.setattr(module, "PART_BYTES", 5 * 1024 * 1024)
    proxy.script = lambda method, path, number: Answer(400, "Broken") if "partNumber=3" in path else None
    with pytest.raises(StoreError, match="refuses it"):
        await write(repository, "a", bytes(16_000_000))
    assert await listed(repository) == []
    assert not server.client().list_multipart_uploads(Bucket=bucket).get("Uploads")
    retry = {
        "max_retries": 9,
        "backoff": {"init_backoff": timedelta(milliseconds=1), "max_backoff": timedelta(milliseconds=9)},
    }
    monkeypatch.setattr(objects, "RETRY", retry)
    repository = made(kind, proxy, bucket)
    proxy.script = sometimes(0.3, Answer(503, "SlowDown"), Answer(500, "InternalError"))
    await write(repository, "a", data := os.urandom(16_000_000))
    assert await read(repository, "a") == data
    assert not server.client().list_multipart_uploads(Bucket=bucket).get("Uploads")


# --- answers that are lost -----------------------------------------------------------------------------


@pytest.mark.scaled
@both_kinds
async def test_an_answer_that_is_lost_makes_no_wrong_verdict(
    kind: str, proxy: Proxy, server: Service
) -> None:
    """The write was made, then its client hears that there is something already: that is itself."""
    bucket = server.bucket()
    store = made(kind, proxy, bucket).store
    proxy.script = sometimes(0.5, LOSE, only=lambda method, path: method == "PUT")
    for n in range(by_effort(quick=8, thorough=60, soak=1000)):
        mine = Write(repository="r", job=f"j{n}", data=b"mine %d" % n, over_version=ABSENT_VERSION)
        version = await store.put(mine)
        assert version == await store.version(f"j{n}")
        other = Write(repository="r", job=f"j{n}", data=b"other", over_version=ABSENT_VERSION)
        with pytest.raises(ConflictError):
            await store.put(other)
        again = Write(repository="r", job=f"j{n}", data=b"again", over_version=version)
        assert await store.put(again) not in (None, version)
    assert proxy.struck > n


# --- pipelines -----------------------------------------------------------------------------------------


def copying(kind: str, proxy: Proxy, bucket: str, log: Path) -> Pipeline:
    task = InProcessSyncTask("copy", LogMetadataRepository("done"))
    if kind == "address":
        source: Any = BucketRepository(f"s3://{bucket}/in", endpoint=proxy.endpoint, poll_seconds=0.1)
        target: Any = BucketRepository(f"s3://{bucket}/out", endpoint=proxy.endpoint, poll_seconds=0.1)
    else:
        source = S3BucketRepository(LazyClient(proxy.endpoint), bucket, "in/", poll_seconds=0.1)
        target = S3BucketRepository(LazyClient(proxy.endpoint), bucket, "out/", poll_seconds=0.1)
    task.link("source", source, is_input=True)
    task.link("target", target, is_output=True)

    @task
    async def copy(job: str, source: Any, target: Any) -> None:
        await write(target, job, await read(source, job))

    return Pipeline([task], Session(), [], log=f"sqlite:///{log}", durability="process")


@both_kinds
async def test_a_fifth_of_all_answers_says_later_and_no_job_fails(
    kind: str, proxy: Proxy, server: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3_requests, "PAGE", 7)
    monkeypatch.setattr(s3_clients, "PAGE", 7)
    bucket, client = server.bucket(), server.client()
    for n in range(30):
        client.put_object(Bucket=bucket, Key=f"in/j{n}", Body=b"%d" % n)
    proxy.script = sometimes(0.2, Answer(429, "TooManyRequests"), Answer(503, "SlowDown"))
    async with copying(kind, proxy, bucket, tmp_path / "log.db") as pipeline:
        await pipeline.run()
    with History(tmp_path / "log.db") as history:
        assert [run["state"] for run in history.runs()] == ["succeeded"] * 30
    assert [key for key in server.keys(bucket) if key.startswith("out/")] == sorted(
        f"out/j{n}" for n in range(30)
    )
    assert proxy.struck > 10


@pytest.mark.parametrize(
    ("kind", "answer"),
    [
        ("address", Answer(500, "InternalError")),
        ("address", Answer(403, "AccessDenied")),
        ("address", Cut(300)),
        ("client", Answer(404, "NoSuchBucket")),
    ],
    ids=str,
)
async def test_a_listing_that_fails_half_way_deletes_nothing(
    kind: str, answer: Any, proxy: Proxy, server: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3_requests, "PAGE", 3)
    monkeypatch.setattr(s3_clients, "PAGE", 3)
    bucket, client = server.bucket(), server.client()
    for n in range(10):
        client.put_object(Bucket=bucket, Key=f"in/j{n}", Body=b"%d" % n)
    async with copying(kind, proxy, bucket, tmp_path / "log.db") as pipeline:
        await pipeline.run()
        proxy.script = lambda method, path, number: answer if "continuation-token" in path else None
        running = asyncio.create_task(pipeline.run(forever=True))
        while proxy.struck < 3:
            await asyncio.sleep(0.01)
        proxy.script = lambda method, path, number: None
        client.delete_object(Bucket=bucket, Key="in/j0")
        source: Any = pipeline.tasks["copy"].links["source"].repo
        while "j0" in (members := source.binding.members(source.id)):
            assert len(members) >= 9
            await asyncio.sleep(0.01)
        running.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await running
    with History(tmp_path / "log.db") as history:
        gone = [recorded.event.job for recorded in history.events(kind="ValueDeleted")]
    assert gone == ["j0"]
