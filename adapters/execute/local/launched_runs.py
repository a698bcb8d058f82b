"""The runs of a launcher's directory: what is known of each, and where it is.

In: the directory. Out: facts by identity, in memory and in the journal; paths and outputs; alarms that ring in time. The
launcher's parts share it. Imports the standard library only.
"""

from __future__ import annotations

import heapq
import itertools
import os
import time
from collections.abc import Callable

from datatask.adapters.execute.base import proctable
from datatask.adapters.execute.local.journal import Facts, Journal
from datatask.adapters.execute.local.outputs import Outputs

JOURNAL = "journal"


class LaunchedRuns:
    """The runs of `{directory}/{log}/{identity}/`; those that this process has started are its `children`, by pid."""

    def __init__(self, directory: str) -> None:
        self._place = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self.directory = f"/proc/self/fd/{self._place}"  # the same one, whatever it is called by and by
        self.boot = proctable.boot_id()
        place = os.fstat(self._place)
        self.journal = Journal(os.path.join(self.directory, JOURNAL), self.boot, [place.st_dev, place.st_ino])
        self.facts: dict[str, Facts] = {}
        self.children: dict[int, str] = {}
        self.outputs = Outputs()
        self.alarms = Alarms()

    def folder(self, identity: str) -> str:
        """Return a run's folder."""
        return os.path.join(self.directory, identity.partition(".")[0], identity)

    def named(self, path: str) -> str:
        """Return what a path below the directory is called now."""
        return os.readlink(self.directory) + path.removeprefix(self.directory)

    def mark(self, identity: str) -> str:
        """Return what a run's folder was called when it began, by which its processes are known."""
        return str(self.facts[identity].get("folder") or self.named(self.folder(identity)))

    def note(self, identity: str, **facts: object) -> None:
        """Remember facts about a run, also after our death."""
        self.facts[identity] |= facts
        self.journal.add({"id": identity, **facts})

    def is_alive(self, identity: str) -> bool:
        """Whether a run's main process lives."""
        facts = self.facts.get(identity, {})
        return "pid" in facts and "ended" not in facts and proctable.is_alive(facts["pid"], facts["start"])

    def forget(self, identity: str) -> None:
        """Know nothing of a run any more."""
        self.outputs.forget(identity)
        if self.facts.pop(identity, None) is not None:
            self.journal.add({"id": identity, "forgotten": True})
            self.journal.compact(self.facts)


class Alarms:
    """Calls that are due at a time."""

    def __init__(self) -> None:
        self._due: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = itertools.count()

    def after(self, seconds: float, call: Callable[[], None]) -> None:
        """Have a call made, at the first turn after this time."""
        heapq.heappush(self._due, (time.monotonic() + seconds, next(self._numbers), call))

    def ring(self) -> None:
        """Make the calls that are due."""
        while self._due and self._due[0][0] <= time.monotonic():
            heapq.heappop(self._due)[2]()

    def patience(self, seconds_max: float) -> float:
        """Return for how long nothing is due, in seconds."""
        until = self._due[0][0] - time.monotonic() if self._due else seconds_max
        return max(0.0, min(until, seconds_max))
