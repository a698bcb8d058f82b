"""Repositories whose values are elsewhere: what a run writes there is carried out with its end.

In: reads and writes of programs and runs. Out: reads of the store at once; a run's writes as entries of its overlay, whose bytes stand
in the log's blobs until the engine has intended, made and recorded them. So nothing of a run is visible before its end, nothing
computed is lost when the store is away, and recovery can redo what was intended. In a pod the writes go at once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from datatask.adapters.spools import Spool
from datatask.adapters.store.files import FileReader, FileWriter
from datatask.engine.api.repositories import StoredBlobRepository, StoredRepository
from datatask.engine.api.streams import AReadStream, AWriteStream, BytesReader, BytesWriter
from datatask.engine.run_context import RunContext, current_run
from datatask.schema.errors import InvalidValueError
from datatask.schema.messages import Write
from datatask.schema.values import INLINE_BYTES_MAX

POLL_SECONDS = 10.0
"""How often a remote store is listed: each listing may cost money."""


def check_poll(seconds: float, whose: object) -> float:
    """Return a polling interval in seconds, which must be one."""
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 < seconds < float("inf"):
        raise InvalidValueError(
            f"poll_seconds={seconds!r:.40} is no interval",
            where=type(whose).__name__,
            remedy="use seconds, such as 30",
        )
    return float(seconds)


class RemoteRepository(StoredRepository):
    """A stored repository that is elsewhere: writes of a run wait for its end, whether or not it has read the key."""

    def _is_deferred(self, run: RunContext, job: str, write: Write | None = None) -> bool:
        return run.defers

    def _is_to_come(self, write: Write) -> bool:
        return write.version is None

    async def _put(self, job: str, **content: Any) -> None:
        """Write a value; the bytes of a run that is to end first go beside the log, so that an intent can name them."""
        run, data, source = current_run.get(), content.get("data"), content.get("source")
        if (
            run is not None
            and self._binding is not None
            and run.defers
            and (data is not None or source is not None)
        ):
            run.check_open()
            blobs = self._binding.blobs
            if data is not None:
                digest, size = await asyncio.to_thread(blobs.put_bytes, data)
            else:
                digest, size = await asyncio.to_thread(blobs.put_file, Path(str(source)))
            content = {"digest": digest, "size": size}
        await super()._put(job, **content)


class RemoteBlobRepository(RemoteRepository, StoredBlobRepository):
    """Bytes that are elsewhere, streamed both ways in constant memory."""

    def _encoded(self, write: Write) -> bytes:
        """Return the bytes that a document is kept as; a repository of bytes refuses documents."""
        raise InvalidValueError(
            "a blob repository takes bytes, not a document", where=f"{self!r} {write.job}"
        )

    async def _overlaid_reader(self, write: Write) -> AReadStream:
        """Read what the run has written itself, and its store does not have yet."""
        if write.value:
            return BytesReader(self._encoded(write))
        if write.data is not None:
            return BytesReader(write.data)
        assert write.digest is not None, "bytes of a run stand beside the log"
        return await FileReader.open(await asyncio.to_thread(self._engine().blobs.intact, write.digest))

    async def _writer(self, job: str) -> AWriteStream:
        blobs, spool = None if self._binding is None else self._binding.blobs, Spool()

        async def keep(data: bytes) -> None:
            await self._put(job, data=data)

        async def upload(path: Path) -> None:
            if blobs is not None:
                digest, size = await asyncio.to_thread(blobs.adopt, path)
                await self._put(job, digest=digest, size=size)
                return
            try:
                await self._put(job, source=path)
            finally:
                spool.close()

        return SpillingWriter(
            keep, lambda: FileWriter.open(spool.path(job) if blobs is None else blobs.new(), upload)
        )


class SpillingWriter:
    """A write stream that keeps what is small in memory for `keep`, and lets what is not go to a file that `spill` opens."""

    def __init__(
        self, keep: Callable[[bytes], Awaitable[None]], spill: Callable[[], Awaitable[FileWriter]]
    ) -> None:
        self._spill = spill
        self._small: BytesWriter | None = BytesWriter(keep)
        self._large: FileWriter | None = None
        self._held: list[bytes] = []
        self._size = 0

    async def write(self, data: bytes, /) -> int:
        """Take bytes."""
        if self._large is not None:
            return await self._large.write(data)
        assert self._small is not None
        taken = await self._small.write(data)
        self._held.append(bytes(data))
        self._size += taken
        if self._size > INLINE_BYTES_MAX:
            self._large, self._small = await self._spill(), None
            await self._large.write(b"".join(self._held))
            self._held = []
        return taken

    async def close(self) -> None:
        """Commit what was written, once."""
        stream = self._large or self._small
        assert stream is not None
        await stream.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        stream = self._large or self._small
        assert stream is not None
        return await stream.__aexit__(kind, error, trace)
