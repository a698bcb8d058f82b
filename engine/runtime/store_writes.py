"""Foreign stores follow the log: what was decided is done there too, in order and a few calls at a time.

In come writes that are durable in the log, and jobs at which a store is to be looked again; out go calls of the
stores, and what came of each write. Every store has a lane of its own, so that one that is slow or away holds
up no other. In a lane `CALLS_MAX` calls at most are under way; what waits behind them is a small record and no
coroutine, since a single call of a program may bring a million.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

from datatask.engine.core.effects import LookAgain, WriteStore
from datatask.schema.errors import ConflictError, TemporaryError
from datatask.schema.messages import Write

logger = logging.getLogger("datatask.engine")

CALLS_MAX = 32
RETRY_SECONDS = 0.1
RETRY_SECONDS_MAX = 30.0

Change = Callable[[Write], Awaitable[str | None]]
"""Changes a store and returns the version that it has now; None for a deletion."""

Written = Callable[[WriteStore, str | None, str, bool], None]
"""Hears of a write that is done: the effect, the store's version, why it failed or "", and whether as a conflict."""

Look = Callable[[str, str], Coroutine[Any, Any, None]]
"""Looks at a job in a repository again, and reports what is there now."""


class Followers:
    """The lanes of one engine's foreign stores. `spawn` runs a coroutine that the engine will wait for."""

    def __init__(
        self,
        spawn: Callable[[Coroutine[Any, Any, None]], object],
        change: Change,
        written: Written,
        look: Look,
    ) -> None:
        self._spawn = spawn
        self._change = change
        self._written = written
        self._look = look
        self._lanes: dict[str, _Lane] = {}

    def follow(self, work: WriteStore | LookAgain) -> None:
        """Do this when its turn has come; returns at once."""
        repository, job = _place(work)
        lane = self._lanes.get(repository)
        if lane is None:
            lane = self._lanes[repository] = _Lane()
        lane.waiting.append((job, work))
        if lane.hands < CALLS_MAX:
            lane.hands += 1
            self._spawn(self._work(repository, lane))

    @property
    def is_stuck(self) -> bool:
        """Whether every call that is under way waits for a store that has refused it, to be tried again."""
        return bool(self._lanes) and all(lane.pausing == lane.hands for lane in self._lanes.values())

    def under_way(self) -> list[str]:
        """Return the stores that are being written to, each with how much waits for it and its last trouble."""
        return [lane.words(repository) for repository, lane in self._lanes.items()]

    async def _work(self, repository: str, lane: _Lane) -> None:
        """Take from a lane until it is empty; what concerns a job that another hand is at goes to that hand."""
        while lane.waiting:
            job, work = lane.waiting.popleft()
            if job in lane.at:
                lane.at[job].append(work)
                continue
            lane.at[job] = behind = deque([work])
            while behind:
                await self._do(behind[0], lane)
                behind.popleft()
            del lane.at[job]
        lane.hands -= 1
        if not lane.hands:
            self._lanes.pop(repository)

    async def _do(self, work: WriteStore | LookAgain, lane: _Lane) -> None:
        if isinstance(work, LookAgain):
            await self._look(work.repository, work.job)
            return
        write, wait = work.write, RETRY_SECONDS
        version, error, conflict = None, "", False
        while True:
            try:
                version = await self._change(write)
                break
            except TemporaryError as trouble:
                lane.trouble = str(trouble)
                logger.warning("%s[%s] cannot be written yet: %s", write.repository, write.job, trouble)
                lane.pausing += 1
                try:
                    await asyncio.sleep(wait)
                finally:
                    lane.pausing -= 1
                wait = min(2 * wait, RETRY_SECONDS_MAX)
            except ConflictError as trouble:
                error, conflict = trouble.what, True
                break
            except (Exception, SystemExit, asyncio.CancelledError) as trouble:  # of the store's own making
                task = asyncio.current_task()
                if task is not None and task.cancelling():
                    raise
                error = str(trouble) or type(trouble).__name__
                logger.error("%s[%s] cannot be written: %s", write.repository, write.job, trouble)
                break
        self._written(work, version, error, conflict)


class _Lane:
    """What waits for one store, how many hands are at it, and the jobs that they are at with what follows there."""

    __slots__ = ("at", "hands", "pausing", "trouble", "waiting")

    def __init__(self) -> None:
        self.waiting: deque[tuple[str, WriteStore | LookAgain]] = deque()
        self.hands = self.pausing = 0
        self.at: dict[str, deque[WriteStore | LookAgain]] = {}
        self.trouble = ""

    def words(self, repository: str) -> str:
        """Return what is under way here, for people."""
        count = len(self.waiting) + sum(map(len, self.at.values()))
        why = f" ({self.trouble})" if self.trouble else ""
        return f"the store of {repository}: {count} write{'s' * (count != 1)}{why}"


def _place(work: WriteStore | LookAgain) -> tuple[str, str]:
    """Return the repository and the job that the work is at."""
    at = work if isinstance(work, LookAgain) else work.write
    return at.repository, at.job
