"""What verifying a log costs: `python -m benchmarks.verify [JOBS]`, on a log as an engine would have written it.

Events a second of a verified replay (chain, invariants at every batch, admissibility, every round derived again), by
one process and by two, and of the plain fold in the same run: quote the ratios, timings swing with the machine.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from benchmarks.logs import make_log
from datatask.adapters.history.states import refold
from datatask.adapters.history.verify.fold import verified
from datatask.adapters.log.integrity.verify import verify_chain
from datatask.adapters.log.reader import LogReader

JOBS = 100_000


class Spent(NamedTuple):
    """Seconds by the clock on the wall, and of processors, those of other processes that were started included."""

    wall: float
    cpu: float


def timed(call: Callable[[], object]) -> Spent:
    """Return what a call took."""
    wall, cpu = time.perf_counter(), _cpu()
    call()
    return Spent(time.perf_counter() - wall, _cpu() - cpu)


def _cpu() -> float:
    who = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    return sum(used.ru_utime + used.ru_stime for used in map(resource.getrusage, who))


def measure(path: Path) -> dict[str, float]:
    """Return all figures of one log."""
    with LogReader(path) as reader:
        head = reader.head

        def verify(processes: int) -> None:
            found = verified(reader, head, processes=processes)
            assert not found.divergences, found.divergences[0]

        verify(1)
        plain, one, two = (
            timed(lambda: refold(reader, head)),
            timed(lambda: verify(1)),
            timed(lambda: verify(2)),
        )
        chain = timed(lambda: verify_chain(reader))
    return {
        "events": head,
        "load": round(os.getloadavg()[0], 1),
        "plain_events_per_second": round(head / plain.wall),
        "plain_cpu_us_per_event": round(plain.cpu / head * 1e6, 2),
        "chain_cpu_us_per_event": round(chain.cpu / head * 1e6, 2),
        "verified_events_per_second": round(head / two.wall),
        "verified_cpu_us_per_event": round(two.cpu / head * 1e6, 2),
        "verified_by_one_process_events_per_second": round(head / one.wall),
        "verified_by_one_process_cpu_us_per_event": round(one.cpu / head * 1e6, 2),
        "verified_to_plain": round(plain.wall / two.wall, 2),
    }


def main() -> None:
    """Write a log, verify it, print."""
    jobs = int(sys.argv[1]) if len(sys.argv) > 1 else JOBS
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "log.db"
        make_log(path, jobs)
        print(json.dumps(measure(path)))


if __name__ == "__main__":
    main()
