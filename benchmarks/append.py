"""Appending: group commit, a single caller beside a bare sqlite3 commit, a busy loop, bytes an event.

    python benchmarks/append.py [--seconds 3] [--folder /tmp] [--profile]

Prints one JSON object. The events are those of runs: a decision, a start, a value, an end.
"""

from __future__ import annotations

import argparse
import asyncio
import cProfile
import json
import os
import sqlite3
import tempfile
import time
from pathlib import Path
from statistics import median

import msgspec

from datatask.adapters.log.sqlite import SqliteLog
from datatask.schema.events import Event, LaunchDecided, RunEnded, RunStarted, ValuePut

NOW = 1_700_000_000_000_000_000
TURNS = 9
VALUE = msgspec.Raw(b'{"path":"/data/out/000123.npz","rows":1024,"ok":true}')


def make_event(number: int) -> Event:
    """Return the next event of an endless sequence of runs."""
    run, step = divmod(number, 4)
    job, at = f"job-{run % 100_000:06d}", NOW + number * 1_000_003
    match step:
        case 0:
            return LaunchDecided(
                at=at, cause=number, task="resize", job=job, episode=1, attempt=1, inputs={"input": run}
            )
        case 1:
            handle: dict[str, str | int] = {"pid": 4711}
            return RunStarted(
                at=at, cause=number, task="resize", job=job, run=number, handle=handle, where="local"
            )
        case 2:
            return ValuePut(at=at, cause=number, repository="out", job=job, run=number, value=VALUE)
        case _:
            return RunEnded(
                at=at, cause=number, task="resize", job=job, run=number, outcome="succeeded", exit_code=0
            )


async def open_log(folder: Path, durability: str = "full") -> SqliteLog:
    """Open a new log in a folder."""
    return await SqliteLog.open(
        folder / "log.db",
        pipeline="bench",
        clock_now=NOW,
        version="0",
        host="bench",
        pid=os.getpid(),
        durability="full" if durability == "full" else "process",
    )


async def group_commit(log: SqliteLog, callers: int, seconds: float) -> dict[str, float]:
    """Let callers append one event each, again and again; return the rate and the latencies."""
    latencies: list[float] = []
    events = [make_event(number) for number in range(8_000)]
    began = time.perf_counter()
    number = 0

    async def caller() -> None:
        nonlocal number
        while (start := time.perf_counter()) - began < seconds:
            number = (number + 1) % len(events)
            await log.append([events[number]])
            latencies.append(time.perf_counter() - start)

    await asyncio.gather(*(caller() for _ in range(callers)))
    took = time.perf_counter() - began
    latencies.sort()
    return {
        "events_per_second": round(len(latencies) / took),
        "p50_ms": round(latencies[len(latencies) // 2] * 1e3, 3),
        "p99_ms": round(latencies[len(latencies) * 99 // 100] * 1e3, 3),
    }


async def busy_loop(log: SqliteLog, seconds: float, size: int = 200) -> dict[str, float]:
    """Enqueue batches while the loop's thread computes without a pause, as a deciding engine does."""
    began, before = time.perf_counter(), log.head
    number, spun = 0, 0
    while time.perf_counter() - began < seconds:
        if log.pending < 8_000:
            log.enqueue([make_event(number + offset) for offset in range(size)])
            number += size
        for _ in range(2_000):
            spun += 1
        await asyncio.sleep(0)
    return {"events_per_second": round((log.head - before) / (time.perf_counter() - began))}


def bare_log(folder: Path) -> sqlite3.Connection:
    """Return a new file of plain sqlite3, with the same settings."""
    connection = sqlite3.connect(folder / "bare.db", isolation_level=None)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute(
        "CREATE TABLE log (position INTEGER PRIMARY KEY, at INTEGER, job INTEGER, payload TEXT) STRICT"
    )
    connection.execute("CREATE INDEX log_job ON log (job, position)")
    return connection


def bare_commits(connection: sqlite3.Connection, seconds: float) -> float:
    """Return commits a second of plain sqlite3: one row of about the same size each."""
    began, count = time.perf_counter(), 0
    while (took := time.perf_counter() - began) < seconds:
        connection.execute("BEGIN IMMEDIATE")
        connection.execute(
            "INSERT INTO log (at, job, payload) VALUES (?, ?, ?)", (NOW + count, count % 1000, "x" * 112)
        )
        connection.execute("COMMIT")
        count += 1
    return count / took


async def one_caller(log: SqliteLog, folder: Path, seconds: float) -> dict[str, object]:
    """Let one caller append and plain sqlite3 commit in turns, so that both meet the same disk; of the middle turns."""
    connection = bare_log(folder)
    bare, ours = [], []
    for _ in range(TURNS):
        bare.append(bare_commits(connection, seconds / TURNS))
        ours.append(await group_commit(log, 1, seconds / TURNS))
    connection.close()
    ours.sort(key=lambda one: one["events_per_second"])
    single = ours[TURNS // 2]
    return {
        "bare_commits_per_second": round(median(bare)),
        "single": single,
        "single_ratio": round(single["events_per_second"] / median(bare), 2),
    }


async def measure(folder: Path, seconds: float, profile: bool) -> dict[str, object]:
    """Return all figures."""
    result: dict[str, object] = {}
    log = await open_log(folder)
    result |= await one_caller(log, folder, seconds)
    result["callers_16"] = await group_commit(log, 16, seconds)
    profiler = cProfile.Profile()
    if profile:
        profiler.enable()
    result["callers_256"] = await group_commit(log, 256, seconds)
    if profile:
        profiler.disable()
        profiler.print_stats("tottime")
    result["busy_loop"] = await busy_loop(log, seconds)
    await log.append([make_event(0)])
    await log.close()
    (folder / "log.db").unlink()
    log = await open_log(folder)
    for start in range(0, 100_000, 4):
        log.enqueue([make_event(start + offset) for offset in range(4)])
        if log.pending > 8_000:
            await log.append([make_event(start)])
    await log.close()
    result["bytes_per_event"] = round((folder / "log.db").stat().st_size / log.head, 1)
    return result


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--folder", type=Path, default=None)
    parser.add_argument("--profile", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        print(json.dumps(asyncio.run(measure(Path(folder), options.seconds, options.profile)), indent=1))


if __name__ == "__main__":
    main()
