"""How far a log has been verified while engines worked on it, as they remember it beside the log.

In: a reader, or a log's path. Out: positions and the states that were verified (`background` keeps them), believed only where
an event in the log vouches for them; and the note of when all events and all blobs were looked at last, and where the next
round of blobs begins. Nothing is passed over on the word of that note: a round goes all the way round.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import msgspec

from datatask.adapters.log.checkpoints import Found, checkpoints_in, told_by
from datatask.adapters.log.locate import verified_path
from datatask.adapters.log.reader import LogReader
from datatask.adapters.spools import whole
from datatask.adapters.trust import UnsafePlaceError, make_private, open_own, private
from datatask.engine.core.state import FOLD_VERSION
from datatask.schema.units import iso

_NAME = "rounds"
_BYTES_MAX = 4096
FAR_BEHIND = 10_000
"""So many positions that are not verified yet are worth a line at the end of a run: seconds of work, not moments."""


class LastRounds(msgspec.Struct, frozen=True, omit_defaults=True):
    """Times are UTC nanoseconds of the wall clock, 0 for never.

    `events_at`, `blobs_at`: when all events had been verified from the beginning last, and all blobs hashed. `next_blob`: the position
    behind which the round of blobs goes on.
    """

    events_at: int = 0
    blobs_at: int = 0
    next_blob: int = 0


def read_rounds(log: Path) -> LastRounds:
    """Return the note; an empty one where there is none that can be believed."""
    path = verified_path(log) / _NAME
    try:
        with open(open_own(path, also=os.stat(path.parent).st_uid), "rb") as file:
            return msgspec.json.decode(file.read(_BYTES_MAX), type=LastRounds)
    except (OSError, ValueError, UnsafePlaceError):
        return LastRounds()


def write_rounds(log: Path, rounds: LastRounds) -> None:
    """Keep the note, whole or not at all; a disk that does not take it loses nothing but this."""
    path = verified_path(log) / _NAME
    with suppress(OSError, UnsafePlaceError):
        make_private(path.parent)
        with whole(path, durable=False, opener=private) as file:
            file.write(msgspec.json.encode(rounds))


class UpTo(NamedTuple):
    """Up to which position a log is known to hold, its last one, and when all events and all blobs were looked at last."""

    position: int
    head: int
    events_at: str | None = None
    blobs_at: str | None = None

    @property
    def is_far_behind(self) -> bool:
        """Whether the unverified part is large enough to be reported at the end of `run`."""
        return self.head - self.position >= FAR_BEHIND

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
