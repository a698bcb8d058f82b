"""Repositories whose values live somewhere that the engine can reach: where each read and write goes.

| | no pipeline open | open, outside a run | inside a run |
|---|---|---|---|
| native (the log) | refused | `binding.put`; reads from the engine | the run's overlay, then the engine |
| mirror (process) | the store | `binding.put`; reads from the store | the run's overlay, then the store |
| foreign (files, …) | the store | `binding.put`; reads from the store | the store, noted in the overlay; what the run has read before is written with its end |

A run's reads (values, `contains`, listings) are recorded with the log's position, so that a conflicting write is found. The
position is taken before the read: a change between the two counts as unseen, which costs a run at most.
"""

from __future__ import annotations

import asyncio
import hashlib
from abc import abstractmethod
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, ClassVar

import msgspec

from datatask.engine.api.repositories.listing import ListedStore, told_unrecorded
from datatask.engine.api.repositories.repository import BlobRepository, Repository
from datatask.engine.api.streams import (
    AReadStream,
    AReadText,
    AWriteStream,
    AWriteText,
    Mode,
    Opening,
    check_mode,
)
from datatask.engine.ports import Store
from datatask.engine.run_context import (
    ABSENT_VERSION,
    RUN_AGAIN,
    Binding,
    RunContext,
    Seen,
    ValueRef,
    current_run,
)
from datatask.schema.errors import ConflictError, LogDamagedError, NotPossibleError
from datatask.schema.events import ABSENT
from datatask.schema.messages import Write
from datatask.schema.values import INLINE_BYTES_MAX, check_job


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
        position = self._position()
        if self._is_asked():
            found, version = self._engine().contains(self.id, item), None
        else:
            version = await self._own_store().version(item)
            found, version = version is not None, version or ABSENT_VERSION
        self._note_seen(item, position, version)
        return found

    async def unfiltered_iter(self) -> AsyncIterator[str]:
        """Yield all members, as the run that asks sees them."""
        written = self._overlay()
        if (position := self._position()) is not None:
            self._run().note_listed(self.id, position)
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
            if self.medium != "foreign" or self._is_deferred(run, job):
                run.delete(self.id, job)
                return
            await self._delete_now(run, job)

    # --- for subclasses -------------------------------------------------------------------------------

    async def _put(self, job: str, **content: Any) -> None:
        """Write a value: `value` (document JSON), `data`, `source` or `digest` with `size`, as in `Write`."""
        write = Write(repository=self._id or "", job=check_job(job, where=self), **content)
        run = current_run.get()
        if self._binding is None:
            await self._own_store().put(write)
        elif run is None:
            await self._binding.put(self.id, write)
        elif self.medium == "foreign" and not self._is_deferred(run, job, write):
            run.check_open()
            await self._put_now(run, write)
        else:
            run.put(write)

    async def _delete_now(self, run: RunContext, job: str) -> None:
        """Let the store delete a job at once, unless it has another version than the run has read."""
        store, seen = self._own_store(), run.seen(self.id, job)
        if seen is not None and seen.version is not None:
            now = await store.version(job) or ABSENT_VERSION
            if now not in (seen.version, ABSENT_VERSION):
                why = f"key {job} of {self.id} has been changed by another after this run had read it"
                run.refuse(Write(repository=self.id, job=job, op="delete", over=seen.position), why)
                raise ConflictError(why, where=repr(self), remedy=RUN_AGAIN)
        await store.delete(job)
        run.delete(self.id, job, version="")
        self._note_stored(run, seen, job, ABSENT_VERSION)

    def _note_stored(self, run: RunContext, seen: Seen | None, job: str, version: str | None) -> None:
        """Note that the run knows a key as it is now; one that it never read it still does not look at."""
        if seen is not None:
            run.note_stored(self.id, job, self._engine().position(self.id), version)

    async def _put_now(self, run: RunContext, write: Write) -> None:
        """Let the store have a write of a run at once, unless it has another version than the run has read."""
        seen = run.seen(self.id, write.job)
        if seen is not None:
            write = msgspec.structs.replace(write, over=seen.position, over_version=seen.version)
        noted = await self._noted(write)
        try:
            version = await self._own_store().put(write)
        except ConflictError as error:
            run.refuse(write, error.what)
            raise
        run.put(msgspec.structs.replace(noted, version=version))
        self._note_stored(run, seen, write.job, version)

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

    # --- what a run has read ----------------------------------------------------------------------

    _guards: ClassVar[bool] = True
    """Whether what a run reads here is compared when it writes; not where a write leaves what is there as it is."""

    def _position(self) -> int | None:
        """Return how far the log has come for a read that begins now; None where nothing is to be noted."""
        run = current_run.get()
        if run is None or not run.guarded or self._binding is None or not self._guards:
            return None
        return self._binding.position(self.id)

    def _note_seen(self, job: str, position: int | None, version: str | None = None) -> None:
        """Note that the run knows of a key, at the position that was taken before it looked."""
        if position is not None:
            self._run().note_seen(self.id, job, position, version if self.medium == "foreign" else None)

    def _run(self) -> RunContext:
        run = current_run.get()
        assert run is not None, "asked within a run only"
        return run

    def _is_deferred(self, run: RunContext, job: str, write: Write | None = None) -> bool:
        """Whether a foreign store is to follow when the run has ended: it writes over what it has read, and that is small."""
        if not run.defers or run.seen(self.id, job) is None or run.knows_path(self.id, job):
            return False
        return write is None or _is_small(write)

    def _is_asked(self) -> bool:
        """Whether the engine is asked for members and values, because there is no store here."""
        return self.medium == "native"

    async def _ref(self, job: str) -> ValueRef | None:
        """Return the job's value as the run that asks sees it, and note for lineage that the run read it."""
        check_job(job, where=self)
        engine, run = self._engine(), current_run.get()
        if (write := self._overlaid(job)) is not None:
            return ValueRef(write.value, write.digest, write.size, 0) if write.op == "put" else None
        position = self._position()
        try:
            ref = await engine.value(self.id, job)
        except LogDamagedError as error:
            if run is not None:
                run.damage = error
            raise
        if run is not None:
            self._note_seen(job, position)
            if ref is not None:
                run.note_read(self.id, job, ref.position)
        return ref

    def _engine(self) -> Binding:
        if self._binding is None:
            raise NotPossibleError(
                f"{self!r} keeps its values in the log of a pipeline",
                remedy="use it within `async with pipeline:`, linked to one of its tasks",
            )
        return self._binding

    def _overlay(self) -> dict[str, Write]:
        """Return what the run has done that only it can see; foreign stores hold most of its writes already."""
        run = current_run.get() if self._binding is not None else None
        written = {} if run is None else run.written_in(self.id)
        if self.medium == "foreign":
            return {job: write for job, write in written.items() if self._is_to_come(write)}
        return written

    def _overlaid(self, job: str) -> Write | None:
        """Return what the run has done to a job that only it can see."""
        run = current_run.get() if self._binding is not None else None
        write = None if run is None else run.written(self.id, job)
        if write is None or self.medium != "foreign" or self._is_to_come(write):
            return write
        return None

    def _is_to_come(self, write: Write) -> bool:
        """Whether a write to a foreign store waits for the run's end."""
        return write.version is None and write.over is not None


def _is_small(write: Write) -> bool:
    size = write.size or 0
    if write.data is not None:
        size = len(write.data)
    elif write.value:
        size = len(bytes(write.value))
    return size <= INLINE_BYTES_MAX


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
