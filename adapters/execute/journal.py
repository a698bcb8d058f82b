"""The launcher's memory on disk: one line a fact, appended, so that a killed launcher forgets nothing.

In: facts about runs by identity. Out: what is known of each run. A line that was cut off by a crash is not
a fact. Nothing waits for the disk: the facts are safe from our own death, and after a power failure they
would not be worth more, since the outputs that they speak of may be torn (see `Launcher`). The file is
rewritten when most of it is about runs that were forgotten. Imports the standard library only.
"""

from __future__ import annotations

import json
import os
from typing import Any

COMPACT_BYTES = 4 * 1024 * 1024

Facts = dict[str, Any]


class Journal:
    """`intended`, `started`, `ended`, `barred` (never to be started) and `forgotten`, by run identity."""

    def __init__(self, path: str, boot: str) -> None:
        self.path = path
        self.boot = boot
        self.boot_before = boot
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
        elif fact.get("forgotten"):
            runs.pop(fact["id"], None)
        else:
            runs.setdefault(fact["id"], {}).update(fact)

    def _rewrite(self, runs: dict[str, Facts]) -> None:
        lines = [_line({"boot": self.boot}), *map(_line, runs.values())]
        temporary = self.path + ".new"
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC, 0o600)
        data = b"".join(lines)
        written = 0
        while written < len(data):
            written += os.write(fd, data[written:])
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

    def compact(self, runs: dict[str, Facts]) -> None:
        """Rewrite the file as just these runs when it has grown large."""
        if self._size > COMPACT_BYTES and len(runs) * 1024 < self._size:
            self._rewrite(runs)


def _line(fact: Facts) -> bytes:
    return json.dumps(fact, separators=(",", ":")).encode() + b"\n"
