"""How many processes this machine would let us have, so that scripts that are started can start something themselves.

In: how many were started just now, what the kernel tells of its limits. Out: in words what is short, nothing where there is
room; and how often a limit has kept something in our control group from starting a process. A shell that gets the last
place fails at its first command. Imports the standard library only.
"""

from __future__ import annotations

import os
import resource
import time
from collections import deque

from datatask.adapters.execute.base import proctable

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
