"""A Ctrl-C that is not lost.

Python raises KeyboardInterrupt wherever the main thread happens to be. In a finalizer or a callback of the
interpreter's own, such as those that end an import, nobody passes it on. So it is noted too, and who waits asks.
"""

from __future__ import annotations

import signal
import threading
from types import FrameType

_noted = threading.Event()


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
