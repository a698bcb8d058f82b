"""The processes of runs: all descendants, killed together; those of an earlier launcher, watched; and room for more of them.

In: a run's folder, the pid and start time of its first process (a pid alone is used again); the kernel's limits. Out: dead
descendants; ends of adopted processes, by a selector, with their wait status where the kernel has it; which limit is nearly
reached (`Headroom`): a shell that gets the last process fails at its first command. Imports the standard library only.
"""

from __future__ import annotations

import os
import resource
import selectors
import signal
import time
from collections import deque
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


SPARE = 4
"""So many are left to engine, launcher and what already runs."""
OF_EACH = 3
"""A script that was started within the last moments may still take so many."""
MOMENT_SECONDS = 0.3
PLENTY = 200
"""Where so many are free, they are not counted again within the moment."""
COUNTED_LIMIT = 10_000
"""A user's processes are counted only below so many: that takes a look at all there are."""


class Headroom:
    """What a launcher knows of it."""

    def __init__(self, mounts: str = "/proc/self/mountinfo", ours: str = "/proc/self/cgroup") -> None:
        self._groups = _groups(mounts, ours)
        self._recent: deque[float] = deque()
        self._kernel = min(_number("/proc/sys/kernel/threads-max"), _number("/proc/sys/kernel/pid_max"))
        self._counted = (0.0, 0)
        self._plenty_until = 0.0
        self._refusals = 0

    def started(self) -> int:
        """A script was started; return how often processes had been refused before."""
        self._recent.append(time.monotonic())
        return self._refusals

    def short(self) -> str:
        """Return what there is too little of for another script, in words."""
        now = time.monotonic()
        while self._recent and self._recent[0] < now - MOMENT_SECONDS:
            self._recent.popleft()
        wanted = SPARE + OF_EACH * len(self._recent)
        if now < self._plenty_until and wanted < PLENTY:
            return ""
        limits = self._limits()
        self._refusals = self.refusals()
        self._plenty_until = (
            now + MOMENT_SECONDS if all(most - at > PLENTY for _, most, at in limits) else 0.0
        )
        for what, most, at in limits:
            if most - at < wanted:
                return f"{at} of {most} processes are there ({what}), and the last ones are not given away"
        return ""

    def refusals(self) -> int:
        """Return how often a limit of our control groups has kept a process from being started."""
        return sum(_refusals(group) for group in self._groups)

    def _limits(self) -> list[tuple[str, int, int]]:
        found = []
        for group in self._groups:
            most = _number(f"{group}/pids.max", 0)
            if most:
                found.append((f"pids.max of {group}", most, _number(f"{group}/pids.current", 0)))
        soft, _ = resource.getrlimit(resource.RLIMIT_NPROC)
        if 0 <= soft < COUNTED_LIMIT and os.geteuid() != 0:
            found.append(("ulimit -u", soft, self._ours()))
        words = _text("/proc/loadavg").split()
        if len(words) > 3:
            found.append(("of this machine", self._kernel, int(words[3].partition("/")[2] or 0)))
        return found

    def _ours(self) -> int:
        """Return how many threads this user has, as of a moment ago."""
        at, count = self._counted
        if time.monotonic() - at > MOMENT_SECONDS:
            count = proctable.threads_of(os.getuid())
            self._counted = time.monotonic(), count
        return count


def _groups(mounts: str, ours: str) -> list[str]:
    """Return our control group that counts processes and those above it, of either version."""
    own = {line.split(":", 2)[1]: line.split(":", 2)[2].strip() for line in _text(ours).splitlines()}
    found = []
    for line in _text(mounts).splitlines():
        before, _, after = line.partition(" - ")
        kind, _, options = after.split(None, 2)
        counts = kind == "cgroup2" or (kind == "cgroup" and "pids" in options.split()[-1].split(","))
        path = own.get("" if kind == "cgroup2" else "pids")
        if counts and path is not None:
            parts = [part for part in path.split("/") if part and part != ".."]
            point = before.split()[4]
            found += [os.path.join(point, *parts[:many]) for many in range(len(parts), -1, -1)]
    return [group for group in found if os.path.exists(f"{group}/pids.max")]


def _refusals(group: str) -> int:
    words = _text(f"{group}/pids.events").split()
    return int(words[words.index("max") + 1]) if "max" in words[:-1] else 0


def _number(path: str, otherwise: int = 1 << 31) -> int:
    text = _text(path).strip()
    return int(text) if text.isdigit() else otherwise


def _text(path: str) -> str:
    try:
        with open(path) as file:
            return file.read()
    except OSError:
        return ""
