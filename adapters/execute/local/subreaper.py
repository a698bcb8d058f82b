"""A launcher's parents: they have no work but to wait, so that a killed launcher's runs keep a parent, and their ends.

In: what a launcher does, as a function of the subreapers above it. Out: the launcher in a child process, again where one has
died while runs were left. Those become the subreaper's children, and once ended they stay zombies until the next launcher
has read their exit codes from /proc; with pid 1 for a parent they would be gone at once, and their codes with them.
There are two subreapers, one above the other: no process can choose a new parent, so a run that is under way keeps only
those of its ancestors that are left. A launcher that misses one of them becomes a subreaper itself and forks the next
launcher. Imports the standard library only.
"""

from __future__ import annotations

import os
import select
import signal
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

from datatask.adapters.execute.base import proctable

SUBREAPERS = 2

READ_SECONDS = 60.0
"""A launcher reads an exit code as soon as it looks; a zombie that has been seen for so long is not waited for."""

PAUSE_SECONDS, PAUSE_SECONDS_MAX = 0.1, 10.0
"""Between launchers: what one fails of, for lack of room say, the next one fails of too; a killed one is replaced soon."""

RETIRED = 75
"""The exit code of a launcher that another one has taken the directory from: what is left is kept until that one has seen it."""

FORK_SECONDS_MAX = 10.0
"""So long a machine without room for a process is asked again by one that has nothing to keep."""

GOODBYES = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)
"""How a machine, a service manager or a terminal tells all processes at once to end: subreapers wait for their runs."""


class Subreaper(NamedTuple):
    """A subreaper by pid and start time."""

    pid: int
    start: int

    def is_alive(self) -> bool:
        """Whether it is there still."""
        return proctable.is_alive(self.pid, self.start)


Work = Callable[[Sequence[Subreaper]], int]


def keep(work: Work, above: Sequence[Subreaper] = ()) -> int:
    """Have a child do the work, and another one when it dies and leaves children; return its exit code.

    `above` are the subreapers above this process. Returns in the child too, with what the work returned.
    """
    proctable.adopt_orphans()
    for number in GOODBYES:
        signal.signal(number, signal.SIG_IGN)
    me = Subreaper(os.getpid(), proctable.start_time(os.getpid()) or 0)
    pause, child = PAUSE_SECONDS, None
    while True:
        began = time.monotonic()
        if child is None:
            subreapers = [*(one for one in above if one.is_alive()), me]
            child = _fork()
            if child == 0:
                return work(subreapers) if len(subreapers) >= SUBREAPERS else keep(work, subreapers)
        code = os.waitstatus_to_exitcode(_wait(child))
        if code == RETIRED:
            linger()
            return 0
        left = proctable.children(os.getpid())
        if code == 0 or not left:
            return code
        child = _kin(left)
        if child is None:
            time.sleep(pause)
        failed_at_once = code > 0 and time.monotonic() - began < 2 * PAUSE_SECONDS_MAX
        pause = min(2 * pause, PAUSE_SECONDS_MAX) if failed_at_once else PAUSE_SECONDS


def linger() -> None:
    """Wait until there are no children any more: another launcher reads how they ended."""
    for number in GOODBYES:
        signal.signal(number, signal.SIG_IGN)
    seen: set[int] = set()
    while True:
        try:
            os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            return
        seen = _reap(seen)
        time.sleep(READ_SECONDS)


def _kin(left: dict[int, proctable.Child]) -> int | None:
    """Return the launcher, or the subreaper below, that a subreaper between us has left to us.

    Runs lead sessions of their own, from the moment on that they are programs of their own; ours is that of all of us.
    """
    found = _alike(left)
    if found:
        time.sleep(PAUSE_SECONDS)  # what a killed launcher was just starting is its likeness for a moment
        found &= _alike(proctable.children(os.getpid()))
    return min(found, default=None)


def _alike(children: dict[int, proctable.Child]) -> set[int]:
    ours, session = proctable.command_line(os.getpid()), os.getsid(0)
    return {
        pid
        for pid, child in children.items()
        if not child.is_zombie and child.session == session and proctable.command_line(pid) == ours
    }


def _fork() -> int:
    """Fork, as soon as the machine has room for a process."""
    pause, until = PAUSE_SECONDS, time.monotonic() + FORK_SECONDS_MAX
    while True:
        try:
            return os.fork()
        except OSError:
            if time.monotonic() > until and not proctable.children(os.getpid()):
                raise
        time.sleep(pause)
        pause = min(2 * pause, PAUSE_SECONDS_MAX)


def _wait(child: int) -> int:
    """Wait for the child, and on the way for children of others that were left to us."""
    pidfd = os.pidfd_open(child)
    ended = select.poll()
    ended.register(pidfd, select.POLLIN)
    seen: set[int] = set()
    while not ended.poll(READ_SECONDS * 1000):
        seen = _reap(seen)
    os.close(pidfd)
    return os.waitpid(child, 0)[1]


def _reap(seen: set[int]) -> set[int]:
    """Wait for the zombies that were there the last time too; return the others."""
    zombies = {pid for pid, one in proctable.children(os.getpid()).items() if one.is_zombie}
    for pid in zombies & seen:
        os.waitpid(pid, 0)
    return zombies - seen
