"""An engine with a million jobs at rest: memory, opening, a quiet update, status.

    python -m benchmarks.size [--jobs 1000000] [--quick]

One job goes through a pipeline of 3 tasks; then the state is given a million like it, written as a checkpoint, and the
pipeline is opened on that. Memory is what `load` of the checkpoint takes, names included, less that of one job.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import tempfile
import time
import tracemalloc
from array import array
from pathlib import Path

from pyroaring import BitMap

from benchmarks.pipeline import build
from datatask.adapters.history import shapes
from datatask.adapters.log.sqlite import SqliteLog
from datatask.adapters.wiring.engine import load_state
from datatask.engine.core.checkpoints import dump, load
from datatask.engine.core.state import FOLD_VERSION, State
from datatask.engine.ports import Checkpoint

JOBS, QUICK = 1_000_000, 100_000
TRIES = 21


def grow(state: State, jobs: int) -> None:
    """Let the state's one job be the first of many that have come as far."""
    for number in range(1, jobs):
        state.intern(f"job-{number:07d}")
    mask = state.masks[0]
    state.masks = [mask] * jobs
    for leaf in state.leaves.values():
        leaf.positions = array("q", leaf.positions[:1]) * (jobs if leaf.positions else 0)
        if mask & leaf.bit:
            leaf.load(BitMap(range(jobs)))
    for task in state.tasks.values():
        task.last_run = array("q", task.last_run[:1]) * jobs
        task.episode_count = array("I", task.episode_count[:1]) * jobs


def taken(body: bytes) -> int:
    """Return the bytes that a checkpoint takes when it is loaded."""
    tracemalloc.start()
    state = load(body)
    found = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert state.position
    return found


async def prepared(path: Path, jobs: int) -> float:
    """Write the log and its checkpoint; return the bytes a job at rest."""
    async with build(path, 64) as pipeline:
        await pipeline.put("values0", "job-0000000", 1)
        await pipeline.run()
        now = pipeline.state.at
    log = await SqliteLog.open(
        path, pipeline="pipeline", clock_now=now, version="0", host="bench", pid=os.getpid()
    )
    state = await load_state(log)
    least = taken(dump(state))
    grow(state, jobs)
    body = dump(state)
    await log.checkpoint(Checkpoint(log.head, log.chain_at(log.head), FOLD_VERSION, body))
    await log.close()
    return (taken(body) - least) / (jobs - 1)


async def measure(path: Path, jobs: int) -> dict[str, float]:
    """Return all figures."""
    figures = {"jobs": jobs, "bytes_per_job_at_rest": round(await prepared(path, jobs), 1)}
    pipeline = build(path, 64)
    began = time.perf_counter()
    await pipeline.open()
    figures["opening_seconds"] = round(time.perf_counter() - began, 3)
    try:
        assert len(pipeline.state.jobs) == jobs
        updates, answers = [], []
        await pipeline.update()
        for _ in range(TRIES):
            began = time.perf_counter()
            await pipeline.update()
            updates.append(time.perf_counter() - began)
            began = time.perf_counter()
            shapes.status(pipeline.state)
            answers.append(time.perf_counter() - began)
    finally:
        await pipeline.close()
    figures["quiet_update_ms"] = round(statistics.median(updates) * 1e3, 3)
    figures["status_ms"] = round(statistics.median(answers) * 1e3, 3)
    return figures


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
