"""The first half of a long log, verified by a process of its own: `OtherHalf`, and the program that it runs.

In: the log's place and the boundary at which to stop. Out: `Half`, as one line of JSON on the program's stdout. It is
a program and no `multiprocessing`: a script of somebody else's that asks for a verification is not run again.
"""

from __future__ import annotations

import subprocess
import sys
from types import TracebackType
from typing import Self

import msgspec

from datatask.engine.core.divergences import Divergence


class Half(msgspec.Struct):
    """What was found; `mark` is the fingerprint of the state at the end, empty where it did not get there."""

    chain: list[Divergence]
    divergences: list[Divergence]
    undecided: dict[int, int]
    compared: list[int]
    mark: str


class OtherHalf:
    """A process that verifies a log from its beginning up to a boundary; leaving the `with` ends it."""

    def __init__(self, url: str, until: int) -> None:
        """Start it."""
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__, url, str(until)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )

    def result(self) -> Half | None:
        """Wait for what it found; None where it failed, so that whoever waits does its work too."""
        told, _ = self._process.communicate()
        try:
            return msgspec.json.decode(told, type=Half) if self._process.returncode == 0 else None
        except msgspec.DecodeError:
            return None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()


def main() -> None:
    """Verify and print."""
    from datatask.adapters.history.verifying import verified_half
    from datatask.adapters.log.reader import LogReader

    url, until = sys.argv[1:]
    with LogReader(url) as reader:
        half = verified_half(reader, int(until), lambda done, total: None)
    sys.stdout.buffer.write(msgspec.json.encode(half))


if __name__ == "__main__":
    main()
