"""Capacity planning: the cheapest limits that meet a deadline, and where more of a limit hardly helps.

In: a definition and a scenario, a time, and the levels of each limit (`axes`), or none: then the limits that bind are
varied. Out: a `Capacity`. More of a limit is taken never to make it slower, with the same random streams on both sides:
then all levels below too little are too little as well, and the cheapest is found without trying all.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import log2
from typing import TYPE_CHECKING, Any

from datatask.adapters.clock import SpentError, effort
from datatask.adapters.history.shapes import Table
from datatask.adapters.sim.bottleneck import critical_path, in_sum, is_whole, least_of, limits_of, with_limit
from datatask.adapters.sim.modelling import changed
from datatask.adapters.sim.result import quantile
from datatask.schema.errors import InvalidValueError

if TYPE_CHECKING:
    from datatask.adapters.sim.result import Result
    from datatask.adapters.sim.scenario import Scenario
    from datatask.schema.definition import PipelineDef

SIMULATIONS_MAX = 400
LINES_MAX = 100_000
"""The most simulations, and combinations of levels that need none, before the best so far is returned."""

SHARES = (0.25, 0.5, 0.75, 1, 1.5, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)
"""The levels of a limit without levels of its own, as multiples of what there is."""

STEPS = 16
KNEE = 0.05
"""Where the next level saves less than this share of the time, more is hardly worth having."""

Run = Callable[["Scenario"], "Result"]
Point = tuple[int, ...]
Values = tuple[float, ...]


@dataclass(frozen=True)
class Capacity:
    """The answer. `limits` has the cheapest levels; none where nothing is in time, and then `why` has the cause.

    `seconds` is the makespan that `confidence` of the replications keep within, with `limits` or else with the most of
    everything; `binds` what binds then. `curves` has for each limit (level, seconds) with the others as found, `knees` the
    level from which on the next one saves hardly anything. `proven`: no cheaper one was left untried.
    """

    by: float
    confidence: float
    limits: Mapping[str, float]
    seconds: float
    cost: float
    binds: str
    curves: Mapping[str, Sequence[tuple[float, float]]] = field(default_factory=dict)
    knees: Mapping[str, float] = field(default_factory=dict)
    simulations: int = 0
    proven: bool = True
    why: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return the object of `simulate --finish-by --json`."""
        return {
            "by": self.by,
            "confidence": self.confidence,
            "limits": dict(self.limits),
            "seconds": self.seconds,
            "cost": self.cost,
            "binds": self.binds,
            "knees": dict(self.knees),
            "curves": {
                name: [{"level": level, "seconds": seconds} for level, seconds in curve]
                for name, curve in self.curves.items()
            },
            "simulations": self.simulations,
            "proven": self.proven,
            "why": self.why,
        }

    def table(self) -> Table:
        """Return a row for each level of each limit."""
        rows = [
            (
                name,
                level,
                seconds,
                seconds <= self.by,
                level == self.limits.get(name),
                level == self.knees.get(name),
            )
            for name, curve in self.curves.items()
            for level, seconds in curve
        ]
        return Table(("limit", "level", "seconds", "in time", "chosen", "knee"), rows)


def finish_by(
    definition: PipelineDef,
    scenario: Scenario,
    run: Run,
    by: float,
    *,
    confidence: float = 0.9,
    axes: Mapping[str, Sequence[float]] | None = None,
    prices: Mapping[str, float] | None = None,
    simulations_max: int = SIMULATIONS_MAX,
    knee: float = KNEE,
) -> Capacity:
    """Return the cheapest limits with which the pipeline is through within `by` seconds.

    `run` simulates a scenario. A limit costs its price for each unit; without prices, what there is now costs 1.
    At its knee no doubling of a limit saves the share `knee` of the time any more. `CallerError` for a limit that is none, a
    confidence or knee that is no share, levels that are not above 0, and negative prices.
    """
    if not by > 0:
        raise InvalidValueError(f"{by:g} seconds are no time to finish in", remedy="give a time to come")
    if not 0 < confidence <= 1:
        raise InvalidValueError(f"confidence is {confidence:g}", remedy="give a share such as 0.9")
    if not 0 < knee < 1:
        raise InvalidValueError(f"knee is {knee:g}", remedy="give a share such as 0.05")
    for name, price in (prices or {}).items():
        if not price >= 0:
            raise InvalidValueError(f"the price of {name} is {price:g}", remedy="give 0 or more")
    search = _Search(definition, scenario, run, by, confidence, prices or {}, simulations_max, knee)
    try:
        if axes:
            for name, levels in axes.items():
                search.add(name, levels)
        else:
            search.add_what_binds()
        return search.answer()
    except SpentError:
        return search.so_far()


class _Search:
    """The levels of each limit, and the result at each point tried."""

    def __init__(
        self,
        definition: PipelineDef,
        scenario: Scenario,
        run: Run,
        by: float,
        confidence: float,
        prices: Mapping[str, float],
        simulations_max: int,
        knee: float,
    ) -> None:
        self.definition = changed(definition, scenario)
        self.scenario, self.run, self.by, self.confidence = scenario, run, by, confidence
        self.now = limits_of(self.definition, scenario)
        self.prices = dict(prices)
        for name in prices:
            with_limit(self.definition, scenario, name, 1.0)
        self.simulations_max, self.knee = simulations_max, knee
        self.names: list[str] = []
        self.levels: list[list[float]] = []
        self.tried: dict[Values, tuple[float, str]] = {}
        self.too_little: list[Values] = []
        self.refines = False
        self.cheapest: tuple[float, dict[str, float], float, str] | None = None

    # --- what varies --------------------------------------------------------------------------------

    def add(self, name: str, levels: Sequence[float]) -> None:
        """Let a limit have these levels."""
        with_limit(self.definition, self.scenario, name, 1.0)  # refuses an unknown limit
        found = sorted(set(levels))
        if not found or found[0] <= 0:
            raise InvalidValueError(
                f"{name} cannot be {found[0] if found else 'nothing'}", remedy="give levels above 0"
            )
        self.names.append(name)
        self.levels.append(found)
        self.tried.clear()
        self.too_little.clear()

    def add_what_binds(self) -> None:
        """Vary the bottleneck, then the next one with the most of that, until it is in time or none is left."""
        self.refines = True
        while True:
            seconds, name = self.at(self.most)
            if (seconds <= self.by and self.names) or name in self.names or name not in self.now:
                return
            now, least = self.now[name], least_of(self.definition, name)
            levels = [max(least, now * share) for share in SHARES]
            self.add(
                name, [float(round(level)) for level in levels if round(level)] if is_whole(name) else levels
            )

    def values(self, point: Point) -> Values:
        """Return the levels at a point."""
        return tuple(levels[index] for levels, index in zip(self.levels, point, strict=True))

    @property
    def most(self) -> Point:
        return tuple(len(levels) - 1 for levels in self.levels)

    def cost(self, point: Point) -> float:
        """Return what the limits at a point cost."""
        return sum(
            self.levels[axis][index] * self.prices.get(name, 1 / self.now.get(name, self.levels[axis][0]))
            for axis, (name, index) in enumerate(zip(self.names, point, strict=True))
        )

    # --- what comes of it ---------------------------------------------------------------------------

    def simulated(self, point: Point) -> Result:
        """Simulate with the limits of a point."""
        best = f", the best so far is in time at a cost of {self.cheapest[0]:.3g}" if self.cheapest else ""
        effort.name = f"simulate, {len(self.tried)} scenarios tried{best}"
        scenario = self.scenario
        for axis, index in enumerate(point):
            scenario = with_limit(self.definition, scenario, self.names[axis], self.levels[axis][index])
        return self.run(scenario)

    def at(self, point: Point) -> tuple[float, str]:
        """Return the seconds and the bottleneck at a point; simulated once."""
        values = self.values(point)
        found = self.tried.get(values)
        if found is None:
            result = self.simulated(point)
            if effort.is_spent:
                raise SpentError  # it has not all its replications
            spans = sorted(each.makespan for each in result.summaries)
            stuck = any(each.stuck for each in result.summaries)
            seconds = float("inf") if stuck else quantile(spans, self.confidence)
            found = self.tried[values] = seconds, result.bottleneck
            if seconds > self.by:
                self.too_little.append(values)
            else:
                self._keep(point, seconds, result.bottleneck)
        return found

    def _keep(self, point: Point, seconds: float, binds: str) -> None:
        """Remember a point that is in time, in case the budget ends before a cheaper one is found."""
        cost = self.cost(point)
        if self.cheapest is None or cost < self.cheapest[0]:
            self.cheapest = cost, dict(zip(self.names, self.values(point), strict=True)), seconds, binds

    def so_far(self) -> Capacity:
        """Return the cheapest that was found before the time was over."""
        cost, limits, seconds, binds = self.cheapest or (0.0, {}, float("inf"), "")
        why = "" if self.cheapest else "the time was over before anything was found"
        tried = len(self.tried)
        return Capacity(
            self.by, self.confidence, limits, seconds, cost, binds, simulations=tried, proven=False, why=why
        )

    def is_enough(self, point: Point) -> bool:
        """Whether it is in time at a point; not simulated where a point above is too little."""
        values = self.values(point)
        if values not in self.tried and any(_is_below(values, other) for other in self.too_little):
            return False
        return self.at(point)[0] <= self.by

    def least(self, point: Point, axis: int, most: int) -> int | None:
        """Return the least index on an axis, up to `most`, that is enough with the others as they are."""
        if not self.is_enough(_moved(point, axis, most)):
            return None
        low, high = -1, most
        while high - low > 1:
            middle = (low + high) // 2
            if self.is_enough(_moved(point, axis, middle)):
                high = middle
            else:
                low = middle
        return high

    # --- the search ---------------------------------------------------------------------------------

    def answer(self) -> Capacity:
        """Find the cheapest."""
        top = self.most
        if self.at(top)[0] > self.by:
            return self._impossible(top)
        best, proven = self._cheapest(top)
        if self.refines:
            best = self._refined(best)
            proven = proven and len(self.names) < 2  # between the levels not every combination is tried
        limits = dict(zip(self.names, self.values(best), strict=True))
        return self._capacity(best, limits, proven)

    def _capacity(self, point: Point, limits: Mapping[str, float], proven: bool, why: str = "") -> Capacity:
        """Return the answer with these limits and the curves through a point."""
        seconds, binds = self.at(point)
        curves = {name: self._curve(point, axis) for axis, name in enumerate(self.names)}
        knees = {name: _knee(curve, self.knee) for name, curve in curves.items()}
        cost, tried = self.cost(point), len(self.tried)
        return Capacity(
            self.by, self.confidence, limits, seconds, cost, binds, curves, knees, tried, proven, why
        )

    def _cheapest(self, top: Point) -> tuple[Point, bool]:
        """Return the cheapest point that is enough, and whether that is proven."""
        best = top
        for axis in range(len(top)):
            found = self.least(best, axis, best[axis])
            assert found is not None, "it was enough before"
            best = _moved(best, axis, found)
        if len(top) < 2:
            return best, True
        last = max(range(len(top)), key=lambda axis: len(self.levels[axis]))
        for number, line in enumerate(self._lines(top, last)):
            if self.cost(_moved(line, last, 0)) >= self.cost(best):
                return best, True
            affordable = [
                index
                for index in range(len(self.levels[last]))
                if self.cost(_moved(line, last, index)) < self.cost(best)
            ]
            if len(self.tried) >= self.simulations_max or number >= LINES_MAX:
                return best, False
            found = self.least(line, last, affordable[-1])
            if found is not None:
                best = _moved(line, last, found)
        return best, True

    def _lines(self, top: Point, last: int) -> Iterator[Point]:
        """Yield points of all levels of the axes other than `last`, the cheapest first; no more are made than are asked for."""
        others = [axis for axis in range(len(top)) if axis != last]
        first = _moved(tuple(0 for _ in top), last, top[last])
        heap, seen = [(self.cost(first), first)], {first}
        while heap:
            _, point = heapq.heappop(heap)
            yield point
            for axis in others:
                dearer = _moved(point, axis, point[axis] + 1)
                if dearer[axis] <= top[axis] and dearer not in seen:
                    seen.add(dearer)
                    heapq.heappush(heap, (self.cost(dearer), dearer))

    def _refined(self, best: Point) -> Point:
        """Search between the level found on each axis and the one below it; the result becomes a level."""
        coarse = self.levels
        self.levels = [
            _between(levels[index - 1] if index else 0.0, levels[index], is_whole(name))
            for name, levels, index in zip(self.names, coarse, best, strict=True)
        ]
        point = self.most
        for axis in range(len(point)):
            index = self.least(point, axis, point[axis])
            assert index is not None, "it was enough before"
            point = _moved(point, axis, index)
        values = self.values(point)
        self.levels = [sorted({*levels, value}) for levels, value in zip(coarse, values, strict=True)]
        return tuple(levels.index(value) for levels, value in zip(self.levels, values, strict=True))

    def _curve(self, point: Point, axis: int) -> list[tuple[float, float]]:
        """Return what the levels of one limit bring, with the others as they are."""
        return [
            (level, self.at(_moved(point, axis, index))[0]) for index, level in enumerate(self.levels[axis])
        ]

    def _impossible(self, top: Point) -> Capacity:
        seconds, result = self.at(top)[0], self.simulated(top)
        path = in_sum(critical_path(result)) if result.records is not None and len(result.records) else {}
        longest = next(iter(path.items()), None)
        reason = f"even with the most of everything it takes {seconds:.3g} s"
        if result.stuck:
            reason = f"even with the most of everything it cannot go on: {result.stuck[0]}"
        elif longest is not None:
            reason += f"; {longest[1]:.3g} s of its critical path are {longest[0]}"
        return self._capacity(top, {}, True, reason)


def _moved(point: Point, axis: int, index: int) -> Point:
    return (*point[:axis], index, *point[axis + 1 :])


def _between(low: float, high: float, whole: bool) -> list[float]:
    """Return levels above `low` up to `high`: whole ones, or `STEPS` of them."""
    if whole:
        return [float(level) for level in range(int(low) + 1, int(high) + 1)]
    return [low + (high - low) * step / STEPS for step in range(1, STEPS + 1)]


def _is_below(point: Values, other: Values) -> bool:
    """Whether a point has nowhere more than the other one."""
    return all(mine <= theirs for mine, theirs in zip(point, other, strict=True))


def _knee(curve: Sequence[tuple[float, float]], share: float) -> float:
    """Return the first level after which no level saves this share of the time that it takes there for each doubling."""
    for index, (level, seconds) in enumerate(curve):
        rest = curve[index + 1 :]
        if seconds < float("inf") and all(
            (seconds - later) / seconds < share * max(1.0, log2(more / level)) for more, later in rest
        ):
            return level
    return curve[-1][0]
