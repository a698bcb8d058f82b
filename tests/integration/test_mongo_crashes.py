"""Engines that are killed while they write to MongoDB: nothing lost, nothing doubled, nothing left beside."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from datatask import History
from datatask.adapters.history.replay import replay
from tests.effort import by_effort
from tests.mongo_kit import Mongo
from tests.run_kit import until

pytestmark = [pytest.mark.server("secantusd-py"), pytest.mark.slow]

PROGRAM = """
import asyncio, sys
from datatask import InProcessSyncTask, LogMetadataRepository, MongoMetadataRepository, Pipeline, Session

source, target, log = sys.argv[1:]
task = InProcessSyncTask("copy", LogMetadataRepository("done"))
task.link("source", MongoMetadataRepository(source), is_input=True)
task.link("target", MongoMetadataRepository(target), is_output=True)

@task
async def work(job, source, target):
    n = (await source.info(job))["n"]
    await target.dump(job, {"n": n, "large": 2**80} if n % 5 == 0 else {"n": n})

async def main():
    async with Pipeline([task], Session(), [], log=log) as pipeline:
        await pipeline.run()

asyncio.run(main())
"""


async def test_engines_that_are_killed_while_they_write(
    object_store: Callable[[str], Any], tmp_path: Path
) -> None:
    server: Mongo = object_store("secantusd-py")
    source, target = server.collection(), server.collection()
    kills = by_effort(quick=3, thorough=20, soak=200)
    jobs, log = kills * 20, tmp_path / "log.db"
    database, _, collection = source.partition(".")
    with server.client() as client:
        client[database][collection].insert_many([{"_id": f"j{n}", "n": n} for n in range(jobs)])
    command = [
        sys.executable,
        "-c",
        PROGRAM,
        server.address(source),
        server.address(target),
        f"sqlite:///{log}",
    ]
    for kill in range(kills):
        with subprocess.Popen(command) as engine:  # noqa: ASYNC220
            await until(
                lambda enough=kill * 15, engine=engine: (
                    len(server.names(target)) > enough or engine.poll() is not None
                )
            )
            engine.kill()
    done = await asyncio.to_thread(subprocess.run, command, check=False)
    assert done.returncode == 0
    assert sorted(server.names(target)) == sorted(f"j{n}" for n in range(jobs))
    large = [f"j{n}" for n in range(jobs) if n % 5 == 0]
    assert sorted(name.partition("/")[0] for name in server.names(f"{target}.datatask_beside")) == sorted(
        large
    )
    assert server.get(target, "j1") == {"_id": "j1", "n": 1}
    with History(log) as history:
        succeeded = [run["job"] for run in history.runs() if run["state"] == "succeeded"]
    assert sorted(succeeded) == sorted(f"j{n}" for n in range(jobs))
    assert not replay(log).divergences
