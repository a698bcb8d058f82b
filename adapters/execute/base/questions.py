"""Open questions about runs, to whatever starts and watches them, over a connection that breaks and is made anew.

In: a question about a run, and the listener that its answers are for. Out: what to ask again over the next connection, and
the listeners to tell that the other side is silent, or answers again: each once. Sending and reading is the connection's.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Generic, TypeVar

Q = TypeVar("Q")
L = TypeVar("L")


class Question(Generic[Q, L]):
    """What is asked about one run, and that it is to stop where that is so."""

    __slots__ = ("listener", "silent", "stop", "text")

    def __init__(self, text: Q, listener: L) -> None:
        self.text = text
        self.listener = listener
        self.stop: Q | None = None
        self.silent = False


class Questions(Generic[Q, L]):
    """The questions that are open, by the identity of their run."""

    def __init__(self) -> None:
        self._open: dict[str, Question[Q, L]] = {}

    def __iter__(self) -> Iterator[tuple[str, Question[Q, L]]]:
        return iter(list(self._open.items()))

    def __bool__(self) -> bool:
        return bool(self._open)

    def get(self, identity: str) -> Question[Q, L] | None:
        """Return the question about a run, if there is one."""
        return self._open.get(identity)

    def ask(self, identity: str, text: Q, listener: L) -> None:
        """Begin to ask about a run; its listener gets every answer until it is closed."""
        self._open[identity] = Question(text, listener)

    def change(self, identity: str, text: Q) -> None:
        """Ask something else about a run from the next connection on."""
        if (question := self._open.get(identity)) is not None:
            question.text = text

    def close(self, identity: str) -> None:
        """Ask nothing more about a run."""
        self._open.pop(identity, None)

    def clear(self) -> None:
        """Ask nothing more about any run."""
        self._open.clear()

    def silence(self, silent: bool) -> list[tuple[str, L]]:
        """Return the runs, with their listeners, that were not known to be in silence, or in contact, and now are."""
        changed = [(identity, one) for identity, one in self._open.items() if one.silent is not silent]
        for _, one in changed:
            one.silent = silent
        return [(identity, one.listener) for identity, one in changed]
