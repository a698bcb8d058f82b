"""The last bound: a process that has not ended when its time is over is ended, whatever it hangs in.

In come moments by which the process is to have ended, each with an exit code. Out comes nothing, or the end of the
process: where the event loop is blocked, a thread never returns, or nobody reads what is printed, no politer way is
left. It loses nothing: to the log it is a `kill -9`, and the next engine goes on.
"""

from __future__ import annotations

import os
import threading
import time
from contextlib import suppress

TELL_SECONDS = 0.5
LOOK_SECONDS = 0.2
LEAST_SECONDS = 1.0
"""So long threads have to end at least, also where the time for the work is over."""


class Guard:
    """Watches over one process from a thread of its own; no locks, since signal handlers call it."""

    def __init__(self) -> None:
        self._due: tuple[float, int, str] | None = None
        self._put_off: float | None = None
        self._thread: threading.Thread | None = None

    def within(self, seconds: float, code: int, why: str) -> None:
        """End the process with `code` in so many seconds, unless it has ended, or this was put off."""
        self._due = time.monotonic() + seconds, code, why
        if self._thread is None or not self._thread.is_alive():
            self._thread = threading.Thread(target=self._watch, name="datatask-guard", daemon=True)
            with suppress(RuntimeError):  # no thread to be had: then it is the machine that is in need
                self._thread.start()

    def sooner(self, seconds: float, code: int, why: str) -> None:
        """As `within`, unless it is to end sooner anyway."""
        if self._due is None or self._due[0] > time.monotonic() + seconds:
            self.within(seconds, code, why)

    def put_off(self) -> None:
        """Let the process live: the work is done."""
        self._put_off, self._due = self._due and self._due[0], None

    def at_last(self, seconds: float, code: int, why: str) -> None:
        """As `within`, for what is left after the work; a moment that was put off still holds."""
        if self._put_off is not None:
            seconds = min(seconds, max(self._put_off - time.monotonic(), LEAST_SECONDS))
        self.within(seconds, code, why)

    def _watch(self) -> None:
        while (due := self._due) is not None:
            at, code, why = due
            left = at - time.monotonic()
            if left <= 0:
                _end(code, why)
            time.sleep(min(max(left, 0.01), LOOK_SECONDS))


def _end(code: int, why: str) -> None:
    """Tell why, if anybody reads it, and end."""
    told = f"datatask: {why}\n".encode(errors="replace")
    with suppress(RuntimeError):
        teller = threading.Thread(target=_say, args=(told,), daemon=True)
        teller.start()
        teller.join(TELL_SECONDS)
    os._exit(code)


def _say(told: bytes) -> None:
    with suppress(OSError):
        os.write(2, told)


guard = Guard()
"""That of this process; programs of others, which only use the library, never set it."""
