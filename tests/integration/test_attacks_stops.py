"""What was decided to stop is stopped, whoever dies between the decision and the signal."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from datatask import (
    InProcessMetadataRepository,
    LocalLinuxManager,
    LogMetadataRepository,
    Pipeline,
    ProcessTask,
    ResourceManager,
    Resources,
    Session,
)

STUBBORN = "#!/bin/sh\ntrap '' TERM\ntouch started\nfor i in $(seq 300); do sleep 0.1; done\n"

DIES = """
import asyncio, os, sys
sys.path.insert(0, {root!r})
from pathlib import Path
from datatask.adapters.execute.local.manager import LocalRunner
from tests.integration.test_attacks_stops import pipeline
LocalRunner.stop = lambda *arguments: os._exit(9)
async def main():
    opened, _ = pipeline(Path({path!r}))
    async with opened:
        await opened.run(timeout=100)
asyncio.run(main())
"""


def pipeline(path: Path) -> tuple[Pipeline, ProcessTask]:
    """Return a pipeline of one process that does not heed TERM, with a short timeout."""
    session = Session()

    @session.resource
    async def manager() -> Any:
        yield LocalLinuxManager("app", path)

    task = ProcessTask(
        "t",
        manager,
        ResourceManager(Resources.parse(1, "1Gi")),
        Resources.parse(1, "1Gi"),
        LogMetadataRepository("pids"),
        STUBBORN,
        done=LogMetadataRepository("done"),
        timeout=0.5,
        grace=1.0,
    )
    task.link("inp", InProcessMetadataRepository({"j": 1}, name="inp"), is_input=True)
    return Pipeline([task], session, [], log=path / "log.db"), task


async def ends_by_its_timeout(path: Path) -> None:
    """Run it; the job must be over long before its script would be."""
    opened, task = pipeline(path)
    began = time.monotonic()
    async with opened:
        await opened.run(timeout=100)
        assert task.done is not None
        done = await task.done.info("j")
    assert done["timeout"] is True
    assert time.monotonic() - began < 15


async def test_a_stop_that_an_engine_did_not_live_to_send_is_sent_by_the_next(tmp_path: Path) -> None:
    """`StopDecided` is durable, the engine dies, the process goes on."""
    root = str(Path(__file__).parents[2])
    program = DIES.format(root=root, path=str(tmp_path))
    died = await asyncio.to_thread(subprocess.run, [sys.executable, "-c", program], timeout=100, check=False)
    assert died.returncode == 9
    await ends_by_its_timeout(tmp_path)


async def test_a_launcher_that_dies_within_the_grace_is_told_again(tmp_path: Path) -> None:
    """TERM was sent, the launcher that was to send KILL is gone."""

    def kill_launcher() -> None:
        lock = tmp_path / "app" / "launcher.lock"
        while not list(tmp_path.glob("app/*/*/cwd/started")):
            time.sleep(0.05)
        time.sleep(0.8)
        os.kill(int(lock.read_text()), signal.SIGKILL)

    killer = threading.Thread(target=kill_launcher, daemon=True)
    killer.start()
    await ends_by_its_timeout(tmp_path)
    assert not killer.is_alive()
