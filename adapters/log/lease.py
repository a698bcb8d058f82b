"""The lease: at most one engine writes a log, for as long as it lives and not a moment longer.

It is a POSIX record lock on a file beside the log: the kernel gives it back when the process dies, and children do not inherit
it. Such locks do not conflict inside one process, hence the registry; closing any descriptor of the file gives the lock up,
hence the holder's process never opens it again. The lock's length tells a command from an engine. A log that is reached by a
name that leads past that file is met by a flock(2) on the database itself (`Possession`); its descriptor is kept until SQLite
has none of the file open, since closing it would drop SQLite's own locks.
"""

from __future__ import annotations

import fcntl
import logging
import os
import struct
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from datatask.adapters.log.locate import lease_path
from datatask.adapters.log.reader import LogReader
from datatask.schema.errors import DatataskError, LeaseHeldError, LogError

Key = tuple[int, int]

_file_held: dict[Key, int] = {}
"""(device, inode) of each file that this process has locked -> the descriptor."""

_parked: dict[Key, int] = {}
"""The same for files that are unlocked again, and that SQLite still has open."""

_FOLDERS = ("/proc/self/fd", "/dev/fd")


logger = logging.getLogger("datatask.log")
BRIEF_SECONDS = 30.0
"""The wait for a command that has the log for a moment: it ends within 10 s, unless it was asked to wait."""
COMMANDS_SECONDS = 120.0
"""The longest wait for all of them, one after the other."""
UNSEEN_SECONDS = 3.0
"""After this time without a holder of the lease, the log is locked under another name: its holder is not known."""
TOLD_SECONDS = 1.0
PAUSE_SECONDS = (0.01, 0.05)
_DARWIN = sys.platform == "darwin"
_FLOCK = "qqihh" if _DARWIN else "hhqqi"
_TO_THE_END, _ONE_BYTE = 0, 1
"""The bytes that an engine locks, and a command; both begin with the first one."""
_held: dict[tuple[int, int], int] = {}
"""(device, inode) of each lease that this process holds -> its descriptor."""


def _close_in_child() -> None:
    """A forked child shares the lock, and would hold it for as long as it lives."""
    for descriptor in (*_file_held.values(), *_parked.values()):
        with suppress(OSError):
            os.close(descriptor)
    _file_held.clear()
    _parked.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_in_child)


class Possession:
    """A log's file that is locked for this process; `release` gives it back."""

    def __init__(self, path: Path) -> None:
        """Lock the file at this path; `BlockingIOError` where another process, or this one, has it locked."""
        tidy()
        self.key = key(os.stat(path))
        if self.key in _file_held:
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
        _file_held[self.key] = self._descriptor = descriptor

    def release(self) -> None:
        """Unlock the file; again is fine."""
        if _file_held.get(self.key) == self._descriptor:
            del _file_held[self.key]
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


if hasattr(os, "register_at_fork"):
    # A child holds no lease of its parent's: the kernel did not pass it on.
    os.register_at_fork(after_in_child=_held.clear)


class Holder(NamedTuple):
    """The process that holds a lease; `brief`: for one command, not for as long as there is work."""

    pid: int
    brief: bool


class Lease:
    """A held lease; `release` gives it back."""

    def __init__(self, log: Path, *, brief: bool = False) -> None:
        """Take the lease of the log at this path, or raise `LeaseHeldError` naming the holder's pid."""
        self.path = lease_path(log)
        while True:
            self._descriptor, self._key = self._take(log, _ONE_BYTE if brief else _TO_THE_END)
            # Between our opening and locking it, the file may have been deleted: then it guards nothing.
            with suppress(FileNotFoundError):
                if key(os.stat(self.path)) == self._key:
                    break
            os.close(self._descriptor)
        _held[self._key] = self._descriptor
        self._possession: Possession | None = None
        try:
            self.possess(log)
        except BaseException:
            self.release()
            raise

    def possess(self, log: Path) -> None:
        """Lock the log itself too, if it exists by now; `LeaseHeldError` where an engine has it under another name."""
        try:
            self._possession = Possession(log)
        except (FileNotFoundError, IsADirectoryError):
            return
        except BlockingIOError as error:
            raise held(log, "", 0) from error
        except OSError as error:
            raise LogError(
                f"the log cannot be locked: {error.strerror}",
                where=str(log),
                remedy="check the file's permissions",
            ) from error

    def _take(self, log: Path, length: int) -> tuple[int, tuple[int, int]]:
        with suppress(FileNotFoundError):
            if key(os.stat(self.path)) in _held:
                raise held(log, "", os.getpid())
        try:
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise LogError(
                f"the log's lease cannot be opened: {error.strerror}",
                where=str(self.path),
                remedy="check the permissions of the log's folder",
            ) from error
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, length)
        except OSError as error:
            holder = _locked_by(descriptor)
            os.close(descriptor)
            raise held(log, "", holder.pid if holder else 0) from error
        return descriptor, key(os.fstat(descriptor))

    @property
    def held(self) -> bool:
        """Whether this object still holds the lease, and the file at its path is still the one it locked."""
        if _held.get(self._key) != self._descriptor:
            return False
        try:
            return key(os.stat(self.path)) == self._key
        except FileNotFoundError:
            return False

    def release(self) -> None:
        """Give the lease back; again is fine."""
        if _held.get(self._key) == self._descriptor:
            del _held[self._key]
            os.close(self._descriptor)
            if self._possession is not None:
                self._possession.release()


def held(log: Path, host: str, pid: int) -> LeaseHeldError:
    """Return the error that names the engine which holds the log."""
    place = f" on {host}" if host else ""
    who = f"pid {pid}{place}" if pid else "its file is locked (under another name, or its lease was removed)"
    return LeaseHeldError(
        f"another engine holds the log: {who}",
        where=str(log),
        remedy="use the running engine's inbox, or stop it first",
    )


def probe(log: Path) -> int | None:
    """Return the pid that holds the log's lease, or None when it is free; never takes it, not for an instant."""
    holder = holder_of(log)
    return None if holder is None else holder.pid


def holder_of(log: Path) -> Holder | None:
    """Return who holds the log's lease, as `probe` does."""
    path = lease_path(log)
    try:
        if key(os.stat(path)) in _held:
            return Holder(os.getpid(), brief=False)
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        return _locked_by(descriptor)
    finally:
        os.close(descriptor)


def _locked_by(descriptor: int) -> Holder | None:
    """Return whose lock stands in the way of an exclusive one (F_GETLK), or None."""
    fields = (0, 0, 0, fcntl.F_WRLCK, 0) if _DARWIN else (fcntl.F_WRLCK, 0, 0, 0, 0)
    answer = struct.unpack_from(
        _FLOCK, fcntl.fcntl(descriptor, fcntl.F_GETLK, struct.pack(_FLOCK + "4x", *fields))
    )
    kind, length, pid = (answer[3], answer[1], answer[2]) if _DARWIN else (answer[0], answer[3], answer[4])
    return None if kind == fcntl.F_UNLCK else Holder(int(pid), length == _ONE_BYTE)


class Patience:
    """Waits for commands that have a log, one after the other, and for no engine."""

    def __init__(self, log: Path) -> None:
        self._log = log
        self._began = self._since = self._seen = time.monotonic()
        self._pid = 0
        self._told = False

    def pause(self, error: DatataskError) -> float:
        """Return how long to wait before the next try; raise the error of this one where there is to be none."""
        now = time.monotonic()
        holder = holder_of(self._log)  # None: it has ended since
        if holder is not None and not holder.brief:
            raise error
        if holder is not None:
            self._seen = now
        elif now - self._seen > UNSEEN_SECONDS:
            raise error
        if holder is not None and holder.pid != self._pid:
            self._pid, self._since = holder.pid, now
        waited = now - self._began
        if waited > COMMANDS_SECONDS or now - self._since > BRIEF_SECONDS:
            raise LeaseHeldError(
                f"a command still has the log after {waited:.0f} s: pid {self._pid}",
                where=str(self._log),
                remedy="wait for its end, or end it; then again",
            ) from error
        if waited > TOLD_SECONDS and holder is not None and not self._told:
            self._told = True
            logger.warning("%s: waiting for a command that has the log, pid %s", self._log, holder.pid)
        from random import uniform  # takes long to import

        return uniform(*PAUSE_SECONDS)


def take_lease(log: Path, *, brief: bool = False) -> Lease:
    """Take the lease, or raise `LeaseHeldError` with the holder's host and pid."""
    try:
        return Lease(log, brief=brief)
    except LeaseHeldError as error:
        holder = lease_holder(log)
        if holder is None:
            raise
        raise held(log, holder[0], holder[1]) from error


def lease_holder(log: Path) -> tuple[str, int, int] | None:
    """Return (host, pid, epoch) of the engine that is alive on a log, or None; never takes the lease."""
    pid = probe(log)
    if pid is None:
        return None
    try:
        with LogReader(log) as reader:
            header = reader.header
    except DatataskError:
        return "", pid, 0  # it is being made, or is damaged: whoever opens it will be told
    # A lock from another pid namespace has no pid here; the holder wrote down its own.
    return (header.host, header.pid, header.epoch) if pid in (header.pid, 0) else ("", pid, header.epoch)
