"""Opening an engine's log of 3 million events: from nothing, from a checkpoint, and what of it is applying alone.

    python -m benchmarks.opening [--jobs 187500] [--quick]

The log is that of 3 stages (`--quick` a tenth). Opened the engine's way: the lease, the look at its end, `load_state`.
`applied` is the part of that in which pages that lie in memory are folded into the state, by CPU time.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import tempfile
import time
from pathlib import Path

from benchmarks.logs import NOW, PIPELINE, make_log
from datatask.adapters.log import sqlite
from datatask.adapters.log.columns import Follower
from datatask.adapters.log.sqlite import SqliteLog
from datatask.adapters.wiring.engine import load_state
from datatask.engine.core.checkpoints import dump, fingerprint
from datatask.engine.core.state import FOLD_VERSION, State
from datatask.engine.ports import Checkpoint
from datatask.engine.replay.bulk import Bulk
from datatask.engine.replay.transitions import Page

JOBS, QUICK = 187_500, 18_750


class Timed(Follower):
    """Adds up the CPU seconds of folding pages that have been read and decoded."""

    seconds = 0.0

    def _folded(self, bulk: Bulk, page: Page | None) -> bool:
        began = time.thread_time()
        try:
            return super()._folded(bulk, page)
        finally:
            Timed.seconds += time.thread_time() - began


async def opened(path: Path) -> tuple[SqliteLog, State, float]:
    """Open the log for writing and load its state; return both, and the seconds of that."""
    began = time.perf_counter()
    log = await SqliteLog.open(
        path, pipeline=PIPELINE, clock_now=NOW, version="0", host="bench", pid=os.getpid()
    )
    state = await load_state(log)
    return log, state, time.perf_counter() - began


async def measure(path: Path, jobs: int) -> dict[str, object]:
    """Return all figures."""
    head = make_log(path, jobs)
    sqlite.Follower = Timed  # type: ignore[misc]
    log, state, plain = await opened(path)
    await log.checkpoint(Checkpoint(head, log.chain_at(head), FOLD_VERSION, dump(state)))
    await log.close()
    applied = Timed.seconds
    log, again, kept = await opened(path)
    await log.close()
    assert fingerprint(again) == fingerprint(state)
    return {
        "events": head,
        "without_checkpoint_events_per_second": round(head / plain),
        "applied_events_per_second": round(head / applied),
        "with_checkpoint_seconds": round(kept, 3),
        "bytes_per_event": round(path.stat().st_size / head, 1),
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--jobs", type=int, default=None)
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    jobs = options.jobs or (QUICK if options.quick else JOBS)
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(asyncio.run(measure(Path(folder) / "log.db", jobs))))


if __name__ == "__main__":
    main()
