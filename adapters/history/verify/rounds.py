"""When all of a log was looked at last, and where the round that is under way has come to.

In: a log's path. Out: the note `<log>.checkpoints/verified/rounds`, which the verification behind an engine keeps (`background`) and
`status` tells. Nothing is passed over on its word: it says where a round begins, and a round goes all the way round. It goes with the
states that were verified, where somebody else has written to the log.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

import msgspec

from datatask.adapters.log.locate import verified_path
from datatask.adapters.trust import UnsafePlaceError, make_private, open_own, private

_NAME = "rounds"
_BYTES_MAX = 4096


class Rounds(msgspec.Struct, frozen=True, omit_defaults=True):
    """Times are UTC nanoseconds of the wall clock, 0 for never.

    `events_at`, `blobs_at`: when all events had been verified from the beginning last, and all blobs hashed. `next_blob`: the position
    behind which the round of blobs goes on.
    """

    events_at: int = 0
    blobs_at: int = 0
    next_blob: int = 0


def read_rounds(log: Path) -> Rounds:
    """Return the note; an empty one where there is none that can be believed."""
    path = verified_path(log) / _NAME
    try:
        with open(open_own(path, also=os.stat(path.parent).st_uid), "rb") as file:
            return msgspec.json.decode(file.read(_BYTES_MAX), type=Rounds)
    except (OSError, ValueError, UnsafePlaceError):
        return Rounds()


def write_rounds(log: Path, rounds: Rounds) -> None:
    """Keep the note, whole or not at all; a disk that does not take it loses nothing but this."""
    path = verified_path(log) / _NAME
    fresh = path.with_name(f"new-{os.getpid()}-{_NAME}")
    with suppress(OSError, UnsafePlaceError):
        make_private(path.parent)
        try:
            with open(fresh, "wb", opener=private) as file:
                file.write(msgspec.json.encode(rounds))
            os.replace(fresh, path)
        except BaseException:
            fresh.unlink(missing_ok=True)
            raise
