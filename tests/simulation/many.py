"""Lives by the thousand, on all cores, and a failing one made smaller."""

from __future__ import annotations

import os
from collections.abc import Iterable

from tests.simulation.life import wrong
from tests.simulation.plans import Plan, draw, smaller
from tests.unmeasured import unmeasured

CHUNK = 50


def shrink(plan: Plan, tries: int = 400) -> Plan:
    """Return a smaller plan that still fails."""
    again = True
    while again and tries:
        again = False
        for candidate in smaller(plan):
            tries -= 1
            if wrong(candidate):
                plan, again = candidate, True
                break
            if not tries:
                break
    return plan


def failing(seeds: range) -> list[int]:
    """Return the seeds whose lives fail."""
    return [seed for seed in seeds if wrong(draw(seed))]


def many(first: int, last: int, processes: int | None = None) -> list[int]:
    """Live first..last, on all cores; return the seeds that fail."""
    parts: Iterable[range] = (range(n, min(n + CHUNK, last + 1)) for n in range(first, last + 1, CHUNK))
    with unmeasured(processes or os.cpu_count() or 1) as pool:
        return [seed for found in pool.map(failing, parts) for seed in found]
