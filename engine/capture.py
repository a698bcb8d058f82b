"""What functions print and log, kept for the run that did so, also where many of them share a process.

In: what is written to `sys.stdout` and `sys.stderr` while a run's function executes, and its log records. Out: a `Capture` for each run that
says anything, bounded: the beginning and the end. All of it still goes where it went before. What child processes of a function print
goes past this; what a function writes to the descriptors 1 and 2 does, too.
"""

from __future__ import annotations

import logging
import sys
import threading
from collections import deque
from collections.abc import Callable
from types import CodeType
from typing import Any

from datatask.schema.messages import Printed

STREAMS = ("stdout", "stderr")


class Capture:
    """What one run printed so far: of each stream at most `most` bytes, half of them its beginning. Thread-safe."""

    def __init__(self, most: int) -> None:
        self._half = max(1, most // 2)
        self._sizes = dict.fromkeys(STREAMS, 0)
        self._heads = {name: bytearray() for name in STREAMS}
        self._tails: dict[str, deque[bytes]] = {name: deque() for name in STREAMS}
        self._kept = dict.fromkeys(STREAMS, 0)
        self._lock = threading.Lock()

    def add(self, stream: str, data: bytes) -> None:
        """Take what was printed on a stream."""
        with self._lock:
            self._sizes[stream] += len(data)
            head = self._heads[stream]
            if len(head) < self._half:
                room = self._half - len(head)
                head += data[:room]
                data = data[room:]
            if not data:
                return
            tail = self._tails[stream]
            tail.append(data[-self._half :])
            self._kept[stream] += len(tail[-1])
            while self._kept[stream] - len(tail[0]) >= self._half:
                self._kept[stream] -= len(tail.popleft())

    def printed(self) -> tuple[Printed, ...]:
        """Return what was printed, by stream; streams without anything are left out."""
        with self._lock:
            return tuple(
                Printed(name, size, bytes(self._heads[name]), b"".join(self._tails[name])[-self._half :])
                for name, size in self._sizes.items()
                if size
            )


Find = Callable[[], Capture | None]


class _Stream:
    """Stands for a standard stream: what a run's function writes is captured as well."""

    def __init__(self, stream: Any, name: str, find: Find) -> None:
        self._stream, self._name, self._find = stream, name, find

    def __getattr__(self, name: str) -> Any:
        if name == "buffer":
            return _Bytes(self._stream.buffer, self._name, self._find)
        return getattr(self._stream, name)

    def __iter__(self) -> Any:
        return iter(self._stream)

    def write(self, text: str) -> int:
        """Write, and capture unless a log record is written, which the handler has captured."""
        capture = self._find()
        if capture is not None and sys._getframe(1).f_code is not _EMIT:
            capture.add(self._name, text.encode(errors="backslashreplace"))
        return int(self._stream.write(text))

    def writelines(self, lines: Any) -> None:
        """Write lines."""
        for line in lines:
            self.write(line)


class _Bytes:
    """Stands for the bytes below a standard stream."""

    def __init__(self, buffer: Any, name: str, find: Find) -> None:
        self._buffer, self._name, self._find = buffer, name, find

    def __getattr__(self, name: str) -> Any:
        return getattr(self._buffer, name)

    def write(self, data: Any) -> int:
        """Write, and capture."""
        capture = self._find()
        if capture is not None:
            capture.add(self._name, bytes(data))
        return int(self._buffer.write(data))


_EMIT: CodeType = logging.StreamHandler.emit.__code__


class _Handler(logging.Handler):
    """Captures the log records of runs' functions."""

    def __init__(self, find: Find) -> None:
        super().__init__()
        self._find = find
        self.setFormatter(logging.Formatter("%(levelname)s %(name)s: %(message)s"))

    def emit(self, record: logging.LogRecord) -> None:
        """Capture a record where a run's function made it; print it as Python does where nobody else handles it."""
        last = logging.lastResort
        if last is not None and record.levelno >= last.level and logging.getLogger().handlers == [self]:
            last.handle(record)
        capture = self._find()
        if capture is not None and not record.name.startswith("datatask."):
            try:
                capture.add("stderr", f"{self.format(record)}\n".encode(errors="backslashreplace"))
            except Exception:
                self.handleError(record)


_users = 0
_lock = threading.Lock()
_handler: _Handler | None = None


def begin(find: Find) -> None:
    """Capture from now on; `find` tells whose function executes. Each call is ended by one of `end`."""
    global _users, _handler
    with _lock:
        _users += 1
        if _handler is None:
            _handler = _Handler(find)
            logging.getLogger().addHandler(_handler)
        for name in STREAMS:  # somebody may have exchanged them since
            stream = getattr(sys, name)
            if stream is not None and not isinstance(stream, _Stream):
                setattr(sys, name, _Stream(stream, name, find))


def end() -> None:
    """Capture no more, once all have ended."""
    global _users, _handler
    with _lock:
        _users -= 1
        if _users > 0 or _handler is None:
            return
        logging.getLogger().removeHandler(_handler)
        _handler = None
        for name in STREAMS:
            stream = getattr(sys, name)
            if isinstance(stream, _Stream):
                setattr(sys, name, stream._stream)
