"""What the verification behind an engine costs its runs: the pipeline of `pipeline` with it and without, in turns.

    python -m benchmarks.verification [--jobs 100000] [--pairs 5]

The verification begins 5 s after its engine, so there are as many jobs as keep that busy for longer. Each run is a process of
its own; the two of a pair alternate in order. CPU is user and system time: the engine's, and that of the process that
verifies. Prints medians of the pairs; a ratio is with to without.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.pipeline import STAGES, seconds
from datatask.adapters.history.verify.progress import verified
from datatask.adapters.log.reader import LogReader
from datatask.adapters.wiring import engine_services

NEVER_SECONDS = 1e9


def cpu(who: int) -> float:
    """Return the CPU seconds of this process, or of its children that have ended."""
    used = resource.getrusage(who)
    return used.ru_utime + used.ru_stime


def one(jobs: int, *, on: bool) -> dict[str, float]:
    """Run so many jobs once, in this process."""
    if not on:
        engine_services.START_SECONDS = NEVER_SECONDS
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "log.db"
        before, began = cpu(resource.RUSAGE_SELF), time.perf_counter()
        first, _ = asyncio.run(seconds(path, 1024, jobs))
        lasted, used = time.perf_counter() - began, cpu(resource.RUSAGE_SELF) - before
        beside = cpu(resource.RUSAGE_CHILDREN)
        with LogReader(path) as reader:
            came_to = verified(reader).position
    return {
        "runs_per_second": STAGES * jobs / first,
        "engine_cpu_seconds": used,
        "verifying_cpu_seconds": beside,
        "seconds": lasted,
        "verified_events": came_to,
    }


def measured(jobs: int, side: str) -> dict[str, float]:
    """Do that in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.verification", "--jobs", str(jobs), "--one", side]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
    found: dict[str, float] = json.loads(done.stdout)
    return found


def compared(jobs: int, pairs: int) -> dict[str, float]:
    """Return the medians of all pairs."""
    both: list[dict[str, dict[str, float]]] = []
    for number in range(pairs):
        order = ("on", "off") if number % 2 else ("off", "on")
        both.append({side: measured(jobs, side) for side in order})
        print(json.dumps(both[-1]), file=sys.stderr, flush=True)

    def cpus(found: dict[str, float]) -> float:
        return found["engine_cpu_seconds"] + found["verifying_cpu_seconds"]

    middle = statistics.median
    share = [one["on"]["verifying_cpu_seconds"] / one["on"]["engine_cpu_seconds"] for one in both]
    rate = [one["on"]["runs_per_second"] / one["off"]["runs_per_second"] for one in both]
    return {
        "jobs": jobs,
        "pairs": pairs,
        "with_runs_per_second": middle(one["on"]["runs_per_second"] for one in both),
        "without_runs_per_second": middle(one["off"]["runs_per_second"] for one in both),
        "runs_per_second_ratio": round(middle(rate), 3),
        "cpu_ratio": round(middle(cpus(one["on"]) / cpus(one["off"]) for one in both), 3),
        "share_of_engine_cpu": round(middle(share), 4),
        "verifying_cpu_seconds": round(middle(one["on"]["verifying_cpu_seconds"] for one in both), 2),
        "seconds": round(middle(one["on"]["seconds"] for one in both), 1),
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--jobs", type=int, default=100_000)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--one", choices=("on", "off"))
    options = parser.parse_args()
    if options.one:
        print(json.dumps(one(options.jobs, on=options.one == "on")))
    else:
        print(json.dumps(compared(options.jobs, options.pairs)))


if __name__ == "__main__":
    main()
