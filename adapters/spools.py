"""Bytes on their way to their place: files that appear whole or not at all, and temporary folders (spools) of this process.

In: paths, names, bytes. Out: a file with all its bytes, on disk where it is to be durable, or what was there before; paths in a
spool, which is removed when it is closed. A process holds a lock on its spool: a lock that can be had means that the process
was killed, and the next spool to be made removes its leftovers. Blocking.
"""

from __future__ import annotations

import fcntl
import itertools
import os
import shutil
import tempfile
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from datatask.adapters.trust import check_above

_PREFIX = f"datatask-spool-{os.getuid()}-"


class Spool:
    """A folder (0700) below `within`, by default the system's temporary one; made when it is first used."""

    def __init__(self, within: str | os.PathLike[str] | None = None) -> None:
        self._within = within
        self._folder: Path | None = None
        self._end: weakref.finalize[..., Spool] | None = None

    @property
    def folder(self) -> Path:
        """The folder; `OSError` where none can be made, `UnsafePlaceError` where another user could exchange it."""
        if self._folder is None:
            check_above(Path(self._within or tempfile.gettempdir()) / _PREFIX)
            sweep_spools(self._within)
            self._folder, lock = _made(self._within)
            self._end = weakref.finalize(self, _remove, self._folder, lock, os.getpid())
        return self._folder

    def path(self, name: str) -> Path:
        """Return where something of this name goes."""
        return self.folder / name

    def has(self, name: str) -> bool:
        """Whether there is something of this name; makes no folder."""
        return self._folder is not None and (self._folder / name).exists()

    def close(self) -> None:
        """Remove it with what is in it. The next use makes another one."""
        if self._end is not None:
            self._end()
        self._folder = None


def sweep_spools(within: str | os.PathLike[str] | None = None) -> None:
    """Remove what killed processes of this user have left; of what cannot be told whose it is, nothing."""
    for path in Path(within or tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        lock = _locked(path)
        if lock is not None:
            shutil.rmtree(path, ignore_errors=True)
            os.close(lock)


def _made(within: str | os.PathLike[str] | None) -> tuple[Path, int]:
    while True:
        path = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=within))
        lock = _locked(path, whole=False)
        if lock is not None:
            return path, lock  # else somebody swept it in the moment before it was locked


def _locked(path: Path, *, whole: bool = True) -> int | None:
    """Return a descriptor that holds a folder's lock; None for one that somebody holds, or that is gone.

    With `whole` a file system without locks counts as held, else as ours.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        return None
    except OSError:
        if whole:
            os.close(fd)
            return None
    try:
        mine = os.path.samestat(os.fstat(fd), os.lstat(path)) and os.fstat(fd).st_uid == os.getuid()
    except FileNotFoundError:
        mine = False
    if not mine:
        os.close(fd)
        return None
    return fd


def _remove(folder: Path, lock: int, pid: int) -> None:
    if os.getpid() == pid:  # a forked process has not made it
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


_numbers = itertools.count()


@contextmanager
def whole(
    path: Path,
    *,
    durable: bool,
    fresh: str = "",
    opener: Callable[[str, int], int] | None = None,
    finish: Callable[[Path], object] = lambda fresh: None,
) -> Iterator[BinaryIO]:
    """Open a file beside `path` that replaces it when the body ends.

    `fresh` is its name until then, where one after a crash is to be found; `finish` is called with it, closed, just before.
    """
    beside = path.with_name(fresh or f"new-{os.getpid()}-{threading.get_ident()}-{next(_numbers)}")
    try:
        with open(beside, "wb", opener=opener) as file:
            yield file
            if durable:
                file.flush()
                os.fsync(file.fileno())
        finish(beside)
        os.replace(beside, path)
    except BaseException:
        with suppress(OSError):
            beside.unlink(missing_ok=True)
        raise
    if durable:
        sync(path.parent)


def sync(path: str | os.PathLike[str]) -> None:
    """Make a file's bytes durable, or the names in a folder."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
