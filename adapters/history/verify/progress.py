"""How far a log has been verified while engines worked on it, as they remember it beside the log.

In: a reader. Out: positions, and the states that were verified (`background` keeps them). What lies beside the log is believed
only where an event in the log vouches for it.
"""

from __future__ import annotations

from typing import NamedTuple

from datatask.adapters.history.verify.rounds import read_rounds
from datatask.adapters.log.checkpoints import Found, checkpoints_in, told_by
from datatask.adapters.log.locate import verified_path
from datatask.adapters.log.reader import LogReader
from datatask.engine.core.state import FOLD_VERSION
from datatask.schema.units import iso


class UpTo(NamedTuple):
    """Up to which position a log is known to hold, its last one, and when all events and all blobs were looked at last."""

    position: int
    head: int
    events_at: str | None = None
    blobs_at: str | None = None

    def __str__(self) -> str:
        """Return it as a line for people."""
        rounds = [("events", self.events_at), ("blobs", self.blobs_at)]
        told = "".join(f"; all {what} last at {at[:19]}Z" for what, at in rounds if at)
        return f"verified up to position {self.position} of {self.head}{told}"


def verified(reader: LogReader | None) -> UpTo:
    """Return how far a log has been verified, by the word of its own events."""
    if reader is None:
        return UpTo(0, 0)
    position, rounds = next((one.position for one in vouched(reader)), 0), read_rounds(reader.path)
    return UpTo(position, reader.head, iso(rounds.events_at or None), iso(rounds.blobs_at or None))


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
