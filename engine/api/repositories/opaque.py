"""The store of a repository that somebody else wrote: it can only be listed, through its own iteration.

In comes a `Repository` of which nothing is known but its public methods; out comes the `Store` port, so that
the engine can observe its members and write `done` entries into it. There is no version of a value, hence a
value that changes in place is not noticed, only appearing and vanishing are.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator, Callable
from typing import Any

from datatask.engine.api.repositories.repository import (
    FAIR,
    BlobRepository,
    MetadataRepository,
    Repository,
    check_names,
)
from datatask.engine.ports import Change, Listed, Store
from datatask.schema.errors import CallerError
from datatask.schema.ids import check_job
from datatask.schema.messages import Write
from datatask.schema.values import decode_value

MEMBER = "-"
"""The version of every member: it is there, and that is all."""


class ListedStore:
    """Lists through `unfiltered_iter`, writes through `dump` or `open`, deletes through `delete`.

    `inner` is the store of a built-in repository whose listing a subclass has overridden: writes go there.
    """

    def __init__(self, repository: Repository, inner: Store | None = None) -> None:
        self._repository = repository
        self._inner = inner

    def __repr__(self) -> str:
        return f"ListedStore({self._repository!r})"

    async def list(self) -> AsyncIterator[Listed]:
        """Yield all members that the repository yields; its error is the listing's error."""
        members: dict[str, None] = {}
        looked = 0
        async for job in self._repository:
            members[job] = None
            looked += 1
            if looked % FAIR == 0:
                await asyncio.sleep(
                    0
                )  # whoever yields without ever waiting leaves room for others all the same
            check_names(looked, self._repository)
        for job in members:
            yield Listed(job, MEMBER)

    async def put(self, write: Write) -> str | None:
        """Write through the repository's own method."""
        check_job(write.job, where=self._repository)
        if self._inner is not None:
            await self._inner.put(write)
        elif write.value and isinstance(self._repository, MetadataRepository):
            await self._repository.dump(write.job, decode_value(write.value))
        elif isinstance(self._repository, BlobRepository) and (
            write.data is not None or write.source is not None
        ):
            await _write_blob(self._repository, write)
        else:
            raise CallerError(
                f"{self._repository!r} cannot take this value",
                where=write.job,
                remedy="documents go to metadata repositories, bytes to blob repositories",
            )
        return MEMBER

    async def delete(self, job: str) -> None:
        """Delete through the repository's own method."""
        check_job(job, where=self._repository)
        await (self._repository if self._inner is None else self._inner).delete(job)

    async def version(self, job: str) -> str | None:
        """Return the constant version of a member."""
        return MEMBER if await self._repository.contains(job) else None

    def identity(self) -> str:
        """Return the class's name: an opaque repository does not say where its root is."""
        if self._inner is not None:
            return self._inner.identity()
        return f"{type(self._repository).__module__}.{type(self._repository).__qualname__}"

    @property
    def blocking(self) -> bool:
        """Whether `identity` may wait for a disk."""
        return bool(getattr(self._inner, "blocking", False))

    def watch(self, tell: Callable[[Change], None]) -> Callable[[], None] | None:
        """Opaque repositories cannot tell; they are listed."""
        return None


async def _write_blob(repository: BlobRepository, write: Write) -> None:
    data = write.data
    if data is None and write.source is not None:
        data = await asyncio.to_thread(write.source.read_bytes)
    opening: Any = repository.open(write.job, "wb")
    stream = await opening if inspect.isawaitable(opening) else opening
    async with stream as target:
        await target.write(data)
