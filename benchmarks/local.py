"""Local processes against bare `asyncio.create_subprocess_exec`: processes a second, at the same concurrency.

    python -m benchmarks.local [--runs 1500] [--rounds 3] [--at-once 64]

Both run the same executable in a new session, stdin from /dev/null, stdout and stderr to files of their own, turn by
turn, so that the ratio holds whatever else the machine does. Ours are decided, logged with full durability, their ends
are recorded on disk before they are told, both outputs are captured into file repositories. `cpu_ms` is what a run
costs this process, `launcher_cpu_ms` what it costs the launcher and the process itself.
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

from datatask import (
    FileRepository,
    LocalLinuxManager,
    LogMetadataRepository,
    Pipeline,
    ProcessTask,
    ResourceManager,
    Resources,
    Session,
)
from datatask.adapters.execute.base import proctable
from datatask.adapters.execute.local import folders

RUNS, ROUNDS, AT_ONCE = 1500, 3, 64
SCRIPT = "#!/bin/true\n"


async def bare(folder: Path, runs: int, at_once: int) -> float:
    """Return processes a second."""
    exe = folder / "exe"
    exe.write_text(SCRIPT)
    exe.chmod(0o700)
    gate = asyncio.Semaphore(at_once)

    async def one(number: int) -> None:
        async with gate:
            with (folder / f"{number}.out").open("wb") as out, (folder / f"{number}.err").open("wb") as err:
                process = await asyncio.create_subprocess_exec(
                    exe, stdin=asyncio.subprocess.DEVNULL, stdout=out, stderr=err, start_new_session=True
                )
            assert await process.wait() == 0

    began = time.perf_counter()
    await asyncio.gather(*(one(number) for number in range(runs)))
    return runs / (time.perf_counter() - began)


async def ours(folder: Path, runs: int, at_once: int) -> dict[str, float]:
    """Return runs a second of a pipeline, and the CPU milliseconds of a run."""
    quota = ResourceManager(Resources.parse(at_once, "1Gi"))
    manager = LocalLinuxManager("bench", folder / "local")
    given = LogMetadataRepository("given")
    out, err = FileRepository(folder / "out"), FileRepository(folder / "err")
    pids, done = LogMetadataRepository("pids"), LogMetadataRepository("done")
    task = ProcessTask(
        "true", manager, quota, Resources.parse(1, 0), pids, SCRIPT, done=done, stdout=out, stderr=err
    )
    task.link("given", given, is_input=True)
    async with Pipeline([task], Session(), [quota], log=folder / "log.db") as pipeline:
        for job in range(runs):
            await given.dump(f"j{job}", {})
        began, cpu = time.perf_counter(), time.process_time()
        await pipeline.run()
        seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
    launcher = int((folder / "local" / "bench" / "launcher.lock").read_text())
    return {
        "rate": runs / seconds,
        "cpu_ms": cpu / runs * 1e3,
        "launcher_cpu_ms": _cpu_seconds(launcher) / runs * 1e3,
    }


def _cpu_seconds(pid: int) -> float:
    """Return what a process and those that it has waited for have used."""
    fields = proctable.stat_fields(pid)
    return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK") if fields else 0.0


async def measure(folder: Path, runs: int, rounds: int, at_once: int) -> dict[str, float]:
    """Return the middle of so many rounds."""
    calls: list[float] = []
    found: list[dict[str, float]] = []
    ratios: list[float] = []
    folders.spread_below(str(folder))  # by names that are new: none suffers from what was removed lately
    for _ in range(rounds):
        places = [Path(tempfile.mkdtemp(dir=folder)) for _ in range(3)]
        before = await bare(places[0], runs, at_once)
        found.append(await ours(places[1], runs, at_once))
        after = await bare(places[2], runs, at_once)
        calls += [before, after]
        ratios.append(2 * found[-1]["rate"] / (before + after))
    return {
        "at_once": at_once,
        "bare_per_second": round(statistics.median(calls)),
        "runs_per_second": round(statistics.median(one["rate"] for one in found)),
        "cpu_ms": round(statistics.median(one["cpu_ms"] for one in found), 3),
        "launcher_cpu_ms": round(statistics.median(one["launcher_cpu_ms"] for one in found), 3),
        "ratio": round(statistics.median(ratios), 3),
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--runs", type=int, default=RUNS)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--at-once", type=int, default=AT_ONCE)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
        print(json.dumps(asyncio.run(measure(Path(name), options.runs, options.rounds, options.at_once))))


if __name__ == "__main__":
    main()
