"""Whether others have written to a log since its engine closed it, and whether its write-ahead log lost its end.

In: the log's path. Out: a note of inode, size and time of change in `<log>.checkpoints/verified/sealed`, and whether it still
fits; else all is verified anew. The note goes when an engine opens, so one that was killed leaves none. And `Lost`, where
whole frames stand behind one that does not fit: SQLite takes that for the end, as after a crash. But a transaction begins only
when the one before it is on the disk: a crash cuts off the last one at most, and a changed byte in the middle all behind it.
"""

from __future__ import annotations

import os
import shutil
import struct
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from datatask.adapters.log.faults import damaged, mapped
from datatask.adapters.log.locate import verified_path

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
