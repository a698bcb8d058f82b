"""Making files and their names last: a file given a second name instead of a copy, and folders synced for many at once.

In: a file that somebody has finished, or a folder in which names have changed. Out: names and bytes that survive a
power failure. Blocking; called from threads.
"""

from __future__ import annotations

import errno
import os
import stat
import threading
from pathlib import Path

from datatask.adapters.store.belonging import give, of_new_files
from datatask.adapters.store.inspecting import lease

_COPY_INSTEAD = frozenset(
    (
        *(errno.EXDEV, errno.EMLINK, errno.EEXIST, errno.EPERM, errno.EACCES, errno.EAGAIN),
        *(errno.EINVAL, errno.ENOTSUP, errno.ENOSYS, errno.ELOOP, errno.ENOLCK),
    )
)


def linked(source: Path, target: Path) -> os.stat_result | None:
    """Give a file that nobody writes any more a second name, with group and rights of a new file; return what it was.

    None where the bytes have to be copied: another file system, something else than a file, a target that is there, a
    group or rights that we may not give, or a process that still has the file open for writing.
    """
    try:
        fd = os.open(source, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in _COPY_INSTEAD:
            return None
        raise
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            return None
        lease(fd)
        give(fd, of_new_files(target.parent))
        if status.st_size:
            os.fsync(fd)
        try:
            os.link(source, target)
        except FileExistsError:
            if not os.path.samestat(status, os.lstat(target)):  # else it is done already, as before a crash
                return None
        return status
    except OSError as error:
        if error.errno in _COPY_INSTEAD:
            return None
        raise
    finally:
        os.close(fd)


class _Syncs:
    """The syncs of one folder: who asks while one is under way shares the next with all others who do."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._begun = 0
        self._done = 0
        self._busy = False
        self.waiting = 0

    def sync(self, folder: str | os.PathLike[str]) -> None:
        with self._changed:
            wanted = self._begun + 1
            while self._done < wanted:
                if self._busy:
                    self.waiting += 1
                    self._changed.wait()
                    self.waiting -= 1
                    continue
                self._busy = True
                self._begun = number = self._begun + 1
                self._changed.release()
                try:
                    _sync(folder)
                finally:
                    self._changed.acquire()
                    self._busy = False
                    self._changed.notify_all()
                self._done = number


_syncs: dict[str, _Syncs] = {}


def sync_folder(path: str | os.PathLike[str]) -> None:
    """Make a folder's names durable; as many as ask at once cost two syncs."""
    _syncs.setdefault(os.fspath(path), _Syncs()).sync(path)


def _sync(folder: str | os.PathLike[str]) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
