"""Contact with a target: a lasting silence is reported, repeatedly, and its end once.

In: that the link to it is gone, or there again, and what keeps it from being made. Out: one line in the log of the process for
each silence and each end of one; the same for the runs that wait, at each look, for more of them may wait by then.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

logger = logging.getLogger("datatask.proc_manager")

SILENT_SECONDS = 2.0


class Contact:
    """A target as it answers or not; `trouble` is the error of its link, `tell` takes a silence, empty at its end."""

    def __init__(self, label: str, tell: Callable[[str], None]) -> None:
        self.trouble = ""
        self._label = label
        self._tell = tell
        self._is_silent = False
        self._timer: asyncio.TimerHandle | None = None

    def expect(self) -> None:
        """The link is lost: report silence, unless there is contact soon."""
        self.close()
        self._timer = asyncio.get_running_loop().call_later(SILENT_SECONDS, self._miss_again)

    def _miss_again(self) -> None:
        self._tell(self.miss())
        self.expect()

    def miss(self) -> str:
        """Report the silence and its reason once; return the text."""
        why = self.trouble.removeprefix(f"{self._label}: ") or "it does not answer"
        text = f"{self._label} cannot be reached: {why}"
        if not self._is_silent:
            self._is_silent = True
            logger.warning("%s", text)
        return text

    def regain(self) -> None:
        """The link is up: report it, if its silence was reported."""
        self.trouble = ""
        self.close()
        if self._is_silent:
            self._is_silent = False
            logger.warning("%s answers again", self._label)
        self._tell("")

    def close(self) -> None:
        """Stop reporting."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
