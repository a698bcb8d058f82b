"""Beside others, on the same work in the same minutes: three no-op stages over the same jobs, everything kept on disk.

    python -m benchmarks.peers [--jobs 3000] [--rounds 3]

huey (queue and results in SQLite, synced), doit (SQLite), parsl (a checkpoint a task), datatask at 1,024 and at 64 in
flight, and what SQLite itself allows: groups of rows as large as those runs' events, committed one after another with
nothing else to do. Each in turn, round after round; the median of each, and how many times as fast datatask is. The
others are installed once into environments of their own, in the user's cache; one that cannot be installed is told.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

from benchmarks.pipeline import STAGES, seconds

PINNED = {"huey": "huey==3.5.4", "doit": "doit==0.37.0", "parsl": "parsl==2026.10.26"}
EVENTS_A_RUN = 5
"""Launch, start, two values, end."""

LIMIT_SECONDS = 300


def interpreter(requirement: str) -> Path | None:
    """Return the Python of a peer's environment, made when it is missing; None where it cannot be installed."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "datatask-peers"
    folder = cache / requirement
    python = folder / "bin" / "python"
    if (folder / "installed").exists():
        return python
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", requirement]
    if subprocess.run(pip, stdout=sys.stderr, check=False).returncode:
        return None
    (folder / "installed").touch()
    return python


def peer(name: str, python: Path, jobs: int) -> float:
    """Return a peer's runs a second."""
    program = Path(__file__).parent / "peer" / f"{name}_stages.py"
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [python, program, str(jobs), folder], capture_output=True, text=True,
            timeout=LIMIT_SECONDS, check=False,
        )  # fmt: skip
    if done.returncode:
        sys.exit(f"{name} failed: {done.stderr.strip()[-400:]}")
    told = done.stdout.splitlines()[-1]  # a peer may print before
    return float(json.loads(told)["runs_per_second"])


def datatask(in_flight: int, jobs: int) -> float:
    """Return our runs a second."""
    with tempfile.TemporaryDirectory() as folder:
        first, _ = asyncio.run(seconds(Path(folder) / "log.db", in_flight, jobs))
    return STAGES * jobs / first


def group_commit(in_flight: int, jobs: int) -> float:
    """Return how many runs' rows SQLite takes a second in groups of so many runs, synced, chained by nobody."""
    runs = STAGES * jobs
    with tempfile.TemporaryDirectory() as folder:
        connection = sqlite3.connect(Path(folder) / "bare.db", isolation_level=None)
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute("CREATE TABLE log (position INTEGER PRIMARY KEY, at, kind, job, payload)")
        rows = [(1_700_000_000_000_000_000, 7, 12, '{"value":1}')] * (EVENTS_A_RUN * in_flight)
        began = time.perf_counter()
        for _ in range(0, runs, in_flight):
            connection.execute("BEGIN")
            connection.executemany("INSERT INTO log (at, kind, job, payload) VALUES (?, ?, ?, ?)", rows)
            connection.execute("COMMIT")
        took = time.perf_counter() - began
        connection.close()
    return runs / took


def main() -> None:
    """Measure in turn and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=3000)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    jobs: int = options.jobs
    measures: dict[str, Callable[[], float]] = {}
    missing = []
    for name in PINNED:
        python = interpreter(PINNED[name])
        if python is None:
            missing.append(name)
        else:
            measures[name] = lambda name=name, python=python: peer(name, python, jobs)  # type: ignore[misc]
    for in_flight in (1024, 64):
        measures[f"datatask_{in_flight}"] = lambda n=in_flight: datatask(n, jobs)  # type: ignore[misc]
        measures[f"group_commit_{in_flight}"] = lambda n=in_flight: group_commit(n, jobs)  # type: ignore[misc]
    found: dict[str, list[float]] = {name: [] for name in measures}
    for _ in range(options.rounds):
        for name, measure in measures.items():
            found[name].append(measure())
    middle = {name: median(those) for name, those in found.items()}
    ours = middle["datatask_1024"]
    print(
        json.dumps(
            {
                "jobs": jobs,
                "runs_per_second": {name: round(one) for name, one in middle.items()},
                "datatask_times": {
                    name: round(ours / one, 2) for name, one in middle.items() if name in PINNED
                },
                "of_group_commit": {
                    str(n): round(middle[f"datatask_{n}"] / middle[f"group_commit_{n}"], 2)
                    for n in (1024, 64)
                },
                **({"not_installed": " ".join(missing)} if missing else {}),
            }
        )
    )


if __name__ == "__main__":
    main()
