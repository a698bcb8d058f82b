"""Engine time, and the time that long work may take.

`SystemClock`: the wall clock at the start, then the monotonic clock, never back; a change of the wall clock is reported once, so that the log
can record it. `effort`: the progress of long work, and `SpentError` where its time is over; work that has results by then catches it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

STEP_NS = 2_000_000_000
LATE_SECONDS = 0.0005
LONGEST_SECONDS = 3600.0


class SystemClock:
    """The clock that engines run on."""

    def __init__(self) -> None:
        self._offset = time.time_ns() - time.monotonic_ns()
        self._told = self._offset

    def now(self) -> int:
        """Return UTC nanoseconds."""
        return time.monotonic_ns() + self._offset

    def wall_step(self) -> tuple[int, int] | None:
        """Return (wall before, wall after) when the wall clock jumped by more than two seconds."""
        offset = time.time_ns() - time.monotonic_ns()
        if abs(offset - self._told) < STEP_NS:
            return None
        before, self._told = self._told, offset
        now = time.monotonic_ns()
        return now + before, now + offset

    def call_at(self, at: int, ring: Callable[[], None]) -> Callable[[], None]:
        """Ring on the running loop when engine time has reached `at` (an hour from now at the latest)."""
        import asyncio  # commands that only read do without

        delay = max(0.0, (at - self.now()) / 1e9)
        return asyncio.get_running_loop().call_later(min(delay, LONGEST_SECONDS) + LATE_SECONDS, ring).cancel


class SpentError(KeyboardInterrupt):
    """The time is over. As a Ctrl-C it may come at any line, and is swallowed by nothing that goes on."""


class Effort:
    """What this process is at: a stage, and how much of it is done."""

    def __init__(self) -> None:
        self.begin("")

    def begin(self, name: str) -> None:
        """Begin anew, under a name."""
        self.name, self.stage, self.done, self.total = name, "", 0, 0
        self.so_far: Callable[[], Iterable[str]] = tuple
        self.is_idle = self.is_drawn = self.was_raised = False
        self.said = 0.0
        self.ends: float | None = None

    def at(self, stage: str, done: int = 0, total: int = 0) -> None:
        """Say how far it is; cheap, so it may be said often."""
        self.stage, self.done, self.total = stage, done, total

    @property
    def is_spent(self) -> bool:
        """Whether the time is over that it was given."""
        return self.ends is not None and time.monotonic() >= self.ends

    @contextmanager
    def idle(self) -> Iterator[None]:
        """Mark the time in which the command only waits for others: no progress is printed."""
        before, self.is_idle = self.is_idle, True
        try:
            yield
        finally:
            self.is_idle = before

    def words(self) -> str:
        """Return how far it is, for people, with what sets it off from what stands before it; nothing where it does not say."""
        amount = f" {self.done:,}" if self.done else ""
        whole = f" of {self.total:,}" if self.total else ""
        return f": {self.stage}{amount}{whole}" if self.stage else ""


effort = Effort()
"""That of this process: a command does one thing."""
