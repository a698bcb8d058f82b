"""One container's log as it arrives: stripped of timestamps, without gaps or repeats however often the stream breaks.

In: parts of a log stream that was asked for with timestamps. Out: the container's own bytes, in memory while they are few,
then in a file. Lines without a time are the kubelet's own words, with which it answers for a log that is gone: no output. The server is asked by whole seconds, and writers of one container may stamp a line a little earlier than the
one above it; so a broken stream is asked for anew `since` the second before that of the latest time, and of what the
server then repeats as many lines are skipped as were taken of these two seconds. A line that was cut is taken back and
comes again whole. Memory is bounded whatever the length of lines and logs.
"""

from __future__ import annotations

import re
from datetime import datetime, timedelta
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO

IN_MEMORY_BYTES = 32 * 1024
HEAD_BYTES_MAX = 64
LINE_BYTES_MAX = 1 << 20
WORDS_BYTES_MAX = 300
SECOND_CHARACTERS = 19
"""Of `2026-11-23T01:51:14.085767642Z`."""
_TIME = re.compile(rb"[0-9]{4}-(0[1-9]|1[0-2])-([0-2][0-9]|3[01])T[0-2][0-9]:[0-5][0-9]:[0-5][0-9][.Z+-]")


class Lines:
    """The log of one container so far. Use `begin`, `feed`…, `cut` for each stream; `finish` after the last one."""

    __slots__ = (
        "_before",
        "_counted",
        "_file",
        "_head",
        "_inside",
        "_last",
        "_line_began",
        "_memory",
        "_second",
        "_skip",
        "_skipping",
        "_undo",
        "_zone",
        "path",
        "size",
        "words",
    )

    def __init__(self, path: Path) -> None:
        self.path = path
        self.size = 0
        self.words = b""
        self._memory: bytearray | None = bytearray()
        self._file: BinaryIO | None = None
        self._head = b""
        self._inside = False
        self._line_began = 0
        self._last = ""
        self._second = ""
        self._zone = "Z"
        self._counted = 0
        self._before = 0
        self._skip = 0
        self._skipping = False
        self._undo = self._mark()

    # --- streams ----------------------------------------------------------------------------------

    @property
    def since(self) -> str:
        """The time to go on from, RFC 3339 to the second; the empty string before the first line."""
        return f"{_second_before(self._second)}{self._zone}" if self._second else ""

    def begin(self) -> None:
        """A stream from `since` on is about to come."""
        self._head, self._inside, self._skipping, self.words = b"", False, False, b""
        self._skip = self._before + self._counted
        if self._memory is None and self._file is None:
            self._file = self.path.open("r+b")

    def feed(self, data: bytes) -> None:
        """Take the next part; `OSError` when the disk has no room, after which `cut` makes it as it was."""
        mark = self._mark()
        inside, began, undo, skipping = self._inside, self._line_began, self._undo, self._skipping
        size = self.size
        try:
            self._feed(data)
        except OSError:
            self._back_to(mark)
            self._inside, self._line_began, self._undo, self._skipping = inside, began, undo, skipping
            self.size, self._head = size, b""
            raise

    def _feed(self, data: bytes) -> None:
        out: list[bytes] = []
        if self._inside:
            end = data.find(b"\n")
            kept = data if end < 0 else data[: end + 1]
            if not self._skipping:
                out.append(kept)
            elif self.words:
                self._hear(kept)
            if end < 0:
                self._write(out)
                return
            self._inside = False
            data = data[end + 1 :]
        *whole, rest = (self._head + data).split(b"\n")
        self._head = b""
        for line in whole:
            stamp, space, text = line.partition(b" ")
            if not (space and _is_time(stamp)):
                self._hear(line)
            elif self._is_new(stamp):
                out += (text, b"\n")
        self._write(out)
        if rest:
            self._begin_line(rest)

    def _begin_line(self, rest: bytes) -> None:
        stamp, space, text = rest.partition(b" ")
        if not space and len(rest) < HEAD_BYTES_MAX:
            self._head = rest
            return
        self._line_began = self.size
        self._undo = self._mark()
        self._inside = True
        if not (space and _is_time(stamp)):
            self._skipping = True
            self._hear(rest)
            return
        self._skipping = not self._is_new(stamp)
        if not self._skipping:
            self._write([text])

    def _hear(self, words: bytes) -> None:
        """Remember what the kubelet says in place of the log."""
        self.words = (self.words + words)[:WORDS_BYTES_MAX]

    def cut(self) -> bytes:
        """The stream is over: what has no end yet is taken back, for it will come again; return it, or its beginning."""
        rest = b""
        if self._inside:
            if not self._skipping:
                rest = self.read(self._line_began, LINE_BYTES_MAX)
                self._shorten(self._line_began)
            self._back_to(self._undo)
        self._inside, self._head = False, b""
        self._close()
        return rest

    def finish(self, rest: bytes = b"") -> None:
        """The last stream came to its end: what has no newline is the end of the log, `rest` where it does not come again."""
        self._hear(self._head)
        self._head = b""
        self._write([rest])
        self._inside = False
        self._close()

    def add(self, data: bytes) -> None:
        """Add bytes as they are."""
        self._write([data])

    def take_back(self, size: int) -> None:
        """Shorten the log to so many bytes; what was found in its end is no part of it."""
        self._shorten(size)
        self._close()

    # --- what was counted -------------------------------------------------------------------------

    def _is_new(self, stamp: bytes) -> bool:
        """Count a line; return whether it was not here before."""
        time = stamp.decode("ascii", "replace")
        if self._skip and time <= self._last:
            self._skip -= 1
            return False
        self._skip = 0
        second = time[:SECOND_CHARACTERS]
        if second > self._second:
            self._before = self._counted if self._second == _second_before(second) else 0
            self._second, self._counted = second, 1
            self._zone = _zone(time)
        elif second == self._second:
            self._counted += 1
        elif second == _second_before(self._second):
            self._before += 1
        self._last = max(self._last, time)
        return True

    def _mark(self) -> tuple[str, str, int, int, int]:
        return self._last, self._second, self._counted, self._before, self._skip

    def _back_to(self, mark: tuple[str, str, int, int, int]) -> None:
        self._last, self._second, self._counted, self._before, self._skip = mark

    # --- bytes ------------------------------------------------------------------------------------

    def _write(self, out: list[bytes]) -> None:
        data = b"".join(out)
        if not data:
            return
        if self._memory is not None:
            if self.size + len(data) <= IN_MEMORY_BYTES:
                self._memory += data
                self.size += len(data)
                return
            self._file = self.path.open("w+b")
            self._file.write(self._memory)
            self._memory = None
        if self._file is None:
            self._file = self.path.open("r+b")
        self._file.seek(self.size)
        self._file.write(data)
        self._file.flush()
        self.size += len(data)

    def _shorten(self, size: int) -> None:
        self.size = min(self.size, size)
        if self._memory is not None:
            del self._memory[self.size :]
            return
        if self._file is None:
            self._file = self.path.open("r+b")
        self._file.truncate(self.size)

    def _close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def tail(self, count: int) -> bytes:
        """Return the last so many bytes, or all where there are fewer."""
        if self._memory is not None:
            return bytes(self._memory[-count:])
        with self.path.open("rb") as file:
            file.seek(max(0, self.size - count))
            return file.read(count)

    def read(self, offset: int, count: int) -> bytes:
        """Return a part."""
        if self._memory is not None:
            return bytes(self._memory[offset : offset + count])
        with self.path.open("rb") as file:
            file.seek(offset)
            return file.read(min(count, max(0, self.size - offset)))

    def content(self) -> bytes | Path:
        """Return all of it: bytes, or the file that holds them."""
        if self._memory is not None:
            return bytes(self._memory)
        return self.path

    def close(self) -> None:
        """Let go, and remove the file."""
        self._close()
        if self._memory is None:
            self.path.unlink(missing_ok=True)


def _is_time(stamp: bytes) -> bool:
    return _TIME.match(stamp) is not None


@lru_cache(maxsize=64)
def _second_before(second: str) -> str:
    """Return the second before one: `2026-11-23T01:51:13` of `2026-11-23T01:51:14`."""
    return (datetime.fromisoformat(second) - timedelta(seconds=1)).isoformat()


def _zone(time: str) -> str:
    """Return the offset that a time ends with: `Z`, or `+01:00`."""
    return "Z" if time.endswith("Z") else time[-6:]
