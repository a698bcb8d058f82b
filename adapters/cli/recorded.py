"""What a log says, for commands that only read: a reader, and the state folded up to some point.

In: the settings and a WHEN. Out: the state at a batch boundary, from the newest checkpoint that is not behind
it and the events after. Nothing is written, no pipeline is loaded, SQLAlchemy stays out.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from datatask.adapters.cli.interrupts import raise_if_interrupted
from datatask.adapters.cli.settings import Settings
from datatask.adapters.effort import effort
from datatask.adapters.history.states import fold
from datatask.adapters.history.when import When, iso, position_of
from datatask.adapters.log.reader import LogReader
from datatask.engine.core.state import State


class Recorded(NamedTuple):
    """A state, and the log that it was folded from."""

    reader: LogReader
    state: State

    def about(self) -> dict[str, object]:
        """Return the `log` part of documented shapes: where, how far, as of when."""
        return {"url": self.reader.url, "head": self.state.position, "at": iso(self.state.at or None)}


@contextmanager
def opened(settings: Settings, *, events: bool = False) -> Iterator[LogReader]:
    """Open the log for reading; who answers from its `events` tells on stderr where some were archived."""
    path = settings.log_path()
    if settings.with_archives:
        from datatask.adapters.log.restored import WholeReader

        with WholeReader(path) as reader:
            yield reader
        return
    with LogReader(path) as reader:
        if events and (base := reader.header.base):
            told = f"events up to {base} were archived: what only they say is missing here, --with-archives reads them"
            sys.stderr.write(f"note: {told}\n")
        yield reader


@contextmanager
def recorded(settings: Settings, when: When | None = None, *, events: bool = False) -> Iterator[Recorded]:
    """Open the log and fold it up to `when` (the head); `events` as for `opened`."""
    with opened(settings, events=events) as reader:
        yield Recorded(reader, fold(reader, position_of(reader, when)))


def changed(reader: LogReader, head: int, seconds: float) -> bool:
    """Wait until the head has moved or the time is over; return whether it has moved."""
    deadline = time.monotonic() + seconds
    with effort.idle():
        while _head(reader) == head:
            raise_if_interrupted()
            if time.monotonic() >= deadline:
                return False
            time.sleep(min(0.1, seconds))
    return True


def _head(reader: LogReader) -> int:
    refresh = getattr(reader, "refresh", None)
    if refresh is not None:  # a copy with the archives
        refresh()
    return reader.head
