"""A launcher's parent: it has no work but to wait, so that a killed launcher's runs keep a parent, and their ends.

In: what a launcher does, as a function. Out: the launcher in a child process, again where one has died while runs were
left. Those become the keeper's children, and once ended they stay zombies until the next launcher has read their exit
codes from /proc; with pid 1 for a parent they would be gone at once, and their codes with them. It takes both to be killed
at once to lose an end. Imports the standard library only.
"""

from __future__ import annotations

import os
import select
import time
from collections.abc import Callable

from datatask.adapters.execute import proctable

READ_SECONDS = 60.0
"""A launcher reads an exit code as soon as it looks; a zombie that has been seen for so long is nobody's."""

PAUSE_SECONDS, PAUSE_SECONDS_MAX = 0.1, 10.0
"""Between launchers: what one fails of, for lack of room say, the next one fails of too; a killed one is replaced soon."""


def keep(work: Callable[[], int]) -> int:
    """Have a child do the work, and another one when it dies and leaves children; return its exit code."""
    proctable.adopt_orphans()
    pause = PAUSE_SECONDS
    while True:
        began = time.monotonic()
        child = os.fork()
        if child == 0:
            return work()
        code = os.waitstatus_to_exitcode(_wait(child))
        if code == 0 or not proctable.children(os.getpid()):
            return code
        time.sleep(pause)
        failed_at_once = code > 0 and time.monotonic() - began < 2 * PAUSE_SECONDS_MAX
        pause = min(2 * pause, PAUSE_SECONDS_MAX) if failed_at_once else PAUSE_SECONDS


def _wait(child: int) -> int:
    """Wait for the child, and on the way for what others left to us and nobody asks about any more."""
    pidfd = os.pidfd_open(child)
    ended = select.poll()
    ended.register(pidfd, select.POLLIN)
    seen: set[int] = set()
    while not ended.poll(READ_SECONDS * 1000):
        zombies = {pid for pid, one in proctable.children(os.getpid()).items() if one.is_zombie}
        for pid in zombies & seen:
            os.waitpid(pid, 0)
        seen = zombies - seen
    os.close(pidfd)
    return os.waitpid(child, 0)[1]
