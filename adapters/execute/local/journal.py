"""A launcher's memory: the facts of its runs, in memory and on disk, one line a fact, so that a killed launcher forgets nothing.

In: a directory; facts about runs by identity. Out: what is known of each run, its paths and outputs; alarms. A line that a crash
cut off is not a fact. A fact is safe from our own death as soon as it is added; the ends of runs are made durable before
they are reported, many at once, by a thread (`Syncs`). The file is rewritten when most of it is about forgotten runs.
Imports the standard library only.
"""

from __future__ import annotations

import heapq
import itertools
import json
import os
import queue
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any

from datatask.adapters.execute.base import proctable
from datatask.adapters.execute.local.outputs import Outputs

COMPACT_BYTES = 4 * 1024 * 1024

Facts = dict[str, Any]


class Journal:
    """`intended`, `started`, `ended`, `barred` (never to be started) and `forgotten`, by run identity."""

    def __init__(self, path: str, boot: str, place: list[int] | None = None) -> None:
        """`place` is the device and inode of the folder that the runs are in."""
        self.path = path
        self.boot = boot
        self.boot_before = boot
        self.place = self.place_before = place or []
        self._size = 0
        self._waiting = b""
        self._fd = -1

    def load(self) -> dict[str, Facts]:
        """Return all runs that are not forgotten as {identity: facts}, and begin to append."""
        runs: dict[str, Facts] = {}
        try:
            with open(self.path, "rb") as file:
                for line in file:
                    self._fold(runs, line)
        except FileNotFoundError:
            pass
        self._rewrite(runs)
        return runs

    def _fold(self, runs: dict[str, Facts], line: bytes) -> None:
        if not line.endswith(b"\n"):
            return
        try:
            fact = json.loads(line)
        except ValueError:
            return
        if (boot := fact.get("boot")) is not None:
            self.boot_before = boot
            self.place_before = fact.get("place", self.place)
        elif fact.get("forgotten"):
            runs.pop(fact["id"], None)
        else:
            runs.setdefault(fact["id"], {}).update(fact)

    def _rewrite(self, runs: dict[str, Facts]) -> None:
        lines = [_line({"boot": self.boot, "place": self.place}), *map(_line, runs.values())]
        temporary = self.path + ".new"
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC, 0o600)
        data = b"".join(lines)
        written = 0
        while written < len(data):
            written += os.write(fd, data[written:])
        os.fdatasync(fd)
        os.rename(temporary, self.path)
        if self._fd >= 0:
            os.close(self._fd)
        self._fd, self._size = fd, len(data)

    def add(self, fact: Facts) -> None:
        """Append a fact. While the disk refuses it, it waits in memory; `write_out` tells whether any does."""
        self._waiting += _line(fact)
        self.write_out()

    def write_out(self) -> bool:
        """Write what waits; whether nothing waits any more."""
        try:
            while self._waiting:
                written = os.write(self._fd, self._waiting)
                self._waiting = self._waiting[written:]
                self._size += written
        except OSError:
            return False
        return True

    def file(self) -> int:
        """Return a descriptor of the present file, for the caller to close."""
        return os.dup(self._fd)

    def close(self) -> None:
        """Have nothing more to do with the file: another launcher goes on with it."""
        os.close(self._fd)
        self._fd = -1

    def compact(self, runs: dict[str, Facts], *, at_once: bool = False) -> None:
        """Rewrite the file as just these runs when it has grown large, or at once."""
        if at_once or (self._size > COMPACT_BYTES and len(runs) * 1024 < self._size):
            self._rewrite(runs)


class Syncs:
    """Has the disk take what a journal holds, one sync at a time, and says which facts it covers."""

    def __init__(self, journal: Journal, wake: Callable[[], object]) -> None:
        """`wake` is called, in the thread, when a sync is over."""
        self._journal = journal
        self._wake = wake
        self._asked: queue.SimpleQueue[tuple[int, list[str]] | None] = queue.SimpleQueue()
        self._covered: list[str] = []
        self._busy = False
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._work, name="journal-sync", daemon=True)
        self._thread.start()

    def begin(self, identities: Iterable[str]) -> None:
        """Begin a sync that covers what these runs' facts say, unless one is under way or there is nothing."""
        covered = list(identities)
        if covered and not self._busy:
            try:
                file = self._journal.file()
            except OSError:
                return  # there is no descriptor for it: at the next turn
            self._busy = True
            self._asked.put((file, covered))

    def done(self) -> list[str]:
        """Return what the sync that is over covers."""
        if not self._over.is_set():
            return []
        self._over.clear()
        covered, self._covered, self._busy = self._covered, [], False
        return covered

    def end(self, seconds: float) -> None:
        """End the thread, or leave it behind where the disk does not answer."""
        self._asked.put(None)
        self._thread.join(seconds)

    def _work(self) -> None:
        while asked := self._asked.get():
            file, covered = asked
            try:
                os.fdatasync(file)
            except OSError:
                pass  # the disk refuses; what is known is told all the same
            finally:
                os.close(file)
            self._covered = covered
            self._over.set()
            try:
                self._wake()
            except BlockingIOError:
                pass  # so much waits to be looked at that it is about to be


def _line(fact: Facts) -> bytes:
    return json.dumps(fact, separators=(",", ":")).encode() + b"\n"


JOURNAL = "journal"
BOUND_SECONDS = 0.5


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

    def bound(self, identity: str) -> None:
        """Keep a run's streams from growing beyond what is kept of them, while it lives."""
        if self.is_alive(identity):
            self.outputs.bound(identity, self.facts[identity]["bounds"])
            self.alarms.after(BOUND_SECONDS, lambda: self.bound(identity))

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
