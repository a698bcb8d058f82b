"""Entries of a folder: whether one is still being written, and names and bytes that survive a power failure.

In: a path. Out: answers of the file system; a file given a second name instead of a copy; folders synced for many at once.
Blocking; called from threads.
"""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import stat
import threading
import time
from pathlib import Path

from datatask.adapters.spools import sync
from datatask.adapters.store.staged import give, of_new_files

AGE_SECONDS = 1.0
"""An entry that was changed more lately is looked at again later: its notice may not be there yet."""
FRESH_SECONDS = 24 * 3600.0
QUIET_SECONDS = 60.0
"""The same where the kernel does not say whether somebody writes it."""


_COPY_INSTEAD = frozenset(
    (
        *(errno.EXDEV, errno.EMLINK, errno.EEXIST, errno.EPERM, errno.EACCES, errno.EAGAIN),
        *(errno.EINVAL, errno.ENOTSUP, errno.ENOSYS, errno.ELOOP, errno.ENOLCK),
    )
)
_syncs: dict[str, _Syncs] = {}


def lease(fd: int) -> None:
    """Raise `OSError` where another has the file open for writing (`EAGAIN`), or where the kernel does not say so.

    The kernel grants a read lease only on a file that is open for writing nowhere; it is given back at once.
    """
    # Who opens it for writing at this moment is told by a signal; this one is ignored by default, SIGIO kills.
    fcntl.fcntl(fd, fcntl.F_SETSIG, signal.SIGURG)
    fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_RDLCK)
    fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)


def is_written(path: Path) -> bool | None:
    """Whether somebody has the file open for writing, links followed; None where the kernel does not say."""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            return None
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        lease(fd)
    except OSError as error:
        return True if error.errno == errno.EAGAIN else None
    finally:
        os.close(fd)
    return False


def is_fresh(path: Path) -> bool:
    """Whether a file was changed within a day, links followed: others are not asked for who writes them."""
    try:
        return time.time() - os.stat(path).st_mtime < FRESH_SECONDS
    except OSError:
        return False


def is_finished(path: Path) -> tuple[bool, bool]:
    """Whether an entry will stay as it is for now, and whether the kernel says so; what is gone will."""
    try:
        status = os.stat(path)
    except OSError:
        return True, True
    written = is_written(path) if stat.S_ISREG(status.st_mode) else False
    age = time.time() - max(status.st_ctime, status.st_mtime)  # file times are the wall clock's
    return not written and abs(age) >= (
        QUIET_SECONDS if written is None else AGE_SECONDS
    ), written is not None


def is_told(path: Path) -> bool:
    """Whether the folder's notices tell an entry's changes: not those of what it links to, or has as a second name."""
    try:
        status = os.lstat(path)
    except OSError:
        return True
    return not stat.S_ISLNK(status.st_mode) and (stat.S_ISDIR(status.st_mode) or status.st_nlink == 1)


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
                    sync(folder)
                finally:
                    self._changed.acquire()
                    self._busy = False
                    self._changed.notify_all()
                self._done = number


def sync_folder(path: str | os.PathLike[str]) -> None:
    """Make a folder's names durable; as many as ask at once cost two syncs."""
    _syncs.setdefault(os.fspath(path), _Syncs()).sync(path)
