"""Ends that are not a script's own doing: the machine, the service or the container is being stopped, and all in it.

In: exit codes, signals to this process, engines that die. Out: whether a code tells of such a stop; for how long an end is
held before it is reported, and whether the stop caused it. A stop comes as TERM to all processes at once, in no order, and
as KILL to what is left a while later: what a script did just before is as much in doubt as what it does until the stop is
over. A signal to one script alone is that script's end, an exit code of 0 its word. Imports the standard library only.
"""

from __future__ import annotations

import signal
import time

from datatask.schema.units import SECOND

STOPS = (signal.SIGTERM, signal.SIGKILL, signal.SIGHUP, signal.SIGINT)

STOP_SECONDS_MAX = 100.0
"""So long after a polite signal a stop may still be under way: systemd kills after 90 s."""

NEAR_SECONDS = 1.0
"""So far apart the signals of one stop reach two processes at most, where nothing but its order is between them."""

_signalled_at: list[int] = []


def of_a_signal(code: int) -> int | None:
    """Return the number of the signal of a stop that this exit code tells of, as a shell does it or as the kernel does."""
    for number in STOPS:
        if code in (-number, 128 + number):
            return int(number)
    return None


def stopped_from_outside(code: int) -> str:
    """Return why a run is lost whose end is not its own, in words."""
    number = of_a_signal(code)
    how = f"exit code {code}" if number is None else f"killed by {signal.Signals(number).name}"
    return f"{how} while the machine, its service or its container was being stopped"


def signalled() -> None:
    """This process, an engine's, got a SIGTERM."""
    _signalled_at[:] = [time.time_ns()]


def hit_us_too(code: int | None, began: int | None, at: int) -> bool:
    """Whether a run of this engine that was there when it got its SIGTERM ended by such a signal then or after."""
    if code is None or of_a_signal(code) is None:
        return False
    return any(
        (began or 0) <= signalled and -NEAR_SECONDS * SECOND <= at - signalled < STOP_SECONDS_MAX * SECOND
        for signalled in _signalled_at
    )


HELD_SECONDS = NEAR_SECONDS
"""So long the end by a signal waits for what else that signal hits; one whose launcher is killed meanwhile is in doubt."""

FAILURE_HELD_SECONDS = 0.03
"""Likewise for other failures: the signal may have hit a part of the script before it hit us."""


class ShutdownEvidence:
    """The signs of a stop that this launcher has; times are UTC nanoseconds."""

    def __init__(self) -> None:
        self._own_at: int | None = None
        self._died_at: dict[str, int] = {}

    def signalled(self) -> None:
        """We got a polite signal."""
        self._own_at = time.time_ns()

    @property
    def is_under_way(self) -> bool:
        """Whether a stop may be under way."""
        return self._own_at is not None and time.time_ns() - self._own_at < STOP_SECONDS_MAX * SECOND

    def engine_died(self, log: str) -> None:
        """The engine of this log is gone without a word."""
        self._died_at[log] = time.time_ns()

    def held_seconds(self, code: int | None) -> float:
        """Return for how long this end is held."""
        if not code:
            return 0.0
        return FAILURE_HELD_SECONDS if of_a_signal(code) is None else HELD_SECONDS

    def is_from_outside(self, log: str, code: int, began: int | None, at: int) -> bool:
        """Whether the end at a time was a stop's doing, of a run of this log that began at another."""
        own, died = self._own_at, self._died_at.get(log)
        if own is not None and (began or 0) <= own:
            if -HELD_SECONDS * SECOND <= at - own < STOP_SECONDS_MAX * SECOND:
                return True
        return of_a_signal(code) is not None and died is not None and abs(at - died) <= HELD_SECONDS * SECOND
