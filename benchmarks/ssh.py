"""Processes over SSH against bare asyncssh: runs a second of a whole pipeline, and of `run('true')`, over one connection.

    python -m benchmarks.ssh [--runs 300] [--rounds 5]

Both reach the same sshd on loopback, turn by turn, so the ratios hold whatever else the machine does: bare calls are 6 at
a time (sshd refuses more at times), ours 6 and 64, each to the bare calls just before and after. Ours are decided, logged with full durability,
started in sessions of their own, and their ends collected. `cpu_ms` is what a run costs this process.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

RUNS, ROUNDS, IN_FLIGHT, MANY = 300, 5, 6, 64


async def bare(host: Any, runs: int) -> float:
    """Return calls a second over a connection of asyncssh."""
    import asyncssh

    connection = await host.connect()
    gate = asyncio.Semaphore(IN_FLIGHT)

    async def one() -> None:
        async with gate:
            while True:
                try:
                    await connection.run("true")
                    return
                except asyncssh.ChannelOpenError:  # sshd gives a session back a little late
                    await asyncio.sleep(0.001)

    began = time.perf_counter()
    await asyncio.gather(*(one() for _ in range(runs)))
    seconds = time.perf_counter() - began
    connection.close()
    await connection.wait_closed()
    return runs / seconds


async def ours(host: Any, folder: Path, runs: int, at_once: int) -> tuple[float, float]:
    """Return runs a second of a pipeline, and the CPU milliseconds of a run here."""
    from datatask import (
        LogMetadataRepository,
        Pipeline,
        ProcessTask,
        ResourceManager,
        Resources,
        Session,
        SSHLinuxManager,
    )

    quota = ResourceManager(Resources.parse(at_once, "1Gi"))
    manager = SSHLinuxManager("bench", host, folder / "remote")
    given = LogMetadataRepository("given")
    one, pids, done = Resources.parse(1, 0), LogMetadataRepository("pids"), LogMetadataRepository("done")
    task = ProcessTask("true", manager, quota, one, pids, "#!/bin/true\n", done=done)
    task.link("given", given, is_input=True)
    async with Pipeline(
        [task], Session(), [quota], log=folder / f"{len(list(folder.glob('*.db')))}.db"
    ) as pipeline:
        for job in range(runs):
            await given.dump(f"j{job}", {})
        began, cpu = time.perf_counter(), time.process_time()
        await pipeline.run()
        return runs / (time.perf_counter() - began), (time.process_time() - cpu) / runs * 1e3


async def measure(server: Any, folder: Path, runs: int, rounds: int) -> dict[str, float]:
    """Return the middle of so many rounds."""
    host = server.host()
    calls, costs = [await bare(host, runs)], []
    rates: dict[int, list[float]] = {IN_FLIGHT: [], MANY: []}
    ratios: dict[int, list[float]] = {IN_FLIGHT: [], MANY: []}
    for _ in range(rounds):
        for at_once in rates:
            rate, cost = await ours(host, folder, runs, at_once)
            calls.append(await bare(host, runs))
            rates[at_once].append(rate)
            ratios[at_once].append(2 * rate / (calls[-2] + calls[-1]))
            if at_once == IN_FLIGHT:
                costs.append(cost)
    figures: dict[str, float] = {"bare_calls_per_second": round(statistics.median(calls))}
    for at_once in rates:
        figures[f"runs_per_second_{at_once}_at_once"] = round(statistics.median(rates[at_once]))
    figures["cpu_ms"] = round(statistics.median(costs), 2)
    for at_once in ratios:
        figures[f"ratio_{at_once}_at_once"] = round(statistics.median(ratios[at_once]), 3)
    return figures


def on_a_server(measure: Callable[[Any, Path], Coroutine[Any, Any, Any]]) -> None:
    """Print what `measure(server, folder)` returns, with an sshd of our own; without an sshd there is nothing to measure."""
    if shutil.which("sshd", path="/usr/sbin:/sbin:/usr/local/sbin") is None:
        print(json.dumps({"not_installed": "sshd"}))
        return
    from tests.ssh_kit import serving

    with (
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name,
        serving(Path(name) / "server") as server,
    ):
        print(json.dumps(asyncio.run(measure(server, Path(name)))))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--runs", type=int, default=RUNS)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    options = parser.parse_args()
    on_a_server(lambda server, folder: measure(server, folder, options.runs, options.rounds))


if __name__ == "__main__":
    main()
