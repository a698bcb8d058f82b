"""Combinations and maps of repositories, and their expressions over leaves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from datatask.adapters.store.files import FileRepository
from datatask.engine.api.repositories import (
    AggregateAndRepository,
    AggregateOrRepository,
    BlockingRepository,
    DerivedLeaf,
    MapRepository,
    RelatedItemRepository,
    Repository,
    all_leaves,
)
from datatask.schema import definition as d
from datatask.schema.errors import CallerError, InvalidJobError
from tests.unit.repository_kit import Listing, documents, members

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
