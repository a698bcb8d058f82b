"""Repositories made of other repositories: related items, and memberships combined by and, or, but-not.

A related repository has job k where `base` has the job that `translator.info(k)` names. To the engine it is a derived leaf
whose translations are logged and kept in a reverse index; used by itself it asks the translator each time. An aggregate
is to the engine an expression over its parts' leaves; used by itself it asks its parts each time, and holds all ids in
memory while it lists.
"""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeVar

from datatask.engine.api.repositories.listing import told_invalid
from datatask.engine.api.repositories.repository import DerivedLeaf, Repository, Resolve
from datatask.engine.api.streams import Mode, Opening, check_mode
from datatask.schema import definition as d
from datatask.schema.definition import AnyExpr, In, TranslatedDef
from datatask.schema.errors import (
    FLAG,
    InvalidValueError,
    NotPossibleError,
    UnknownNameError,
    expect,
    expect_one,
)
from datatask.schema.values import check_job, is_job

F = TypeVar("F", bound=Callable[..., Any])


def job_getter(method: F) -> F:
    """Mark an async method whose first argument is a job, so that related repositories can translate it."""
    if not inspect.iscoroutinefunction(method):
        raise TypeError("only async methods can be job getters")
    method.is_job_getter = True  # type: ignore[attr-defined]
    return method


class RelatedItemRepository(DerivedLeaf):
    """`base_repository` under the job ids that `translator_repository` translates from.

    Deletions reach the base only with `allow_deletes`. `prefetch_lookup` is accepted for old scripts; nothing
    is prefetched, because a prefetched translation goes stale.
    """

    def __init__(
        self,
        base_repository: Repository,
        translator_repository: Repository,
        allow_deletes: bool = False,
        prefetch_lookup: bool = True,
        *,
        name: str | None = None,
        was: str | None = None,
    ) -> None:
        super().__init__(name=name, was=was)
        expect(self, Repository, base_repository=base_repository, translator_repository=translator_repository)
        expect(self, FLAG, allow_deletes=allow_deletes, prefetch_lookup=prefetch_lookup)
        self.base_repository = base_repository
        self.translator_repository = translator_repository
        self.allow_deletes = allow_deletes
        self.prefetch_lookup = prefetch_lookup

    def __repr__(self) -> str:
        return f"RelatedItemRepository({self.base_repository!r}, by {self.translator_repository!r})"

    def __getattr__(self, name: str) -> Any:
        """Give the base's own methods; those that take a job first take it under this repository's ids."""
        if name.startswith("_") or "base_repository" not in self.__dict__:
            raise AttributeError(name)
        attribute = getattr(self.base_repository, name)
        return self._translating(attribute) if getattr(attribute, "is_job_getter", False) else attribute

    def _translating(self, method: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        async def translated(job: str, *args: Any, **kwargs: Any) -> Any:
            return await method(await self._translated(job), *args, **kwargs)

        return translated

    async def _lookup(self, job: str) -> str | None:
        """Return the translation, or None when there is none that could be a member of the base."""
        translated = await self._translation(job)
        if translated is not None and not is_job(translated):
            told_invalid(repr(self), translated)
            return None
        return translated

    async def _translation(self, job: str) -> str | None:
        if not await self.translator_repository.contains(job):
            return None
        info = await self.translator_repository.info(job)
        return None if info is None else str(info)

    async def _translated(self, job: str) -> str:
        translated = await self._lookup(check_job(job, where=self))
        if translated is None:
            raise UnknownNameError(
                f"no translation of {job}", where=repr(self), remedy="put one into the translator repository"
            )
        return translated

    # --- for users ------------------------------------------------------------------------------------

    async def contains(self, item: str) -> bool:
        """Whether `base` has the job that this one stands for."""
        translated = await self._lookup(check_job(item, where=self))
        return translated is not None and await self.base_repository.contains(translated)

    async def unfiltered_iter(self) -> AsyncIterator[str]:
        """Yield the translator's jobs whose translations `base` has."""
        members = {job async for job in self.base_repository}
        async for job in self.translator_repository:
            if await self._lookup(job) in members:
                yield job

    async def info(self, job: str) -> Any:
        """Return the base's info; `LookupError` when there is no translation."""
        return await self.base_repository.info(await self._translated(job))

    async def delete(self, job: str) -> None:
        """Remove the translated job from `base` when deletions are allowed, else nothing."""
        check_job(job, where=self)
        if self.allow_deletes and (translated := await self._lookup(job)) is not None:
            await self.base_repository.delete(translated)

    async def dump(self, job: str, data: Any) -> None:
        """Write a document to `base`; `LookupError` when there is no translation."""
        self._check(self.is_metadata(), "documents")
        await self.base_repository.dump(await self._translated(job), data)  # type: ignore[attr-defined]

    def open(self, job: str, mode: Mode = "r") -> Opening[Any]:
        """Open the base's bytes; `LookupError` when there is no translation."""
        check_job(job, where=self)
        check_mode(mode)
        self._check(self.is_blob(), "bytes")

        async def opened() -> Any:
            opening = self.base_repository.open(await self._translated(job), mode)  # type: ignore[attr-defined]
            return await opening if inspect.isawaitable(opening) else opening

        return Opening(opened)

    def _check(self, able: bool, what: str) -> None:
        if not able:
            raise NotPossibleError(f"{self.base_repository!r} does not hold {what}", where=repr(self))

    def is_blob(self) -> bool:
        """As the base."""
        return self.base_repository.is_blob()

    def is_metadata(self) -> bool:
        """As the base."""
        return self.base_repository.is_metadata()

    async def validate(self) -> None:
        """Validate base and translator."""
        for part in self.parts():
            await part.validate()

    async def check_input(self, whose: str) -> None:
        """Check base and translator."""
        for part in self.parts():
            await part.check_input(whose)

    # --- for the engine -------------------------------------------------------------------------------

    def parts(self) -> list[Repository]:
        """Return base and translator."""
        return [self.base_repository, self.translator_repository]

    def expression(self, resolve: Resolve) -> AnyExpr:
        """This leaf."""
        return In(leaf=resolve(self))

    def derivation(self, resolve: Resolve) -> TranslatedDef:
        """Translated from the base by the translator."""
        return TranslatedDef(
            base=self.base_repository.expression(resolve),
            translator=self.translator_repository.expression(resolve),
        )

    async def evaluate(self, job: str) -> str | None:
        """Return the job that `job` stands for; `InvalidJobError` when it is translated to what is none."""
        translated = await self._translation(check_job(job, where=self))
        return None if translated is None else check_job(translated, where=f"the translation of {job}")

    def structural_id(self, child_ids: list[str]) -> str:
        """Return `related(base,translator)`."""
        base, translator = child_ids
        return f"related({base},{translator})"


class _Combination(Repository):
    medium: d.Medium = "derived"

    def leaves(self) -> list[Repository]:
        """Return the leaves of all parts, each once."""
        found = {id(leaf): leaf for part in self.parts() for leaf in part.leaves()}
        return list(found.values())

    async def validate(self) -> None:
        """Validate all parts."""
        for part in self.parts():
            await part.validate()

    async def check_input(self, whose: str) -> None:
        """Check all parts."""
        for part in self.parts():
            await part.check_input(whose)


class _Aggregate(_Combination):
    def __init__(self, **children: Repository) -> None:
        super().__init__()
        if not children:
            raise InvalidValueError(
                f"{type(self).__name__} needs at least one repository", remedy="pass name=repository"
            )
        for child, repository in children.items():
            expect_one(self, Repository, child, repository)
        self.children = children

    def __repr__(self) -> str:
        parts = ", ".join(f"{name}={child!r}" for name, child in self.children.items())
        return f"{type(self).__name__}({parts})"

    def parts(self) -> list[Repository]:
        """Return the children."""
        return list(self.children.values())

    async def delete(self, job: str) -> None:
        """Remove the job from every child."""
        check_job(job, where=self)
        for child in self.parts():
            await child.delete(job)


class AggregateAndRepository(_Aggregate):
    """The jobs that are in all children; `info` is `{name: child's info}`."""

    async def contains(self, item: str) -> bool:
        """Whether every child has the job."""
        check_job(item, where=self)
        for child in self.parts():
            if not await child.contains(item):
                return False
        return True

    async def unfiltered_iter(self) -> AsyncIterator[str]:
        """Yield what all children list, in the order of the first."""
        first, *others = self.parts()
        jobs = [job async for job in first]
        for other in others:
            members = {job async for job in other}
            jobs = [job for job in jobs if job in members]
        for job in jobs:
            yield job

    async def info(self, job: str) -> dict[str, Any]:
        """Return each child's info by its name."""
        check_job(job, where=self)
        return {name: await child.info(job) for name, child in self.children.items()}

    def expression(self, resolve: Resolve) -> d.AnyExpr:
        """All children hold."""
        return d.All(of=tuple(child.expression(resolve) for child in self.parts()))


class AggregateOrRepository(_Aggregate):
    """The jobs that are in any child; `info` is `{name: child's info}`, None for a child without the job."""

    async def contains(self, item: str) -> bool:
        """Whether some child has the job."""
        check_job(item, where=self)
        for child in self.parts():
            if await child.contains(item):
                return True
        return False

    async def unfiltered_iter(self) -> AsyncIterator[str]:
        """Yield what any child lists, each job once."""
        seen: set[str] = set()
        for child in self.parts():
            async for job in child:
                if job not in seen:
                    seen.add(job)
                    yield job

    async def info(self, job: str) -> dict[str, Any]:
        """Return each child's info by its name."""
        check_job(job, where=self)
        return {
            name: await child.info(job) if await child.contains(job) else None
            for name, child in self.children.items()
        }

    def expression(self, resolve: Resolve) -> d.AnyExpr:
        """Some child holds."""
        return d.Any(of=tuple(child.expression(resolve) for child in self.parts()))


class BlockingRepository(_Combination):
    """The jobs of `source` that are not in `unless`; values and deletions are those of `source`.

    With `enumerate_unless` a listing lists `unless` once, without it asks `unless` about each job.
    """

    def __init__(self, source: Repository, unless: Repository, enumerate_unless: bool = True) -> None:
        super().__init__()
        expect(self, Repository, source=source, unless=unless)
        expect(self, FLAG, enumerate_unless=enumerate_unless)
        self.source = source
        self.unless = unless
        self.enumerate_unless = enumerate_unless

    def __repr__(self) -> str:
        return f"BlockingRepository({self.source!r}, unless={self.unless!r})"

    def parts(self) -> list[Repository]:
        """Return source and unless."""
        return [self.source, self.unless]

    async def contains(self, item: str) -> bool:
        """Whether `source` has the job and `unless` has not."""
        check_job(item, where=self)
        return await self.source.contains(item) and not await self.unless.contains(item)

    async def unfiltered_iter(self) -> AsyncIterator[str]:
        """Yield the jobs of `source` that `unless` lacks; `source` is listed first: nothing slips through."""
        jobs = [job async for job in self.source]
        blocked = {job async for job in self.unless} if self.enumerate_unless else None
        for job in jobs:
            if not (await self.unless.contains(job) if blocked is None else job in blocked):
                yield job

    async def info(self, job: str) -> Any:
        """Return the source's info."""
        check_job(job, where=self)
        return await self.source.info(job)

    async def delete(self, job: str) -> None:
        """Remove the job from `source`."""
        check_job(job, where=self)
        await self.source.delete(job)

    def expression(self, resolve: Resolve) -> d.AnyExpr:
        """Source holds and unless does not."""
        return d.All(of=(self.source.expression(resolve), d.Not(of=self.unless.expression(resolve))))
