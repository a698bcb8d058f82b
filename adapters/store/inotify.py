"""The kernel's notices of changes in folders: one inotify instance per event loop for all stores.

In come watches on folders, out go the notices to whoever asked for them; `watching` makes changes of them.
File systems that other machines change are told apart here: inotify does not see what is done elsewhere.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
import re
import termios
import time
import weakref
from array import array
from collections import deque
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Protocol

from inotify_simple import Event, INotify, flags

from datatask.engine.runtime.services import current

ENTERED = flags.CREATE | flags.MOVED_TO | flags.CLOSE_WRITE
LEFT = flags.DELETE | flags.MOVED_FROM
LOST = flags.DELETE_SELF | flags.MOVE_SELF | flags.UNMOUNT | flags.IGNORED
MASK = ENTERED | LEFT | flags.ATTRIB | flags.DELETE_SELF | flags.MOVE_SELF | flags.ONLYDIR
# one mask for all, because a second watch on the same folder replaces the first one's

REMOTE = frozenset(
    "9p afs beegfs ceph cifs glusterfs gpfs lustre ncpfs nfs nfs4 smb3 smbfs vboxsf virtiofs".split()  # noqa: SIM905
)

TURN_SECONDS = 0.02

Handler = Callable[[Event], None]
_watchers: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, FolderWatcher] = weakref.WeakKeyDictionary()


def is_remote(path: Path, mounts: Path = Path("/proc/self/mountinfo")) -> bool:
    """Whether the folder is on a file system that other machines change, so that inotify is not enough."""
    real, best, kind = os.path.realpath(path), "", ""
    try:
        lines = mounts.read_text(errors="surrogateescape").splitlines()
    except OSError:
        return False
    for line in lines:
        before, _, after = line.partition(" - ")
        point = re.sub(r"\\([0-7]{3})", lambda code: chr(int(code[1], 8)), before.split(" ")[4])
        inside = real == point or real.startswith(point.rstrip("/") + "/")
        if inside and len(point) >= len(best):  # the later mount on one point is the one that is seen
            best, kind = point, after.split(" ")[0]
    return kind in REMOTE or kind.startswith("fuse")


def is_behind() -> bool:
    """Whether there are notices for the running loop that have not been handed on."""
    watcher = _watchers.get(asyncio.get_running_loop())
    return watcher is not None and watcher.behind


def _unread(fd: int) -> int:
    """Return how many bytes the kernel has to be read."""
    count = array("i", (0,))
    fcntl.ioctl(fd, termios.FIONREAD, count)
    return count[0]


class Listener(Protocol):
    """Whoever has to be told when notices were lost."""

    def overflowed(self) -> None:
        """The kernel dropped notices, nobody knows which."""


class FolderWatcher:
    """The inotify instance of a loop, and who wants to know about which watch; closes with its last watch."""

    def __init__(self, loop: asyncio.AbstractEventLoop, source: INotify) -> None:
        self._loop = weakref.ref(loop)  # the loop is the key under which this object is kept
        self._source = source
        self._notices: deque[Event] = deque()
        self._handlers: dict[int, list[Handler]] = {}
        self._listeners: list[Listener] = []
        self._service = current().service("the kernel's notices of changes in folders")
        self._resuming: asyncio.TimerHandle | None = None
        loop.add_reader(source.fileno(), self._ready)

    @classmethod
    def of(cls, loop: asyncio.AbstractEventLoop) -> FolderWatcher:
        """Return the loop's watcher, made when there is none."""
        if loop not in _watchers:
            _watchers[loop] = cls(loop, INotify(nonblocking=True))
        return _watchers[loop]

    def enter(self, listener: Listener) -> None:
        """Remember who has to be told when notices were lost."""
        self._listeners.append(listener)

    def leave(self, listener: Listener) -> None:
        """Forget it, and end with the last one."""
        if listener in self._listeners:
            self._listeners.remove(listener)
        loop = self._loop()
        if not self._listeners and loop is not None and _watchers.get(loop) is self:
            del _watchers[loop]
            if not loop.is_closed():
                loop.remove_reader(self._source.fileno())
            self._notices.clear()
            self._source.close()

    def add(self, path: Path, handler: Handler) -> int:
        """Watch a folder; several handlers may watch the same one. Raises `OSError`."""
        watch: int = self._source.add_watch(path, MASK)
        self._handlers.setdefault(watch, []).append(handler)
        return watch

    def remove(self, watch: int, handler: Handler) -> None:
        """Stop telling a handler; a watch that the kernel ended already is fine."""
        handlers = self._handlers.get(watch, [])
        if handler in handlers:
            handlers.remove(handler)
        if watch in self._handlers and not handlers:
            del self._handlers[watch]
            try:
                self._source.rm_watch(watch)
            except OSError as error:
                if error.errno not in (errno.EINVAL, errno.EBADF):
                    raise

    @property
    def behind(self) -> bool:
        """Whether there are notices that have not been handed on, here or in the kernel's queue."""
        return bool(self._notices) or bool(_unread(self._source.fileno()))

    def _ready(self) -> None:
        """Take what the kernel has, and nothing more until that is handed on: beyond its own bound it drops notices."""
        loop = self._loop()
        if loop is not None:
            loop.remove_reader(self._source.fileno())
            try:
                self._notices.extend(self._source.read(timeout=0))
            except Exception as error:
                self._failed(error)
            else:
                self._hand_on(loop)

    def _hand_on(self, loop: asyncio.AbstractEventLoop) -> None:
        """Hand on what was taken, for a moment: who changes a folder without pause must not have the loop for itself."""
        until = time.monotonic() + TURN_SECONDS
        try:
            while self._notices and time.monotonic() < until:
                self.dispatch([self._notices.popleft()])
        finally:
            if _watchers.get(loop) is self:  # otherwise the last listener has left meanwhile
                if self._notices:
                    loop.call_soon(self._hand_on, loop)
                else:
                    loop.add_reader(self._source.fileno(), self._ready)

    def dispatch(self, events: Iterable[Event]) -> None:
        """Hand the kernel's notices to whoever asked for them; after one that cannot be handed on everything is in doubt."""
        for event in events:
            if event.mask & flags.Q_OVERFLOW:
                self._doubt()
            handlers = list(self._handlers.get(event.wd, ()))
            if event.mask & flags.IGNORED:
                self._handlers.pop(event.wd, None)
            for handler in handlers:
                try:
                    handler(event)
                except Exception as error:
                    self._failed(error)

    def _doubt(self) -> bool:
        """Have every listener find out for itself; return whether all of them could be told."""
        for listener in list(self._listeners):
            try:
                listener.overflowed()
            except Exception as error:
                self._failed(error)
                return False
        return True

    def _failed(self, error: Exception) -> None:
        """Notices may be lost: go on after a pause, in which more of them may fail, and have everything looked at."""
        pause, loop = self._service.failed(error), self._loop()
        if pause is not None and loop is not None and self._resuming is None:
            self._resuming = loop.call_later(pause, self._resume)

    def _resume(self) -> None:
        loop, self._resuming = self._loop(), None
        if loop is not None and _watchers.get(loop) is self:
            if not self._notices:
                loop.add_reader(self._source.fileno(), self._ready)
            if self._doubt():
                self._service.works()
