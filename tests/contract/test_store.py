"""What every store promises: whole values, whole listings, versions that tell changes, narrow names.

The same claims for files, YAML files, folders, dicts and the store of a repository that somebody else wrote.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import pytest

from datatask.adapters.store.directories import DirectoryRepository
from datatask.adapters.store.files import FileRepository
from datatask.adapters.store.inprocess import InProcessBlobRepository, InProcessMetadataRepository
from datatask.adapters.store.yamls import YamlMetadataFileRepository
from datatask.engine.api.repositories import MetadataRepository, Repository
from datatask.engine.ports import Appeared, Change, Listed, Store, Vanished
from datatask.schema.errors import CallerError, InvalidJobError, TemporaryError
from datatask.schema.messages import Write
from datatask.schema.values import encode_value
from tests.run_kit import until

TRICKS = [
    "..",
    "../x",
    "a/b",
    "/etc/passwd",
    "",
    ".",
    ".hidden",
    "a\x00b",
    "a\n",
    "é",
    "\u0430",
    "x" * 129,
    "a.",
    "-a",
]


class Opaque(MetadataRepository):
    """A repository as a user writes one: it lists itself and that is all that is known."""

    def __init__(self) -> None:
        self.documents: dict[str, Any] = {}

    async def unfiltered_iter(self) -> AsyncIterator[str]:
        for job in list(self.documents):
            yield job

    async def info(self, job: str) -> Any:
        return self.documents.get(job)

    async def dump(self, job: str, data: Any) -> None:
        self.documents[job] = data

    async def delete(self, job: str) -> None:
        self.documents.pop(job, None)


@dataclass
class Case:
    """A store under test, and what differs between them."""

    store: Store
    repository: Repository
    content: Callable[[int], dict[str, Any]]
    versioned: bool = True
    watched: bool = True


def documents(n: int) -> dict[str, Any]:
    return {"value": msgspec.Raw(encode_value({"n": n, "pad": "x" * n}))}


def blobs(n: int) -> dict[str, Any]:
    return {"data": b"x" * n}


async def files(path: Path) -> Case:
    repository = FileRepository(path / "files", ".txt")
    await repository.validate()
    return Case(repository.store, repository, blobs)


async def files_in_any_case(path: Path) -> Case:
    repository = FileRepository(path / "files", ".txt", case_insensitive=True)
    await repository.validate()
    return Case(repository.store, repository, blobs)


async def yamls(path: Path) -> Case:
    repository = YamlMetadataFileRepository(path / "yamls")
    await repository.validate()
    return Case(repository.store, repository, documents)


async def directories(path: Path) -> Case:
    repository = DirectoryRepository(path / "directories")
    await repository.validate()
    return Case(repository.store, repository, lambda _: {}, versioned=False)


async def metadata(path: Path) -> Case:
    repository = InProcessMetadataRepository()
    return Case(repository.store, repository, documents, watched=False)


async def bytes_in_process(path: Path) -> Case:
    repository = InProcessBlobRepository()
    return Case(repository.store, repository, blobs, watched=False)


async def opaque(path: Path) -> Case:
    repository = Opaque()
    return Case(repository.store, repository, documents, versioned=False, watched=False)


ALL = [files, files_in_any_case, yamls, directories, metadata, bytes_in_process, opaque]
ON_FILES = [files, files_in_any_case, yamls, directories]
HOLDING_BYTES = [files, files_in_any_case, yamls]
every_store = pytest.mark.parametrize("make", ALL)


async def listed(store: Store) -> dict[str, str | None]:
    return {member.job: member.version async for member in store.list()}


def write(case: Case, job: str, n: int = 1) -> Write:
    return Write(repository="r", job=job, **case.content(n))


# --- members and versions -----------------------------------------------------------------------------


@every_store
async def test_an_empty_store_lists_nothing(make: Any, tmp_path: Path) -> None:
    assert await listed((await make(tmp_path)).store) == {}


@every_store
async def test_what_is_put_is_listed_under_the_version_that_put_returned(make: Any, tmp_path: Path) -> None:
    case = await make(tmp_path)
    versions = {job: await case.store.put(write(case, job)) for job in ("a", "b.c", "0-x_9")}
    assert await listed(case.store) == versions
    for job, version in versions.items():
        assert version is not None
        assert await case.store.version(job) == version


@every_store
async def test_a_changed_value_has_another_version_and_the_same_name(make: Any, tmp_path: Path) -> None:
    case = await make(tmp_path)
    first = await case.store.put(write(case, "a", 1))
    second = await case.store.put(write(case, "a", 2))
    assert await listed(case.store) == {"a": second}
    assert (first != second) is case.versioned


@every_store
async def test_deleting_removes_the_member_and_deleting_an_absent_one_is_fine(
    make: Any, tmp_path: Path
) -> None:
    case = await make(tmp_path)
    await case.store.put(write(case, "a"))
    await case.store.put(write(case, "b"))
    await case.store.delete("a")
    await case.store.delete("a")
    assert list(await listed(case.store)) == ["b"]
    assert await case.store.version("a") is None


@every_store
async def test_a_name_that_is_no_job_id_is_refused_everywhere(make: Any, tmp_path: Path) -> None:
    case = await make(tmp_path)
    outside = tmp_path / "x"
    outside.write_text("keep")
    for job in TRICKS:
        for attempt in (case.store.put(write(case, job)), case.store.delete(job), case.store.version(job)):
            with pytest.raises(InvalidJobError):
                await attempt
    assert outside.read_text() == "keep"
    assert await listed(case.store) == {}


@every_store
async def test_the_identity_stays_while_members_change(make: Any, tmp_path: Path) -> None:
    case = await make(tmp_path)
    before = case.store.identity()
    await case.store.put(write(case, "a"))
    assert case.store.identity() == before


@every_store
async def test_many_writers_at_once_each_leave_a_whole_value(make: Any, tmp_path: Path) -> None:
    case = await make(tmp_path)
    await asyncio.gather(*(case.store.put(write(case, f"j{n % 5}", 50_000 + n)) for n in range(40)))
    assert sorted(await listed(case.store)) == [f"j{n}" for n in range(5)]


@pytest.mark.parametrize("make", [files, yamls, bytes_in_process])
async def test_a_source_is_copied_and_stays(make: Any, tmp_path: Path) -> None:
    case = await make(tmp_path)
    source = tmp_path / "source"
    source.write_bytes(b"a: 1\n")
    await case.store.put(Write(repository="r", job="a", source=source))
    assert source.read_bytes() == b"a: 1\n"
    async with case.repository.open("a", "rb") as stream:
        assert await stream.read() == b"a: 1\n"


@pytest.mark.parametrize("make", [files, bytes_in_process])
async def test_a_document_is_refused_where_bytes_are_kept(make: Any, tmp_path: Path) -> None:
    case = await make(tmp_path)
    with pytest.raises(CallerError):
        await case.store.put(Write(repository="r", job="a", **documents(1)))
    assert await listed(case.store) == {}


async def test_a_directory_takes_no_content(tmp_path: Path) -> None:
    case = await directories(tmp_path)
    with pytest.raises(CallerError, match="takes no content"):
        await case.store.put(Write(repository="r", job="a", data=b"x"))
    assert await listed(case.store) == {}


# --- the failure halves ---------------------------------------------------------------------------------


@pytest.mark.parametrize("call", ["fsync", "replace"])
@pytest.mark.parametrize("make", HOLDING_BYTES)
@pytest.mark.parametrize("present", [False, True])
async def test_a_write_that_fails_half_way_changes_nothing(
    make: Any, present: bool, call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = await make(tmp_path)
    if present:
        await case.store.put(write(case, "a", 1))
    before = await listed(case.store)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, call, full)
        with pytest.raises(TemporaryError, match="No space left"):
            await case.store.put(write(case, "a", 70_000))
    assert await listed(case.store) == before
    assert len(os.listdir(case.repository.basedir)) == len(before), "nothing stays staged"


@pytest.mark.parametrize("make", ON_FILES)
async def test_a_missing_root_fails_the_listing_rather_than_emptying_it(make: Any, tmp_path: Path) -> None:
    case = await make(tmp_path)
    await case.store.put(write(case, "a"))
    case.repository.basedir.rename(tmp_path / "away")
    with pytest.raises(TemporaryError):
        await listed(case.store)
    with pytest.raises(TemporaryError):
        case.store.identity()


@pytest.mark.parametrize("make", ON_FILES)
async def test_a_listing_that_fails_in_the_middle_yields_nothing(
    make: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = await make(tmp_path)
    for n in range(5):
        await case.store.put(write(case, f"j{n}"))
    real, calls, got = os.stat, [0], list[Listed]()

    def failing(path: Any, **kwargs: Any) -> os.stat_result:
        if str(path).startswith(str(case.repository.basedir) + "/"):
            calls[0] += 1
            if calls[0] > 3:
                raise OSError(5, "Input/output error")
        return real(path, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(os, "stat", failing)
        with pytest.raises(TemporaryError, match="Input/output"):
            async for member in case.store.list():
                got.append(member)
    assert got == []


@pytest.mark.parametrize("make", ON_FILES)
async def test_a_replaced_root_has_another_identity(make: Any, tmp_path: Path) -> None:
    case = await make(tmp_path)
    before = case.store.identity()
    case.repository.basedir.rename(tmp_path / "away")
    await case.repository.validate()
    assert case.store.identity() != before


# --- changes ---------------------------------------------------------------------------------------------


@every_store
async def test_a_store_tells_its_changes_or_says_that_it_cannot(make: Any, tmp_path: Path) -> None:
    case = await make(tmp_path)
    told: list[Change] = []
    stop = case.store.watch(told.append)
    assert (stop is not None) is case.watched
    if stop is None:
        return
    version = await case.store.put(write(case, "a"))
    await until(lambda: any(isinstance(change, Appeared) for change in told))
    await case.store.delete("a")
    await until(lambda: any(isinstance(change, Vanished) for change in told))
    assert told[0] == Appeared("", "a", version)
    assert told[-1] == Vanished("", "a")
    stop()
    stop()
    told.clear()
    await case.store.put(write(case, "b"))
    await asyncio.sleep(0.05)
    assert told == []
