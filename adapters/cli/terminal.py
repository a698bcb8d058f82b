"""The surroundings of a command: standard input, output and error, open, closed, full or gone, and Ctrl-C.

In: the descriptors that the process was started with. Out: streams that can be used. One that was closed is put onto /dev/null the
wrong way round, so that no file of ours gets its number and its use is told as an error. What cannot be written to stderr is
dropped. A Ctrl-C is noted as well as raised: where Python raises KeyboardInterrupt in a finalizer or in a callback of the
interpreter's own, such as the one that ends an import, it is lost; code that waits asks for it.
"""

from __future__ import annotations

import errno
import io
import os
import signal
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from types import FrameType, TracebackType
from typing import Any

from datatask.schema.errors import CallerError, DatataskError, SystemTroubleError
from datatask.schema.troubles import trouble

_noted = threading.Event()


OUTPUT, INPUT = "standard output", "standard input"
_WRONG_WAY = {0: os.O_WRONLY, 1: os.O_RDONLY, 2: os.O_RDONLY}


def note_interrupts() -> None:
    """Have each Ctrl-C noted from now on, unless somebody has other plans with it.

    For commands that wait without an event loop: asyncio takes care of a Ctrl-C only where nobody else does.
    """
    unchanged = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if unchanged and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, _note)


def raise_if_interrupted() -> None:
    """Raise the `KeyboardInterrupt` of a Ctrl-C that was noted."""
    if _noted.is_set():
        raise KeyboardInterrupt


def _note(number: int, frame: FrameType | None) -> None:
    _noted.set()
    signal.default_int_handler(number, frame)


class _Remembering(io.FileIO):
    """A descriptor that remembers on what error writing failed: what was buffered is lost with it, and no later call fails."""

    failed: OSError | None = None

    def write(self, data: Any) -> int:
        """Write what can be written."""
        try:
            return super().write(data)
        except OSError as error:
            self.failed = error
            raise


class _Forgiving(io.FileIO):
    """A descriptor on which writing never fails."""

    def write(self, data: Any) -> int:
        """Write what can be written."""
        try:
            written = super().write(data)
        except OSError:
            written = None
        return len(memoryview(data).cast("B")) if written is None else written


def prepare_streams() -> None:
    """Make the three streams usable; what of our text they cannot encode is written as `\\x…`."""
    for number, flags in _WRONG_WAY.items():
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, flags)  # the lowest free number is this one
    if sys.stdin is None:
        sys.stdin = open(0, closefd=False)  # noqa: SIM115 - for as long as the process lives
    if sys.stdout is None or _is_plain(sys.stdout, 1):
        sys.stdout = _over(sys.stdout, _Remembering(1, "w", closefd=False))
    if sys.stderr is None or _is_plain(sys.stderr, 2):
        sys.stderr = _over(sys.stderr, _Forgiving(2, "w", closefd=False))


def _over(stream: Any, raw: io.FileIO) -> io.TextIOWrapper:
    if stream is not None:
        stream.flush()
    return io.TextIOWrapper(
        io.BufferedWriter(raw),
        getattr(stream, "encoding", None),
        "backslashreplace",
        line_buffering=raw.fileno() == 2 or raw.isatty(),
    )


def catch_outside(function: Callable[..., Any]) -> None:
    """Have what escapes from `function` told in one line: of its own first and last lines nobody else could catch it."""
    usual = sys.excepthook

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        at = trace
        while at is not None and at.tb_frame.f_code is not function.__code__:
            at = at.tb_next
        if at is None:
            usual(kind, error, trace)
        else:
            _last(error)

    sys.excepthook = hook


def quiet_threads() -> None:
    """Have what nobody catches in a thread told in one line; of finalizers nothing: what they clean up ends with the process."""
    threading.excepthook = lambda arguments: _last(arguments.exc_value, thread=True)
    sys.unraisablehook = lambda arguments: None


def _last(error: BaseException | None, *, thread: bool = False) -> None:
    if error is None or isinstance(error, SystemExit) or (thread and isinstance(error, KeyboardInterrupt)):
        return
    say("interrupted" if isinstance(error, KeyboardInterrupt) else f"datatask: {line_of(error)}")


def line_of(error: BaseException) -> str:
    """Return what to say of an exception, in one line."""
    known = trouble(error)
    return " ".join(str(known or f"{type(error).__name__}: {error}").split())


def say(text: str) -> None:
    """Write a line to stderr, whatever has become of it."""
    with suppress(Exception):
        sys.stderr.write(f"{text}\n")
        sys.stderr.flush()


def output_trouble() -> OSError | None:
    """Return why stdout takes nothing more, or None where it does."""
    try:
        sys.stdout.flush()
    except OSError as error:
        return error
    except ValueError:
        return OSError(errno.EBADF, os.strerror(errno.EBADF))
    return getattr(getattr(getattr(sys.stdout, "buffer", None), "raw", None), "failed", None)


def drop_output() -> None:
    """Have what stdout still holds go nowhere, so that Python does not fail on it at its end."""
    with suppress(OSError, ValueError, AttributeError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
        os.close(null)
        sys.stdout.flush()


def output_error(error: OSError) -> DatataskError:
    """Return our error for a stdout that takes nothing more."""
    if error.errno == errno.EBADF:
        return CallerError("it is closed", where=OUTPUT, remedy="redirect it to a file, or to /dev/null")
    known = trouble(error, OUTPUT)
    what = str(error) if known is None else known.what
    return SystemTroubleError(
        what, where=OUTPUT, remedy="what the command did stays done; let it write to another place"
    )


def input_is_closed() -> bool:
    """Whether nothing can be read from stdin, since it was closed from the start."""
    try:
        return os.read(0, 0) is None
    except OSError as error:
        return error.errno == errno.EBADF


def _is_plain(stream: Any, number: int) -> bool:
    """Whether a stream is Python's own on its descriptor: a program or a test may have put another one there."""
    try:
        return type(stream) is io.TextIOWrapper and stream.fileno() == number
    except (OSError, ValueError):
        return False
