"""Asynchronous streams: what `BlobRepository.open` gives, and what copies between two of them.

A stream is an async context manager. Leaving a *write* stream normally, or closing it, is what makes its
content the job's value; leaving it with an exception throws the content away, so a body that raises writes
nothing. Streams over bytes live here; streams over files live with the adapters that own the files.
"""

from __future__ import annotations

import codecs
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Generator, Iterable
from types import TracebackType
from typing import Any, Generic, Literal, Protocol, Self, TypeVar

from datatask.schema.errors import InvalidValueError, NotOpenError

BLOCK_BYTES = 1024 * 1024
Mode = Literal["r", "rb", "w", "wb"]

T = TypeVar("T")


class _Stream(Protocol):
    async def close(self) -> None:
        """End it; a written stream's content becomes the value. Closing twice is fine."""

    async def __aenter__(self) -> Self: ...

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> bool | None: ...


class AReadStream(_Stream, Protocol):
    """Bytes to read."""

    async def read(self, n: int | None = None, /) -> bytes:
        """Return the next `n` bytes at most, all that is left without `n`, and b"" at the end."""


class AWriteStream(_Stream, Protocol):
    """Bytes to write."""

    async def write(self, data: bytes, /) -> int:
        """Take bytes; return how many."""


S = TypeVar("S", bound=_Stream)


class AReadText:
    """Text read from a stream of bytes, `n` characters at a time; a character may span two blocks."""

    def __init__(
        self, base: AReadStream, encoding: str = "utf-8", errors: str = "strict", chunksize: int = 64 * 1024
    ) -> None:
        self._base = base
        self._decoder = codecs.getincrementaldecoder(encoding)(errors)
        self._chunk = chunksize
        self._text = ""
        self._ended = False

    async def read(self, n: int | None = None, /) -> str:
        """Return the next `n` characters at most, all that is left without `n`, and "" at the end."""
        parts, length = [self._text], len(self._text)
        while not self._ended and (n is None or n < 0 or length < n):
            data = await self._base.read(self._chunk)
            self._ended = not data
            parts.append(self._decoder.decode(data, final=self._ended))
            length += len(parts[-1])
        text = "".join(parts)
        cut = length if n is None or n < 0 else n
        self._text = text[cut:]
        return text[:cut]

    async def close(self) -> None:
        """Close the stream of bytes."""
        await self._base.close()

    async def __aenter__(self) -> Self:
        await self._base.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        return await self._base.__aexit__(kind, error, trace)


class AWriteText:
    """Text written to a stream of bytes."""

    def __init__(self, base: AWriteStream, encoding: str = "utf-8", errors: str = "strict") -> None:
        self._base = base
        self._encoding = encoding
        self._errors = errors

    async def write(self, data: str, /) -> int:
        """Take text; return how many characters."""
        await self._base.write(data.encode(self._encoding, self._errors))
        return len(data)

    async def close(self) -> None:
        """Close the stream of bytes, which makes its content the value."""
        await self._base.close()

    async def __aenter__(self) -> Self:
        await self._base.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        return await self._base.__aexit__(kind, error, trace)


class BytesReader:
    """A read stream over bytes in memory."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    async def read(self, n: int | None = None, /) -> bytes:
        """Return the next `n` bytes at most, all that is left without `n`."""
        end = len(self._data) if n is None or n < 0 else self._at + n
        data = self._data[self._at : end]
        self._at += len(data)
        return data

    async def close(self) -> None:
        """Nothing to let go."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exception: object) -> bool | None:
        return None


class BytesWriter:
    """A write stream that hands all its bytes to `commit` when it closes, and none when its body raises."""

    def __init__(self, commit: Callable[[bytes], Awaitable[None]]) -> None:
        self._commit = commit
        self._parts: list[bytes] = []
        self._open = True

    async def write(self, data: bytes, /) -> int:
        """Take bytes; return how many."""
        if not self._open:
            raise NotOpenError("the stream is closed", remedy="write before closing it")
        self._parts.append(bytes(data))
        return len(data)

    async def close(self) -> None:
        """Commit what was written, once."""
        if self._open:
            self._open = False
            await self._commit(b"".join(self._parts))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        if kind is None:
            await self.close()
        self._open = False
        return None


class Opening(Generic[S]):
    """What `open` returns: an async context manager that may, as in old scripts, be awaited first."""

    def __init__(self, opener: Callable[[], Awaitable[S]]) -> None:
        self._opener = opener
        self._stream: S | None = None

    def __await__(self) -> Generator[Any, Any, S]:
        return self._opener().__await__()

    async def __aenter__(self) -> S:
        self._stream = await self._opener()
        return await self._stream.__aenter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        return None if self._stream is None else await self._stream.__aexit__(kind, error, trace)


def check_mode(mode: str) -> None:
    """Refuse anything but r, rb, w, wb."""
    if mode not in ("r", "rb", "w", "wb"):
        raise InvalidValueError(f"{mode!r} is not a mode", remedy="open with 'r', 'rb', 'w' or 'wb'")


async def async_copyfile(src: AReadStream, dst: AWriteStream, blocksize: int = BLOCK_BYTES) -> None:
    """Copy the bytes that `src` still has to `dst`, in blocks."""
    while data := await src.read(blocksize):
        await dst.write(data)


async def async_copyfile_str(src: AReadText, dst: AWriteText, blocksize: int = BLOCK_BYTES) -> None:
    """Copy the text that `src` still has to `dst`, in blocks."""
    while data := await src.read(blocksize):
        await dst.write(data)


async def roundrobin(iterables: Iterable[AsyncIterable[T]]) -> AsyncIterator[T]:
    """Yield one item of each in turn until all are exhausted: `ABC`, `D`, `EF` give A D E B F C."""
    waiting = [aiter(iterable) for iterable in iterables]
    while waiting:
        remaining = []
        for iterator in waiting:
            try:
                item = await anext(iterator)
            except StopAsyncIteration:
                continue
            remaining.append(iterator)
            yield item
        waiting = remaining
