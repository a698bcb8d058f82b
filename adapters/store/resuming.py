"""Calls of remote stores that are made again, and streams that go on after a cut.

In: a call, and how its library's errors are ours. Out: its answer, or the error once trying again helps nothing. What may work later
is tried `TRIES` times with rising rests, also one page or one stretch of bytes by itself: a listing of a thousand pages would else
begin anew for each that fails.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TypeVar

from datatask.schema.errors import TemporaryError

T = TypeVar("T")
Mapped = Callable[[BaseException, str], BaseException]
"""Gives our error for one of a library's; `where` names the place."""

TRIES = 10
PAUSE_SECONDS = 0.1
PAUSE_SECONDS_MAX = 5.0


class LastingError(TemporaryError):
    """It may work later, but not soon: a person or a provider of credentials has to act."""


class Refused(Exception):
    """The condition of a write does not hold; `token` and `version` are those of what is there, None for none."""

    def __init__(self, token: str | None, version: str | None) -> None:
        super().__init__("the condition of a write does not hold")
        self.token = token
        self.version = version


async def tried(call: Callable[[], Awaitable[T]], mapped: Mapped, where: str, *, pause: float = 0.0) -> T:
    """Call until it works; `pause` is the least rest before another try."""
    rest = max(PAUSE_SECONDS, pause)
    for left in reversed(range(TRIES)):
        try:
            return await call()
        except Refused:
            raise
        except Exception as error:
            ours = mapped(error, where)
            if not isinstance(ours, TemporaryError) or isinstance(ours, LastingError) or not left:
                raise ours from None
        await asyncio.sleep(rest)
        rest = min(2 * rest, PAUSE_SECONDS_MAX)
    raise AssertionError("the last try raises")


class ResumingReader:
    """A read stream over an object of `size` bytes, in constant memory. `rest(at)` asks for the bytes from `at` on.

    `rest` raises what is no longer the same object; what is cut is asked for again, as often as some bytes come.
    """

    def __init__(
        self,
        where: str,
        size: int,
        chunks: AsyncIterator[bytes],
        rest: Callable[[int], Awaitable[AsyncIterator[bytes]]],
        mapped: Mapped,
    ) -> None:
        self._where, self._size = where, size
        self._chunks: AsyncIterator[bytes] | None = chunks
        self._rest, self._mapped = rest, mapped
        self._buffer = bytearray()
        self._at = 0

    async def read(self, n: int | None = None, /) -> bytes:
        """Return the next `n` bytes at most, all that is left without `n`."""
        wanted = self._size if n is None or n < 0 else n
        while len(self._buffer) < wanted and self._at < self._size:
            chunk = await tried(self._next, self._mapped, self._where)
            self._at += len(chunk)
            if not self._buffer and len(chunk) == wanted:
                return chunk
            self._buffer += chunk
        taken = bytes(self._buffer[:wanted])
        del self._buffer[:wanted]
        return taken

    async def _next(self) -> bytes:
        chunks, self._chunks = self._chunks, None  # what fails is not gone on with
        if chunks is None:
            chunks = await self._rest(self._at)
        try:
            chunk = bytes(await anext(chunks))
        except StopAsyncIteration:
            raise TemporaryError(
                f"its bytes end at {self._at} of {self._size}", where=self._where, remedy="it is read again"
            ) from None
        self._chunks = chunks
        return chunk

    async def close(self) -> None:
        """Let go of the connection."""
        self._chunks, self._at = None, self._size

    async def __aenter__(self) -> ResumingReader:
        return self

    async def __aexit__(self, *exception: object) -> bool | None:
        await self.close()
        return None


def changed(where: str) -> LastingError:
    """Return the error for an object that is another one than when its reading began."""
    return LastingError(
        "it changed while it was read", where=where, remedy="read it again from the beginning"
    )
