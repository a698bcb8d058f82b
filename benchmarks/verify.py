"""What verifying a log costs: `python -m benchmarks.verify [JOBS]`, on a log as an engine would have written it.

Events a second of a verified replay (chain, invariants at every batch, admissibility, every round derived again), by
one process and by two, and of the plain fold in the same run: quote the ratios, timings swing with the machine.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.logs import make_log
from datatask.adapters.history.states import refold
from datatask.adapters.history.verifying import verified
from datatask.adapters.log.reader import LogReader
from datatask.adapters.log.verify import verify_chain

JOBS = 40_000


def timed(call: Callable[[], object]) -> float:
    """Return the seconds that a call took."""
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def measure(path: Path) -> dict[str, float]:
    """Return all figures of one log."""
    with LogReader(path) as reader:
        head = reader.head
        plain = timed(lambda: refold(reader, head))
        found = [verified(reader, head, processes=1)]
        seconds = {count: timed(lambda n=count: found.append(verified(reader, head, processes=n)))  # type: ignore[misc]
                   for count in (1, 2)}  # fmt: skip
        assert all(not one.divergences and one.broken_at is None for one in found)
        chain = timed(lambda: verify_chain(reader))
    return {
        "events": head,
        "cores": len(os.sched_getaffinity(0)),
        "load": round(os.getloadavg()[0], 1),
        "plain_events_per_second": round(head / plain),
        "chain_alone_events_per_second": round(head / chain),
        "verified_events_per_second": round(head / seconds[2]),
        "verified_by_one_process_events_per_second": round(head / seconds[1]),
        "verified_to_plain": round(plain / seconds[2], 2),
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
