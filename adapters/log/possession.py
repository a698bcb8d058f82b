"""The log's file itself, locked: one engine on one file, whatever name (link, bind mount) each of two may use.

In: a path. Out: a `Possession`, or `BlockingIOError`. It is a flock(2) on the database, which SQLite's own POSIX locks do not
meet. These in turn would all be dropped if this process closed a descriptor of the file: a descriptor that is not
needed any more is therefore kept until SQLite has none of the file open, and a later possession takes it over.
"""

from __future__ import annotations

import fcntl
import os
from contextlib import suppress
from pathlib import Path

Key = tuple[int, int]

_held: dict[Key, int] = {}
"""(device, inode) of each file that this process has locked -> the descriptor."""

_parked: dict[Key, int] = {}
"""The same for files that are unlocked again, and that SQLite still has open."""

_FOLDERS = ("/proc/self/fd", "/dev/fd")


def _close_in_child() -> None:
    """A forked child shares the lock, and would hold it for as long as it lives."""
    for descriptor in (*_held.values(), *_parked.values()):
        with suppress(OSError):
            os.close(descriptor)
    _held.clear()
    _parked.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_in_child)


class Possession:
    """A log's file that is locked for this process; `release` gives it back."""

    def __init__(self, path: Path) -> None:
        """Lock the file at this path; `BlockingIOError` where another process, or this one, has it locked."""
        tidy()
        self.key = key(os.stat(path))
        if self.key in _held:
            raise BlockingIOError
        descriptor = _parked.pop(self.key, -1)
        if descriptor < 0:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            _parked[self.key] = descriptor
            tidy()
            raise
        self.key = key(os.fstat(descriptor))
        _held[self.key] = self._descriptor = descriptor

    def release(self) -> None:
        """Unlock the file; again is fine."""
        if _held.get(self.key) == self._descriptor:
            del _held[self.key]
            fcntl.flock(self._descriptor, fcntl.LOCK_UN)
            _parked[self.key] = self._descriptor
            tidy()


def tidy() -> None:
    """Close the descriptors of files that SQLite has not open any more."""
    if _parked:
        others = _open_elsewhere(set(_parked.values()))
        for found in [one for one in _parked if one not in others]:
            os.close(_parked.pop(found))


def key(status: os.stat_result) -> Key:
    """Return what tells a file from all others, whatever its name."""
    return status.st_dev, status.st_ino


def _open_elsewhere(ours: set[int]) -> set[Key]:
    """Return the files of which this process has another descriptor than these."""
    folder = next((one for one in _FOLDERS if os.path.isdir(one)), None)
    found = set()
    for name in os.listdir(folder) if folder else ():
        if name.isdecimal() and int(name) not in ours:
            with suppress(OSError):
                found.add(key(os.fstat(int(name))))
    return found
