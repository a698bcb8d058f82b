"""What every repository promises with an engine and within a run: log first, own writes seen, nothing leaks.

The engine here is a fake that follows `Binding` to the letter: it notes what it was asked, keeps the members,
and lets the store follow.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import pickle
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from datatask.adapters.store.directories import DirectoryRepository
from datatask.adapters.store.files import FileRepository
from datatask.adapters.store.inprocess import (
    InProcessBlobRepository,
    InProcessMetadataRepository,
    LogBlobRepository,
    LogMetadataRepository,
)
from datatask.adapters.store.yamls import YamlMetadataFileRepository
from datatask.engine.api.repositories import BlobRepository, MetadataRepository, Repository
from datatask.engine.run_context import READS_MAX, RunContext, ValueRef, current_run, with_content
from datatask.schema.errors import CallerError, InvalidJobError, UnknownNameError
from datatask.schema.messages import Write
from datatask.schema.values import INLINE_BYTES_MAX, decode_value


class FakeBlobs:
    """Content-addressed bytes in a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(exist_ok=True)
        self._count = 0

    def put_bytes(self, data: bytes) -> tuple[str, int]:
        digest = hashlib.sha256(data).hexdigest()
        (self._folder / digest).write_bytes(data)
        return digest, len(data)

    def put_file(self, source: Path) -> tuple[str, int]:
        return self.put_bytes(source.read_bytes())

    def new(self) -> Path:
        self._count += 1
        return self._folder / f"new{self._count}"

    def adopt(self, path: Path) -> tuple[str, int]:
        named = self.put_bytes(path.read_bytes())
        path.unlink()
        return named

    def path(self, digest: str) -> Path:
        if not (self._folder / digest).exists():
            raise UnknownNameError(f"no blob {digest}")
        return self._folder / digest

    intact = path

    def stray(self) -> list[str]:
        return [path.name for path in self._folder.iterdir() if path.name.startswith("new")]


class FakeEngine:
    """A `Binding` that remembers what was asked, in order, before the store follows."""

    def __init__(self, folder: Path) -> None:
        self.blobs = FakeBlobs(folder)
        self.repositories: dict[str, Repository] = {}
        self.asked: list[tuple[str, str, str]] = []
        self.values: dict[tuple[str, str], ValueRef] = {}

    def open(self, **repositories: Repository) -> None:
        for id, repository in repositories.items():
            repository.bind(id, self)
            self.repositories[id] = repository

    async def put(self, repository_id: str, write: Write) -> None:
        assert write.repository == repository_id
        self.asked.append(("put", repository_id, write.job))
        digest, size = write.digest, write.size
        self.values[repository_id, write.job] = ValueRef(write.value, digest, size, len(self.asked))
        if self.repositories[repository_id].medium != "native":
            await self.repositories[repository_id].store.put(with_content(write, self.blobs))

    async def delete(self, repository_id: str, job: str) -> None:
        self.asked.append(("delete", repository_id, job))
        self.values.pop((repository_id, job), None)
        if self.repositories[repository_id].medium != "native":
            await self.repositories[repository_id].store.delete(job)

    def contains(self, repository_id: str, job: str) -> bool:
        return (repository_id, job) in self.values

    def position(self, repository_id: str) -> int:
        return len(self.asked)

    def members(self, repository_id: str) -> list[str]:
        return [job for id, job in self.values if id == repository_id]

    async def value(self, repository_id: str, job: str) -> ValueRef | None:
        return self.values.get((repository_id, job))

    async def settle(self, run: RunContext) -> tuple[Write, ...]:
        """End a run as the engine does: all its writes at once, what the store has already is only noted."""
        writes = await run.settle()
        for write in writes:
            if write.version is not None:
                self.values[write.repository, write.job] = ValueRef(write.value, write.digest, write.size, 1)
            elif write.op == "put":
                await self.put(write.repository, write)
            else:
                await self.delete(write.repository, write.job)
        return writes


@contextlib.contextmanager
def running(run: RunContext) -> Iterator[RunContext]:
    token = current_run.set(run)
    try:
        yield run
    finally:
        current_run.reset(token)


def a_run(job: str = "a") -> RunContext:
    return RunContext(7, "task", job)


@dataclass
class Case:
    """A repository under test, and how to write to it and read from it whatever its kind."""

    repository: Any

    async def write(self, job: str, text: str) -> None:
        if isinstance(self.repository, MetadataRepository):
            await self.repository.dump(job, {"text": text})
        else:
            async with self.repository.open(job, "w") as stream:
                await stream.write(text)

    async def read(self, job: str) -> str | None:
        if not await self.repository.contains(job):
            return None
        if isinstance(self.repository, MetadataRepository):
            return str((await self.repository.info(job))["text"])
        async with self.repository.open(job, "r") as stream:
            return str(await stream.read())

    async def members(self) -> list[str]:
        return sorted([job async for job in self.repository])


@pytest.fixture
def engine(tmp_path: Path) -> FakeEngine:
    return FakeEngine(tmp_path / "blobs")


KINDS: dict[str, Any] = {
    "log documents": lambda path: LogMetadataRepository("r"),
    "log bytes": lambda path: LogBlobRepository("r"),
    "documents in process": lambda path: InProcessMetadataRepository(),
    "bytes in process": lambda path: InProcessBlobRepository(),
    "files": lambda path: FileRepository(path / "files", ".txt"),
    "yaml": lambda path: YamlMetadataFileRepository(path / "yamls"),
    "yaml, recorded": lambda path: YamlMetadataFileRepository(path / "yamls", record="value"),
}


async def made(kind: str, path: Path, engine: FakeEngine | None = None) -> Case:
    repository = KINDS[kind](path)
    await repository.validate()
    if engine is not None:
        engine.open(r=repository)
    return Case(repository)


every_kind = pytest.mark.parametrize("kind", KINDS)
with_a_store = pytest.mark.parametrize("kind", [kind for kind in KINDS if not kind.startswith("log")])
in_the_overlay = pytest.mark.parametrize(
    "kind", [kind for kind in KINDS if "log" in kind or "process" in kind]
)
on_files = pytest.mark.parametrize("kind", ["files", "yaml", "yaml, recorded"])


# --- by itself ------------------------------------------------------------------------------------------


@with_a_store
async def test_without_a_pipeline_it_works_on_its_store(kind: str, tmp_path: Path) -> None:
    case = await made(kind, tmp_path)
    await case.write("a", "1")
    await case.write("b", "2")
    await case.write("a", "longer")
    await case.write("a", "3")
    await case.repository.delete("b")
    await case.repository.delete("b")
    assert (await case.read("a"), await case.read("b"), await case.members()) == ("3", None, ["a"])


@pytest.mark.parametrize("kind", ["log documents", "log bytes"])
async def test_the_log_as_a_home_asks_for_an_open_pipeline(kind: str, tmp_path: Path) -> None:
    case = await made(kind, tmp_path)
    for attempt in (
        case.write("a", "1"),
        case.repository.contains("a"),
        case.repository.delete("a"),
        case.members(),
    ):
        with pytest.raises(CallerError, match="async with pipeline"):
            await attempt


@every_kind
async def test_names_that_are_no_job_ids_are_key_errors_in_every_operation(
    kind: str, tmp_path: Path, engine: FakeEngine
) -> None:
    case = await made(kind, tmp_path, engine)
    repository = case.repository
    for job in ("../x", "a/b", "", "é", ".a"):
        for call in (
            repository.contains,
            repository.info,
            repository.delete,
            lambda job: case.write(job, "1"),
        ):
            with pytest.raises(KeyError) as refused:
                await call(job)
            assert isinstance(refused.value, InvalidJobError)
    assert engine.asked == []


@with_a_store
async def test_a_body_that_raises_writes_nothing(kind: str, tmp_path: Path) -> None:
    case = await made(kind, tmp_path)
    if not isinstance(case.repository, BlobRepository):
        return
    await case.write("a", "before")
    for job in ("a", "b"):
        with pytest.raises(ZeroDivisionError):
            async with case.repository.open(job, "w") as stream:
                await stream.write("half")
                raise ZeroDivisionError
    assert (await case.read("a"), await case.members()) == ("before", ["a"])


# --- with an engine, outside a run --------------------------------------------------------------------------


@every_kind
async def test_with_a_pipeline_every_change_goes_through_the_engine(
    kind: str, tmp_path: Path, engine: FakeEngine
) -> None:
    case = await made(kind, tmp_path, engine)
    await case.write("a", "1")
    await case.write("b", "2")
    await case.repository.delete("b")
    assert engine.asked == [("put", "r", "a"), ("put", "r", "b"), ("delete", "r", "b")]
    assert (await case.read("a"), await case.members()) == ("1", ["a"])
    assert engine.blobs.stray() == []


@with_a_store
async def test_when_the_engine_refuses_the_store_stays_as_it_was(kind: str, tmp_path: Path) -> None:
    class Refusing(FakeEngine):
        async def put(self, repository_id: str, write: Write) -> None:
            raise CallerError("no")

    case = await made(kind, tmp_path, Refusing(tmp_path / "blobs"))
    with pytest.raises(CallerError, match="no"):
        await case.write("a", "1")
    assert await case.members() == []


@pytest.mark.parametrize("kind", ["log documents", "documents in process"])
async def test_large_documents_are_blobs(kind: str, tmp_path: Path, engine: FakeEngine) -> None:
    case = await made(kind, tmp_path, engine)
    text = "x" * (INLINE_BYTES_MAX + 1)
    await case.write("a", text)
    assert await case.read("a") == text
    assert (ref := engine.values["r", "a"]).digest is not None
    assert not ref.value
    run = a_run()
    with running(run):
        await case.write("b", text)
        assert await case.read("b") == text


async def test_a_repository_belongs_to_one_open_pipeline(tmp_path: Path, engine: FakeEngine) -> None:
    repository = InProcessMetadataRepository()
    with pytest.raises(CallerError, match="no id"):
        _ = repository.id
    engine.open(r=repository)
    engine.open(r=repository)
    with pytest.raises(CallerError, match="another open pipeline"):
        repository.bind("r", FakeEngine(tmp_path / "other"))
    repository.unbind()
    assert repository.id == "r"
    assert repository.binding is None


# --- within a run -------------------------------------------------------------------------------------------


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


# --- folders ---------------------------------------------------------------------------------------------------


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


# --- workers and names -------------------------------------------------------------------------------------------


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


def test_two_objects_on_one_place_have_one_locator(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert FileRepository("x/../y", ".txt").locator() == FileRepository(tmp_path / "y", ".txt").locator()
    others = [
        FileRepository("y"),
        FileRepository("y", ".txt", case_insensitive=True),
        YamlMetadataFileRepository("y", ".txt"),
        DirectoryRepository("y"),
        DirectoryRepository("y", discard_empty=True),
    ]
    assert len({repository.locator() for repository in others}) == len(others)
    assert InProcessBlobRepository().locator() is None


@pytest.mark.parametrize("record", ["version", "digest", "value"])
async def test_what_is_found_is_told_as_far_as_it_is_recorded(
    record: Any, tmp_path: Path, engine: FakeEngine
) -> None:
    yaml = YamlMetadataFileRepository(tmp_path / "y", record=record)
    await yaml.validate()
    (tmp_path / "y" / "a.yaml").write_text("n: 1\n")
    (tmp_path / "y" / "bad.yaml").write_text("n: [\n")
    engine.open(y=yaml)
    version = await yaml.store.version("a")
    write = yaml.observed("a", version)
    assert (write.repository, write.job, write.version) == ("y", "a", version)
    assert (write.digest is not None) is (record == "digest")
    assert (decode_value(write.value) if write.value else None) == ({"n": 1} if record == "value" else None)
    assert not yaml.observed("bad", "v").value, "what does not parse is a member all the same"


async def test_the_digest_of_a_file_is_recorded_where_that_is_asked(
    tmp_path: Path, engine: FakeEngine
) -> None:
    files = FileRepository(tmp_path / "f", record="digest")
    yaml = YamlMetadataFileRepository(tmp_path / "y", record="digest")
    engine.open(f=files, y=yaml)
    run = a_run()
    for repository in (files, yaml):
        await repository.validate()
        with running(run):
            await Case(repository).write("a", "x")
    for write, repository in zip(run.writes(), (files, yaml), strict=True):
        data = Path(repository.fullpath("a")).read_bytes()
        assert (write.digest, write.size) == (hashlib.sha256(data).hexdigest(), len(data))
        assert (repository.observed("a", write.version)) == write


async def test_bytes_in_the_log_have_a_path_and_absent_ones_an_error(
    tmp_path: Path, engine: FakeEngine
) -> None:
    repository = LogBlobRepository("r")
    engine.open(r=repository)
    async with repository.open("a", "wb") as stream:
        await stream.write(b"bytes")
    assert Path(str(await repository.info("a"))).read_bytes() == b"bytes"
    assert await repository.info("b") is None
    with pytest.raises(UnknownNameError):
        await repository.open("b")
    with pytest.raises(CallerError, match="has no store"):
        _ = repository.store
    assert repr(repository) == "LogBlobRepository('r')"


def test_what_is_found_in_a_dict_is_told_with_its_value(
    engine: FakeEngine, caplog: pytest.LogCaptureFixture
) -> None:
    documents = InProcessMetadataRepository({"a": [1], "big": "x" * INLINE_BYTES_MAX, "odd": object()})
    blobs = InProcessBlobRepository({"a": b"bytes"})
    engine.open(documents=documents, blobs=blobs)
    assert decode_value(documents.observed("a", "1").value) == [1]
    assert documents.observed("big", "1").size == INLINE_BYTES_MAX + 2
    assert documents.observed("odd", "1") == Write(repository="documents", job="odd", version="1")
    assert "are not recorded" in caplog.text
    assert blobs.observed("a", "1").digest == hashlib.sha256(b"bytes").hexdigest()
    plain = FileRepository("nowhere")
    engine.open(plain=plain)
    assert plain.observed("a", "1") == Write(repository="plain", job="a", version="1")


def test_a_record_that_is_no_choice_is_refused() -> None:
    with pytest.raises(CallerError, match="record="):
        InProcessBlobRepository(record="all")  # type: ignore[arg-type]


async def test_the_dict_that_a_user_passed_stays_the_one_that_is_used(engine: FakeEngine) -> None:
    data: dict[str, Any] = {"a": 1}
    repository = InProcessMetadataRepository(data, name="mine")
    assert repository.data is data
    engine.open(mine=repository)
    await repository.dump("b", {"n": [1, 2]})
    assert data == {"a": 1, "b": {"n": [1, 2]}}
    data["b"] = 5
    assert (await repository.info("b"), repr(repository)) == (
        5,
        "InProcessMetadataRepository(name='mine', 2 jobs)",
    )
