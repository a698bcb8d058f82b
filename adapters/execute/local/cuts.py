"""Who else opens an output for writing, and has cut it: what is written afterwards would hide that.

In: descriptors of outputs that are being written. Out: of which of them a writer has just closed it again. That is never the
run's own process, whose descriptor is held by the launcher too. The kernel tells it (inotify); where it does not, nothing is
told. Imports the standard library only.
"""

from __future__ import annotations

import ctypes
import os
import struct

_CLOSE_WRITE = 0x08
_EVENT = struct.Struct("iIII")
READ_BYTES = 1 << 16


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
