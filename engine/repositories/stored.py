"""Repositories whose values live somewhere that the engine can reach: where each read and write goes.

| | no pipeline open | open, outside a run | inside a run |
|---|---|---|---|
| native (the log) | refused | `binding.put`; reads from the engine | the run's overlay, then the engine |
| mirror (process) | the store | `binding.put`; reads from the store | the run's overlay, then the store |
| foreign (files, …) | the store | `binding.put`; reads from the store | the store, noted in the overlay |

Adapters subclass `StoredRepository` and say where their store is and how their values are read.
"""

from __future__ import annotations

import asyncio
import hashlib
from abc import abstractmethod
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec

from datatask.engine.binding import Binding, RunContext, ValueRef, current_run
from datatask.engine.ports import Store, Write
from datatask.engine.repositories.opaque import ListedStore
from datatask.engine.repositories.repository import BlobRepository, Repository, told_unrecorded
from datatask.engine.streams import (
    AReadStream,
    AReadText,
    AWriteStream,
    AWriteText,
    Mode,
    Opening,
    check_mode,
)
from datatask.schema.errors import CallerError
from datatask.schema.events import ABSENT
from datatask.schema.ids import check_job


class StoredRepository(Repository):
    """A leaf with a store of its own, or (native) with the log as its store."""

    @abstractmethod
    def _own_store(self) -> Store:
        """Return the store; native repositories raise, they have none."""

    @property
    def store(self) -> Store:
        """The store; when a subclass changed what the members are, it is listed the subclass's way."""
        cls = type(self)
        if (
            cls.unfiltered_iter is StoredRepository.unfiltered_iter
            and cls.contains is StoredRepository.contains
            and cls.filter_jobs is Repository.filter_jobs
            and cls.__aiter__ is Repository.__aiter__
        ):
            return self._own_store()
        return ListedStore(self, self._own_store())

    async def contains(self, item: str) -> bool:
        """Whether the job is a member, as the run that asks sees it."""
        check_job(item, where=self)
        if (write := self._overlaid(item)) is not None:
            return write.op == "put"
        if self._is_asked():
            return self._engine().contains(self.id, item)
        return await self._own_store().version(item) is not None

    async def unfiltered_iter(self) -> AsyncIterator[str]:
        """Yield all members, as the run that asks sees them."""
        run = self._overlay()
        written = {} if run is None else run.written_in(self.id)
        if self._is_asked():
            for job in self._engine().members(self.id):
                if job not in written:
                    yield job
        else:
            async for listed in self._own_store().list():
                if listed.job not in written:
                    yield listed.job
        for job, write in written.items():
            if write.op == "put":
                yield job

    async def delete(self, job: str) -> None:
        """Remove the job; absent is fine."""
        check_job(job, where=self)
        run = current_run.get()
        if self._binding is None:
            await self._own_store().delete(job)
        elif run is None:
            await self._binding.delete(self.id, job)
        else:
            run.check_open()
            if self.medium == "foreign":
                await self._own_store().delete(job)
            run.delete(self.id, job, version="" if self.medium == "foreign" else None)

    # --- for subclasses -------------------------------------------------------------------------------

    async def _put(self, job: str, **content: Any) -> None:
        """Write a value: `value` (document JSON), `data`, `source` or `digest` with `size`, as in `Write`."""
        write = Write(repository=self._id or "", job=check_job(job, where=self), **content)
        run = current_run.get()
        if self._binding is None:
            await self._own_store().put(write)
        elif run is None:
            await self._binding.put(self.id, write)
        elif self.medium == "foreign":
            run.check_open()
            noted = await self._noted(write)
            run.put(msgspec.structs.replace(noted, version=await self._own_store().put(write)))
        else:
            run.put(write)

    def observed(self, job: str, version: str | None) -> Write:
        """Return what the log is to know of a member that was found in the store; blocking."""
        write = Write(repository=self.id, job=job, version=version)
        if self.record == "version":
            return write
        try:
            return self._observed(write)
        except Exception as error:  # also what a parser does not stand, such as lists in lists in lists
            told_unrecorded(repr(self), str(error) or type(error).__name__)
            return write

    def _observed(self, write: Write) -> Write:
        """Add the value or the digest and size, as `record` says."""
        return write

    async def _noted(self, write: Write) -> Write:
        """Return what the log is to know of a value that the store holds: no content beyond `record`."""
        digest, size = write.digest, write.size
        if write.data is not None:
            size = len(write.data)
        if self.record != "version" and not write.value and digest is None:
            digest, size = await asyncio.to_thread(_digest, write)
        value = write.value if self.record == "value" else ABSENT
        return Write(repository=write.repository, job=write.job, value=value, digest=digest, size=size)

    def _is_asked(self) -> bool:
        """Whether the engine is asked for members and values, because there is no store here."""
        return self.medium == "native"

    async def _ref(self, job: str) -> ValueRef | None:
        """Return the job's value as the run that asks sees it, and note for lineage that the run read it."""
        check_job(job, where=self)
        engine, run = self._engine(), current_run.get()
        if (write := self._overlaid(job)) is not None:
            return ValueRef(write.value, write.digest, write.size, 0) if write.op == "put" else None
        ref = await engine.value(self.id, job)
        if ref is not None and run is not None:
            run.note_read(self.id, job, ref.position)
        return ref

    def _engine(self) -> Binding:
        if self._binding is None:
            raise CallerError(
                f"{self!r} keeps its values in the log of a pipeline",
                remedy="use it within `async with pipeline:`, linked to one of its tasks",
            )
        return self._binding

    def _overlay(self) -> RunContext | None:
        """Return the run whose overlay must be looked at first; foreign stores hold its writes already."""
        return current_run.get() if self._binding is not None and self.medium != "foreign" else None

    def _overlaid(self, job: str) -> Write | None:
        run = self._overlay()
        return None if run is None else run.written(self.id, job)


def _digest(write: Write) -> tuple[str | None, int | None]:
    if write.data is not None:
        return hashlib.sha256(write.data).hexdigest(), len(write.data)
    if isinstance(write.source, Path):
        with write.source.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest(), write.source.stat().st_size
    return None, None


class StoredBlobRepository(StoredRepository, BlobRepository):
    """A stored repository of bytes: subclasses open readers and writers, modes and text are done here."""

    @abstractmethod
    async def _reader(self, job: str) -> AReadStream:
        """Open the job's bytes."""

    @abstractmethod
    async def _writer(self, job: str) -> AWriteStream:
        """Open a stream that becomes the job's value when it is closed."""

    def open(self, job: str, mode: Mode = "r") -> Opening[Any]:
        """Open the job's value; see `BlobRepository.open`."""
        check_job(job, where=self)
        check_mode(mode)
        if (run := current_run.get()) is not None and self._binding is not None and mode.startswith("w"):
            run.check_open()
        return Opening(lambda: self._opened(job, mode))

    async def _opened(self, job: str, mode: Mode) -> AReadStream | AReadText | AWriteStream | AWriteText:
        if mode.startswith("r"):
            reader = await self._reader(job)
            return reader if mode == "rb" else AReadText(reader)
        writer = await self._writer(job)
        return writer if mode == "wb" else AWriteText(writer)
