"""Replay: events a second from a log's file into the state, by columns and one by one, and the memory that it takes.

    python -m benchmarks.replay [--jobs 187500] [--quick] [--memory-jobs 1000000]

Writes a log of 3 stages (187,500 jobs make 3 million events; `--quick` a tenth), folds it in bulk and plainly, and
fetches six of its columns with bare sqlite3, which is what the ratios are to. CPU microseconds tell more than seconds
where the machine has other work: with two free cores the longer of reading and folding counts, not their sum. Memory
is that of a process of its own that replays a log of `--memory-jobs` jobs in one stage (left out by 0).
"""

from __future__ import annotations

import argparse
import json
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.logs import make_log
from datatask.adapters.history.states import collector_off, follow
from datatask.adapters.log.reader import LogReader
from datatask.engine.core.checkpoints import fingerprint
from datatask.engine.core.fold import apply_all
from datatask.engine.core.state import State

JOBS, QUICK = 187_500, 18_750
MEMORY_JOBS, MEMORY_QUICK = 1_000_000, 0
PLAIN_EVENTS = 300_000
"""The plain way is measured on a part, and the two states are compared there."""

FETCHED = 5000


def timed(work: Callable[[], object], events: int) -> dict[str, float]:
    """Return events a second, and the CPU microseconds of one."""
    with collector_off():
        began, cpu = time.perf_counter(), time.process_time()
        work()
        seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
    return {"events_per_second": round(events / seconds), "cpu_us_per_event": round(cpu / events * 1e6, 3)}


def bare(path: Path) -> int:
    """Fetch six columns of all rows; return how many there were."""
    connection = sqlite3.connect(f"{path.as_uri()}?immutable=1", uri=True)
    cursor = connection.execute("SELECT position, at, kind, repository, job, run FROM log")
    rows = 0
    while fetched := cursor.fetchmany(FETCHED):
        rows += len(fetched)
    connection.close()
    return rows


def plain(reader: LogReader, until: int) -> State:
    """Fold event by event."""
    state = State()
    for batch in reader.batches(0, until):
        apply_all(state, batch.first, batch.events)
    return state


def memory(path: Path) -> None:
    """Replay a log, and print what this process has had resident at most; for a process of its own."""
    with LogReader(path) as reader, collector_off():
        state = follow(reader, State())
    lines = Path("/proc/self/status").read_text().splitlines()
    most = next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
    print(json.dumps({"jobs": len(state.jobs), "events": state.position, "mib": most >> 10}))


def measure(folder: Path, jobs: int, memory_jobs: int) -> dict[str, object]:
    """Return all figures."""
    path = folder / "log.db"
    head = make_log(path, jobs)
    figures: dict[str, object] = {"events": head}
    with LogReader(path) as reader:
        part = reader.end_of_batch(min(head, PLAIN_EVENTS))
        rates = {
            "bare": timed(lambda: bare(path), head),
            "bulk": timed(lambda: follow(reader, State()), head),
            "plain": timed(lambda: plain(reader, part), part),
        }
        with collector_off():
            same = fingerprint(plain(reader, part)) == fingerprint(follow(reader, State(), part))
    figures |= rates
    for name in ("plain", "bulk"):
        ratio = rates[name]["events_per_second"] / rates["bare"]["events_per_second"]
        figures[f"{name}_to_bare"] = round(ratio, 2)
    figures["same_state"] = same
    if memory_jobs:
        path = folder / "many.db"
        make_log(path, memory_jobs, stages=1)
        command = [sys.executable, "-m", "benchmarks.replay", "--memory", str(path)]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        figures["memory"] = json.loads(done.stdout)
    return figures


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--jobs", type=int, default=None)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--memory-jobs", type=int, default=None)
    parser.add_argument("--memory", type=Path, default=None, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.memory is not None:
        memory(options.memory)
        return
    jobs = options.jobs if options.jobs is not None else QUICK if options.quick else JOBS
    most = options.memory_jobs
    if most is None:
        most = MEMORY_QUICK if options.quick else MEMORY_JOBS
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(measure(Path(folder), jobs, most)))


if __name__ == "__main__":
    main()
