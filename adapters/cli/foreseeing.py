"""The time that a running pipeline has left, worked out beside it.

In: the place of the log that the engine writes. Out: `Foreseen`, told anew from time to time. Another process simulates
what is left (`simulate --continue`), at the lowest priority, in an eighth of the memory, and rests a hundred times as
long as cores worked: the engine does not feel it. Where it cannot tell (no run has ended yet, nothing can go on, too large
a log), nothing is told.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import msgspec

FIRST_SECONDS = 5.0
REST_SECONDS = 20.0
REST_FACTOR = 100
REPLICATIONS = 5
WORTH_SECONDS = 4.0
LOWEST_PRIORITY = 19
MEMORY_SHARE = 8
"""Each of its processes may take one part in so many of the machine's memory."""


class Foreseen(NamedTuple):
    """Seconds left, of five imagined futures the middle, the shortest and the longest; `at` is the monotonic clock's."""

    middle: float
    least: float
    most: float
    at: float

    def now(self) -> tuple[float, float, float]:
        """Return (middle, least, most) as of now."""
        passed = time.monotonic() - self.at
        return max(0.0, self.middle - passed), max(0.0, self.least - passed), max(0.0, self.most - passed)


async def foresee(
    log: Path, tell: Callable[[Foreseen | None], None], *, first: float = FIRST_SECONDS
) -> None:
    """Tell what is left, again and again, until cancelled."""
    await asyncio.sleep(first)
    while True:
        began = time.monotonic()
        tell(await _simulated(log, began))
        await asyncio.sleep(rest(time.monotonic() - began))


def rest(seconds: float) -> float:
    """Return how long to do nothing after so many seconds of work; long work is spread over cores."""
    cores = min(os.cpu_count() or 1, REPLICATIONS - 1) if seconds >= WORTH_SECONDS else 1
    return max(REST_SECONDS, REST_FACTOR * seconds * cores)


def _command(log: Path) -> list[str]:
    asked = ["simulate", "--continue", str(log), "--replications", str(REPLICATIONS), "--json"]
    return [sys.executable, "-m", "datatask", *asked]


async def _simulated(log: Path, began: float) -> Foreseen | None:
    process = await asyncio.create_subprocess_exec(
        *_command(log),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, process.pid, LOWEST_PRIORITY)
            share = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // MEMORY_SHARE
            resource.prlimit(process.pid, resource.RLIMIT_AS, (share, share))
        told, _ = await process.communicate()
    except asyncio.CancelledError:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # with those that it spread its work to
        await process.wait()
        raise
    if process.returncode != 0:
        return None
    (scenario,) = msgspec.json.decode(told)["scenarios"]
    makespan = scenario["makespan"]
    return Foreseen(makespan["p50"], makespan["min"], makespan["max"], began)
