"""A store that is being listed, perhaps again and again: who asked for it, and how far that is answered.

In come questions and the ends of listings; a question is answered by a listing that began after it. A listing runs
user code: one that does not let itself be called off is left behind.
"""

from __future__ import annotations

import asyncio
import logging

from datatask.engine.runtime.closing import call_off

logger = logging.getLogger("datatask.observing")


class Look:
    """A store that is being listed: how often that was asked for, and how far it is answered."""

    def __init__(self) -> None:
        self.asked = 0
        self.begun = 0
        self.answered = 0
        self.listed = 0
        self.lost = 0
        self.failed = False
        self.told: set[str] = set()
        self.task: asyncio.Task[None] | None = None
        self._changed = asyncio.Event()

    def begin(self) -> None:
        """A listing begins: it answers what was asked so far, and is older than what is told from now on."""
        self.begun = self.asked
        self.told = set()

    def answer(self, number: int) -> None:
        """So many have been answered: listed, failed, or not to be waited for."""
        self.answered = max(self.answered, number)
        self._changed.set()
        self._changed = asyncio.Event()

    async def until(self, number: int) -> None:
        """Return when so many have been answered, at once while it waits for another try."""
        while self.answered < number and not self.failed:
            await self._changed.wait()


async def call_off_listing(listing: asyncio.Task[BaseException | None]) -> None:
    """Cancel a listing; one that goes on all the same is left behind."""
    if not await call_off(listing):
        logger.warning("%s does not let itself be called off; it is left behind", listing.get_name())


def is_called_off() -> bool:
    """Whether the present task is being cancelled."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
