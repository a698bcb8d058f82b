"""Repositories whose home is the log itself: no store beside it, nothing to observe, history for free.

Documents travel in the event up to 64 KiB and are blobs beside the log above that; bytes are always blobs,
named by their digest and written whole before any event names them. Without an open pipeline there is no log,
hence nothing to read or write.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import msgspec

from datatask.adapters.store.files import FileReader, FileWriter
from datatask.engine.api.repositories import (
    MetadataRepository,
    StoredBlobRepository,
    StoredRepository,
    job_getter,
)
from datatask.engine.api.streams import AReadStream, AWriteStream
from datatask.engine.ports import Store
from datatask.engine.run_context import ValueRef, current_run
from datatask.schema.definition import Medium, Record
from datatask.schema.errors import NotPossibleError, UnknownNameError, ValueDamagedError
from datatask.schema.values import INLINE_BYTES_MAX, check_job, decode_value, encode_value


class _Native(StoredRepository):
    medium: Medium = "native"
    record: Record = "value"

    def __init__(self, name: str | None = None, *, was: str | None = None) -> None:
        super().__init__(name=name, was=was)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name or self._id or ''!r})"

    def _own_store(self) -> Store:
        self._engine()  # without a pipeline: says to open one
        raise NotPossibleError(
            f"{self!r} has no store", remedy="its values are in the log; read them through it"
        )

    async def _blob(self, digest: str) -> Path:
        try:
            return await asyncio.to_thread(self._engine().blobs.intact, digest)
        except ValueDamagedError as error:
            if (run := current_run.get()) is not None:
                run.damage = error
            raise


class LogMetadataRepository(_Native, MetadataRepository):
    """Documents in the log, under `name` (else named by the first link). Absent jobs have info None."""

    @job_getter
    async def info(self, job: str) -> Any:
        """Return the job's document, or None."""
        ref = await self._ref(job)
        if ref is None:
            return None
        if ref.digest is not None and not ref.value:
            return decode_value(await asyncio.to_thread((await self._blob(ref.digest)).read_bytes))
        return decode_value(ref.value) if ref.value else None

    @job_getter
    async def dump(self, job: str, data: Any) -> None:
        """Make `data`, plain data, the job's document."""
        check_job(job, where=self)
        blobs, document = self._engine().blobs, encode_value(data)
        if len(document) <= INLINE_BYTES_MAX:
            await self._put(job, value=msgspec.Raw(document))
        else:
            digest, size = await asyncio.to_thread(blobs.put_bytes, document)
            await self._put(job, digest=digest, size=size)


class LogBlobRepository(_Native, StoredBlobRepository):
    """Bytes beside the log, under `name`; `info` is the path of the bytes, not to be changed, or None."""

    @job_getter
    async def info(self, job: str) -> str | None:
        """Return where the job's bytes are."""
        ref = await self._ref(job)
        _refuse_redacted(ref)
        return None if ref is None or ref.digest is None else str(await self._blob(ref.digest))

    async def _reader(self, job: str) -> AReadStream:
        ref = await self._ref(job)
        _refuse_redacted(ref)
        if ref is None or ref.digest is None:
            raise UnknownNameError(f"there is no {job}", where=repr(self), remedy="ask contains() first")
        return await FileReader.open(await self._blob(ref.digest))

    async def _writer(self, job: str) -> AWriteStream:
        blobs = self._engine().blobs

        async def commit(path: Path) -> None:
            digest, size = await asyncio.to_thread(blobs.adopt, path)
            await self._put(job, digest=digest, size=size)

        return await FileWriter.open(blobs.new(), commit)


def _refuse_redacted(ref: ValueRef | None) -> None:
    """Bytes are never in the event, unless something stands there that says what became of them."""
    if ref is not None and ref.value and ref.digest is None:
        decode_value(ref.value)
