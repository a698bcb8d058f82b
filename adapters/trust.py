"""Who else may change a place of ours: checked before anything is read back from it.

In: a path. Out: nothing, a descriptor, or `UnsafePlaceError`, which names the folder and the `chmod` that mends it. Root
and this process's user are trusted, and those that DATATASK_TRUST names; docs/security.md says what follows. A folder
above is checked as it is looked up, links included; the thing itself by what was opened, so that nothing can be
exchanged between the check and the use. Modes are those asked for, whatever the umask is. Blocking.
"""

from __future__ import annotations

import grp
import os
import pwd
import stat
import struct
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from datatask.schema.errors import CallerError, InvalidValueError

TRUST = "DATATASK_TRUST"
_ALL = "all"
_LINKS_MAX = 40
_OPEN = os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
_UID_MAP = Path("/proc/self/uid_map")
_OVERFLOW = Path("/proc/sys/fs/overflowuid")
_ACL = "system.posix_acl_access"
_ACL_USER, _ACL_GROUP_OBJ, _ACL_GROUP, _ACL_MASK, _ACL_WRITE = 0x02, 0x04, 0x08, 0x10, 0x02
_KINDS = {"folder": stat.S_ISDIR, "file": stat.S_ISREG, "socket": stat.S_ISSOCK}


class UnsafePlaceError(CallerError):
    """A place that somebody else could have filled: `where` names it, `remedy` says what to change."""

    code = "unsafe_place"


class _Step(NamedTuple):
    """A name that is looked up in a folder, and what is there: None where there is nothing yet."""

    folder: str
    status: os.stat_result
    name: str
    found: os.stat_result | None


def check_above(path: str | os.PathLike[str], *, group: bool = False) -> None:
    """Raise `UnsafePlaceError` where somebody else may put another thing in the place of `path`, or of a folder above it.

    What does not exist yet is checked as far as it exists. With `group` the owners of the folders above, and the groups
    that may write them, are trusted too: they can change the pipeline that lies there.
    """
    if _trusts_all():
        return
    for step in _looked_up(os.path.abspath(path)):
        _check_step(step, group=group)


def check_own(
    path: str | os.PathLike[str], kind: str = "folder", *, allowed: int = 0o700, also: int | None = None
) -> bool:
    """Raise `UnsafePlaceError` unless `path` is a folder, file or socket of ours (or the user's `also`) and no link.

    A mode wider than `allowed` is narrowed; returns whether it was. `FileNotFoundError` where there is nothing.
    """
    status = os.lstat(path)
    _check_kind(str(path), status, kind, also)
    if not status.st_mode & 0o777 & ~allowed:
        return False
    if status.st_uid == os.geteuid() and kind != "socket":
        fd = os.open(path, os.O_RDONLY | _OPEN)
        try:
            _check_kind(str(path), os.fstat(fd), kind)
            with suppress(
                OSError
            ):  # what a file system without modes or for reading only makes of it is looked at below
                os.fchmod(fd, status.st_mode & 0o7000 | status.st_mode & allowed)
            narrowed = os.fstat(fd)
        finally:
            os.close(fd)
        _refuse_written(str(path), narrowed)
        return narrowed.st_mode != status.st_mode
    _refuse_written(str(path), status)
    return False


def check_found(path: str | os.PathLike[str], kind: str = "file", *, also: int | None = None) -> None:
    """Raise `UnsafePlaceError` unless what is there is ours (or the user's `also`), no link, and nobody else may write it.

    `FileNotFoundError` where there is nothing. Changes nothing: for who reads.
    """
    status = os.lstat(path)
    _check_kind(str(path), status, kind, also)
    _refuse_written(str(path), status)


def open_own(path: str | os.PathLike[str], flags: int = os.O_RDONLY, *, also: int | None = None) -> int:
    """Return a descriptor of a file that is ours (or the user's `also`), no link, and that nobody else may write.

    Never waits for a pipe.
    """
    try:
        fd = os.open(path, flags | _OPEN)
    except OSError:
        with suppress(FileNotFoundError):
            _check_kind(str(path), os.lstat(path), "file")
        raise
    try:
        check_opened(fd, path, also=also)
    except BaseException:
        os.close(fd)
        raise
    return fd


def check_opened(fd: int, path: str | os.PathLike[str], *, also: int | None = None) -> None:
    """Raise `UnsafePlaceError` unless an open file is a regular one of ours that nobody else may write."""
    status = os.fstat(fd)
    _check_kind(str(path), status, "file", also)
    _refuse_written(str(path), status)


def make_private(folder: str | os.PathLike[str], *, above: int = 0o700, also: int | None = None) -> None:
    """Make a folder of mode 0700 whatever the umask is, and those above it that are missing, with the mode `above`.

    One that is there is checked as by `check_own`, and narrowed; it may be the user's `also`.
    """
    path = os.fspath(folder)
    _make(path, above)
    with suppress(FileNotFoundError):
        check_own(path, also=also)


def _make(path: str, above: int, mode: int = 0o700) -> None:
    try:
        os.mkdir(path, mode)
    except FileNotFoundError:
        if os.path.dirname(path) in ("", path):
            raise
        _make(os.path.dirname(path), above, above)
        try:
            os.mkdir(path, mode)
        except FileExistsError:
            return  # another was faster
    except FileExistsError:
        return
    os.chmod(path, mode, follow_symlinks=os.chmod not in os.supports_follow_symlinks)


def private(path: str, flags: int) -> int:
    """Open a file for `open(…, opener=private)`: of mode 0600 whatever the umask is, also one that was wider."""
    fd = os.open(path, flags | os.O_CLOEXEC, 0o600)
    try:
        status = os.fstat(fd)
        if status.st_mode & 0o777 != 0o600 and stat.S_ISREG(status.st_mode) and status.st_uid == os.geteuid():
            os.fchmod(fd, 0o600)
    except BaseException:
        os.close(fd)
        raise
    return fd


def writers(folder: str | os.PathLike[str]) -> str:
    """Return who besides root and its owner may write a folder: "" for no one, else "every user", "group NAME" or "users in its ACL"."""
    return _writers(os.fspath(folder), os.stat(folder))


# --- folders above ----------------------------------------------------------------------------------


def _looked_up(path: str) -> Iterator[_Step]:
    """Yield what the kernel looks up on the way to a path, links followed, up to the first thing that is not there."""
    left = [part for part in reversed(path.split("/")) if part]
    at, links = "/", 0
    while left:
        part = left.pop()
        if part == "..":
            at = os.path.dirname(at)
            continue
        name = os.path.join(at, part)
        found = _status(name)
        yield _Step(at, os.lstat(at), name, found)
        if found is None:
            return
        if not stat.S_ISLNK(found.st_mode):
            at = name
            continue
        links += 1
        if links > _LINKS_MAX:
            raise InvalidValueError(
                "too many links follow one another", where=path, remedy="name the folder itself"
            )
        target = os.readlink(name)
        at = "/" if target.startswith("/") else at
        left += [one for one in reversed(target.split("/")) if one not in ("", ".")]


def _status(path: str) -> os.stat_result | None:
    try:
        return os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None


def _check_step(step: _Step, *, group: bool) -> None:
    owner = step.status.st_uid
    if not group and not _is_trusted(owner, above=True):
        raise UnsafePlaceError(
            f"this folder belongs to {_user(owner)}, who may put another thing in the place of what is in it",
            where=step.folder,
            remedy=f"use a place of your own, or `chown` it; where that is no other person, as in a container: {TRUST}={owner}",
        )
    who = _writers(step.folder, step.status)
    if not who or (group and who.startswith("group ")):
        return
    if not step.status.st_mode & stat.S_ISVTX:
        raise UnsafePlaceError(
            f"{who} may put another thing in the place of what is in this folder",
            where=step.folder,
            remedy=f"{_closing(step.folder, who)}, or use another place; where there is no other person, as in a container: {TRUST}={_ALL}",
        )
    if step.found is not None and not _is_trusted(step.found.st_uid, above=True):
        raise UnsafePlaceError(
            f"this belongs to {_user(step.found.st_uid)}, in a folder that {who} may write",
            where=step.name,
            remedy=f"remove it, or use another place; where that is no other person: {TRUST}={step.found.st_uid}",
        )


def _closing(folder: str, who: str) -> str:
    """Return the command that takes the right to write away."""
    flag = {"e": "chmod o-w", "g": "chmod g-w", "u": "setfacl -b"}[who[0]]
    return f"`{flag} {folder}`"


def _writers(folder: str, status: os.stat_result) -> str:
    if status.st_mode & stat.S_IWOTH:
        return "every user"
    if not status.st_mode & stat.S_IWGRP:
        return ""
    owning, named = _acl(folder)
    if named:
        return "users in its ACL"
    return f"group {_group(status.st_gid)}" if owning and not _is_private(status.st_gid) else ""


def _acl(folder: str) -> tuple[bool, bool]:
    """Return whether the owning group may write, and whether users or groups may that an ACL names.

    With an ACL the mode's group bits are its mask, and say nothing about the group.
    """
    try:
        data = os.getxattr(folder, _ACL) if hasattr(os, "getxattr") else b""
    except OSError:
        data = b""
    if len(data) <= 4:
        return True, False
    entries = list(struct.iter_unpack("<HHI", data[4 : 4 + (len(data) - 4) // 8 * 8]))
    may = {tag for tag, rights, _ in entries if rights & _ACL_WRITE}
    if _ACL_MASK not in may and any(tag == _ACL_MASK for tag, _, _ in entries):
        return False, False
    owning = _ACL_GROUP_OBJ in may
    others = [
        one
        for tag, rights, one in entries
        if tag == _ACL_USER and rights & _ACL_WRITE and not _is_trusted(one)
    ]
    return owning, bool(others) or _ACL_GROUP in may


def _is_private(gid: int) -> bool:
    """Whether a group is root's, or has no member but this user, as the one that many systems give to each user."""
    if gid == 0:
        return True
    try:
        group = grp.getgrgid(gid)
    except KeyError:
        return gid == os.getegid() == os.geteuid()
    mine = _name(os.geteuid())
    if any(member != mine for member in group.gr_mem):
        return False
    return group.gr_name == mine or (
        gid == os.getegid() and not any(user.pw_gid == gid and user.pw_name != mine for user in pwd.getpwall())
    )  # fmt: skip


# --- owners -----------------------------------------------------------------------------------------


def _check_kind(path: str, status: os.stat_result, kind: str, also: int | None = None) -> None:
    if stat.S_ISLNK(status.st_mode):
        raise UnsafePlaceError("this is a link", where=path, remedy="remove it, or use another place")
    if not _KINDS[kind](status.st_mode):
        raise UnsafePlaceError(f"this is no {kind}", where=path, remedy="remove it, or use another place")
    if status.st_uid != also and not _is_trusted(status.st_uid):
        raise UnsafePlaceError(
            f"this belongs to {_user(status.st_uid)}, not to {_user(os.geteuid())}",
            where=path,
            remedy=f"run as that user, or `chown` it; where that is no other person: {TRUST}={status.st_uid}",
        )


def _refuse_written(path: str, status: os.stat_result) -> None:
    who = "every user" if status.st_mode & stat.S_IWOTH else ""
    if not who and status.st_mode & stat.S_IWGRP and not _is_private(status.st_gid):
        who = f"group {_group(status.st_gid)}"
    if who and not _trusts_all():
        raise UnsafePlaceError(
            f"{who} may write this",
            where=path,
            remedy=f"see what is in it, then `chmod go-w {path}`; where there is no other person: {TRUST}={_ALL}",
        )


def _is_trusted(uid: int, *, above: bool = False) -> bool:
    """Whether an owner is root, this user or one that DATATASK_TRUST names; above, also one outside of this container."""
    if uid in (0, os.geteuid()) or _trusts_all():
        return True
    return str(uid) in _named() or _name(uid) in _named() or (above and _is_outside(uid))


def _is_outside(uid: int) -> bool:
    """Whether a user has no number in this user namespace, so that no process in here can be that user's."""
    try:
        maps = [[int(part) for part in line.split()] for line in _UID_MAP.read_text().splitlines()]
        overflow = int(_OVERFLOW.read_text())
    except (OSError, ValueError):
        return False
    whole = any(length >= 2**32 - 1 for _, _, length in maps)
    return (
        uid == overflow and not whole and not any(first <= uid < first + length for first, _, length in maps)
    )


def _trusts_all() -> bool:
    return _ALL in _named()


def _named() -> list[str]:
    return [part.strip() for part in os.environ.get(TRUST, "").split(",") if part.strip()]


def _name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return ""


def _user(uid: int) -> str:
    name = _name(uid)
    return f"{name} (uid {uid})" if name else f"uid {uid}"


def _group(gid: int) -> str:
    with suppress(KeyError):
        return grp.getgrgid(gid).gr_name
    return str(gid)
