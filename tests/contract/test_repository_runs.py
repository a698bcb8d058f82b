"""Repositories within a run, in a folder, and in a worker."""

from __future__ import annotations

import asyncio
import pickle
from pathlib import Path

import pytest

from datatask.adapters.store.directories import DirectoryRepository
from datatask.adapters.store.inprocess import (
    InProcessBlobRepository,
    InProcessMetadataRepository,
)
from datatask.engine.api.repositories import BlobRepository
from datatask.engine.run_context import READS_MAX, RunContext, current_run
from datatask.schema.errors import CallerError
from datatask.schema.messages import Write
from datatask.schema.values import decode_value
from tests.contract.repository_kit import KINDS, Case, FakeEngine, a_run, every_kind, made, running


@pytest.fixture
def engine(tmp_path: Path) -> FakeEngine:
    return FakeEngine(tmp_path / "blobs")


in_the_overlay = pytest.mark.parametrize(
    "kind", [kind for kind in KINDS if "log" in kind or "process" in kind]
)


on_files = pytest.mark.parametrize("kind", ["files", "yaml", "yaml, recorded"])


@every_kind
async def test_a_run_sees_its_own_writes(kind: str, tmp_path: Path, engine: FakeEngine) -> None:
    case = await made(kind, tmp_path, engine)
    await case.write("old", "1")
    with running(a_run()):
        await case.write("new", "2")
        assert (await case.read("new"), await case.members()) == ("2", ["new", "old"])
        await case.write("old", "3")
        assert await case.read("old") == "3"
        await case.repository.delete("old")
        assert (await case.read("old"), await case.members()) == (None, ["new"])


@in_the_overlay
async def test_nothing_of_a_run_is_seen_outside_before_its_end(
    kind: str, tmp_path: Path, engine: FakeEngine
) -> None:
    case = await made(kind, tmp_path, engine)
    await case.write("old", "1")
    engine.asked.clear()
    run = a_run()
    with running(run):
        await case.write("new", "2")
        await case.repository.delete("old")
    assert (await case.members(), engine.asked) == (["old"], [])
    await engine.settle(run)
    assert (await case.members(), await case.read("new")) == (["new"], "2")
    assert engine.asked == [("put", "r", "new"), ("delete", "r", "old")]


@on_files
async def test_a_run_writes_files_at_once_and_tells_the_engine_at_its_end(
    kind: str, tmp_path: Path, engine: FakeEngine
) -> None:
    case = await made(kind, tmp_path, engine)
    run = a_run()
    with running(run):
        await case.write("new", "2")
        await case.write("gone", "2")
        await case.repository.delete("gone")
    assert (await case.members(), engine.asked) == (["new"], [])
    put, deleted = await run.settle()
    assert (put.job, put.op, put.version) == ("new", "put", await case.repository.store.version("new"))
    assert (put.data, put.source) == (None, None)
    assert bool(put.value) is (kind == "yaml, recorded")
    assert (deleted.job, deleted.op, deleted.version) == ("gone", "delete", "")


@every_kind
async def test_a_run_that_has_ended_writes_no_more(kind: str, tmp_path: Path, engine: FakeEngine) -> None:
    case = await made(kind, tmp_path, engine)
    await case.write("old", "1")
    run = a_run()
    run.fence()
    with running(run):
        for attempt in (case.write("new", "2"), case.repository.delete("old")):
            with pytest.raises(CallerError, match="run 7 has ended; its later writes are fenced off"):
                await attempt
    assert (run.fenced, run.writes(), await case.members()) == (True, (), ["old"])


@in_the_overlay
async def test_a_stream_that_a_run_left_open_cannot_be_committed_afterwards(
    kind: str, tmp_path: Path, engine: FakeEngine
) -> None:
    case = await made(kind, tmp_path, engine)
    if not isinstance(case.repository, BlobRepository):
        return
    run = a_run()
    with running(run):
        stream = await case.repository.open("a", "w")
        await stream.write("late")
        await run.settle()
        with pytest.raises(CallerError, match="fenced"):
            await stream.close()
    assert await case.members() == []


async def test_the_order_of_a_runs_writes_is_that_of_the_last_ones(engine: FakeEngine) -> None:
    run = a_run()
    for job in ("x", "y", "x"):
        run.put(Write(repository="r", job=job))
    assert [write.job for write in run.writes()] == ["y", "x"]
    assert run.written("r", "z") is None
    assert set(run.written_in("r")) == {"x", "y"}


async def test_what_a_run_read_is_noted_with_its_position(tmp_path: Path, engine: FakeEngine) -> None:
    case = await made("log documents", tmp_path, engine)
    await case.write("a", "1")
    await case.write("b", "2")
    run = a_run("a")
    with running(run):
        await case.read("a")
        await case.read("b")
        await case.write("c", "3")
        await case.read("c")
    assert run.reads == {"r": 1, "r/b": 2}
    for n in range(2 * READS_MAX):
        run.note_read("r", f"j{n}", n)
    assert len(run.reads) == READS_MAX


async def test_concurrent_runs_do_not_see_each_other(tmp_path: Path, engine: FakeEngine) -> None:
    case = await made("documents in process", tmp_path, engine)

    async def function(run: RunContext) -> list[str]:
        current_run.set(run)
        await case.write(run.job, "1")
        await asyncio.sleep(0)
        return await case.members()

    assert await asyncio.gather(*(asyncio.create_task(function(a_run(job))) for job in "abc")) == [
        ["a"],
        ["b"],
        ["c"],
    ]


async def test_threads_write_to_their_runs_overlay(tmp_path: Path, engine: FakeEngine) -> None:
    case = await made("log documents", tmp_path, engine)
    run = a_run()

    def function() -> None:
        current_run.set(run)
        asyncio.run(case.write("a", "1"))

    await asyncio.to_thread(function)
    (write,) = run.writes()
    assert decode_value(write.value) == {"text": "1"}


@pytest.mark.parametrize("fill", [True, False])
async def test_a_folder_that_a_run_made_counts_with_what_is_in_it_at_the_end(
    fill: bool, tmp_path: Path, engine: FakeEngine
) -> None:
    repository = DirectoryRepository(tmp_path / "d", discard_empty=True)
    await repository.validate()
    engine.open(r=repository)
    run = a_run()
    with running(run):
        await repository.mkdir("a")
        await repository.mkdir("a")
        if fill:
            (Path(await repository.info("a")) / "file").write_text("x")
    writes = await run.settle()
    assert [(write.job, write.version) for write in writes] == (
        [("a", await repository.store.version("a"))] if fill else []
    )


async def test_making_a_folder_is_a_change_unless_empty_ones_are_discarded(
    tmp_path: Path, engine: FakeEngine
) -> None:
    kept, discarded = (
        DirectoryRepository(tmp_path / "k"),
        DirectoryRepository(tmp_path / "d", discard_empty=True),
    )
    engine.open(k=kept, d=discarded)
    for repository in (kept, discarded):
        await repository.validate()
        await repository.mkdir("a")
    assert engine.asked == [("put", "k", "a")]
    assert (await kept.contains("a"), await discarded.contains("a")) == (True, False)


@every_kind
async def test_a_repository_goes_to_a_worker_with_its_id_and_without_the_engine(
    kind: str, tmp_path: Path, engine: FakeEngine
) -> None:
    case = await made(kind, tmp_path, engine)
    await case.write("a", "1")
    there = pickle.loads(pickle.dumps(case.repository))
    assert (there.id, there.binding, there.medium) == ("r", None, case.repository.medium)
    if there.medium != "mirror":
        there.bind("r", engine)
        assert await Case(there).read("a") == "1"
    else:
        assert there.data == {}


async def test_in_a_worker_a_dict_is_read_through_the_binding(tmp_path: Path, engine: FakeEngine) -> None:
    documents, blobs = InProcessMetadataRepository(), InProcessBlobRepository()
    engine.open(documents=documents, blobs=blobs)
    await documents.dump("a", {"n": 1})
    digest, size = engine.blobs.put_bytes(b"bytes")
    await engine.put("blobs", Write(repository="blobs", job="a", digest=digest, size=size))
    worker = {id: pickle.loads(pickle.dumps(repository)) for id, repository in engine.repositories.items()}
    for id, repository in worker.items():
        repository.bind(id, engine)
    assert await worker["documents"].info("a") == {"n": 1}
    assert await worker["documents"].info("b") is None
    assert [job async for job in worker["blobs"]] == ["a"]
    async with worker["blobs"].open("a", "rb") as stream:
        assert await stream.read() == b"bytes"
    run = a_run()
    with running(run):
        await worker["documents"].dump("b", {"n": 2})
        assert await worker["documents"].info("b") == {"n": 2}
    assert documents.data == {"a": {"n": 1}}
    assert [write.job for write in run.writes()] == ["b"]
