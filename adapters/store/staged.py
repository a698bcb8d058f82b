"""Staged entries: hidden names in a folder, under which a value is made before it is renamed; and to whom files belong.

The maker of one holds a lock on it, which the kernel takes back from the dead: what a killed engine left is known by trying to lock
it, and what another engine still writes is left alone. Without such locks only age tells. Group, mode and access list of a new
file are those that the folder gives (found by making one: setgid, default access lists, umask, odd file systems), also where it is
made elsewhere and linked in. Blocking; called from threads.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import secrets
import shutil
import stat
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

STAGED = ".datatask-tmp"
STAGED_SECONDS_MAX = 24 * 3600
"""Where locks do not tell, staged entries that were not touched for so long belong to nobody."""

PATIENCE_SECONDS = 1.0
_turns: dict[str, threading.Lock] = {}
_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL)


UMASK_SECONDS = 1.0
KNOWN_MAX = 1_000
_ACCESS, _DEFAULT = "system.posix_acl_access", "system.posix_acl_default"
_NO_LIST = frozenset((errno.ENODATA, errno.ENOTSUP, errno.ENOSYS))
_umask_seen = 0o077, 0.0  # the umask, and until when it is taken as known
_known: dict[tuple[object, ...], Belonging] = {}


def staged_path(folder: Path) -> Path:
    """Return a fresh hidden path in the folder."""
    return folder / f".{secrets.token_hex(8)}{STAGED}"


def is_staged(name: str) -> bool:
    """Whether an entry's name is a staged one's."""
    return name.startswith(".") and name.endswith(STAGED)


def create(path: Path) -> tuple[int, int]:
    """Make a file that must not exist; return a descriptor to write it and another that holds its lock."""
    while True:
        # 0666 less the umask, as a plain open() would give: pods and other users read these files
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        try:
            held = _holding(path, fd)
        except BaseException:
            os.close(fd)
            raise
        if held is not None:
            return fd, held
        os.close(fd)  # somebody swept it in the moment before it was locked


def _holding(path: Path, fd: int) -> int | None:
    """Return a descriptor that holds the lock of a file just made; None where it was swept meanwhile."""
    try:
        held = os.open(path, os.O_RDONLY | os.O_CLOEXEC)  # closing this one is no end of writing to inotify
    except PermissionError:  # of a umask that takes our own right to read
        held = os.dup(fd)
    except FileNotFoundError:
        return None
    _lock(held, wait=True)
    if os.path.samestat(os.fstat(fd), os.fstat(held)) and os.fstat(held).st_nlink:
        return held
    os.close(held)
    return None


@contextmanager
def claimed(path: Path) -> Iterator[None]:
    """Hold the lock of what is there, a folder too, while it is renamed and removed."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        yield  # a link, or nothing that we may open
        return
    try:
        _lock(fd, wait=False)
        yield
    finally:
        os.close(fd)


@contextmanager
def one_at_a_time(folder: Path) -> Iterator[None]:
    """Let names in a folder change one after another: within this process, and between those that hold its lock.

    A process that is stopped while it holds the lock is not waited for longer than `PATIENCE_SECONDS`; where a folder
    cannot be locked, only this process is kept in order.
    """
    with _turns.setdefault(os.fspath(folder), threading.Lock()):
        try:
            fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError:
            yield  # what follows will say what is the matter with it
            return
        try:
            until = time.monotonic() + PATIENCE_SECONDS
            with contextlib.suppress(OSError):
                while _lock(fd, wait=False) is False and time.monotonic() < until:
                    time.sleep(0.002)
            yield
        finally:
            os.close(fd)


def sweep(folder: Path) -> None:
    """Remove what dead writers left staged in the folder."""
    with os.scandir(folder) as entries:
        found = [Path(entry.path) for entry in entries if is_staged(entry.name)]
    if not found:
        return
    from datatask.adapters.store.inotify import is_remote  # late: Linux only

    alone = not is_remote(folder)
    for path in found:
        with contextlib.suppress(FileNotFoundError):
            if alone:
                _sweep(path)
            elif _is_old(path):
                remove(path)


def _sweep(path: Path) -> None:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    except OSError:  # a link, or somebody else's
        if _is_old(path):
            remove(path)
        return
    try:
        locked = _lock(fd, wait=False)
        if locked or (locked is None and _is_old(path)):
            remove(path)
    finally:
        os.close(fd)


def _lock(fd: int, *, wait: bool) -> bool | None:
    """Lock an open file; False when another holds the lock, None where there are no locks."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno in _NO_LOCKS:
            return None
        raise
    return True


def _is_old(path: Path) -> bool:
    oldest = time.time() - STAGED_SECONDS_MAX  # file times are the wall clock's
    return os.lstat(path).st_mtime < oldest


def remove(path: Path) -> None:
    """Remove a file, a link (never what it points to) or a whole folder; absent is fine."""
    with contextlib.suppress(FileNotFoundError):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


class Belonging(NamedTuple):
    """Owner, group, mode (permissions only), and the access list where there is one beyond the mode."""

    uid: int
    gid: int
    mode: int
    acl: bytes | None


def belonging(file: int | Path) -> Belonging:
    """Return what a file has; a link's target is not looked at."""
    status = os.stat(file, follow_symlinks=isinstance(file, int))
    return Belonging(status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode), _list(file, _ACCESS))


def of_new_files(folder: Path) -> Belonging:
    """Return what a file made in this folder now gets; a folder that has not changed its ways is not asked again."""
    status = os.stat(folder)
    place = status.st_dev, status.st_ino, status.st_mode, status.st_uid, status.st_gid
    key = (place, os.geteuid(), os.getegid(), umask(), _list(folder, _DEFAULT))
    if key not in _known:
        if len(_known) >= KNOWN_MAX:
            _known.clear()
        _known[key] = _tried(folder)
    return _known[key]


def _tried(folder: Path) -> Belonging:
    path = staged_path(folder)
    fd = os.open(path, os.O_RDONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    try:
        return belonging(fd)
    finally:
        os.close(fd)
        path.unlink(missing_ok=True)


def give(file: int | Path, wanted: Belonging) -> None:
    """Give a file group, access list and mode; `PermissionError` where we may not, or it is another user's."""
    has = belonging(file)
    if has.uid != wanted.uid:
        raise PermissionError(errno.EPERM, "the file is another user's")
    if has.gid != wanted.gid:
        os.chown(file, -1, wanted.gid)
    if has.acl != wanted.acl:
        if wanted.acl is None:
            os.removexattr(file, _ACCESS)
        else:
            os.setxattr(file, _ACCESS, wanted.acl)
    if stat.S_IMODE(os.stat(file).st_mode) != wanted.mode:
        os.chmod(file, wanted.mode)


def take_over(path: Path, target: Path) -> None:
    """Let a new file that replaces another belong to the same group and give the same rights, as far as we may.

    Who can read it must not change by that it is written anew. Nothing where there is no file to be replaced.
    """
    try:
        if not stat.S_ISREG(os.lstat(target).st_mode):
            return
        before = belonging(target)
    except FileNotFoundError:
        return
    has = belonging(path)
    with contextlib.suppress(PermissionError):
        os.chown(path, -1, before.gid)
        has = has._replace(gid=before.gid)
    shared = before.mode if has.gid == before.gid else before.mode & (has.mode | ~stat.S_IRWXG)
    try:
        give(path, has._replace(acl=before.acl, mode=shared))
    except OSError:  # an access list that cannot be given
        os.chmod(path, shared)


def umask() -> int:
    """Return this process's umask, at most a second old; `os.umask` would set it for all threads for a moment."""
    global _umask_seen
    mask, until = _umask_seen
    if time.monotonic() > until:
        mask = 0o077
        with open("/proc/self/status", "rb") as file:
            for line in file:
                if line.startswith(b"Umask:"):
                    mask = int(line.split()[1], 8)
                    break
        _umask_seen = mask, time.monotonic() + UMASK_SECONDS
    return mask


def _list(file: int | Path, which: str) -> bytes | None:
    try:
        return os.getxattr(file, which)
    except OSError as error:
        if error.errno in _NO_LIST:
            return None
        raise
    except AttributeError:  # no Linux
        return None
