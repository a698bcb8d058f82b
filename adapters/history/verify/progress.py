"""How far a log has been verified while engines worked on it, as they remember it beside the log.

In: a reader. Out: positions, and the states that were verified (`background` keeps them). What lies beside the log is believed
only where an event in the log vouches for it.
"""

from __future__ import annotations

from typing import NamedTuple

from datatask.adapters.log.checkpoints import Found, checkpoints_in, told_by
from datatask.adapters.log.locate import verified_path
from datatask.adapters.log.reader import LogReader
from datatask.engine.core.state import FOLD_VERSION


class UpTo(NamedTuple):
    """Up to which position a log is known to hold, and its last one."""

    position: int
    head: int

    def __str__(self) -> str:
        """Return it as a line for people."""
        return f"verified up to position {self.position} of {self.head}"


def verified(reader: LogReader | None) -> UpTo:
    """Return how far a log has been verified, by the word of its own events."""
    if reader is None:
        return UpTo(0, 0)
    return UpTo(next((one.position for one in vouched(reader)), 0), reader.head)


def vouched(reader: LogReader) -> list[Found]:
    """Return the verified states that events of the log tell of, newest first; their bytes are not looked at."""
    found = checkpoints_in(verified_path(reader.path))
    head = reader.head if found else 0
    return [
        one
        for one in found
        if one.fold_version == FOLD_VERSION
        and one.position <= head
        and (event := told_by(reader, one)) is not None
        and event.verified
    ]
