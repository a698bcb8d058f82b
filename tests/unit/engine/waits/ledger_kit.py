"""Episodes of a desk, in words."""

from __future__ import annotations

from typing import Any

from datatask.engine.core.state import State
from datatask.engine.waits.intervals import Episode
from datatask.engine.waits.ledger import Ledger
from datatask.schema import events as e
from datatask.schema.units import SECOND
from tests.unit.core_kit import Desk

Told = list[tuple[str, int]]


def episodes(desk: Desk, job: str | None = "x", *, at: int = 0, **asked: Any) -> list[Episode]:
    """Return what a log's time went to."""
    found: list[Episode] = []
    waits = Ledger(State(), found.append, job=job, **asked)
    first = [(desk.events[0],)] if desk.batches[0][0] is not desk.events[0] else []
    for batch in [*first, *desk.batches]:
        waits.take(e.Batch(waits.state.position + 1, batch))
    waits.finish(at)
    return found


def told(desk: Desk, name: str = "t", **asked: Any) -> Told:
    """Return the causes and seconds of the one episode of x for a task."""
    (episode,) = [one for one in episodes(desk, **asked) if one.task == name]
    return [(one.cause, one.nanoseconds // SECOND) for one in episode.intervals]


def later(desk: Desk, seconds: int = 1) -> None:
    desk.now += seconds * SECOND


def life(desk: Desk, run: int | None = None) -> int:
    """Launch what waits, start it after a second, end it after two more."""
    if run is None:
        (decided,) = desk.decide()
        run = desk.events.index(decided) + 1
    later(desk, 1)
    desk.started(run)
    later(desk, 2)
    desk.ended(run)
    return run
