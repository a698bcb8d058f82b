"""Sets of jobs by themselves: ids, combinations, maps, relations, and what they are to the engine."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from datatask.adapters.store.files import FileRepository
from datatask.adapters.store.inprocess import InProcessBlobRepository, InProcessMetadataRepository
from datatask.engine.api.repositories import (
    AggregateAndRepository,
    AggregateOrRepository,
    BlobRepository,
    BlockingRepository,
    DerivedLeaf,
    ListedStore,
    MapRepository,
    MetadataRepository,
    RelatedItemRepository,
    Repository,
    all_leaves,
    job_getter,
)
from datatask.engine.api.streams import Opening
from datatask.engine.ports import Listed
from datatask.schema import definition as d
from datatask.schema.errors import CallerError, InvalidJobError, UnknownNameError
from datatask.schema.messages import Write


class Listing(Repository):
    """The least that a user writes: jobs that are listed, one of them with a name that is no job id."""

    def __init__(self, *jobs: str) -> None:
        self.jobs = list(jobs)

    def __repr__(self) -> str:
        return f"Listing({self.jobs})"

    async def unfiltered_iter(self) -> AsyncIterator[str]:
        for job in self.jobs:
            yield job

    async def info(self, job: str) -> Any:
        return job.upper()

    async def delete(self, job: str) -> None:
        if job in self.jobs:
            self.jobs.remove(job)


def documents(**data: Any) -> InProcessMetadataRepository:
    return InProcessMetadataRepository(data)


async def members(repository: Repository) -> list[str]:
    return [job async for job in repository]


# --- what any repository can do ---------------------------------------------------------------------------


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


# --- and, or, but not -----------------------------------------------------------------------------------------


async def test_and_has_the_jobs_that_all_children_have() -> None:
    a, b = documents(x=1, y=2, z=3), documents(z=4, y=5)
    both = AggregateAndRepository(a=a, b=b)
    assert await members(both) == ["y", "z"]
    assert (await both.contains("y"), await both.contains("x")) == (True, False)
    assert await both.info("y") == {"a": 2, "b": 5}
    assert await both.info_all() == {"y": {"a": 2, "b": 5}, "z": {"a": 3, "b": 4}}
    await both.delete("y")
    assert (list(a.data), list(b.data)) == (["x", "z"], ["z"])


async def test_or_has_the_jobs_that_any_child_has_each_once() -> None:
    a, b = documents(x=1, y=2), documents(y=5, z=6)
    any_of = AggregateOrRepository(a=a, b=b)
    assert await members(any_of) == ["x", "y", "z"]
    assert (await any_of.contains("z"), await any_of.contains("q")) == (True, False)
    assert await any_of.info("x") == {"a": 1, "b": None}
    await any_of.delete("y")
    assert (a.data, b.data) == ({"x": 1}, {"z": 6})


@pytest.mark.parametrize("enumerate_unless", [True, False])
async def test_blocking_has_what_unless_lacks_however_it_asks(enumerate_unless: bool) -> None:
    source, unless = documents(x=1, y=2), documents(y=3)
    repository = BlockingRepository(source, unless, enumerate_unless)
    assert await members(repository) == ["x"]
    assert (await repository.contains("x"), await repository.contains("y")) == (True, False)
    assert await repository.info("x") == 1
    await repository.delete("x")
    await repository.delete("y")
    assert (source.data, unless.data) == ({}, {"y": 3})


@pytest.mark.parametrize("kind", [AggregateAndRepository, AggregateOrRepository])
def test_an_aggregate_of_nothing_is_refused(kind: Any) -> None:
    with pytest.raises(CallerError, match="at least one"):
        kind()


async def test_combinations_check_ids_and_validate_their_parts(tmp_path: Path) -> None:
    files = FileRepository(tmp_path / "made")
    combinations: list[Repository] = [
        AggregateAndRepository(a=files),
        AggregateOrRepository(a=files),
        BlockingRepository(files, documents()),
        MapRepository(files, str),
        RelatedItemRepository(files, documents()),
    ]
    for repository in combinations:
        (tmp_path / "made").rmdir() if (tmp_path / "made").exists() else None
        await repository.validate()
        assert (tmp_path / "made").is_dir()
        assert "FileRepository" in repr(repository)
        for call in (repository.contains, repository.info, repository.delete):
            with pytest.raises(InvalidJobError):
                await call("../x")


# --- maps --------------------------------------------------------------------------------------------------------


async def test_map_applies_a_function_and_a_filter() -> None:
    base = documents(x=1, y=2)

    async def double(info: Any) -> Any:
        return info * 2

    async def no_x(job: str) -> bool:
        return job != "x"

    mapped = base.map(double, no_x)
    assert await members(mapped) == ["y"]
    assert (await mapped.contains("x"), await mapped.contains("y")) == (False, True)
    assert await mapped.info("x") == 2, "info ignores the filter"
    assert await mapped.info_all() == {"y": 4}
    await mapped.delete("y")
    assert "y" in base.data, "deletions are not allowed unless said"
    assert mapped.is_metadata()
    with pytest.raises(CallerError, match="cannot be written"):
        await mapped.dump("y", 1)

    plain = base.map(lambda info: info + 1, lambda job: job == "x", allow_deletes=True)
    assert await plain.info_all() == {"x": 2}
    await plain.delete("x")
    assert base.data == {"y": 2}


# --- relations ------------------------------------------------------------------------------------------------------


async def test_related_is_the_base_under_other_ids() -> None:
    base = InProcessBlobRepository({"1": b"one", "2": b"two"})
    translator = documents(a=1, b="2", c=3, d=None)
    related = RelatedItemRepository(base, translator)
    assert await members(related) == ["a", "b"]
    assert [await related.contains(job) for job in "abcdx"] == [True, True, False, False, False]
    async with related.open("a", "r") as stream:
        assert await stream.read() == "one"
    async with related.open("c", "w") as stream:
        await stream.write("three")
    assert base.data["3"] == b"three"
    assert (related.is_blob(), related.is_metadata()) == (True, False)
    with pytest.raises(CallerError, match="does not hold documents"):
        await related.dump("a", 1)


async def test_related_raises_a_lookup_error_for_what_has_no_translation() -> None:
    related = RelatedItemRepository(documents(a=1), documents(k="a"))
    assert await related.info("k") == 1
    assert (related.is_blob(), related.is_metadata()) == (False, True)
    with pytest.raises(LookupError):
        await related.info("unknown")
    with pytest.raises(UnknownNameError):
        await related.dump("unknown", 1)
    await related.delete("unknown")
    with pytest.raises(CallerError, match="does not hold bytes"):
        related.open("k")


@pytest.mark.parametrize("prefetch", [True, False])
async def test_a_new_translation_is_seen_at_once(prefetch: bool) -> None:
    translator = documents(k="a")
    related = RelatedItemRepository(documents(a=1, b=2), translator, prefetch_lookup=prefetch)
    assert await members(related) == ["k"]
    await translator.dump("l", "b")
    assert await members(related) == ["k", "l"]


@pytest.mark.parametrize("allow", [True, False])
async def test_deletions_reach_the_base_only_when_allowed(allow: bool) -> None:
    base, translator = documents(a=1), documents(k="a")
    await RelatedItemRepository(base, translator, allow_deletes=allow).delete("k")
    assert (base.data, translator.data) == ({} if allow else {"a": 1}, {"k": "a"})


async def test_a_translation_to_what_is_no_id_is_no_member_and_an_error_for_the_engine() -> None:
    related = RelatedItemRepository(documents(a=1), documents(k="../a"))
    assert await members(related) == []
    assert not await related.contains("k")
    with pytest.raises(InvalidJobError, match="translation of k"):
        await related.evaluate("k")


async def test_the_bases_own_methods_take_this_repositorys_ids(tmp_path: Path) -> None:
    from datatask.adapters.store.directories import DirectoryRepository

    base = DirectoryRepository(tmp_path)
    related = RelatedItemRepository(base, documents(k="a"))
    await related.mkdir("k")
    assert (tmp_path / "a").is_dir()
    assert related.basedir == tmp_path
    with pytest.raises(AttributeError):
        _ = related.nothing_of_the_kind


# --- to the engine --------------------------------------------------------------------------------------------------


def resolver(**named: Repository) -> Any:
    by_identity = {id(repository): name for name, repository in named.items()}
    return lambda repository: by_identity[id(repository)]


def test_combinations_are_expressions_over_leaves() -> None:
    a, b, c = documents(), documents(), Listing()
    resolve = resolver(a=a, b=b, c=c)
    ready = BlockingRepository(AggregateAndRepository(x=a, y=b), AggregateOrRepository(z=c, w=a))
    assert ready.expression(resolve) == d.All(
        of=(
            d.All(of=(d.In(leaf="a"), d.In(leaf="b"))),
            d.Not(of=d.Any(of=(d.In(leaf="c"), d.In(leaf="a")))),
        )
    )
    assert ready.leaves() == [a, b, c]
    assert all_leaves(ready) == [a, b, c]
    assert a.map(str).expression(resolve) == d.In(leaf="a")
    assert a.map(str).leaves() == [a]


async def test_a_filter_and_a_relation_are_derived_leaves() -> None:
    def big(job: str) -> bool:
        return job > "m"

    a, t = documents(), documents(k="a")
    filtered, related = a.map(str, big), RelatedItemRepository(AggregateAndRepository(x=a, y=t), t)
    resolve = resolver(a=a, t=t, f=filtered, r=related)
    for leaf in (filtered, related):
        assert isinstance(leaf, DerivedLeaf)
        assert (leaf.leaves(), leaf.medium) == ([leaf], "derived")
    assert filtered.expression(resolve) == d.In(leaf="f")
    assert filtered.derivation(resolve) == d.FilteredDef(base=d.In(leaf="a"))
    assert related.derivation(resolve) == d.TranslatedDef(
        base=d.All(of=(d.In(leaf="a"), d.In(leaf="t"))), translator=d.In(leaf="t")
    )
    assert (await filtered.evaluate("z"), await filtered.evaluate("a")) == (True, False)
    assert (await related.evaluate("k"), await related.evaluate("q")) == ("a", None)
    assert filtered.structural_id(["a"]) == "filtered(a,big)"
    assert a.map(str, lambda job: True).structural_id(["a"]) == "filtered(a,lambda)"
    assert related.structural_id(["b", "t"]) == "related(b,t)"
    both = AggregateOrRepository(x=filtered, y=related)
    assert both.leaves() == [filtered, related]
    assert all_leaves(both) == [a, filtered, t, related], "what a leaf stands on comes first"


def test_an_explicit_name_and_an_old_one_are_kept() -> None:
    repository: MetadataRepository = InProcessMetadataRepository(name="new", was="old")
    assert (repository.name, repository.was) == ("new", "old")
    assert isinstance(InProcessBlobRepository({"a": b""}).open("a"), Opening)
