"""A repository's jobs with a function applied to each info, and perhaps only some of the jobs.

Without a filter the membership is the base's. With one the repository is a derived leaf: the engine calls
`evaluate` when a job enters the base, logs the answer and keeps the membership.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from datatask.engine.api.repositories.repository import DerivedLeaf, Repository, Resolve
from datatask.schema.definition import AnyExpr, FilteredDef, In
from datatask.schema.errors import FLAG, FUNCTION, CallerError, expect
from datatask.schema.ids import check_job

Mapping = Callable[[Any], Any] | Callable[[Any], Awaitable[Any]]
Filter = Callable[[str], bool] | Callable[[str], Awaitable[bool]]


class MapRepository(DerivedLeaf):
    """`func` over each info of `base` and `filt` over its jobs; both may be plain or async functions.

    `info` works for filtered-out jobs too. Deletions reach `base` only with `allow_deletes`.
    """

    def __init__(
        self,
        base: Repository,
        func: Mapping,
        filt: Filter | None = None,
        allow_deletes: bool = False,
        *,
        name: str | None = None,
        was: str | None = None,
    ) -> None:
        super().__init__(name=name, was=was)
        expect(self, Repository, base=base)
        expect(self, FUNCTION, func=func)
        expect(self, FUNCTION, optional=True, filt=filt)
        expect(self, FLAG, allow_deletes=allow_deletes)
        self.base = base
        self.func = func
        self.filter = filt
        self.allow_deletes = allow_deletes

    def __repr__(self) -> str:
        filtered = "" if self.filter is None else f", {_called(self.filter)}"
        return f"MapRepository({self.base!r}, {_called(self.func)}{filtered})"

    async def contains(self, item: str) -> bool:
        """Whether `base` has the job and the filter takes it."""
        check_job(item, where=self)
        return await self.base.contains(item) and await self.evaluate(item)

    async def unfiltered_iter(self) -> AsyncIterator[str]:
        """Yield the jobs of `base` that the filter takes."""
        async for job in self.base:
            if await self.evaluate(job):
                yield job

    async def info(self, job: str) -> Any:
        """Return `func` of the base's info."""
        check_job(job, where=self)
        return await _outcome(self.func(await self.base.info(job)))

    async def info_all(self) -> dict[str, Any]:
        """Return `func` of each info of the jobs that the filter takes."""
        infos = await self.base.info_all()
        return {
            job: await _outcome(self.func(info)) for job, info in infos.items() if await self.evaluate(job)
        }

    async def delete(self, job: str) -> None:
        """Remove the job from `base` when deletions are allowed, else nothing."""
        check_job(job, where=self)
        if self.allow_deletes:
            await self.base.delete(job)

    async def dump(self, job: str, data: Any) -> None:
        """Refuse: a function cannot be run backwards."""
        raise CallerError(
            f"{self!r} cannot be written", where=job, remedy="write to the repository that it maps"
        )

    def is_metadata(self) -> bool:
        """What the function returns can be shown as a document."""
        return True

    async def validate(self) -> None:
        """Validate the base."""
        await self.base.validate()

    async def check_input(self, whose: str) -> None:
        """Check the base."""
        await self.base.check_input(whose)

    def parts(self) -> list[Repository]:
        """Return the base."""
        return [self.base]

    def leaves(self) -> list[Repository]:
        """With a filter the leaf is this one, else those of the base."""
        return self.base.leaves() if self.filter is None else [self]

    def expression(self, resolve: Resolve) -> AnyExpr:
        """With a filter this leaf, else the base's expression."""
        return self.base.expression(resolve) if self.filter is None else In(leaf=resolve(self))

    def derivation(self, resolve: Resolve) -> FilteredDef:
        """Filtered from the base."""
        return FilteredDef(base=self.base.expression(resolve))

    async def evaluate(self, job: str) -> bool:
        """Return what the filter says of the job."""
        return self.filter is None or bool(await _outcome(self.filter(job)))

    def structural_id(self, child_ids: list[str]) -> str:
        """Return `filtered(base,function)`."""
        (base,) = child_ids
        return f"filtered({base},{_called(self.filter)})"


async def _outcome(result: Any) -> Any:
    return await result if inspect.isawaitable(result) else result


def _called(function: object) -> str:
    """Return the function's own name, which stays the same from process to process."""
    name = getattr(function, "__qualname__", type(function).__name__)
    return re.sub(r"[^\w.]", "", name.rpartition("<locals>.")[2])
