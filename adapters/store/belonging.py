"""To whom a file belongs and who may use it: as the folder has it for files that are made there.

In comes a folder, out go group, mode and access list of a new file in it, by making one: setgid folders, default access lists, the
umask and the ways of odd file systems all have their say. What is made elsewhere and linked in is given the same. Blocking.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import time
from pathlib import Path
from typing import NamedTuple

from datatask.adapters.store.staged import staged_path

UMASK_SECONDS = 1.0
KNOWN_MAX = 1_000

_ACCESS, _DEFAULT = "system.posix_acl_access", "system.posix_acl_default"
_NO_LIST = frozenset((errno.ENODATA, errno.ENOTSUP, errno.ENOSYS))
_asked = 0o077, 0.0  # the umask, and until when it is taken as known
_known: dict[tuple[object, ...], Belonging] = {}


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
    global _asked
    mask, until = _asked
    if time.monotonic() > until:
        mask = 0o077
        with open("/proc/self/status", "rb") as file:
            for line in file:
                if line.startswith(b"Umask:"):
                    mask = int(line.split()[1], 8)
                    break
        _asked = mask, time.monotonic() + UMASK_SECONDS
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
