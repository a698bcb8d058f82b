"""`python -m tests.simulation SEED` lives one life and shrinks it when it fails; `FIRST LAST` lives many."""

from __future__ import annotations

import sys
import time

from tests.simulation.life import Life, wrong
from tests.simulation.many import many, shrink
from tests.simulation.plans import draw


def main() -> int:
    """Tell what fails."""
    numbers = [int(argument) for argument in sys.argv[1:]]
    if len(numbers) == 2:
        began = time.monotonic()
        found = many(*numbers)
        count = numbers[1] - numbers[0] + 1
        print(f"{count} lives in {time.monotonic() - began:.0f} s; failing: {found[:50] or 'none'}")
        return 1 if found else 0
    plan = draw(numbers[0] if numbers else 0)
    told = wrong(plan)
    if not told:
        life = Life(plan)
        life.run()
        print(f"{plan}\n{life.log.head} events, {len(life.target.processes)} runs, {life.steps} steps: ok")
        return 0
    print(*told[:20], sep="\n")
    small = shrink(plan)
    print(f"smallest: {small}", *wrong(small)[:20], sep="\n")
    return 1


if __name__ == "__main__":
    sys.exit(main())
