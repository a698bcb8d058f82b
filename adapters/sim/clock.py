"""Virtual time: it moves when told to, and alarms ring on the way, in order."""

from __future__ import annotations

import heapq
from collections.abc import Callable

from datatask.schema.definition import SECOND

BEGINNING = 1_700_000_000 * SECOND


class VirtualClock:
    """A clock for tests: `advance` moves it, `advance_to_alarm` moves it to the next alarm."""

    def __init__(self, start: int = BEGINNING) -> None:
        self._now = start
        self._alarms: list[tuple[int, int, Callable[[], None]]] = []
        self._count = 0

    def now(self) -> int:
        """Return engine time in nanoseconds."""
        return self._now

    def wall_step(self) -> tuple[int, int] | None:
        """Return None: virtual time never jumps by itself."""
        return None

    def call_at(self, at: int, ring: Callable[[], None]) -> Callable[[], None]:
        """Ring when time reaches `at`; return the function that calls it off."""
        self._count += 1
        entry = (at, self._count, ring)
        heapq.heappush(self._alarms, entry)

        def cancel() -> None:
            if entry in self._alarms:
                self._alarms.remove(entry)
                heapq.heapify(self._alarms)

        return cancel

    def advance(self, seconds: float) -> None:
        """Move on by so many seconds, ringing what is due, each at its own time."""
        self._move(self._now + int(seconds * SECOND))

    def advance_to_alarm(self) -> bool:
        """Move to the next alarm and ring it; False when there is none."""
        if not self._alarms:
            return False
        self._move(max(self._now, self._alarms[0][0]))
        return True

    def _move(self, until: int) -> None:
        while self._alarms and self._alarms[0][0] <= until:
            at, _, ring = heapq.heappop(self._alarms)
            self._now = max(self._now, at)
            ring()
        self._now = max(self._now, until)
