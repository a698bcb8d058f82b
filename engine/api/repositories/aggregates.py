"""And, or, but-not: repositories made of other repositories' memberships.

To the engine they are no leaves but expressions over their parts' leaves. Used by themselves they ask their
parts each time, and hold all ids in memory while they list.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from datatask.engine.api.repositories.repository import Repository, Resolve
from datatask.schema import definition as d
from datatask.schema.errors import FLAG, InvalidValueError, expect, expect_one
from datatask.schema.ids import check_job


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
