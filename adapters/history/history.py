"""One door to a log's past: `History(place)`.

In: a log's URL or path; points in time as positions, ISO times, ages or Python's own. Out: states, explanations and
tables. Every answer is about a batch boundary and cites positions. Nothing is written into the log, no engine is
needed, and none is in the way.
"""

from __future__ import annotations

import datetime as dt
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from datatask.adapters.clock import SystemClock
from datatask.adapters.history import shapes
from datatask.adapters.history.lineage import LIMIT, Direction, Lineage, Lineages, start_of
from datatask.adapters.history.states import fold
from datatask.adapters.history.table import Table
from datatask.adapters.history.timeline import Timeline, timeline
from datatask.adapters.history.when import When, iso, nanoseconds, parse_when, position_of
from datatask.adapters.log.lease import probe
from datatask.adapters.log.reader import LogReader
from datatask.engine.core import why as explaining
from datatask.engine.core.state import State

Moment = int | str | dt.datetime | dt.timedelta | When | None
"""A position, an ISO time or an age such as `-2h`, a time, an age as a timedelta; None is the head."""


class History:
    """What a log remembers. Close it, or use it in a `with`; states that it returns are not to be changed."""

    def __init__(self, place: str | Path) -> None:
        """Open the log at a URL or path, read only; `CallerError` when there is none."""
        self.reader = LogReader(place)
        self._last: State | None = None

    @property
    def url(self) -> str:
        """Where the log is."""
        return self.reader.url

    @property
    def head(self) -> int:
        """The last durable position."""
        return self.reader.head

    def position(self, at: Moment = None) -> int:
        """Return the batch boundary that `at` means."""
        return position_of(self.reader, _when(at))

    def state(self, at: Moment = None) -> State:
        """Return the state at a batch boundary; the last one is kept for the next question."""
        until = self.position(at)
        if self._last is None or self._last.position != until:
            self._last = fold(self.reader, until)
        return self._last

    def status(self, at: Moment = None) -> dict[str, Any]:
        """Return the counts per task and link, in the shape of `status --json`."""
        state = self.state(at)
        about = {"url": self.url, "head": state.position, "at": iso(state.at or None)}
        return {"log": about, **shapes.status(state)}

    def explain(self, task: str, job: str, at: Moment = None) -> explaining.Explanation:
        """Return all that holds a job back, or held it back at `at`, and the least that would let it run."""
        state = self.state(at)
        alive, now = self._surroundings(state, at)
        return explaining.explain(state, task, job, now, engine_alive=alive)

    def trace(self, job: str, at: Moment = None) -> Timeline:
        """Return a job's way through every task as a time line; a notebook draws it."""
        return timeline(self.reader, self.state(at), job)

    def lineage(
        self,
        what: str | int,
        at: Moment = None,
        *,
        direction: Direction = "both",
        depth: int | None = None,
        limit: int = LIMIT,
        whole: bool | None = None,
    ) -> Lineage:
        """Return what `JOB`, `JOB@REPOSITORY` or the value or run at a position came from, and what came from it.

        At most `depth` runs away and `limit` values and runs. `whole` looks through the log for readers of other
        jobs; None does where the log behind is short.
        """
        state = self.state(at)
        start = start_of(self.reader, state, what)
        following = Lineages(self.reader, state)
        return following.follow(start, direction, depth=depth, limit=limit, whole=whole)

    def query(self, sql: str, parameters: tuple[Any, ...] = (), *, timeout_seconds: float = 60.0) -> Table:
        """Answer one SELECT over the views `events`, `runs`, `values_now` and `lineage`."""
        answer = self.reader.query(sql, parameters, timeout_seconds=timeout_seconds)
        return Table(answer.columns, answer.rows)

    def close(self) -> None:
        """Let go of the file; again is fine."""
        self.reader.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<History of {self.reader.pipeline}: {self.url}, head {self.head}>"

    def _surroundings(self, state: State, at: Moment) -> tuple[bool, int]:
        """Return whether an engine is (or then was) alive, and what time it is (or was)."""
        if at is not None:
            return state.engine is not None and not state.closed, state.at
        return probe(self.reader.path) is not None, max(SystemClock().now(), state.at)


def _when(at: Moment) -> When | None:
    match at:
        case None | When():
            return at
        case int():
            return When(position=at)
        case str():
            return parse_when(at, SystemClock().now())
        case dt.datetime():
            return When(at=nanoseconds(at if at.tzinfo is not None else at.astimezone()))
        case dt.timedelta():
            return When(at=max(0, SystemClock().now() - abs(at) // dt.timedelta(microseconds=1) * 1000))
