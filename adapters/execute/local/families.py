"""What the runs of a directory have begun: their processes and descendants, wherever they went, killed without a rest.

In: a run's folder and the pid of its first process. Out: pids, each with its start time, since a pid alone is used
again. Imports the standard library only.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterable

from datatask.adapters.execute import proctable

MARK = "DATATASK_RUN"
"""The variable in a run's environment that has its folder: what is the run's is known by it wherever it goes."""

ROUNDS_MAX = 20


def mark(folder: str) -> str:
    """Return what the environments of a run's processes hold; identities alone are those of a log's copies too."""
    return f"{MARK}={folder}"


def family(leader: int, folder: str) -> dict[int, int]:
    """Return what a run has begun that lives, as {pid: start time}."""
    found = proctable.family(leader, mark(folder))
    return {pid: start for pid in found if (start := proctable.start_time(pid)) is not None}


def kill_all(pids: Iterable[int]) -> None:
    """Kill these, those that are gone or somebody else's left out."""
    for pid in pids:
        try:
            os.kill(pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            pass


def signal_group(leader: int, number: int) -> None:
    """Signal the process group of a leader whose pid is still its own, if there is any left of it."""
    try:
        os.killpg(leader, number)
    except (ProcessLookupError, PermissionError):
        pass


class Families:
    """Of runs that are to stop: what each was seen to have begun, so that what left it meanwhile dies too."""

    def __init__(self) -> None:
        self._known: dict[str, dict[int, int]] = {}

    def see(self, identity: str, leader: int, folder: str) -> None:
        """Remember what the run has begun by now."""
        self._known.setdefault(identity, {}).update(family(leader, folder))

    def clear(self, identity: str, leader: int, folder: str) -> None:
        """Kill all that a run has begun, if it was ever seen, until nothing is left of it."""
        known = self._known.get(identity)
        if known is None:
            return
        for _ in range(ROUNDS_MAX):
            alive = [pid for pid, start in known.items() if proctable.is_alive(pid, start)]
            kill_all(
                sorted(alive, key=lambda pid: pid != leader)
            )  # it first: it may wait for the others, and go on
            fresh = {pid: start for pid, start in family(leader, folder).items() if pid not in known}
            if not fresh:
                return
            known |= fresh

    def forget(self, identity: str) -> None:
        """The run is over."""
        self._known.pop(identity, None)
