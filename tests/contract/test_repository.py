"""What every repository promises with an engine and within a run: log first, own writes seen, nothing leaks.

The engine here is a fake that follows `Binding` to the letter: it notes what it was asked, keeps the members,
and lets the store follow.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest

from datatask.adapters.store.directories import DirectoryRepository
from datatask.adapters.store.files import FileRepository
from datatask.adapters.store.inprocess import (
    InProcessBlobRepository,
    InProcessMetadataRepository,
    LogBlobRepository,
)
from datatask.adapters.store.yamls import YamlMetadataFileRepository
from datatask.engine.api.repositories import BlobRepository
from datatask.schema.errors import CallerError, InvalidJobError, UnknownNameError
from datatask.schema.messages import Write
from datatask.schema.values import INLINE_BYTES_MAX, decode_value
from tests.contract.repository_kit import KINDS, Case, FakeEngine, a_run, every_kind, made, running


@pytest.fixture
def engine(tmp_path: Path) -> FakeEngine:
    return FakeEngine(tmp_path / "blobs")


with_a_store = pytest.mark.parametrize("kind", [kind for kind in KINDS if not kind.startswith("log")])


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
