"""MongoDB with cuts between: answers that are lost, streams that go on, places that are lost, servers without streams."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from datatask import MongoMetadataRepository
from datatask.adapters.store import mongo_changes, mongo_repositories, resuming
from datatask.adapters.store.inputs import NotPermittedError
from datatask.adapters.store.mongo import MongoStore
from datatask.engine.ports import Appeared, Change, Doubtful, Vanished
from datatask.engine.run_context import ABSENT_VERSION
from datatask.schema.errors import ConflictError
from datatask.schema.messages import Write
from tests import mongo_kit
from tests.contract.remote_kit import documents
from tests.effort import by_effort
from tests.mongo_kit import Mongo
from tests.run_kit import until
from tests.tcp_proxy import between

pytestmark = pytest.mark.server("secantusd-py")


@pytest.fixture(autouse=True)
def _little_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    # the server tells its own address, and clients would go there, past the proxy
    monkeypatch.setitem(mongo_repositories.OPTIONS, "directConnection", True)
    monkeypatch.setitem(mongo_repositories.OPTIONS, "serverSelectionTimeoutMS", 2_000)
    monkeypatch.setattr(resuming, "PAUSE_SECONDS", 0.001)
    monkeypatch.setattr(mongo_changes, "REST_SECONDS", 0.01)
    monkeypatch.setattr(mongo_changes, "REST_SECONDS_MAX", 0.1)
    monkeypatch.setattr(mongo_changes, "WAIT_MS", 100)


@pytest.fixture
def server(object_store: Callable[[str], Any]) -> Mongo:
    found: Mongo = object_store("secantusd-py")
    return found


def store_of(server: Mongo, name: str, port: int | None = None) -> MongoStore:
    store = MongoMetadataRepository(server.address(name, port)).store
    assert isinstance(store, MongoStore)
    return store


def write(job: str, n: int, over: str | None = None) -> Write:
    return Write(repository="r", job=job, over_version=over, **documents(n))


async def test_lost_answers_make_no_wrong_verdict(server: Mongo) -> None:
    """Each write's answer is lost at least once; PyMongo tries once more itself, and so do we."""
    name, creates = server.collection(), by_effort(quick=4, thorough=60, soak=1000)
    with between(server.port) as proxy:
        proxy.lose = lambda command, number: (
            command in ("insert", "update", "findAndModify") and number % 3 != 0
        )
        store = store_of(server, name, proxy.port)
        server.put(name, "taken", {"n": -1})
        for n in range(creates):
            first = await store.put(write(f"j{n}", n, ABSENT_VERSION))
            second = await store.put(write(f"j{n}", n + 1, first))
            with pytest.raises(ConflictError):
                await store.put(write(f"j{n}", n + 2, first))
            with pytest.raises(ConflictError):
                await store.put(write("taken", n, ABSENT_VERSION))
            assert await store.version(f"j{n}") == second
        await store.delete("j0")
        assert proxy.lost >= creates
    assert server.get(name, "taken") == {"_id": "taken", "n": -1}
    assert sorted(server.names(name)) == sorted(["taken", *(f"j{n}" for n in range(1, creates))])


async def test_a_listing_that_is_cut_goes_on_with_the_page(server: Mongo) -> None:
    name = server.collection()
    database, _, collection = name.partition(".")
    with server.client() as client:
        client[database][collection].insert_many([{"_id": f"j{n:04}"} for n in range(2_500)])
    with between(server.port) as proxy:
        proxy.lose = lambda command, number: command in ("find", "getMore") and number % 2 == 1
        found = [member.job async for member in store_of(server, name, proxy.port).list()]
        assert proxy.lost > 2
    assert found == [f"j{n:04}" for n in range(2_500)]


async def told_of(server: Mongo, name: str, port: int) -> tuple[MongoStore, list[Change], Any]:
    """Return a store that is followed, what it tells, and what ends that."""
    told: list[Change] = []
    store = store_of(server, name, port)
    stop = store.watch(told.append)
    assert stop is not None
    assert [member async for member in store.list()] == []
    return store, told, stop


async def test_a_stream_that_is_cut_goes_on_from_its_place(server: Mongo) -> None:
    name = server.collection()
    with between(server.port) as proxy:
        _, told, stop = await told_of(server, name, proxy.port)
        server.put(name, "a", {"n": 1})
        await until(lambda: told)
        proxy.shut.set()
        proxy.cut()
        server.put(name, "b", {"n": 1})
        server.delete(name, "a")
        proxy.shut.clear()
        await until(lambda: len(told) >= 3)
        stop()
    kinds = [(type(change), getattr(change, "job", None)) for change in told]
    assert kinds == [(Appeared, "a"), (Appeared, "b"), (Vanished, "a")]


async def test_a_place_that_is_lost_leads_to_a_listing_and_never_to_from_now(
    server: Mongo, caplog: pytest.LogCaptureFixture
) -> None:
    """The place is made one that the server does not know; what was written meanwhile is in doubt, not passed over."""
    name = server.collection()
    with between(server.port) as proxy:
        store, told, stop = await told_of(server, name, proxy.port)
        server.put(name, "a", {"n": 1})
        await until(lambda: told)
        proxy.shut.set()
        proxy.cut()
        follower = store.follower
        assert follower is not None
        with caplog.at_level(logging.DEBUG, logger="datatask.repository"):
            server.put(name, "missed", {"n": 1})
            await until(lambda: "was cut" in caplog.text)  # PyMongo has given up to go on by itself
            follower._place = {"_data": "82000000010000000129"}
            proxy.shut.clear()
            await until(lambda: any(isinstance(change, Doubtful) for change in told))
        server.put(name, "later", {"n": 1})
        await until(lambda: any(getattr(change, "job", "") == "later" for change in told))
        stop()
    assert "its place in the change stream is lost" in caplog.text


async def test_a_collection_that_is_dropped_is_in_doubt_as_a_whole(server: Mongo) -> None:
    name = server.collection()
    _, told, stop = await told_of(server, name, server.port)
    server.put(name, "a", {"n": 1})
    await until(lambda: told)
    server.drop(name)
    await until(lambda: any(isinstance(change, Doubtful) and change.lost for change in told))
    server.put(name, "b", {"n": 1})
    await until(
        lambda: any(getattr(change, "job", "") == "b" or isinstance(change, Doubtful) for change in told[2:])
    )
    stop()


async def test_who_gets_in_is_said_by_the_environment_and_no_password_is_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with mongo_kit.running(tmp_path) as server, server.client() as client:
        roles = [{"role": "readWriteAnyDatabase", "db": "admin"}]
        client.admin.command("createUser", "me", pwd="hunter2", roles=roles)
    with mongo_kit.running(tmp_path, "--auth") as server:
        monkeypatch.setenv("MONGODB_USERNAME", "me")
        for password in ("wrong-word", None):
            if password is None:
                monkeypatch.delenv("MONGODB_USERNAME")
            else:
                monkeypatch.setenv("MONGODB_PASSWORD", password)

            async def refused() -> None:
                with pytest.raises(NotPermittedError) as caught:
                    await MongoMetadataRepository(server.address("tests.c")).contains("a")
                assert "word" not in str(caught.value).replace("MONGODB_PASSWORD", "")

            await asyncio.to_thread(asyncio.run, refused())
        monkeypatch.setenv("MONGODB_PASSWORD", "hunter2")
        repository = MongoMetadataRepository(f"mongodb://me@127.0.0.1:{server.port}/tests.c")
        await repository.dump("a", {"n": 1})
        assert await repository.contains("a")
        assert "hunter2" not in repr(repository) + str(repository.locator())
