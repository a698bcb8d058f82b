"""Listing a repository through its own iteration: names are checked, and a listing has an end.

In comes a repository of which nothing is known but its public methods; out comes the `Store` port, so that the
engine can observe its members and write `done` entries into it. There is no version of a value, hence a value
that changes in place is not noticed, only appearing and vanishing are. Names that are no job ids are warned of once.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import AsyncIterator, Callable
from typing import Any, Protocol

from datatask.engine.ports import Change, Listed, Store
from datatask.schema.errors import InvalidValueError
from datatask.schema.messages import Write
from datatask.schema.values import check_job, decode_value

logger = logging.getLogger("datatask.repository")

TOLD_MAX = 10_000
NAMES_MAX = 10_000_000
FAIR = 1_000
"""The number of names of a listing that are looked at before others have a turn."""
_told: set[tuple[str, str]] = set()
MEMBER = "-"
"""The version of every member: it is there, and that is all."""


def check_names(looked: int, where: object) -> None:
    """Raise `CallerError` when a listing yields more names than `LISTED_MAX`."""
    if looked > NAMES_MAX:
        raise InvalidValueError(
            f"a listing of more than {NAMES_MAX} names",
            where=f"{where!r:.160}",
            remedy="split it (names_max is the limit); or does it never end?",
        )


def told_invalid(where: str, name: str) -> None:
    """Warn that a listing holds a name that is not a job id: once per name and place in this process."""
    if (where, name) in _told or len(_told) > TOLD_MAX:
        return
    _told.add((where, name))
    if len(_told) > TOLD_MAX:
        logger.warning("More than %d names that are not job ids: further ones are not reported", TOLD_MAX)
    else:
        logger.warning("Skipping %s %r - not a valid job id", where, name[:160])


def told_unrecorded(where: str, why: str) -> None:
    """Warn that values found in a store are not in the log, only that they are there: once per place."""
    if (where, "") not in _told and len(_told) <= TOLD_MAX:
        _told.add((where, ""))
        logger.warning("Values in %s are not recorded, only that they are there: %s", where, why)


class Listable(Protocol):
    """What is used of a repository; where it takes values, it has `dump` (documents) or `open` (bytes) too."""

    def __aiter__(self) -> AsyncIterator[str]: ...
    def is_blob(self) -> bool: ...
    async def contains(self, item: str) -> bool: ...
    async def delete(self, job: str) -> None: ...


class ListedStore:
    """Lists through `unfiltered_iter`, writes through `dump` or `open`, deletes through `delete`.

    `inner` is the store of a built-in repository whose listing a subclass has overridden: writes go there.
    """

    def __init__(self, repository: Listable, inner: Store | None = None) -> None:
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
                await asyncio.sleep(0)  # others have their turn, also where the iteration itself never waits
            check_names(looked, self._repository)
        for job in members:
            yield Listed(job, MEMBER)

    async def put(self, write: Write) -> str | None:
        """Write through the repository's own method."""
        check_job(write.job, where=self._repository)
        if self._inner is not None:
            await self._inner.put(write)
        elif write.value and hasattr(self._repository, "dump"):
            await self._repository.dump(write.job, decode_value(write.value))
        elif self._repository.is_blob() and (write.data is not None or write.source is not None):
            await _write_blob(self._repository, write)
        else:
            raise InvalidValueError(
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

    @property
    def poll_seconds(self) -> float:
        """After how long it is listed again at the earliest."""
        return float(getattr(self._inner, "poll_seconds", 0.0))

    def watch(self, tell: Callable[[Change], None]) -> Callable[[], None] | None:
        """Opaque repositories cannot tell; they are listed."""
        return None


async def _write_blob(repository: Any, write: Write) -> None:
    data = write.data
    if data is None and write.source is not None:
        data = await asyncio.to_thread(write.source.read_bytes)
    opening: Any = repository.open(write.job, "wb")
    stream = await opening if inspect.isawaitable(opening) else opening
    async with stream as target:
        await target.write(data)
