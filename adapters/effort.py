"""Long work: how far it is, for whoever shows it, and the end of its time.

In: what the work says of itself as it goes. Out: a few words, and, where the time that it was given is over,
`SpentError`, raised wherever it happens to be. Work that has found something by then catches it and gives that.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager


class SpentError(KeyboardInterrupt):
    """The time is over. As a Ctrl-C it may come at any line, and is swallowed by nothing that goes on."""


class Effort:
    """What this process is at: a stage, and how much of it is done."""

    def __init__(self) -> None:
        self.begin("")

    def begin(self, name: str) -> None:
        """Begin anew, under a name."""
        self.name, self.stage, self.done, self.total = name, "", 0, 0
        self.so_far: Callable[[], Iterable[str]] = tuple
        self.is_idle = self.is_drawn = False
        self.said = 0.0
        self.ends: float | None = None

    def at(self, stage: str, done: int = 0, total: int = 0) -> None:
        """Say how far it is; cheap, so it may be said often."""
        self.stage, self.done, self.total = stage, done, total

    @property
    def is_spent(self) -> bool:
        """Whether the time is over that it was given."""
        return self.ends is not None and time.monotonic() >= self.ends

    @contextmanager
    def idle(self) -> Iterator[None]:
        """Say that there is nothing to do but to wait for others, which nobody has to be told."""
        before, self.is_idle = self.is_idle, True
        try:
            yield
        finally:
            self.is_idle = before

    def words(self) -> str:
        """Return how far it is, for people, with what sets it off from what stands before it; nothing where it does not say."""
        amount = f" {self.done:,}" if self.done else ""
        whole = f" of {self.total:,}" if self.total else ""
        return f": {self.stage}{amount}{whole}" if self.stage else ""


effort = Effort()
"""That of this process: a command does one thing."""
