"""What lies beside a log is its owner's: modes are narrowed, and what others could have written is not read.

In: a log's path, before its writer reads anything back; names and bytes. Out: `UnsafePlaceError` with the folder or file and the
remedy; or a folder (0700) through which processes talk by files (0600) that appear whole. Only a regular file with one name, of
bounded size, by the folder's owner or root and writable by no other user is opened: a pipe or a device would hold up its
reader. Root gives what it writes to the folder's owner. Blocking.
"""

from __future__ import annotations

import errno
import logging
import os
import pwd
import stat
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from datatask.adapters.log.locate import (
    DEFAULT,
    archives_path,
    blobs_path,
    checkpoints_path,
    lease_path,
)
from datatask.adapters.trust import check_above, check_found, check_own, make_private
from datatask.schema.errors import LogError, NotPossibleError

logger = logging.getLogger("datatask.log")

_READABLE = 0o644
"""A log may be readable by others where its owner said so; written it is by one user only."""


FILE_BYTES_MAX = 32 * 1024 * 1024
_PASSING = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS, errno.EAGAIN, errno.EINTR})
"""What the machine lacks for a moment says nothing about a file."""


def guard(path: Path) -> None:
    """Make the log's folder where it is missing; raise `UnsafePlaceError` where others can exchange what is in it."""
    folder = path.parent
    if not folder.exists():
        make_private(folder)
    # One that an earlier version made; another folder is not the log's alone.
    narrowed = _narrowed(folder, "folder", 0o755) if folder.name == DEFAULT.parent.name else []
    check_above(path, group=True)
    for file in (
        path,
        *(path.with_name(path.name + end) for end in ("-wal", "-shm", "-journal")),
        lease_path(path),
    ):
        narrowed += _narrowed(file, "file", _READABLE)
    for sidecar in (blobs_path(path), archives_path(path), checkpoints_path(path)):
        narrowed += _narrowed(sidecar, "folder", 0o700)
    if narrowed:
        names = ", ".join(one.name for one in narrowed)
        logger.warning("other users might open these, which is ended: %s in %s", names, folder)


def _narrowed(path: Path, kind: str, allowed: int) -> list[Path]:
    """Check one; return it where its mode was narrowed. A link is followed where it is ours, as to a larger disk."""
    try:
        if path.is_symlink():
            if os.lstat(path).st_uid not in (0, os.geteuid()):
                check_found(path, kind)  # another user's: told as a link
            check_above(path / "x", group=True)
            path = path.resolve()
        return [path] if check_own(path, kind, allowed=allowed) else []
    except FileNotFoundError:
        return []


class OddFileError(Exception):
    """A file that is not believed, and why."""


class PrivateFolder:
    """The folder, held open; `FileNotFoundError`, `NotADirectoryError`, or `LogError` where it is another user's."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError as error:
            if error.errno == errno.ELOOP:
                raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(path)) from error
            raise
        try:
            self._status = os.fstat(self._fd)
            self._check()
        except BaseException:
            os.close(self._fd)
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._fd)

    def _check(self) -> None:
        me = os.geteuid()
        if me not in (0, self._status.st_uid):
            raise LogError(
                f"the folder belongs to {user_name(self._status.st_uid)}",
                where=str(self.path),
                remedy=f"give it to {user_name(me)}, or remove it",
            )
        if self._status.st_mode & 0o077:
            os.fchmod(self._fd, 0o700)

    def read(self, name: str, bytes_max: int = FILE_BYTES_MAX) -> bytes:
        """Return a file's content. `OddFileError` says why it is not believed; `OSError`: the machine cannot, now."""
        self._believe(os.stat(name, dir_fd=self._fd, follow_symlinks=False), bytes_max)
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
        try:
            file = os.open(name, flags, dir_fd=self._fd)
        except FileNotFoundError:
            raise
        except OSError as error:
            if error.errno in _PASSING:
                raise
            raise OddFileError(f"it cannot be opened: {error.strerror}") from error
        with open(file, "rb", buffering=0) as raw:
            self._believe(os.fstat(file), bytes_max)
            try:
                data = raw.read(bytes_max + 1) or b""
            except OSError as error:
                if error.errno in _PASSING:
                    raise
                raise OddFileError(f"it cannot be read: {error.strerror}") from error
        return data

    def _believe(self, status: os.stat_result, bytes_max: int) -> None:
        if not stat.S_ISREG(status.st_mode):
            raise OddFileError(f"it is {_kind(status.st_mode)}")
        if status.st_nlink > 1:
            raise OddFileError("it has a second name, a hard link")
        if status.st_uid not in (0, os.geteuid(), self._status.st_uid):
            raise OddFileError(f"{user_name(status.st_uid)} wrote it")
        if status.st_mode & 0o022:
            raise OddFileError(f"others may write it (mode {stat.S_IMODE(status.st_mode):o})")
        if status.st_size > bytes_max:
            raise OddFileError(f"it has {status.st_size:,} bytes, more than {bytes_max:,}")

    def write(self, name: str, data: bytes, *, durable: bool = True) -> None:
        """Have a file of this name and content appear, whole."""
        fresh = f"{os.urandom(8).hex()}.new"
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        file = os.open(fresh, flags, 0o600, dir_fd=self._fd)
        try:
            with open(file, "wb") as stream:
                os.fchmod(file, 0o600)
                self._hand_over(file)
                stream.write(data)
                stream.flush()
                if durable:
                    os.fsync(file)
            os.rename(fresh, name, src_dir_fd=self._fd, dst_dir_fd=self._fd)
        except BaseException:
            with suppress(OSError):
                os.unlink(fresh, dir_fd=self._fd)
            raise
        if durable:
            os.fsync(self._fd)

    def _hand_over(self, file: int) -> None:
        owner = self._status.st_uid
        if owner == os.geteuid():
            return
        try:
            os.fchown(file, owner, self._status.st_gid)
        except OSError as error:
            raise NotPossibleError(
                f"{user_name(owner)} could not read what is written here: {error.strerror}",
                where=str(self.path),
                remedy=f"ask as {user_name(owner)}: sudo -u {user_name(owner)} datatask …",
            ) from error

    def has(self, name: str) -> bool:
        """Whether there is anything of this name."""
        try:
            os.stat(name, dir_fd=self._fd, follow_symlinks=False)
        except FileNotFoundError:
            return False
        return True

    def changed_at(self, name: str) -> int:
        """Return when it was changed."""
        return os.stat(name, dir_fd=self._fd, follow_symlinks=False).st_mtime_ns

    def remove(self, name: str) -> None:
        """Remove a file, if it is there."""
        with suppress(FileNotFoundError):
            os.unlink(name, dir_fd=self._fd)

    def names(self) -> list[tuple[int, str]]:
        """Return what is there: when each was changed, and its name."""
        found = []
        for name in os.listdir(self._fd):
            with suppress(FileNotFoundError):
                found.append((os.stat(name, dir_fd=self._fd, follow_symlinks=False).st_mtime_ns, name))
        return found

    def set_aside(self, name: str, folder: str) -> str:
        """Move anything that is there into a folder within; return its new name."""
        kept = os.fsdecode(os.fsencode(f"{os.urandom(4).hex()}-{name}")[:200])
        inner = self._inner(folder)
        try:
            os.rename(name, kept, src_dir_fd=self._fd, dst_dir_fd=inner)
        finally:
            os.close(inner)
        return kept

    def _inner(self, name: str) -> int:
        """Open a folder within, made where it is missing; a link or a file in its place gets another name."""
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
        with suppress(FileExistsError):
            os.mkdir(name, 0o700, dir_fd=self._fd)
        try:
            return os.open(name, flags, dir_fd=self._fd)
        except OSError as error:
            if error.errno not in (errno.ENOTDIR, errno.ELOOP):
                raise
        os.rename(name, f"{os.urandom(4).hex()}-{name}", src_dir_fd=self._fd, dst_dir_fd=self._fd)
        os.mkdir(name, 0o700, dir_fd=self._fd)
        return os.open(name, flags, dir_fd=self._fd)


def make_folder(path: Path) -> None:
    """Make the folder, 0700 whatever the umask is; what stands in its place and is none is set aside under another name."""
    try:
        os.mkdir(path, 0o700)
    except FileExistsError:
        if stat.S_ISDIR(os.lstat(path).st_mode):
            return
        os.rename(path, path.with_name(f"{path.name}.{os.urandom(4).hex()}.aside"))
        os.mkdir(path, 0o700)
    os.chmod(path, 0o700)
    hand_over(path, path.parent)


def hand_over(path: Path | int, folder: Path) -> None:
    """Give what root has made in another user's folder to that user, who could not read it otherwise."""
    if os.geteuid() == 0 and (owner := os.stat(folder)).st_uid != 0:
        os.chown(path, owner.st_uid, owner.st_gid)


def user_name(uid: int) -> str:
    """Return a user's name, or the number of one who has none."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"uid {uid}"


def _kind(mode: int) -> str:
    kinds = (
        (stat.S_ISLNK, "a link"),
        (stat.S_ISDIR, "a folder"),
        (stat.S_ISFIFO, "a pipe"),
        (stat.S_ISSOCK, "a socket"),
        (stat.S_ISCHR, "a device"),
        (stat.S_ISBLK, "a device"),
    )
    return next((word for test, word in kinds if test(mode)), "no file")
