"""Ends that are not a script's own doing: somebody stops the machine, the service or the container, and with it all there is.

In: an exit code; that this process was told to end. Out: whether the code tells of such a stop, and what to say of it. A
stop comes as TERM to all processes, in no order, and as KILL to what is left of them a while later. A signal to one
script alone is that script's end. Imports the standard library only.

Whose doing an end is: the script's own, or that of whoever stops the machine, the service or the container.

In: ends of scripts, our own being told to end, engines that die. Out: for how long an end is held before anybody is told,
and then whether it was the script's. A stop comes as a signal to all processes at once, in no order: what a script
did just before is as much in doubt as what it does until the stop is over. An exit code of 0 is always the script's
word. Imports the standard library only.
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

_told: list[int] = []


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


def told_to_end() -> None:
    """This process, an engine's, got a SIGTERM."""
    _told[:] = [time.time_ns()]


def hit_us_too(code: int | None, began: int | None, at: int) -> bool:
    """Whether a run of this engine that was there when it got its SIGTERM ended by such a signal then or after."""
    if code is None or of_a_signal(code) is None:
        return False
    return any(
        (began or 0) <= told and -NEAR_SECONDS * SECOND <= at - told < STOP_SECONDS_MAX * SECOND
        for told in _told
    )


HELD_SECONDS = NEAR_SECONDS
"""So long the end by a signal waits for what else that signal hits; one whose launcher is killed meanwhile is in doubt."""

FAILURE_HELD_SECONDS = 0.03
"""Likewise for other failures: the signal may have hit a part of the script before it hit us."""


class Doubts:
    """What this launcher knows of stops; times are UTC nanoseconds."""

    def __init__(self) -> None:
        self._told_at: int | None = None
        self._died_at: dict[str, int] = {}

    def told_to_end(self) -> None:
        """We got a polite signal."""
        self._told_at = time.time_ns()

    @property
    def is_leaving(self) -> bool:
        """Whether a stop may be under way."""
        return self._told_at is not None and time.time_ns() - self._told_at < STOP_SECONDS_MAX * SECOND

    def engine_died(self, log: str) -> None:
        """The engine of this log is gone without a word."""
        self._died_at[log] = time.time_ns()

    def held_seconds(self, code: int | None) -> float:
        """Return for how long this end is not told."""
        if not code:
            return 0.0
        return FAILURE_HELD_SECONDS if of_a_signal(code) is None else HELD_SECONDS

    def is_from_outside(self, log: str, code: int, began: int | None, at: int) -> bool:
        """Whether the end at a time was a stop's doing, of a run of this log that began at another."""
        told, died = self._told_at, self._died_at.get(log)
        if told is not None and (began or 0) <= told:
            if -HELD_SECONDS * SECOND <= at - told < STOP_SECONDS_MAX * SECOND:
                return True
        return of_a_signal(code) is not None and died is not None and abs(at - died) <= HELD_SECONDS * SECOND
