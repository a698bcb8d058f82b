"""Repositories that users write: ids, listings, and what the base class gives them."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from datatask.adapters.store.files import FileRepository
from datatask.adapters.store.inprocess import InProcessBlobRepository, InProcessMetadataRepository
from datatask.engine.api.repositories import (
    BlobRepository,
    ListedStore,
    MetadataRepository,
    RelatedItemRepository,
    Repository,
    job_getter,
)
from datatask.engine.api.streams import Opening
from datatask.engine.ports import Listed
from datatask.schema.errors import CallerError
from datatask.schema.messages import Write
from tests.unit.repository_kit import Listing, documents, members


async def test_a_name_that_is_no_job_id_is_told_once_in_a_process(caplog: pytest.LogCaptureFixture) -> None:
    repository = Listing("one", "two three", "four")
    assert await members(repository) == ["one", "four"]
    assert await repository.contains("four")
    assert not await repository.contains("five")
    assert await repository.info_all() == {"one": "ONE", "four": "FOUR"}
    told = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert told == ["Skipping Listing(['one', 'two three', 'four']) 'two three' - not a valid job id"]
    assert repository.is_valid_job_id("one")
    assert not Repository.is_valid_job_id("two three")


async def test_a_subclass_can_be_stricter_about_ids_but_not_laxer() -> None:
    class Strict(Listing):
        @classmethod
        def is_valid_job_id(cls, job: str) -> bool:
            return job.startswith("x") or job == "../y"

    assert await members(Strict("x1", "y1", "../y")) == ["x1"]


async def test_without_the_base_constructor_a_subclass_has_the_defaults() -> None:
    repository = Listing("a")
    assert (repository.medium, repository.record, repository.ephemeral, repository.kind) == (
        "foreign",
        "version",
        False,
        "Listing",
    )
    assert (repository.name, repository.was, repository.locator()) == (None, None, None)
    assert (repository.is_blob(), repository.is_metadata()) == (False, False)
    await repository.validate()


async def test_an_opaque_repository_is_listed_through_its_own_iteration() -> None:
    repository = Listing("a", "not one", "b", "a")
    store = repository.store
    assert [member async for member in store.list()] == [Listed("a", "-"), Listed("b", "-")]
    assert (await store.version("a"), await store.version("c")) == ("-", None)
    await store.delete("a")
    assert repository.jobs == ["not one", "b", "a"]
    with pytest.raises(CallerError, match="cannot take this value"):
        await store.put(Write(repository="r", job="c", data=b"x"))
    assert store.watch(lambda change: None) is None
    assert "Listing" in store.identity()
    assert repr(store).startswith("ListedStore(Listing(")


async def test_an_opaque_blob_repository_is_written_through_open(tmp_path: Path) -> None:
    class Old(BlobRepository):
        """With an `async def open`, as scripts for pydatatask have it."""

        def __init__(self) -> None:
            self.base = InProcessBlobRepository()

        def unfiltered_iter(self) -> AsyncIterator[str]:
            return self.base.unfiltered_iter()

        async def info(self, job: str) -> None: ...

        async def delete(self, job: str) -> None:
            await self.base.delete(job)

        async def open(self, job: str, mode: Any = "r") -> Any:  # type: ignore[override]
            return await self.base.open(job, mode)

    repository = Old()
    (tmp_path / "source").write_bytes(b"from a file")
    await repository.store.put(Write(repository="r", job="a", data=b"bytes"))
    await repository.store.put(Write(repository="r", job="b", source=tmp_path / "source"))
    assert repository.base.data == {"a": b"bytes", "b": b"from a file"}
    related = RelatedItemRepository(repository, documents(k="a"))
    async with related.open("k", "rb") as stream:
        assert await stream.read() == b"bytes"


async def test_a_built_in_class_with_another_listing_is_listed_that_way(tmp_path: Path) -> None:
    class Some(FileRepository):
        async def unfiltered_iter(self) -> AsyncIterator[str]:
            async for job in super().unfiltered_iter():
                if job != "hidden":
                    yield job

    repository = Some(tmp_path)
    store = repository.store
    assert isinstance(store, ListedStore)
    for job in ("shown", "hidden"):
        await store.put(Write(repository="r", job=job, data=b"x"))
    assert [member.job async for member in store.list()] == ["shown"]
    assert (tmp_path / "hidden").exists()
    assert store.identity() == FileRepository(tmp_path).store.identity()
    await store.delete("shown")
    assert [member.job async for member in store.list()] == []


def test_job_getters_are_async() -> None:
    with pytest.raises(TypeError):
        job_getter(lambda job: None)


def test_an_explicit_name_and_an_old_one_are_kept() -> None:
    repository: MetadataRepository = InProcessMetadataRepository(name="new", was="old")
    assert (repository.name, repository.was) == ("new", "old")
    assert isinstance(InProcessBlobRepository({"a": b""}).open("a"), Opening)
