"""End to end: a 3-stage no-op in-process pipeline on a durable SQLite log, and beside it in memory.

    python -m benchmarks.pipeline [--jobs 10000]

Prints runs a second at 64 and at 1,024 runs in flight, the seconds of a run that finds nothing to do, and bytes an event.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import tempfile
import time
from pathlib import Path

from datatask import InProcessSyncTask, LogMetadataRepository, Pipeline, Session
from datatask.adapters.log.reader import LogReader
from datatask.schema import messages as r
from datatask.schema.definition import OnChange
from datatask.schema.events import ABSENT
from datatask.testing import MemoryLog

STAGES = 3


def build(log: Path | MemoryLog | None, in_flight: int, on_change: OnChange = "mark") -> Pipeline:
    """Return stage0 -> stage1 -> stage2, each writing one value a job."""
    values = [LogMetadataRepository(f"values{stage}") for stage in range(STAGES + 1)]
    tasks = []
    for stage in range(STAGES):

        async def body(job: str, out: LogMetadataRepository) -> None:
            await out.dump(job, 1)

        task = InProcessSyncTask(
            f"stage{stage}",
            LogMetadataRepository(f"done{stage}"),
            func=body,
            concurrency=in_flight,
            on_change=on_change,
        )
        task.link("source", values[stage], is_input=True)
        task.link("out", values[stage + 1], is_output=True)
        tasks.append(task)
    return Pipeline(tasks, Session(), log=log)


async def seconds(
    log: Path | MemoryLog, in_flight: int, jobs: int, on_change: OnChange = "mark"
) -> tuple[float, float]:
    """Return the seconds of the first run and of one that finds nothing to do, in the open pipeline."""
    async with build(log, in_flight, on_change) as pipeline:
        value = type(ABSENT)(b"1")
        for start in range(0, jobs, 1000):
            items = tuple(
                r.Item(job=f"job{number}", value=value) for number in range(start, min(start + 1000, jobs))
            )
            await pipeline.request(
                r.PutValues(id=f"put{start}", actor="bench", repository="values0", items=items)
            )
        begin = time.perf_counter()
        await pipeline.run()
        first = time.perf_counter() - begin
        await pipeline.run()
        return first, time.perf_counter() - begin - first


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=10_000)
    jobs: int = parser.parse_args().jobs
    figures: dict[str, float] = {"jobs": jobs}
    for in_flight in (64, 1024):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "log.db"
            first, idle = asyncio.run(seconds(path, in_flight, jobs))
            with LogReader(path) as reader:
                figures["bytes_per_event"] = round(path.stat().st_size / reader.head, 1)
        figures[f"sqlite_full_{in_flight}_in_flight_runs_per_second"] = STAGES * jobs / first
        figures[f"sqlite_full_{in_flight}_idle_run_ms"] = idle * 1e3
    first, _ = asyncio.run(seconds(MemoryLog(), 1024, jobs))
    figures["memory_1024_in_flight_runs_per_second"] = STAGES * jobs / first
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
