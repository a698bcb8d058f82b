"""Repositories without a store of their own: dicts of this process, and values in the log.

Dicts are gone when the process ends; while a pipeline is open a write is recorded first, then made in the dict, and changes of
`.data` by hand are found at the next listing. Documents in the log travel in the event up to 64 KiB; larger ones and all bytes
are blobs beside the log, named by digest and written whole before an event names them. They need an open pipeline.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable, MutableMapping
from pathlib import Path
from typing import Any, Generic, TypeVar

import msgspec

from datatask.adapters.store.files import FileReader, FileWriter
from datatask.engine.api.repositories import (
    MetadataRepository,
    StoredBlobRepository,
    StoredRepository,
    job_getter,
    told_invalid,
)
from datatask.engine.api.streams import AReadStream, AWriteStream, BytesReader, BytesWriter
from datatask.engine.ports import Change, Listed, Store
from datatask.engine.run_context import ValueRef, current_run, with_content
from datatask.schema.definition import Medium, Record
from datatask.schema.errors import (
    InvalidValueError,
    NotPossibleError,
    UnknownNameError,
    ValueDamagedError,
    expect,
)
from datatask.schema.messages import Write
from datatask.schema.values import INLINE_BYTES_MAX, check_job, decode_value, encode_value, is_job

V = TypeVar("V")


class DictStore(Generic[V]):
    """The store port on a dict. A version is a count: another object under a job gets another one."""

    def __init__(self, data: dict[str, V], content: Callable[[Write], V], where: str) -> None:
        self.data = data
        self._content = content
        self._where = where
        self._versions: dict[str, tuple[V, int]] = {}
        self._count = 0

    async def list(self) -> AsyncIterator[Listed]:
        """Yield all members, as they were at the first one."""
        for job in list(self.data):
            if not is_job(job):
                told_invalid(self._where, str(job))
            elif (version := self._version(job)) is not None:
                yield Listed(job, version)

    async def put(self, write: Write) -> str | None:
        """Set a value, at once: the engine lets in-process stores follow without waiting for them."""
        job = check_job(write.job, where=self._where)
        self.data[job] = self._content(write)
        return self._version(job)

    async def delete(self, job: str) -> None:
        """Remove a job; absent is fine."""
        self.data.pop(check_job(job, where=self._where), None)
        self._versions.pop(job, None)

    async def version(self, job: str) -> str | None:
        """Return the version of a member, or None."""
        return self._version(check_job(job, where=self._where))

    def _version(self, job: str) -> str | None:
        try:
            value = self.data[job]
        except KeyError:
            self._versions.pop(job, None)
            return None
        known = self._versions.get(job)
        if known is None or known[0] is not value:
            self._count += 1
            known = self._versions[job] = (value, self._count)
        return str(known[1])

    def identity(self) -> str:
        """Return the dict's identity in this process."""
        return f"dict:{id(self.data):x}"

    def watch(self, tell: Callable[[Change], None]) -> Callable[[], None] | None:
        """A dict tells nobody; it is listed, which is cheap."""
        return None


def _bytes(write: Write) -> bytes | None:
    if write.data is not None or write.source is None:
        return write.data
    return write.source.read_bytes()


class _InProcess(StoredRepository, Generic[V]):
    medium: Medium = "mirror"
    ephemeral = True
    _away: bool = False  # true in a worker process, where `data` is empty and the binding is asked instead

    def __init__(
        self,
        data: dict[str, V] | None = None,
        *,
        name: str | None = None,
        was: str | None = None,
        record: Record | None = None,
    ) -> None:
        super().__init__(name=name, was=was, record=record)
        expect(self, MutableMapping, "pass a dict, or name=", optional=True, data=data)
        self.data: dict[str, V] = {} if data is None else data
        self._store: DictStore[V] | None = None

    def __repr__(self) -> str:
        name = f"name={self.name!r}, " if self.name else ""
        return f"{type(self).__name__}({name}{len(self.data)} jobs)"

    def _content(self, write: Write) -> V:
        raise NotImplementedError

    def _own_store(self) -> DictStore[V]:
        if self._store is None or self._store.data is not self.data:  # somebody may assign another dict
            self._store = DictStore(self.data, self._content, type(self).__name__)
        return self._store

    def _is_asked(self) -> bool:
        return self._away

    async def _elsewhere(self, job: str) -> Write | None:
        """Return the job's value where the dict does not have it: written by the run, or in a worker."""
        write = self._overlaid(job)
        if write is None and self._away:
            ref = await self._ref(job)
            op = "delete" if ref is None else "put"
            write = Write(repository=self.id, job=job, op=op)
            if ref is not None:
                write = msgspec.structs.replace(write, value=ref.value, digest=ref.digest, size=ref.size)
        return write if write is None else with_content(write, self._engine().blobs)

    def __getstate__(self) -> dict[str, Any]:
        """The content stays here: a worker sees it through its binding, not as a copy."""
        return {**super().__getstate__(), "data": {}, "_store": None, "_away": self._id is not None}


class InProcessMetadataRepository(_InProcess[Any], MetadataRepository):
    """Documents in a dict: the one passed, which stays the user's, or a new one. Absent jobs: info None."""

    record: Record = "value"

    def _content(self, write: Write) -> Any:
        if write.value:
            return decode_value(write.value)
        data = _bytes(write)
        if data is None:
            raise InvalidValueError("a metadata repository takes documents", where=f"{self!r} {write.job}")
        return decode_value(data)  # a document that was too large for an event

    def _observed(self, write: Write) -> Write:
        document = encode_value(self.data[write.job])
        if len(document) <= INLINE_BYTES_MAX:
            return msgspec.structs.replace(write, value=msgspec.Raw(document))
        return msgspec.structs.replace(write, digest=hashlib.sha256(document).hexdigest(), size=len(document))

    @job_getter
    async def info(self, job: str) -> Any:
        """Return the job's document, or None."""
        check_job(job, where=self)
        position = self._position()
        write = await self._elsewhere(job)
        if write is None:
            self._note_seen(job, position)
            return self.data.get(job)
        return self._content(write) if write.op == "put" else None

    async def info_all(self) -> dict[str, Any]:
        """Return all documents."""
        return {job: await self.info(job) async for job in self}

    @job_getter
    async def dump(self, job: str, data: Any) -> None:
        """Make `data` the job's document; while a pipeline is open it must be plain data, for the log."""
        check_job(job, where=self)
        if self._binding is None:
            self.data[job] = data
        elif len(document := encode_value(data)) <= INLINE_BYTES_MAX:
            await self._put(job, value=msgspec.Raw(document))
        else:
            digest, size = await asyncio.to_thread(self._binding.blobs.put_bytes, document)
            await self._put(job, digest=digest, size=size)


class InProcessBlobRepository(_InProcess[bytes], StoredBlobRepository):
    """Bytes in a dict. Reading an absent job gives nothing and leaves it absent; `info` is None."""

    record: Record = "digest"

    def _content(self, write: Write) -> bytes:
        data = _bytes(write)
        if data is None:
            raise InvalidValueError(
                "a blob repository takes bytes, not a document", where=f"{self!r} {write.job}"
            )
        return data

    def _observed(self, write: Write) -> Write:
        data = self.data[write.job]
        return msgspec.structs.replace(write, digest=hashlib.sha256(data).hexdigest(), size=len(data))

    @job_getter
    async def info(self, job: str) -> None:
        """Bytes in a process have nothing to show."""
        check_job(job, where=self)

    async def _reader(self, job: str) -> AReadStream:
        position = self._position()
        write = await self._elsewhere(job)
        if write is None:
            self._note_seen(job, position)
            return BytesReader(self.data.get(job, b""))
        return BytesReader(self._content(write) if write.op == "put" else b"")

    async def _writer(self, job: str) -> AWriteStream:
        async def commit(data: bytes) -> None:
            await self._put(job, data=data)

        return BytesWriter(commit)


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
