"""The processes of runs: descendants wherever they went, killed without a rest; and those that are not our children.

In: a run's folder, and the pid and start time of its first process, since a pid alone is used again. Out: what it has begun,
dead; of a process that an earlier launcher started, through a selector whose keys have the identity as data, that it has
ended, and its wait status where the kernel tells it. Imports the standard library only.
"""

from __future__ import annotations

import os
import resource
import selectors
import signal
import time
from collections.abc import Iterable

from datatask.adapters.execute.base import proctable

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
    """Kill these, those that are gone or another user's left out."""
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


class ProcessTrees:
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


STATUS_WAIT_SECONDS = 3.0
"""A process whose threads end one after the other is told as ended before it is a zombie with a status."""

DESCRIPTORS_MAX = 100_000
"""A quarter of the descriptors that we may have is for pidfds, and no more than a quarter of these."""
NONE = -1
"""Instead of a pidfd, of one that has to be looked for."""


class _Adopted:
    __slots__ = ("pid", "pidfd", "start", "until")

    def __init__(self, pid: int, start: int, pidfd: int) -> None:
        self.pid = pid
        self.start = start
        self.pidfd = pidfd
        self.until: float | None = None


class AdoptedProcesses:
    """Those that are watched."""

    def __init__(self, selector: selectors.BaseSelector) -> None:
        self._selector = selector
        self._watched: dict[str, _Adopted] = {}
        self.without_descriptor: set[str] = set()
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        self._room = DESCRIPTORS_MAX if soft < 0 else min(soft, DESCRIPTORS_MAX) // 4

    def __bool__(self) -> bool:
        return bool(self._watched)

    def __contains__(self, identity: str) -> bool:
        return identity in self._watched

    def watch(self, identity: str, pid: int, start: int) -> bool:
        """Watch the process until it ends; whether it is there, be it as a zombie."""
        try:
            pidfd = (
                os.pidfd_open(pid) if len(self._watched) - len(self.without_descriptor) < self._room else NONE
            )
        except ProcessLookupError:
            return False
        except OSError:
            pidfd = NONE  # there are no more descriptors
        if proctable.start_time(pid) != start:
            _close(pidfd)
            return False
        self._watched[identity] = _Adopted(pid, start, pidfd)
        if pidfd == NONE:
            self.without_descriptor.add(identity)
        else:
            self._selector.register(pidfd, selectors.EVENT_READ, identity)
        return True

    def gone(self) -> list[str]:
        """Return those that have ended among the ones for which there was no descriptor; each is told once."""
        ended = [
            identity
            for identity in self.without_descriptor
            if not proctable.is_alive(self._watched[identity].pid, self._watched[identity].start)
        ]
        self.without_descriptor.difference_update(ended)
        return ended

    def leave(self) -> None:
        """Watch none of them any more."""
        for one in self._watched.values():
            _close(one.pidfd)
        self._watched.clear()
        self.without_descriptor.clear()

    def status(self, identity: str) -> tuple[bool, int | None]:
        """Return whether all is known of one that has ended, and its wait status; ask again in a moment otherwise.

        The status is None where the kernel does not tell it. What is known is watched no more.
        """
        one = self._watched[identity]
        status = proctable.status_of_stranger(one.pid, one.start, one.pidfd)
        if one.until is None:
            one.until = time.monotonic() + STATUS_WAIT_SECONDS
            if one.pidfd != NONE:
                self._selector.unregister(one.pidfd)
        if status is None and time.monotonic() < one.until:
            return False, None
        _close(one.pidfd)
        del self._watched[identity]
        return True, status


def _close(pidfd: int) -> None:
    if pidfd != NONE:
        os.close(pidfd)
