"""The files that runs write into: known by device and inode, and held open, whatever becomes of their names.

In: a run's folder and its streams. Out: descriptors for its process; at its end, how long each file is, and how much was
written to one that was cut meanwhile: a writer that is not the run's process closes it, which the kernel tells (inotify).
A file that has lost its name is read by its descriptor, by `/proc/PID/fd/N` also from other processes, until the run is
forgotten. Imports the standard library only.
"""

from __future__ import annotations

import ctypes
import os
import resource
import stat
import struct
from collections.abc import Iterable, Mapping

_CLOSE_WRITE = 0x08
_EVENT = struct.Struct("iIII")
READ_BYTES = 1 << 16
GROWN = 4
"""A stream is cut when its file is this number of times as large as the part that is kept."""
PAGE_BYTES = 4096
_PUNCH_HOLE = 0x01 | 0x02
"""FALLOC_FL_KEEP_SIZE and FALLOC_FL_PUNCH_HOLE of linux/falloc.h."""


class Cuts:
    """A file for each that is watched: `fileno` is readable when something is to be told."""

    def __init__(self) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._fd = int(self._libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC))

    def fileno(self) -> int:
        """Return the descriptor, -1 where the kernel gives none."""
        return self._fd

    def watch(self, fd: int) -> int:
        """Watch an open file; return what it is called here, below zero where it cannot be watched."""
        if self._fd < 0:
            return -1
        return int(self._libc.inotify_add_watch(self._fd, b"/proc/self/fd/%d" % fd, _CLOSE_WRITE))

    def forget(self, watch: int) -> None:
        """Watch it no more."""
        if watch >= 0:
            self._libc.inotify_rm_watch(self._fd, watch)

    def told(self) -> set[int]:
        """Return those that a writer has closed."""
        found: set[int] = set()
        try:
            data = os.read(self._fd, READ_BYTES)
        except OSError:
            return found
        offset = 0
        while offset < len(data):
            watch, mask, _, length = _EVENT.unpack_from(data, offset)
            offset += _EVENT.size + length
            if mask & _CLOSE_WRITE:
                found.add(watch)
        return found


STREAMS = {"stdout": 1, "stderr": 2}
DESCRIPTORS_MAX = 100_000

Files = dict[str, list[int]]
"""The device and inode of each output."""


def make(folder: str, names: Iterable[str], umask: int) -> dict[str, int]:
    """Return descriptors to write these outputs of a run, made empty; `OSError` where that cannot be."""
    made: dict[str, int] = {}
    ours = os.umask(umask)
    try:
        for name in names:
            flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
            made[name] = os.open(os.path.join(folder, name), flags, 0o666)
    except BaseException:
        close(made)
        raise
    finally:
        os.umask(ours)
    return made


def close(files: Mapping[str, int]) -> None:
    """Close descriptors."""
    for fd in files.values():
        os.close(fd)


def identities(files: Mapping[str, int]) -> Files:
    """Return which files these descriptors are of."""
    return {name: _identity(os.fstat(fd)) for name, fd in files.items()}


class Outputs:
    """The outputs of runs that are not forgotten. Of no more than half of the descriptors that we may have are they held."""

    def __init__(self) -> None:
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        self._room = (soft if 0 <= soft <= DESCRIPTORS_MAX else DESCRIPTORS_MAX) // 2
        self._held: dict[str, dict[str, int]] = {}
        self.cuts = Cuts()
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._watched: dict[int, tuple[str, str]] = {}
        self._watches: dict[str, list[int]] = {}
        self._cut: dict[tuple[str, str], int] = {}

    def begin(self, identity: str, files: Mapping[str, int]) -> None:
        """Hold what a process is about to write, and notice when another process writes it."""
        self.keep(identity, files)
        for name, fd in self._held.get(identity, {}).items():
            if (watch := self.cuts.watch(fd)) >= 0:
                self._watched[watch] = identity, name
                self._watches.setdefault(identity, []).append(watch)

    def look(self) -> None:
        """Note which outputs have been cut by those who have just closed them."""
        for watch in self.cuts.told():
            identity, name = self._watched.get(watch, ("", ""))
            fd = self._held.get(identity, {}).get(name)
            if fd is not None and (written := os.lseek(fd, 0, os.SEEK_CUR)) > os.fstat(fd).st_size:
                self._cut[identity, name] = written

    def keep(self, identity: str, files: Mapping[str, int]) -> None:
        """Hold what a run's process has been given, or close it where there is no room for more."""
        if not files:
            return
        if self._room < len(files):
            close(files)
            return
        self._room -= len(files)
        self._held[identity] = dict(files)

    def find(self, identity: str, folder: str, pid: int, known: Files | None) -> Files:
        """Hold what a run of an earlier launcher writes, or has written, and return which files these are.

        Where `known` does not say that, it is what has their names, or had them when the process opened it.
        """
        found: dict[str, int] = {}
        files: Files = {}
        for name, number in STREAMS.items():
            if known is not None and name not in known:
                continue
            path, wanted = os.path.join(folder, name), None if known is None else known[name]
            opened = f"/proc/{pid}/fd/{number}"
            fd = None
            if known is not None or _is_called(opened, f"{identity}/{name}"):
                fd = _opened(opened, wanted, follow=True)
            if fd is None:
                fd = _opened(path, wanted, follow=False)
            if fd is not None:
                found[name] = fd
                files[name] = _identity(os.fstat(fd))
        self.keep(identity, found)
        return files if known is None else known

    def end(self, identity: str, folder: str, files: Files | None) -> tuple[dict[str, int], dict[str, int]]:
        """Return how long a run's outputs are, and how much was written to those of which less is there.

        One without a length is gone: it has no name, or that of another file, and is not held.
        """
        sizes: dict[str, int] = {}
        written: dict[str, int] = {}
        held = self._held.get(identity, {})
        self.look()
        self._unwatch(identity)
        for name, file in (files or {}).items():
            status = status_of(os.path.join(folder, name))
            if name in held:
                offset = os.lseek(held[name], 0, os.SEEK_CUR)  # shared with the process: it has got so far
                if (before := self._cut.get((identity, name))) is not None:
                    written[name] = before
                held[name] = _for_reading(held[name])
                status = os.fstat(held[name])
                if offset > status.st_size:
                    written[name] = offset
            elif status is None or _identity(status) != file:
                continue
            sizes[name] = status.st_size
        return sizes, written

    def _unwatch(self, identity: str) -> None:
        for watch in self._watches.pop(identity, []):
            self.cuts.forget(watch)
            self._watched.pop(watch, None)

    def bound(self, identity: str, bounds: Mapping[str, int]) -> None:
        """Take the middle out of outputs that have grown far beyond what is kept of them."""
        for name, most in bounds.items():
            fd = self._held.get(identity, {}).get(name)
            if fd is None:
                continue
            status = os.fstat(fd)
            if status.st_blocks * 512 > GROWN * most:
                half = -(-(most // 2) // PAGE_BYTES) * PAGE_BYTES
                end = (status.st_size - half) // PAGE_BYTES * PAGE_BYTES
                hole = (_PUNCH_HOLE, ctypes.c_int64(half), ctypes.c_int64(end - half))
                if end > half and self._libc.fallocate(fd, *hole) != 0:
                    os.ftruncate(fd, 0)  # a file system without holes: the writer goes on where it was

    def paths(self, identity: str) -> dict[str, str]:
        """Return where other processes of this user can read the outputs that are held."""
        pid = os.getpid()
        return {name: f"/proc/{pid}/fd/{fd}" for name, fd in self._held.get(identity, {}).items()}

    def forget(self, identity: str) -> None:
        """Let go of a run's outputs."""
        self._unwatch(identity)
        held = self._held.pop(identity, {})
        for name in held:
            self._cut.pop((identity, name), None)
        self._room += len(held)
        close(held)


def status_of(path: str) -> os.stat_result | None:
    """Return the status of a regular file; None where there is none by this name."""
    try:
        status = os.lstat(path)
    except OSError:
        return None
    return status if stat.S_ISREG(status.st_mode) else None


def _identity(status: os.stat_result) -> list[int]:
    return [status.st_dev, status.st_ino]


def _is_called(descriptor: str, end: str) -> bool:
    """Whether what a process has open is called so, or was."""
    try:
        return os.readlink(descriptor).removesuffix(" (deleted)").endswith(f"/{end}")
    except OSError:
        return False


def _opened(path: str, wanted: list[int] | None, *, follow: bool) -> int | None:
    """Return a descriptor to read a regular file, the one wanted if any is; None where that is not there."""
    try:
        status = os.stat(path, follow_symlinks=follow)
        if not stat.S_ISREG(status.st_mode) or wanted not in (None, _identity(status)):
            return None
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
    if _identity(os.fstat(fd)) == _identity(status):
        return fd
    os.close(fd)
    return None


def _for_reading(fd: int) -> int:
    """Exchange a descriptor for one that only reads, so that the file can get a second name; else return it as it is."""
    try:
        reading = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return fd
    os.close(fd)
    return reading
