"""Where a log stands now, as the beginning of a simulation, and when what is left will be done.

In: a log. Out: its state and the time, for `simulate_inputs`, and from the results the time that is left, with an interval.
Open runs go on: each is taken to last as long as those of its task that take longer than it has so far.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datatask.adapters.history.history import History
from datatask.adapters.history.when import iso
from datatask.adapters.sim.result import results_json
from datatask.adapters.sim.summary import quantile

if TYPE_CHECKING:
    from datatask.adapters.sim.result import Result
    from datatask.engine.core.state import State

SECOND = 1_000_000_000
LOW, MIDDLE, HIGH = 0.1, 0.5, 0.9


@dataclass(frozen=True)
class Present:
    """A state, and when it is (UTC nanoseconds): now, or at the log's last event where the clock says less."""

    state: State
    now: int

    @classmethod
    def of(cls, log: str | Path, now: int) -> Present:
        """Return where a log stands."""
        with History(log) as history:
            state = history.state()
        return cls(state, max(now, state.at))


@dataclass(frozen=True)
class Left:
    """The seconds until all is done: of the replications a tenth need less than `p10`, half `p50`, a tenth more than `p90`."""

    p10: float
    p50: float
    p90: float


def left(result: Result) -> Left:
    """Return how long it still takes."""
    spans = sorted(each.makespan for each in result.summaries)
    return Left(quantile(spans, LOW), quantile(spans, MIDDLE), quantile(spans, HIGH))


def left_json(results: Sequence[Result], present: Present) -> dict[str, Any]:
    """Return the object of `simulate --continue --json`: each scenario also has `left` and `done_at`."""
    found = results_json(results)
    for told, result in zip(found["scenarios"], results, strict=True):
        time = left(result)
        told["left"] = {"p10": time.p10, "p50": time.p50, "p90": time.p90}
        told["done_at"] = iso(present.now + round(time.p50 * SECOND))
    return found
