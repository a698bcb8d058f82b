"""The store port on a folder: one entry per job, named by the job's id plus an extension.

In come writes and questions, out go listings and versions (inode, modification time, size). Values appear
whole: they are staged under a hidden name in the same folder, made durable, then renamed. Hidden names are
never members. All file work happens in threads; the blocking functions are also what `inotify` calls.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import stat
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import msgspec

from datatask.adapters.store.finished import is_finished, is_fresh, is_told, is_written, linked, sync_folder
from datatask.adapters.store.inputs import NotPermittedError, check_folder, os_errors
from datatask.adapters.store.staged import create, is_staged, one_at_a_time, staged_path, sweep, take_over
from datatask.engine.api.repositories import told_invalid
from datatask.engine.ports import Change, Found, Hashed, Listed
from datatask.engine.run_context import ABSENT_VERSION, RUN_AGAIN
from datatask.engine.runtime.closing import in_own_thread
from datatask.schema.errors import ConflictError, InvalidValueError
from datatask.schema.messages import Write
from datatask.schema.values import check_job, is_job


@dataclass(frozen=True)
class FolderStore(ABC):
    """Where the entries are and how they are named; `repository` is the id that changes are told under."""

    basedir: Path
    extension: str = ""
    case_insensitive: bool = False
    repository: str = ""
    blocking: ClassVar[bool] = True
    """That `identity` may wait for the disk."""
    tells_versions: ClassVar[bool] = True

    @abstractmethod
    def member(self, path: Path) -> str | None:
        """Return the version of the entry at `path`, or None when it is not a member's."""

    @property
    def looks_within(self) -> bool:
        """Whether what is in an entry that is a folder decides if it is a member."""
        return False

    # --- names ----------------------------------------------------------------------------------------

    def path(self, job: str) -> Path:
        """Return where the job's entry is written."""
        return self.basedir / (check_job(job, where=str(self.basedir)) + self.extension)

    def job_of(self, name: str) -> str | None:
        """Return the job that an entry's name stands for; None for other, hidden and invalid names."""
        suffix = self.extension
        ends = name.lower().endswith(suffix.lower()) if self.case_insensitive else name.endswith(suffix)
        if name.startswith(".") or not ends:
            return None
        job = name[: len(name) - len(suffix)]
        if not is_job(job):
            told_invalid(str(self.basedir), name)
            return None
        return job

    def existing(self, job: str) -> Path | None:
        """Return the path of the member's entry, in whatever case its extension is; None for no member."""
        path = self.path(job)
        with os_errors(str(path)):
            if self.member(path) is not None:
                return path
            if self.case_insensitive:
                for spelling in self._spellings(job):
                    if self.member(spelling) is not None:
                        return spelling
        return None

    def stage(self) -> Path:
        """Return a fresh hidden path in the folder, which `put` takes as a source without copying."""
        return staged_path(self.basedir)

    # --- the port -------------------------------------------------------------------------------------

    async def list(self) -> AsyncIterator[Listed]:
        """Yield all members, of one complete pass over the folder."""
        for listed in await in_own_thread(self._listed, f"the listing of {self.basedir}"):
            yield listed

    def _listed(self) -> Sequence[Listed]:
        found: dict[str, Listed] = {}
        with os_errors(str(self.basedir)), os.scandir(self.basedir) as entries:
            for entry in entries:
                job = self.job_of(entry.name)
                if job is None or (job in found and entry.name != job + self.extension):
                    continue
                if (version := self.member(Path(entry.path))) is not None:
                    found[job] = Listed(job, version)
        return tuple(found.values())

    def names(self) -> Sequence[str]:
        """Return the names of all entries that may be members'; the folder is not held open meanwhile."""
        with os_errors(str(self.basedir)):
            return os.listdir(self.basedir)

    def versions(self, names: Sequence[str]) -> Sequence[Listed]:
        """Return the members among entries, in one spelling each."""
        found: dict[str, Listed] = {}
        for name in names:
            job = self.job_of(name)
            if job is None or (job in found and name != job + self.extension):
                continue
            with os_errors(str(self.basedir)):
                if (version := self.member(self.basedir / name)) is not None:
                    found[job] = Listed(job, version)
        return tuple(found.values())

    def inspect(self, job: str) -> Found:
        """Look closely at a job's entry."""
        path = self.existing(job) or self.path(job)
        finished, known = is_finished(path)
        return Found(job, self.version_now(job), finished, is_told(path), known)

    def being_written(self, jobs: Sequence[str]) -> set[str]:
        """Return those jobs whose entries somebody is writing in place."""
        return set()

    @property
    def behind(self) -> bool:
        """Whether the kernel has notices for this loop that have not been handed on."""
        from datatask.adapters.store.inotify import is_behind  # late: Linux only

        return is_behind()

    async def version(self, job: str) -> str | None:
        """Return the version of a member now, or None."""
        return await in_own_thread(lambda: self.version_now(job), f"a look at {self.path(job)}")

    def version_now(self, job: str) -> str | None:
        """Return the version of a member now, or None; blocking."""
        path = self.path(job)
        with os_errors(str(path)):
            version = self.member(path)
            if version is None and self.case_insensitive:
                spellings = (self.member(spelling) for spelling in self._spellings(job))
                version = next((found for found in spellings if found is not None), None)
        return version

    async def put(self, write: Write) -> str | None:
        """Write the value whole or not at all, durably; return its version."""
        put, path = self._put, str(self.path(write.job))
        return await in_own_thread(lambda: os_errors(path)(put)(write), f"writing {path}")

    @abstractmethod
    def _put(self, write: Write) -> str | None: ...

    async def delete(self, job: str) -> None:
        """Remove the job's entry, durably; absent is fine."""
        delete, path = self._delete, str(self.path(job))
        await in_own_thread(lambda: os_errors(path)(delete)(job), f"deleting {path}")

    def _delete(self, job: str) -> None:
        removed = [self._removed(path) for path in self._spellings(job)]  # each once: somebody may write anew
        if any(removed):
            sync_folder(self.basedir)

    def _spellings(self, job: str) -> Sequence[Path]:
        if not self.case_insensitive:
            return (self.path(job),)
        return tuple(self.basedir / name for name in os.listdir(self.basedir) if self.job_of(name) == job)

    @abstractmethod
    def _removed(self, path: Path) -> bool:
        """Remove an entry; return whether there was one of this store's kind."""

    def identity(self) -> str:
        """Return the folder's device and inode."""
        with os_errors(str(self.basedir)):
            status = os.stat(self.basedir)
        return f"{status.st_dev}:{status.st_ino}"

    def watch(self, tell: Callable[[Change], None]) -> Callable[[], None] | None:
        """Tell changes by inotify, where that sees them."""
        from datatask.adapters.store.watching import watch_folder  # late: Linux only

        return watch_folder(self, tell)

    def unfinished(self, path: Path) -> bool:
        """Whether an entry that was just created is still being written: its closing will be told."""
        return False

    def touched(self, path: Path) -> bool:
        """Whether an entry whose times or rights were changed is to be looked at: not while it is written."""
        return False

    async def prepare(self) -> None:
        """Make the folder, check that it can be written, and remove what dead writers left staged."""
        await in_own_thread(self._prepare, f"a look at {self.basedir}")

    async def check(self, whose: str) -> None:
        """Check that the folder is there and can be read, and remove what dead writers left staged where we may."""
        await in_own_thread(lambda: self._check(whose), f"a look at {self.basedir}")

    def _check(self, whose: str) -> None:
        check_folder(self.basedir, whose)
        if os.access(self.basedir, os.W_OK):
            with os_errors(str(self.basedir)):
                sweep(self.basedir)

    def _prepare(self) -> None:
        with os_errors(str(self.basedir)):
            self.basedir.mkdir(parents=True, exist_ok=True)
            if not os.access(self.basedir, os.W_OK | os.X_OK):
                raise NotPermittedError(
                    "the folder cannot be written", where=str(self.basedir), remedy="change its permissions"
                )
            sweep(self.basedir)


@dataclass(frozen=True)
class FileStore(FolderStore):
    """A folder of files; `encode` turns a document into a file's bytes, where the files hold documents."""

    encode: Callable[[msgspec.Raw], bytes] | None = None

    def member(self, path: Path) -> str | None:
        """Return the version of a regular file, links followed; other things are not members."""
        status = _stat(path)
        return version_of(status) if status is not None and stat.S_ISREG(status.st_mode) else None

    def unfinished(self, path: Path) -> bool:
        """Whether it is a new file rather than a link to one that was written before: closing it is told."""
        try:
            status = os.lstat(path)
        except OSError:
            return True
        return (
            stat.S_ISREG(status.st_mode) and status.st_nlink == 1 and status.st_ctime_ns == status.st_mtime_ns
        )

    def being_written(self, jobs: Sequence[str]) -> set[str]:
        """Return those jobs whose files somebody has open for writing, of the last day."""
        spelled = {self.job_of(name): name for name in self.names()} if self.case_insensitive else {}
        paths = {job: self.basedir / spelled.get(job, job + self.extension) for job in jobs}
        return {job for job, path in paths.items() if is_fresh(path) and is_written(path)}

    def touched(self, path: Path) -> bool:
        """Whether it is a file that nobody writes any more, such as one whose times are set after it was copied."""
        return is_written(path) is False

    def _put(self, write: Write) -> str:
        target = self.path(write.job)
        if self.case_insensitive:
            target = self.existing(write.job) or target
        if write.source is not None and write.digest is None and not self._is_staged(write.source):
            # A run's own output, which goes with the run; a blob has to stay what it is, whoever changes this file.
            status = linked(write.source, target)
            if status is not None:
                sync_folder(self.basedir)
                return version_of(status)
        with self._staged(write) as staged:
            take_over(staged, target)
            version = version_of(os.stat(staged))
            with one_at_a_time(self.basedir):
                self._compare(write)
                os.replace(staged, target)
        sync_folder(self.basedir)
        return version

    def hash_now(self, job: str) -> Hashed | None:
        """Return the digest of a file's content, unless it changes meanwhile."""
        path = self.existing(job)
        if path is None:
            return None
        with os_errors(str(path)), open(path, "rb", opener=opened_at_once) as file:
            before = version_of(os.fstat(file.fileno()))
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            after = version_of(os.fstat(file.fileno()))
        return Hashed(before, digest) if before == after == self.version_now(job) else None

    def put_now(self, write: Write) -> str:
        """Write the value as `put` does, blocking."""
        return self._put(write)

    def delete_now(self, write: Write) -> None:
        """Remove the job's entry, unless it is another one than the run has seen; blocking."""
        with one_at_a_time(self.basedir):
            self._compare(write)
            self._delete(write.job)

    def content(self, write: Write) -> bytes:
        """Return the bytes of the file that a write makes."""
        return self._bytes(write)

    def _compare(self, write: Write) -> None:
        """Refuse to write over what the run has not seen; nothing of ours comes between this and the change."""
        if write.over_version is None:
            return
        now = self.version_now(write.job) or ABSENT_VERSION
        if now != write.over_version:
            was = "was not there" if write.over_version == ABSENT_VERSION else "was another one"
            raise ConflictError(
                f"key {write.job} of {self.repository} has been {'changed' if now else 'deleted'} by another:"
                f" its file {was} when this run read it",
                where=str(self.path(write.job)),
                remedy=RUN_AGAIN,
            )

    @contextmanager
    def _staged(self, write: Write) -> Iterator[Path]:
        """Give the value under a hidden name, durable; it is locked until it has been renamed, or is removed."""
        source = write.source
        held = None
        staged = source if source is not None and self._is_staged(source) else self.stage()
        try:
            if staged != source:  # else whoever writes it holds its lock
                fd, held = create(staged)
                with open(fd, "wb") as file:
                    if source is not None:
                        with source.open("rb") as original:
                            shutil.copyfileobj(original, file, 1024 * 1024)
                    else:
                        file.write(self._bytes(write))
                    file.flush()
                    os.fsync(file.fileno())
            yield staged
        except BaseException:
            staged.unlink(missing_ok=True)
            raise
        finally:
            if held is not None:
                os.close(held)

    def _is_staged(self, source: Path) -> bool:
        return source.parent == self.basedir and is_staged(source.name)

    def _bytes(self, write: Write) -> bytes:
        if write.data is not None:
            return write.data
        if write.value and self.encode is not None:
            return self.encode(write.value)
        raise InvalidValueError("a file takes bytes, not a document", where=str(self.path(write.job)))

    def _removed(self, path: Path) -> bool:
        try:
            os.unlink(path)
        except (FileNotFoundError, IsADirectoryError):
            return False
        return True


def version_of(status: os.stat_result) -> str:
    """Return inode, modification time and size as a version."""
    return f"{status.st_ino}-{status.st_mtime_ns}-{status.st_size}"


def is_folder(path: Path) -> os.stat_result | None:
    """Return the status of a folder, links followed, or None when there is none."""
    status = _stat(path)
    return status if status is not None and stat.S_ISDIR(status.st_mode) else None


def _stat(path: Path) -> os.stat_result | None:
    try:
        return os.stat(path)
    except FileNotFoundError:
        return None  # gone since it was listed, or a link to nowhere
    except OSError as error:
        if error.errno == errno.ELOOP:
            return None  # a link in a circle leads nowhere either
        raise


def opened_at_once(path: str, flags: int) -> int:
    """Open without waiting for whom a pipe would need, which may have taken the file's place just now."""
    return os.open(path, flags | os.O_NONBLOCK)
