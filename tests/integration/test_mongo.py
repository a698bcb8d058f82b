"""Pipelines over collections of a real server: change streams, documents of any size, collections that the user hands over."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from datatask import (
    History,
    InProcessSyncTask,
    LogMetadataRepository,
    MongoMetadataRepository,
    Pipeline,
    Session,
)
from datatask.schema.errors import DatataskError, InvalidValueError
from tests.mongo_kit import Mongo
from tests.run_kit import until

pytestmark = pytest.mark.server("secantusd-py")


@pytest.fixture
def server(object_store: Callable[[str], Any]) -> Mongo:
    found: Mongo = object_store("secantusd-py")
    return found


def upper(source: str, target: str, log: Path, **options: Any) -> Pipeline:
    task = InProcessSyncTask("upper", LogMetadataRepository("done"))
    task.link("source", MongoMetadataRepository(source, **options), is_input=True)
    task.link("result", MongoMetadataRepository(target, **options), is_output=True)

    async def work(job: str, source: MongoMetadataRepository, result: MongoMetadataRepository) -> None:
        await result.dump(job, {"text": (await source.info(job))["text"].upper()})

    task(work)
    return Pipeline([task], Session(), [], log=f"sqlite:///{log}")


async def test_jobs_in_a_collection_run_once_and_what_is_no_job_is_passed_over(
    server: Mongo, tmp_path: Path
) -> None:
    source, target = server.collection(), server.collection()
    for n in range(5):
        server.put(source, f"j{n}", {"text": "abc"})
    server.put(source, 17, {"text": "abc"})
    for _ in range(2):  # a second engine finds nothing to do
        pipeline = upper(server.address(source), server.address(target), tmp_path / "log.db")
        async with pipeline:
            await pipeline.run()
    assert sorted(server.names(target)) == [f"j{n}" for n in range(5)]
    assert server.get(target, "j3") == {"_id": "j3", "text": "ABC"}
    with History(tmp_path / "log.db") as history:
        assert [run["state"] for run in history.runs()] == ["succeeded"] * 5


async def test_changes_are_told_by_the_server_and_nothing_is_listed_again(
    server: Mongo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from datatask.adapters.store.mongo import MongoStore

    source, target = server.collection(), server.collection()
    server.put(source, "first", {"text": "abc"})
    pipeline = upper(server.address(source), server.address(target), tmp_path / "log.db", poll_seconds=0.1)
    async with pipeline:
        listed: list[str] = []
        each = MongoStore.each

        def noted(self: MongoStore, pick: Any) -> Any:
            listed.append(self.where)
            return each(self, pick)

        monkeypatch.setattr(MongoStore, "each", noted)
        serving = asyncio.create_task(pipeline.run(forever=True))
        server.put(source, "late", {"text": "abc"})
        await until(lambda: server.get(target, "late"))
        server.put(source, "other", {"text": "abc"})
        server.delete(source, "other")
        server.put(source, "last", {"text": "abc"})
        await until(lambda: server.get(target, "last"))
        serving.cancel()
        await asyncio.gather(serving, return_exceptions=True)
    assert listed == []
    with History(tmp_path / "log.db") as history:
        assert {run["job"] for run in history.runs()} >= {"first", "late", "last"}


@pytest.mark.parametrize(
    "document",
    [{"text": "x" * 17_000_000}, {"n": 2**80}, {"$set": 1}],
    ids=["17 MB", "integer", "dollar"],
)
async def test_what_mongodb_does_not_take_stands_beside_and_goes_with_its_job(
    server: Mongo, document: dict[str, Any]
) -> None:
    name = server.collection()
    repository = MongoMetadataRepository(server.address(name))
    await repository.dump("a", document)
    await repository.dump("b", {"n": 1})
    assert await repository.info("a") == {"_id": "a", **document}
    assert await repository.info_all() == {"a": {"_id": "a", **document}, "b": {"_id": "b", "n": 1}}
    beside = f"{name}.datatask_beside"
    assert (
        len(server.names(beside)) == len(str(document["text"])) // 4_194_304 + 1 if "text" in document else 1
    )
    await repository.dump("a", {"n": 2**90})
    assert (await repository.info("a"))["n"] == 2**90
    assert len(server.names(beside)) == 1
    await repository.dump("a", {"n": 2})
    assert (await repository.info("a"), server.names(beside)) == ({"_id": "a", "n": 2}, [])
    await repository.dump("a", document)
    await repository.delete("a")
    assert (await repository.info("a"), server.names(beside)) == ({}, [])


@asynccontextmanager
async def pymongo_collection(server: Mongo) -> AsyncIterator[Any]:
    from pymongo import AsyncMongoClient

    async with AsyncMongoClient[dict[str, Any]]("127.0.0.1", server.port) as client:
        yield client["tests"][server.collection().partition(".")[2]]


@asynccontextmanager
async def motor_collection(server: Mongo) -> AsyncIterator[Any]:
    import motor.motor_asyncio as motor

    client: Any = motor.AsyncIOMotorClient("127.0.0.1", server.port)
    try:
        yield client["tests"][server.collection().partition(".")[2]]
    finally:
        client.close()


@pytest.mark.parametrize("made", [pymongo_collection, motor_collection], ids=["pymongo", "motor"])
async def test_a_script_for_pydatatask_hands_over_its_collection(
    made: Any, server: Mongo, tmp_path: Path
) -> None:
    session = Session()

    @session.resource
    async def collection() -> AsyncIterator[Any]:
        async with made(server) as found:
            yield found

    source = MongoMetadataRepository(collection, "source")
    target = MongoMetadataRepository(collection, "target")
    task = InProcessSyncTask("upper", MongoMetadataRepository(collection, "done"))
    task.link("source", source, is_input=True)
    task.link("target", target, is_output=True)

    @task
    async def work(job: str, source: MongoMetadataRepository, target: MongoMetadataRepository) -> None:
        await target.dump(job, {"text": (await source.info(job))["text"].upper()})

    pipeline = Pipeline([task], session, [], log=f"sqlite:///{tmp_path / 'log.db'}")
    async with pipeline:
        await source.collection.insert_one({"_id": "a", "text": "abc"})
        serving = asyncio.create_task(pipeline.run(forever=True))
        for _ in range(600):
            if await target.contains("a") and await task.done.contains("a"):
                break
            await asyncio.sleep(0.1)
        serving.cancel()
        await asyncio.gather(serving, return_exceptions=True)
        assert await target.info("a") == {"_id": "a", "text": "ABC"}
        assert await target.info("absent") == {}
        assert (await task.done.info("a"))["result"] == "success"
        assert await source.info_all() == {"a": {"_id": "a", "text": "abc"}}
        assert await target.collection.count_documents({}) == 1


@pytest.mark.parametrize(
    ("url", "what"),
    [
        ("mongodb://host", "does not name a database and a collection"),
        ("mongodb://host/db", "does not name a database and a collection"),
        ("mongodb://host/db.", "does not name a database and a collection"),
        ("mongodb://host/.c", "does not name a database and a collection"),
        ("mongodb://host/db.a$b", "does not name a database and a collection"),
        ("mongodb://host/db.system.users", "does not name a database and a collection"),
        ("mongodb://host/" + "d" * 64 + ".c", "does not name a database and a collection"),
        ("mongodb://me:hunter2@host/db.c", "has a password in it"),
        ("mongodb://host/db.c?password=hunter2", "has a query"),
        ("http://host/db.c", "of another kind"),
    ],
)
def test_a_wrong_address_is_refused_in_one_line_that_shows_no_secret(url: str, what: str) -> None:
    with pytest.raises(InvalidValueError, match=what) as caught:
        MongoMetadataRepository(url)
    assert "hunter2" not in str(caught.value)
    assert "\n" not in str(caught.value)


async def test_a_document_that_is_no_mapping_is_refused_before_it_is_written(server: Mongo) -> None:
    repository = MongoMetadataRepository(server.address(server.collection()))
    with pytest.raises(InvalidValueError, match="a MongoDB document is a dict, not a list"):
        await repository.dump("a", [1])
    assert [job async for job in repository] == []


async def test_a_server_that_is_away_is_tried_again_and_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from datatask.adapters.store import mongo_repositories, resuming
    from tests.object_stores import free_port

    monkeypatch.setattr(resuming, "TRIES", 2)
    monkeypatch.setitem(mongo_repositories.OPTIONS, "serverSelectionTimeoutMS", 50)
    repository = MongoMetadataRepository(f"mongodb://127.0.0.1:{free_port()}/db.c")
    with pytest.raises(DatataskError, match=r"mongodb://127.0.0.1:\d+/db.c a: it does not answer") as caught:
        await repository.contains("a")
    assert "\n" not in str(caught.value)
