"""From the start of a process: `--help`, `status` on a log of 10,000 jobs, and a run that finds nothing to do.

    python -m benchmarks.start [--jobs 100000] [--quick]

The pipeline is that of `pipeline`: 3 stages that do nothing, run once with 10,000 jobs and once with `--jobs` (`--quick`:
20,000), which also tells whether a run costs the same with ten times as many. Then every command is a new process, five
times, of which the middle one counts.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.logs import make_log
from benchmarks.pipeline import STAGES, seconds

JOBS, QUICK, FEW = 100_000, 20_000, 10_000
TRIES = 5
PROGRAM = "from benchmarks.pipeline import build\n\npipeline = build(None, 1024)\n"


def cpu_per_run(log: Path, jobs: int) -> tuple[float, float]:
    """Run so many jobs through the pipeline; return runs a second, and CPU microseconds a run, jobs put included."""
    began = time.process_time()
    first, _ = asyncio.run(seconds(log, 1024, jobs))
    return STAGES * jobs / first, (time.process_time() - began) / (STAGES * jobs) * 1e6


def milliseconds(*arguments: str) -> float:
    """Return what a command takes from the start of its process to its end, in the middle of five."""
    command = [sys.executable, "-m", "datatask", *arguments]
    root = str(Path(__file__).parent.parent)
    around = {**os.environ, "PYTHONPATH": root}
    found = []
    for _ in range(TRIES):
        began = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=around)
        found.append((time.perf_counter() - began) * 1e3)
    return round(statistics.median(found), 1)


def measure(folder: Path, jobs: int) -> dict[str, float]:
    """Return all figures."""
    make_log(folder / "few.db", FEW)
    figures = {
        "help_ms": milliseconds("--help"),
        "status_10000_jobs_ms": milliseconds("--log", str(folder / "few.db"), "status"),
    }
    cpu_per_run(folder / "warm.db", FEW)
    _, before = cpu_per_run(folder / "before.db", FEW)
    rate, many = cpu_per_run(folder / "many.db", jobs)
    _, after = cpu_per_run(folder / "after.db", FEW)
    program = folder / "program.py"
    program.write_text(PROGRAM)
    nothing = milliseconds("-p", str(program), "--log", str(folder / "many.db"), "run")
    return figures | {
        "jobs": jobs,
        "runs_per_second": round(rate),
        "cost_to_10000_jobs": round(2 * many / (before + after), 3),
        "run_with_nothing_to_do_ms": nothing,
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--jobs", type=int, default=None)
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    jobs = options.jobs or (QUICK if options.quick else JOBS)
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(measure(Path(folder), jobs)))


if __name__ == "__main__":
    main()
