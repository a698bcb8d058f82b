"""Small runs on a Dask cluster: a pipeline's, beside `Client.submit` of the same function, in turn on one cluster.

    python -m benchmarks.dask [--runs 10000] [--rounds 3]

A scheduler and two workers with two threads each, as processes of this machine. Bare: one `Client.submit` for each call, and one
`gather` of all. Ours: a task of as many jobs, decided, handed over, locked, fetched, their ends logged with full durability,
and let go of. `ratio` is the median of the rounds, each beside the bare calls before and after it; `cpu_ms` is the processor time
of a run in all processes together, `bare_cpu_ms` that of a bare call.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from datatask import ExecutorTask, InProcessMetadataRepository, LogMetadataRepository, Pipeline, Session

RUNS, ROUNDS = 10_000, 3


def nothing(job: str) -> None:
    """Do what is measured: nothing."""


class Clock:
    """Wall clock and processor time of this process and the cluster's."""

    def __init__(self, cluster: Any) -> None:
        self._pids = [os.getpid(), cluster.scheduler, *cluster.workers.values()]
        self._began, self._cpu = time.perf_counter(), self._spent()

    def _spent(self) -> float:
        found = 0.0
        for pid in self._pids:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            found += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
        return found

    def per(self, calls: int) -> tuple[float, float]:
        """Return calls a second, and milliseconds of processor time a call."""
        return calls / (time.perf_counter() - self._began), (self._spent() - self._cpu) * 1000 / calls


async def bare(cluster: Any, calls: int) -> tuple[float, float]:
    """Submit and gather."""
    from distributed import Client

    async with Client(cluster.address, asynchronous=True, set_as_default=False) as client:
        clock = Clock(cluster)
        await client.gather([client.submit(nothing, f"j{number}", pure=False) for number in range(calls)])
        return clock.per(calls)


async def ours(cluster: Any, folder: Path, runs: int) -> tuple[float, float]:
    """Run a pipeline of as many jobs."""
    jobs = {f"j{number}": {} for number in range(runs)}
    task = ExecutorTask("t", cluster.url, LogMetadataRepository("done"), func=nothing)
    task.link("doc", InProcessMetadataRepository(jobs, name="docs"), is_input=True)
    async with Pipeline([task], Session(), name="p", log=folder / "log.db") as pipeline:
        clock = Clock(cluster)
        await pipeline.run()
        assert len([job async for job in task.done]) == runs
        return clock.per(runs)


async def measure(folder: Path, runs: int, rounds: int) -> dict[str, Any]:
    """Return the figures."""
    from tests.dask_kit import Dask

    cluster = Dask()
    try:
        await bare(cluster, 200)  # what is loaded by and by
        around, found, ratios = [await bare(cluster, runs)], [], []
        for _ in range(rounds):
            found.append(await ours(cluster, Path(tempfile.mkdtemp(dir=folder)), runs))
            around.append(await bare(cluster, runs))
            ratios.append(2 * found[-1][0] / (around[-1][0] + around[-2][0]))
    finally:
        cluster.close()
    return {
        "bare_per_second": round(statistics.median(rate for rate, _ in around)),
        "runs_per_second": round(statistics.median(rate for rate, _ in found)),
        "bare_cpu_ms": round(statistics.median(cpu for _, cpu in around), 2),
        "cpu_ms": round(statistics.median(cpu for _, cpu in found), 2),
        "ratio": round(statistics.median(ratios), 2),
    }


def main() -> None:
    """Measure and print; without Dask there is nothing to measure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--runs", type=int, default=RUNS)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    options = parser.parse_args()
    try:
        import distributed  # noqa: F401
    except ImportError:
        print(json.dumps({"not_installed": "distributed"}))
        return
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
        print(json.dumps(asyncio.run(measure(Path(name), options.runs, options.rounds))))


if __name__ == "__main__":
    main()
