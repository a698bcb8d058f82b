"""Changes of a log's files by other programs: under an open engine, after it has closed, and in the write-ahead log.

`Presence` looks at an open log's file with stat(2), on a thread of its own, and reports a file that was removed, moved,
replaced or cut: SQLite would go on writing into it unseen. `seal` notes inode, size and time of change of a closed log
in `<log>.checkpoints/verified/sealed`; a log that differs from its note is verified anew. `lost_frames` finds whole
frames behind a damaged one. SQLite reads that as the end of the log, but a crash cuts off the last transaction only.
"""

from __future__ import annotations

import os
import shutil
import struct
import threading
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from datatask.adapters.log.faults import damaged, mapped
from datatask.adapters.log.locate import verified_path
from datatask.schema.errors import DatataskError, LogGoneError

LOOK_SECONDS = 0.5
FAILURES_MAX = 20
SIDECARS = ("-wal", "-shm")

_Key = tuple[int, int]


class Presence:
    """Looks after one open log, from `start` to `stop`."""

    def __init__(
        self, path: Path, gone: Callable[[DatataskError], None], *, seconds: float = LOOK_SECONDS
    ) -> None:
        """Take the file as it is now, its write-ahead log included."""
        self._path = path
        self._gone = gone
        self._seconds = seconds
        status = os.stat(path)
        self._key, self._size = _key(status), status.st_size
        self._sidecars = {end: _found(path, end) for end in SIDECARS}
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._look, name=f"log-presence {path.name}", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Raise `LogGoneError` where the file is not the one that was opened."""
        try:
            status = os.stat(self._path)
        except OSError as error:
            raise self._error(f"the log was removed or moved under this engine ({error.strerror})") from error
        if _key(status) != self._key:
            raise self._error("another file was put in the log's place under this engine")
        if status.st_size < self._size:
            what = f"cut from {self._size:,} to {status.st_size:,} bytes" if status.st_size else "emptied"
            raise self._error(f"the log was {what} under this engine")
        self._size = status.st_size
        for end, opened in self._sidecars.items():
            if opened is not None and _found(self._path, end) != opened:
                raise self._error(
                    f"the log's {self._path.name}{end} was removed or replaced under this engine"
                )

    def stop(self) -> None:
        """Look no more; again is fine."""
        self._end.set()
        if threading.current_thread() is not self._thread:
            self._thread.join(self._seconds)

    def _look(self) -> None:
        failures = 0
        while not self._end.wait(self._seconds):
            try:
                self.check()
                failures = 0
            except LogGoneError as error:
                self._gone(error)
                return
            except (
                Exception
            ) as error:  # the machine is short of resources, or this is a mistake: looking would end
                failures += 1
                if failures > FAILURES_MAX:
                    self._gone(self._error(f"it cannot be seen whether the log is still there ({error!r})"))
                    return

    def _error(self, what: str) -> LogGoneError:
        return gone(what, self._path)


def gone(what: str, path: Path) -> LogGoneError:
    """Return the error for a log whose file is not there, or not itself, any more."""
    return LogGoneError(
        what,
        where=str(path),
        remedy="put the file back with its write-ahead log, or restore a backup, then start again; what was recorded since is"
        " not in another copy",
    )


def _found(path: Path, end: str) -> _Key | None:
    try:
        return _key(os.stat(path.with_name(path.name + end)))
    except OSError:
        return None


def _key(status: os.stat_result) -> _Key:
    return status.st_dev, status.st_ino


_NAME = "sealed"


_HEADER, _FRAME = 32, 24
_MAGIC = {0x377F0682: "<", 0x377F0683: ">"}
"""What a file begins with -> the order of bytes in which its checksums are taken."""
Sums = tuple[int, int]


def seal(path: Path) -> None:
    """Note how the closed file is; only where something was verified."""
    folder = verified_path(path)
    with suppress(OSError):
        if folder.is_dir():
            (folder / _NAME).write_text(_stamp(path))


def unseal(path: Path) -> None:
    """Take the note away; where the file is not as noted, what was kept as verified goes too."""
    note = verified_path(path) / _NAME
    try:
        noted = note.read_text()
        note.unlink()
    except (OSError, ValueError):
        return
    if noted != _stamp(path):
        shutil.rmtree(note.parent, ignore_errors=True)


def _stamp(path: Path) -> str:
    status = os.stat(path)
    return f"{status.st_ino} {status.st_size} {status.st_mtime_ns}"


class Lost(NamedTuple):
    """From which frame on (1, 2, 3 …; 0: the header) nothing is read, and how many frames that is.

    `certain`: a later transaction stands behind the frame, so no crash did this.
    """

    frame: int
    frames: int
    certain: bool


def refuse_hidden(execute: Callable[[str], Iterable[Sequence[Any]]], path: Path) -> None:
    """Raise `LogDamagedError` where a log's write-ahead log hides events, before whoever has the lease writes over them."""
    wal = path.with_name(path.name + "-wal")
    ((_, read, _),) = execute("PRAGMA wal_checkpoint(PASSIVE)")
    lost = lost_frames(wal, sound=max(0, read))
    if lost is not None and lost.certain:
        raise damaged(
            f"frame {lost.frame} was changed, and hides {lost.frames} frames of events",
            wal,
            remedy="restore the log with its write-ahead log from a backup; if a loss of power did it, with durability"
            " `process`, open it once with that",
        )


def lost_frames(wal: Path, *, sound: int = 0) -> Lost | None:
    """Return what is lost in a write-ahead log; None where nothing is, or there is none.

    Of the first `sound` frames SQLite has read all, so that they need not be looked at; what follows on them it has not.
    """
    with mapped(wal):
        try:
            with open(wal, "rb") as file:
                return _lost(file, wal.stat().st_size, sound)
        except FileNotFoundError:
            return None


def _lost(file: BinaryIO, size: int, sound: int) -> Lost | None:
    header = file.read(_HEADER)
    if size <= _HEADER:
        return None
    magic, _, page_size, _, *salts, first, second = struct.unpack(">8I", header)
    order = _MAGIC.get(magic, "<")
    sums = _summed((0, 0), header[:24], order)
    if magic not in _MAGIC or sums != (first, second):
        return Lost(0, (size - _HEADER) // (_FRAME + 4096), True)
    number, broken, behind, committed, certain = sound, 0, 0, False, False
    file.seek(sound * (_FRAME + page_size), 1)
    while len(head := file.read(_FRAME)) == _FRAME:
        number += 1
        _, commits, *rest = struct.unpack(">6I", head)
        ours = rest[:2] == salts
        page = file.read(page_size)
        if not broken:
            sums = _summed(_summed(sums, head[:8], order), page, order)
            broken = 0 if ours and sums == tuple(rest[2:]) else number
        if broken and ours:
            behind += 1
            certain = certain or committed
            committed = committed or commits > 0
    return Lost(broken, behind, certain) if behind else None


def _summed(sums: Sums, data: bytes, order: str) -> Sums:
    """Return SQLite's checksum of some bytes, going on from those before."""
    one, two = sums
    words = iter(struct.unpack(f"{order}{len(data) // 4}I", data[: len(data) // 4 * 4]))
    for word in words:
        one = (one + word + two) & 0xFFFFFFFF
        two = (two + next(words, 0) + one) & 0xFFFFFFFF
    return one, two
