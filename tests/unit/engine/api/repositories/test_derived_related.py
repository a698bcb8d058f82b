"""A repository under other ids."""

from __future__ import annotations

from pathlib import Path

import pytest

from datatask.adapters.store.inprocess import InProcessBlobRepository
from datatask.engine.api.repositories import (
    RelatedItemRepository,
)
from datatask.schema.errors import CallerError, InvalidJobError, UnknownNameError
from tests.unit.repository_kit import documents, members


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
