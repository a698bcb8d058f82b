"""Engine time from the machine's clocks: the wall at the start, then the monotonic clock, never back.

A wall clock that somebody sets does not move engine time; the jump is told once, so that the log can record it.
"""

from __future__ import annotations

import time
from collections.abc import Callable

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
