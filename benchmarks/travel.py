"""Time travel: what a question about the middle of a long log costs, first and later, as whole processes.

    python -m benchmarks.travel [--jobs 187500] [--log PATH]

Writes a log of 3 million events (or takes the one given), asks `status --at` and others at several positions, each
in a process of its own, and prints seconds from start to end as one JSON object. `first` leaves the checkpoints that
the others begin from; the bytes that these take are told, and, given a log, they are removed at the end.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.logs import make_log
from datatask.adapters.log.locate import checkpoints_path
from datatask.adapters.log.reader import LogReader

JOBS = 187_500


def seconds(path: Path, *words: str) -> float:
    """Return how long a command takes, from its start to its end."""
    began = time.perf_counter()
    command = [sys.executable, "-m", "datatask", "--log", str(path), *words]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return round(time.perf_counter() - began, 3)


def measure(path: Path) -> dict[str, object]:
    """Return all figures of one log."""
    folder = checkpoints_path(path) / "past"
    shutil.rmtree(folder, ignore_errors=True)
    with LogReader(path) as reader:
        head = reader.head
    middle = head // 2
    figures: dict[str, object] = {"events": head, "first": seconds(path, "status", "--at", str(middle))}
    later = {
        "same": ("status", "--at", str(middle)),
        "just_before": ("status", "--at", str(middle - 1000)),
        "a_third_before": ("status", "--at", str(middle * 2 // 3)),
        "near_the_beginning": ("status", "--at", str(middle // 10)),
        "ls": ("ls", "task1.done", "--at", str(middle - 50_000)),
        "why": ("why", "task1", "job-0000001", "--at", str(middle - 70_000)),
        "trace": ("trace", "job-0000001", "--at", str(middle - 90_000)),
        "graph": ("graph", "--at", str(middle - 110_000)),
        "runs": ("runs", "--job", "job-0000001", "--at", str(middle - 130_000)),
    }
    figures["later"] = {name: seconds(path, *words) for name, words in later.items()}
    rungs = [rung.stat().st_size for rung in folder.iterdir()]
    figures["rungs"] = len(rungs)
    figures["rungs_bytes"] = sum(rungs)
    figures["log_bytes"] = path.stat().st_size
    return figures


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--jobs", type=int, default=JOBS)
    parser.add_argument("--log", type=Path, default=None)
    options = parser.parse_args()
    if options.log is not None:
        print(json.dumps(measure(options.log), indent=1))
        shutil.rmtree(checkpoints_path(options.log) / "past", ignore_errors=True)
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "log.db"
        make_log(path, options.jobs)
        print(json.dumps(measure(path), indent=1))


if __name__ == "__main__":
    main()
