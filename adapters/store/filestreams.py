"""Streams over files: reading one, and writing one that counts only when it is whole.

A writer works on a path that nobody looks at and hands it to `commit` once every byte is on the disk;
`commit` makes it the value (a rename, a blob adopted). Whatever goes wrong before, the path is removed.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

from datatask.adapters.store.oserrors import os_errors
from datatask.adapters.store.staged import create
from datatask.schema.errors import CallerError

FLUSH_BYTES = 1024 * 1024


class FileReader:
    """A read stream over a file; blocks are read in a thread."""

    def __init__(self, file: BinaryIO, where: str) -> None:
        self._file = file
        self._where = where

    @classmethod
    async def open(cls, path: Path) -> Self:
        """Open the file, which must exist."""
        return cls(await asyncio.to_thread(path.open, "rb"), str(path))

    async def read(self, n: int | None = None, /) -> bytes:
        """Return the next `n` bytes at most, all that is left without `n`."""
        return await asyncio.to_thread(self._read, -1 if n is None else n)

    def _read(self, n: int) -> bytes:
        with os_errors(self._where):
            return self._file.read(n)

    async def close(self) -> None:
        """Close the file."""
        self._file.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exception: object) -> bool | None:
        self._file.close()
        return None


class FileWriter:
    """A write stream into a fresh file at `path`; `commit(path)` is called when it is closed and durable."""

    def __init__(self, path: Path, commit: Callable[[Path], Awaitable[None]]) -> None:
        self._path = path
        self._commit = commit
        self._buffer = bytearray()
        self._file: BinaryIO | None = None
        self._held = -1

    @classmethod
    async def open(cls, path: Path, commit: Callable[[Path], Awaitable[None]]) -> Self:
        """Create the file, which must not exist."""
        writer = cls(path, commit)
        writer._file, writer._held = await asyncio.to_thread(_create, path)
        return writer

    async def write(self, data: bytes, /) -> int:
        """Take bytes; they reach the file a block at a time."""
        if self._file is None:
            raise CallerError("the stream is closed", remedy="write before closing it")
        self._buffer += data
        if len(self._buffer) >= FLUSH_BYTES:
            block, self._buffer = self._buffer, bytearray()
            await asyncio.to_thread(_write, self._file, block, str(self._path))
        return len(data)

    async def close(self) -> None:
        """Make the content durable and commit it, once."""
        if self._file is None:
            return
        file, self._file = self._file, None
        try:
            await asyncio.to_thread(_finish, file, self._buffer, str(self._path))
            await self._commit(self._path)
        finally:
            self._discard(file)

    def _discard(self, file: BinaryIO) -> None:
        # no await here: a cancelled body must be able to clean up
        with contextlib.suppress(OSError):
            file.close()
        self._path.unlink(missing_ok=True)
        if self._held >= 0:
            held, self._held = self._held, -1
            os.close(held)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        if kind is None:
            await self.close()
        elif self._file is not None:
            file, self._file = self._file, None
            self._discard(file)
        return None


def _create(path: Path) -> tuple[BinaryIO, int]:
    """Make the file; the second descriptor holds its lock until the value has its name."""
    with os_errors(str(path.parent)):
        fd, held = create(path)
        return os.fdopen(fd, "wb"), held


def _write(file: BinaryIO, data: bytes | bytearray, where: str) -> None:
    with os_errors(where):
        file.write(data)


def _finish(file: BinaryIO, data: bytes | bytearray, where: str) -> None:
    with os_errors(where):
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
        file.close()
