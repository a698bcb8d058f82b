"""Ends that are not a script's own doing: somebody stops the machine, the service or the container, and with it all there is.

In: an exit code; that this process was told to end. Out: whether the code tells of such a stop, and what to say of it. A
stop comes as TERM to all processes, in no order, and as KILL to what is left of them a while later. A signal to one
script alone is that script's end. Imports the standard library only.
"""

from __future__ import annotations

import signal
import time

STOPS = (signal.SIGTERM, signal.SIGKILL, signal.SIGHUP, signal.SIGINT)

STOP_SECONDS_MAX = 100.0
"""So long after a polite signal a stop may still be under way: systemd kills after 90 s."""

NEAR_SECONDS = 1.0
"""So far apart the signals of one stop reach two processes at most, where nothing but its order is between them."""

SECOND = 1_000_000_000
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
