"""Back pressure: starts that a machine refuses for the moment wait, and use up no attempt.

In: starts, and what became of them. Out: when each may be tried. A machine that has no room for a process, a thread, a
descriptor, memory or a file right now has some when others have ended: one start at a time is tried again, after pauses that
grow, at once when one of ours has ended. So do starts that a target leaves to another log (`OCCUPIED`), for as long as it
does. Each run that waits is told of once; `why` shows it. What is refused for good is not for here.
"""

from __future__ import annotations

import asyncio
import errno
import logging
from collections.abc import Callable

from datatask.engine.ports import Sink
from datatask.schema.messages import Noticed

logger = logging.getLogger("datatask.proc_manager")

PAUSE_SECONDS = (0.2, 15.0)
FACTOR = 1.6
MOMENTARY = frozenset(
    (errno.EAGAIN, errno.ENOMEM, errno.ENOSPC, errno.EMFILE, errno.ENFILE, errno.EDQUOT, errno.ENOBUFS)
)
WORDS_MAX = 900
NO_ROOM = "NoRoom"
OCCUPIED = "Occupied"
EXECUTOR_AWAY = "ExecutorAway"
_WHO = {NO_ROOM: "the machine", OCCUPIED: "its target", EXECUTOR_AWAY: "its executor"}
"""Refusals from these sources are reported with the source's name; other messages name it themselves."""


def is_momentary(error: BaseException) -> bool:
    """Whether what failed fails because the machine, or this process, has no room right now."""
    if isinstance(error, OSError):
        return error.errno in MOMENTARY
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and "new thread" in str(error))


class Pressure:
    """The starts of one runner that wait, by run."""

    def __init__(self, task: str, sink: Sink) -> None:
        self._task = task
        self._sink = sink
        self._loop = asyncio.get_running_loop()
        self._waiting: dict[int, Callable[[], None]] = {}
        self._told: set[int] = set()
        self._words = ""
        self._reason = NO_ROOM
        self._trying = 0
        self._pause = PAUSE_SECONDS[0]
        self._timer: asyncio.TimerHandle | None = None

    def admit(self, run: int, start: Callable[[], None]) -> None:
        """Start a run, or have it wait behind others."""
        if self._waiting or self._trying:
            self._wait(run, start)
        else:
            start()

    def refused(self, run: int, start: Callable[[], None], why: str, reason: str = NO_ROOM) -> None:
        """The machine, or the target, has refused a start; nothing of it has begun."""
        if not self._words or reason != self._reason:
            logger.warning(
                "%s: %s starts no more runs for the moment, they wait: %s", self._task, _who(reason), why
            )
        self._reason = reason
        self._words = why[:WORDS_MAX]
        if run == self._trying:
            self._trying = 0
            self._pause = min(self._pause * FACTOR, PAUSE_SECONDS[1])
        self._wait(run, start)
        self._again(self._pause)

    def accepted(self, run: int) -> None:
        """A start was no more refused for the moment, whatever else became of it."""
        self._told.discard(run)
        if run == self._trying:
            self._trying = 0
            self._pause = PAUSE_SECONDS[0]
            if not self._waiting:
                self._words = ""
                logger.warning("%s: %s starts runs again", self._task, _who(self._reason))
            self._soon()

    def freed(self) -> None:
        """Something of ours has ended: there may be room."""
        self._soon()

    def withdraw(self, run: int) -> bool:
        """Have a run wait no more; whether it did."""
        self._told.discard(run)
        waited = self._waiting.pop(run, None) is not None
        if not self._waiting and not self._trying:
            self._words = ""  # the next time that there is no room is another one, and is told
        return waited

    def waiting(self) -> list[int]:
        """Return the runs that wait."""
        return list(self._waiting)

    def close(self) -> None:
        """Try nothing any more."""
        self._waiting.clear()
        if self._timer is not None:
            self._timer.cancel()

    def _wait(self, run: int, start: Callable[[], None]) -> None:
        self._waiting[run] = start
        if run not in self._told:
            self._told.add(run)
            known = self._reason in _WHO
            text = f"{_who(self._reason)} refuses it for the moment, it is tried again: {self._words}"
            self._sink(Noticed(run, "pending", self._reason, text if known else self._words))

    def _soon(self) -> None:
        if self._waiting and not self._trying:
            self._again(0.0)

    def _again(self, seconds: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_later(seconds, self._try)

    def _try(self) -> None:
        self._timer = None
        if self._trying or not self._waiting:
            return
        run = min(self._waiting)
        start = self._waiting.pop(run)
        self._trying = run
        start()


def _who(reason: str) -> str:
    return _WHO.get(reason, "the cluster")
