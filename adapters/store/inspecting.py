"""A close look at one entry of a folder: what it is now, whether it is still being written, and who tells its changes.

In comes a path, out go answers of the file system. Blocking; called from threads.
"""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import stat
import time
from pathlib import Path

AGE_SECONDS = 1.0
"""An entry that was changed more lately is looked at again later: its notice may not be there yet."""
FRESH_SECONDS = 24 * 3600.0
QUIET_SECONDS = 60.0
"""The same where the kernel does not say whether somebody writes it."""


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
