"""A folder with a folder per job: values that are trees, made first and filled afterwards.

The tree itself is never copied through here; what comes in is `mkdir`, what goes out is the path. A folder is
deleted by renaming it out of sight, then removing it, so that a crash leaves no half of it as a member.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from datatask.adapters.store.files import FileRepositoryBase
from datatask.adapters.store.filestore import FolderStore, is_folder, version_of
from datatask.adapters.store.finished import sync_folder
from datatask.adapters.store.staged import claimed, is_staged, remove
from datatask.engine.api.repositories import job_getter
from datatask.engine.run_context import current_run
from datatask.schema.definition import Record
from datatask.schema.errors import FLAG, NotPossibleError, expect
from datatask.schema.messages import Write
from datatask.schema.values import check_job


@dataclass(frozen=True)
class DirectoryStore(FolderStore):
    """The store port on a folder of folders; a put without content makes one."""

    discard_empty: bool = False
    tells_versions: ClassVar[bool] = False
    """What is changed within a folder is its own affair, and that of the run that fills it."""

    @property
    def looks_within(self) -> bool:
        """Whether what is in an entry that is a folder decides if it is a member."""
        return self.discard_empty

    def member(self, path: Path) -> str | None:
        """Return the version of a folder, links followed; with `discard_empty` of a filled one."""
        status = is_folder(path)
        if status is None or (self.discard_empty and not _filled(path)):
            return None
        return version_of(status)

    def _put(self, write: Write) -> str | None:
        path = self.path(write.job)
        if write.value or write.data is not None or write.source is not None:
            raise NotPossibleError(
                "a directory takes no content",
                where=str(path),
                remedy="make it with mkdir() and put files into it, or inject into a blob repository",
            )
        path.mkdir(exist_ok=True)
        sync_folder(self.basedir)
        return self.member(path)

    def _removed(self, path: Path) -> bool:
        if is_folder(path) is None and not path.is_symlink():
            return False
        hidden = self.stage()
        with claimed(path):
            os.rename(path, hidden)
            sync_folder(self.basedir)
            remove(hidden)
        return True


def _filled(path: Path) -> bool:
    try:
        with os.scandir(path) as entries:
            return any(not is_staged(entry.name) for entry in entries)
    except FileNotFoundError:
        return False


class DirectoryRepository(FileRepositoryBase):
    """A folder with a folder per job; with `discard_empty` an empty one is not a member.

    The values are trees, so `open`, `cat` and `inject` do not apply: make the folder, then fill it.
    """

    _guards = False  # making a folder that is there leaves it as it is

    def __init__(
        self,
        basedir: str | os.PathLike[str],
        extension: str = "",
        case_insensitive: bool = False,
        discard_empty: bool = False,
        *,
        name: str | None = None,
        was: str | None = None,
        record: Record | None = None,
    ) -> None:
        super().__init__(basedir, extension, case_insensitive, name=name, was=was, record=record)
        expect(self, FLAG, discard_empty=discard_empty)
        self.discard_empty = discard_empty

    def _options(self) -> str:
        return super()._options() + (", discard_empty=True" if self.discard_empty else "")

    def _own_store(self) -> FolderStore:
        return DirectoryStore(
            self.basedir, self.extension, self.case_insensitive, self._id or "", self.discard_empty
        )

    @job_getter
    async def mkdir(self, job: str) -> None:
        """Make the job's folder; existing is fine.

        In a run the folder counts when the run has ended well, with what is in it then.
        """
        store, run = self._own_store(), current_run.get()
        write = Write(repository=self._id or "", job=check_job(job, where=self))
        if self._binding is not None and run is not None:
            run.check_open()
            await store.put(write)
            run.put_unsettled(write, store.version)
        elif self._binding is not None and not self.discard_empty:
            await self._binding.put(self.id, write)
        else:  # an empty folder that is to be discarded is no member: nothing to record
            await store.put(write)
