"""What every repository that is elsewhere promises, over real servers: whole values, whole listings, nothing before a run's end."""

from __future__ import annotations

import logging
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from datatask.engine.api.repositories import BlobRepository
from datatask.engine.ports import Store
from datatask.engine.run_context import ABSENT_VERSION
from datatask.schema.errors import ConflictError, InvalidJobError, TemporaryError
from datatask.schema.messages import Write
from tests.contract.remote_kit import Remote, every_backend, every_blob_backend
from tests.contract.repository_kit import Case, FakeEngine, a_run, running
from tests.object_stores import Service, environment

TRICKS = ("..", "../x", "a/b", "/x", "", ".", ".hidden", "a\x00b", "a\n", "é", "a%20b", "a/", "x" * 129)
Make = Callable[[Service], Remote]
Serve = Callable[[str], Service]


@pytest.fixture(autouse=True)
def _let_in(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in environment().items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def remote(make: Make, server: str, object_store: Serve) -> Remote:
    return make(object_store(server))


@pytest.fixture
def engine(tmp_path: Path) -> FakeEngine:
    return FakeEngine(tmp_path / "blobs")


async def listed(store: Store) -> dict[str, str | None]:
    return {member.job: member.version async for member in store.list()}


def write(remote: Remote, job: str, n: int = 1, **more: Any) -> Write:
    return Write(repository="r", job=job, **remote.content(n), **more)


@every_backend
async def test_what_is_put_is_listed_under_the_version_that_put_returned(remote: Remote) -> None:
    store = remote.repository.store
    assert await listed(store) == {}
    versions = {job: await store.put(write(remote, job)) for job in ("a", "B.c", "0-x_9", "y" * 128)}
    assert await listed(store) == versions
    assert {job: await store.version(job) for job in versions} == versions
    assert None not in versions.values()
    second = await store.put(write(remote, "a", 2))
    assert second != versions["a"]
    assert await store.version("a") == second
    assert sorted(remote.names()) == sorted(map(remote.name_of, versions))


@every_backend
async def test_deleting_removes_the_member_and_deleting_an_absent_one_is_fine(remote: Remote) -> None:
    store = remote.repository.store
    await store.put(write(remote, "a"))
    await store.put(write(remote, "b"))
    await store.delete("a")
    await store.delete("a")
    assert list(await listed(store)) == ["b"]
    assert await store.version("a") is None


@every_backend
async def test_a_name_that_is_no_job_id_is_refused_everywhere(remote: Remote) -> None:
    store = remote.repository.store
    for job in TRICKS:
        for attempt in (store.put(write(remote, job)), store.delete(job), store.version(job)):
            with pytest.raises(InvalidJobError):
                await attempt
    assert remote.names() == []


@every_backend
async def test_odd_names_never_become_jobs_and_end_no_listing(
    remote: Remote, caplog: pytest.LogCaptureFixture
) -> None:
    await remote.write("good", "1")
    for name in remote.odd:
        remote.plant(name, b"text: x")
    with caplog.at_level(logging.WARNING, logger="datatask.repository"):
        assert await remote.members() == ["good"]
        assert await remote.members() == ["good"]
    assert sum("b c" in record.getMessage() for record in caplog.records) == 1, "told by name, once"
    assert not {await remote.repository.contains(job) for job in ("a", "b", "r", "x")} - {False}
    await remote.repository.delete("a")
    assert set(remote.odd) < set(remote.names())


@every_backend
async def test_a_write_over_what_another_has_changed_is_a_conflict(remote: Remote, server: str) -> None:
    store = remote.repository.store
    first = await store.put(write(remote, "a", 1))
    second = await store.put(write(remote, "a", 2, over_version=first))
    for stale in (first, ABSENT_VERSION):
        with pytest.raises(ConflictError, match="key a of"):
            await remote.again().store.put(write(remote, "a", 3, over_version=stale))
    assert await store.version("a") == second
    assert await store.put(write(remote, "new", 1, over_version=ABSENT_VERSION))
    await store.delete("a")
    with pytest.raises(ConflictError):
        await store.put(write(remote, "a", 4, over_version=second))


@every_backend
async def test_a_write_whose_answer_was_lost_is_believed_when_it_is_tried_again(remote: Remote) -> None:
    store = remote.repository.store
    made = write(remote, "a", 1, over_version=ABSENT_VERSION)
    assert await store.put(made) == await remote.again().store.put(made)


@every_backend
async def test_a_store_that_is_gone_is_held_and_nothing_of_it_is_absent(remote: Remote) -> None:
    await remote.write("a", "1")
    remote.vanish()
    store = remote.again().store
    if remote.on_demand:
        assert await listed(store) == {}, "a loss of many is held by the engine"
        return
    for attempt in (listed(store), store.version("a"), store.delete("a"), store.put(write(remote, "b"))):
        with pytest.raises(TemporaryError, match="there is no"):
            await attempt
    with pytest.raises(TemporaryError, match="make it or correct the name"):
        await remote.again().check_input("t.i")


@every_blob_backend
async def test_bytes_stream_both_ways_and_a_body_that_raises_writes_nothing(remote: Remote) -> None:
    repository = remote.repository
    assert isinstance(repository, BlobRepository)
    sizes = {"none": 0, "small": 1_000, "large": 9_000_000}
    for job, size in sizes.items():
        async with repository.open(job, "wb") as stream:
            for at in range(0, size, 1_000_000):
                await stream.write(job[:1].encode() * min(1_000_000, size - at))
    for job, size in sizes.items():
        async with repository.open(job, "rb") as stream:
            first = await stream.read(10)
            assert first + await stream.read() == job[:1].encode() * size
            assert await stream.read() == b""
    for size in (10, 100_000):
        with pytest.raises(ZeroDivisionError):
            async with repository.open("half", "wb") as stream:
                await stream.write(b"x" * size)
                raise ZeroDivisionError
    assert await remote.members() == sorted(sizes)
    with pytest.raises(FileNotFoundError):
        async with repository.open("half", "rb"):
            pass


@every_backend
async def test_nothing_of_a_run_is_there_before_its_end(remote: Remote, engine: FakeEngine) -> None:
    engine.open(r=remote.repository)
    await remote.write("old", "1")
    engine.asked.clear()
    run = a_run()
    with running(run):
        await remote.write("new", "2")
        await remote.write("gone", "3")
        await remote.repository.delete("gone")
        await remote.repository.delete("old")
        assert (await remote.read("new"), await remote.members()) == ("2", ["new"])
    assert remote.names() == [remote.name_of("old")]
    assert engine.asked == []
    writes = await engine.settle(run)
    assert all(one.value or one.digest for one in writes if one.op == "put"), "an intent can name it"
    assert (await remote.members(), await remote.read("new")) == (["new"], "2")
    assert engine.blobs.stray() == []


@every_backend
async def test_a_run_that_overwrites_what_another_changed_meanwhile_is_in_conflict(
    remote: Remote, engine: FakeEngine
) -> None:
    engine.open(r=remote.repository)
    await remote.write("a", "1")
    run = a_run()
    with running(run):
        await remote.read("a")
        await remote.write("a", "2")
    remote.plant(remote.name_of("a"), b"text: other")
    (made,) = run.writes()
    assert made.over_version
    with pytest.raises(ConflictError):
        await engine.settle(run)
    assert await remote.read("a") == (
        "text: other" if remote.repository.is_blob() and "yaml" not in remote.name_of("a") else "other"
    )


@every_backend
async def test_a_repository_goes_to_a_worker_without_its_connections(
    remote: Remote, engine: FakeEngine
) -> None:
    engine.open(r=remote.repository)
    await remote.write("a", "1")
    there = pickle.loads(pickle.dumps(remote.repository))
    assert (there.id, there.binding, there.locator()) == ("r", None, remote.repository.locator())
    assert await Case(there).read("a") == "1"
