"""Repositories of files on a file system that this process can reach, and the streams over their files.

A job's value is the entry `basedir/<job><extension>`; `info` is its path, which is what templates need. Reads and writes go
through `FileStore`; `StoredRepository` decides what happens to them while a pipeline is open. Files that others put into the
folder are observed, by inotify where it sees them. A stream writes to a hidden path and hands it to `commit` once every byte is on
the disk; whatever goes wrong before, the path is removed.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
from collections.abc import Awaitable, Callable
from io import BufferedReader
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

import msgspec

from datatask.adapters.store.filestore import FileStore, FolderStore, opened_at_once, version_of
from datatask.adapters.store.inputs import MissingFileError, os_errors
from datatask.adapters.store.staged import create
from datatask.engine.api.repositories import StoredBlobRepository, StoredRepository, job_getter
from datatask.engine.api.streams import AReadStream, AWriteStream, BytesReader
from datatask.engine.run_context import ABSENT_VERSION, RunContext, current_run
from datatask.schema.definition import Record
from datatask.schema.errors import (
    FLAG,
    PATH,
    TEXT,
    ConflictError,
    InvalidValueError,
    NotOpenError,
    expect,
)
from datatask.schema.messages import Write
from datatask.schema.values import INLINE_BYTES_MAX

FLUSH_BYTES = 1024 * 1024


class FileRepositoryBase(StoredRepository):
    """A folder with an entry per job.

    Only names that end in `extension` are looked at; with `case_insensitive` in whatever case. A relative
    `basedir` is taken from the working directory at construction, and stays.
    """

    def __init__(
        self,
        basedir: str | os.PathLike[str],
        extension: str = "",
        case_insensitive: bool = False,
        *,
        name: str | None = None,
        was: str | None = None,
        record: Record | None = None,
    ) -> None:
        super().__init__(name=name, was=was, record=record)
        self._expect(basedir, extension, case_insensitive)
        self.basedir = Path(os.path.abspath(basedir))
        self.extension = extension
        self.case_insensitive = case_insensitive

    def _expect(self, basedir: object, extension: object, case_insensitive: object) -> None:
        remedy = f"the folder comes first: {type(self).__name__}(folder, '.txt', name='…')"
        expect(self, PATH, remedy, basedir=basedir)
        expect(self, TEXT, remedy, extension=extension)
        expect(self, FLAG, remedy, case_insensitive=case_insensitive)
        if "/" in str(extension):
            raise InvalidValueError(
                f"extension is {extension!r:.80}, which is a path", where=type(self).__name__, remedy=remedy
            )

    def __repr__(self) -> str:
        extension = f", extension={self.extension!r}" if self.extension else ""
        return f"{type(self).__name__}({str(self.basedir)!r}{extension}{self._options()})"

    def _options(self) -> str:
        return ", case_insensitive=True" if self.case_insensitive else ""

    def locator(self) -> str:
        """Return kind, absolute path, extension and what else changes the membership."""
        return f"{self.kind}:{self.basedir}/*{self.extension}{self._options().replace(', ', '?')}"

    def _own_store(self) -> FolderStore:
        return FileStore(self.basedir, self.extension, self.case_insensitive, self._id or "")

    def fullpath(self, job: str) -> Path:
        """Return where the job's entry is written, whether or not it exists."""
        return self._own_store().path(job)

    @job_getter
    async def info(self, job: str) -> str:
        """Return the path of the job's entry, or where it would be."""
        path = self.fullpath(job)
        if self.case_insensitive:
            existing = await asyncio.to_thread(self._own_store().existing, job)
            path = existing or path
        return str(path)

    async def validate(self) -> None:
        """Make the folder; `PermissionError` when it cannot be written."""
        await self._own_store().prepare()

    async def check_input(self, whose: str) -> None:
        """Raise when the folder is not there or cannot be read; it is not made."""
        await self._own_store().check(whose)
        if type(self).validate is not FileRepositoryBase.validate:
            await self.validate()


class FileRepository(FileRepositoryBase, StoredBlobRepository):
    """A folder with a file per job, written whole or not at all."""

    def fullpath(self, job: str) -> Path:
        """Return where the job's entry is written, whether or not it exists.

        In a run: what the run has written to it by then, and writes from here on, is there at once.
        """
        path = super().fullpath(job)
        run = current_run.get()
        if run is not None and self._binding is not None:
            run.note_path(self.id, job)
            if (write := self._overlaid(job)) is not None:
                self._carry_out(run, write)
        return path

    def _carry_out(self, run: RunContext, write: Write) -> None:
        """Let the folder have what was to come with the run's end; blocking, and small."""
        store = self._own_store()
        version: str | None = ABSENT_VERSION
        with os_errors(str(store.path(write.job))):
            try:
                if write.op == "put":
                    version = store.put_now(write)
                else:
                    store.delete_now(write)
            except ConflictError as error:
                run.refuse(write, error.what)
                raise
        done = Write(repository=write.repository, job=write.job, op=write.op, version=version)
        if write.op == "put" and self.record == "value":
            done = msgspec.structs.replace(done, value=write.value)
        run.put(done)
        self._note_stored(run, run.seen(self.id, write.job), write.job, version)

    def _observed(self, write: Write) -> Write:
        file, path = self._opened_file(write.job)
        with file, os_errors(path):
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            if write.version not in (None, version_of(os.fstat(file.fileno()))):
                return write  # it has changed since: its next version is told, or listed, with its own digest
            return msgspec.structs.replace(write, digest=digest, size=file.tell())

    async def _reader(self, job: str) -> AReadStream:
        if (write := self._overlaid(job)) is not None:
            if write.op == "delete":
                raise self._missing(job)
            return BytesReader(self._own_store().content(write))
        position = self._position()
        file, path, version = await asyncio.to_thread(self._opened_version, job, position is not None)
        self._note_seen(job, position, version)
        if file is None:
            raise self._missing(job)
        return FileReader(file, path)

    def _opened_version(self, job: str, versioned: bool) -> tuple[BufferedReader | None, str, str]:
        """Open the file, with the version that is read then; no file where there is none, which a run has seen too."""
        try:
            file, path = self._opened_file(job)
        except MissingFileError:
            return None, "", ABSENT_VERSION
        return file, path, version_of(os.fstat(file.fileno())) if versioned else ABSENT_VERSION

    def _missing(self, job: str) -> MissingFileError:
        return MissingFileError(
            f"there is no {job}", where=repr(self), remedy="write it first, or ask contains()"
        )

    def _own_store(self) -> FileStore:
        return FileStore(self.basedir, self.extension, self.case_insensitive, self._id or "")

    def _opened_file(self, job: str) -> tuple[BufferedReader, str]:
        path = self._own_store().existing(job)
        if path is None:
            raise self._missing(job)
        with os_errors(str(path)):
            return open(path, "rb", opener=opened_at_once), str(path)

    async def _writer(self, job: str) -> AWriteStream:
        async def commit(path: Path) -> None:
            size, run = path.stat().st_size, current_run.get()
            if run is not None and self._is_deferred(run, job) and size <= INLINE_BYTES_MAX:
                await self._put(job, data=path.read_bytes(), size=size)
            else:
                await self._put(job, source=path, size=size)

        return await FileWriter.open(self._own_store().stage(), commit)


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
            raise NotOpenError("the stream is closed", remedy="write before closing it")
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
