"""An output collected over SSH, beside a bare SFTP fetch of the same bytes; and what its proof costs.

    python -m benchmarks.collecting [--mb 64] [--rounds 3]

In turn: `get` of a file by asyncssh, and a pipeline's run that prints the file, from its launch to its durable end, less such a run
that prints nothing. That is the copy into the run's folder there, the checksum there, the fetch, the checksum here, and the value in its
repository. `proof_there_ms` and `proof_here_ms` are the two checksums by themselves, a megabyte; `proof_share` is their part
of the collecting.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.ssh import on_a_server

MEGABYTES, ROUNDS = 64, 3


async def bare(host: Any, source: Path, folder: Path) -> float:
    """Return the seconds of a fetch."""
    async with await host.connect() as connection, connection.start_sftp_client() as sftp:
        began = time.perf_counter()
        await sftp.get(str(source), str(folder / "fetched"))
        return time.perf_counter() - began


async def proof(host: Any, source: Path) -> tuple[float, float]:
    """Return the seconds of the checksum there, and of its check here."""
    from datatask.adapters.execute.base.endings import fits

    async with await host.connect() as connection:
        began = time.perf_counter()
        done = await connection.run(f"cksum <{source}", check=True)
        there = time.perf_counter() - began
    began = time.perf_counter()
    printed, size = str(done.stdout).split()
    assert await asyncio.to_thread(fits, printed, source, int(size))
    return there, time.perf_counter() - began


async def ours(host: Any, folder: Path, script: str, size: int) -> float:
    """Return the seconds of a run whose output is kept."""
    from datatask import FileRepository, LogMetadataRepository, Pipeline, ProcessTask, Resources, Session
    from datatask import SSHLinuxManager as Manager

    own = Path(tempfile.mkdtemp(dir=folder))
    given, out = LogMetadataRepository("given"), FileRepository(own / "out", name="out")
    pids, done = LogMetadataRepository("pids"), LogMetadataRepository("done")
    manager = Manager("collect", host, folder / "remote")
    task = ProcessTask(
        "print", manager, None, Resources.parse(1, 0), pids, f"#!/bin/sh\n{script}\n", done=done, stdout=out
    )
    task.link("given", given, is_input=True)
    async with Pipeline([task], Session(), log=own / "log.db") as pipeline:
        await given.dump("j", {})
        began = time.perf_counter()
        await pipeline.run()
        lasted = time.perf_counter() - began
    assert (own / "out" / "j").stat().st_size == size
    shutil.rmtree(own)
    return lasted


async def measure(server: Any, folder: Path, megabytes: int, rounds: int) -> dict[str, float]:
    """Return the middle of so many rounds."""
    host, source = server.host(), folder / "source"
    source.write_bytes(os.urandom(megabytes << 20))
    fetches, runs, there, here = [], [], [], []
    await ours(host, folder, "true", 0)  # what is installed there by and by
    for _ in range(rounds):
        fetches.append(await bare(host, source, folder))
        nothing = await ours(host, folder, "true", 0)
        runs.append(await ours(host, folder, f"cat {source}", megabytes << 20) - nothing)
        one, other = await proof(host, source)
        there.append(one)
        here.append(other)
    fetch, collect = statistics.median(fetches), statistics.median(runs)
    proofs = statistics.median(there), statistics.median(here)
    return {
        "bare_mb_per_second": round(megabytes / fetch, 1),
        "collected_mb_per_second": round(megabytes / collect, 1),
        "ratio": round(fetch / collect, 2),
        "proof_there_ms": round(proofs[0] / megabytes * 1000, 2),
        "proof_here_ms": round(proofs[1] / megabytes * 1000, 2),
        "proof_share": round(sum(proofs) / collect, 3),
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--mb", type=int, default=MEGABYTES)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    options = parser.parse_args()
    on_a_server(lambda server, folder: measure(server, folder, options.mb, options.rounds))


if __name__ == "__main__":
    main()
