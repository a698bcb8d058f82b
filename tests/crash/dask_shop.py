"""A pipeline whose functions run on Dask, and what kills its engines, workers and scheduler: a third thing that gets killed.

Each call appends its run to `effects/JOB.TASK`. The cluster's address stands in `cluster`.
"""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import Any

from datatask import (
    ExecutorTask,
    InProcessSyncTask,
    LogMetadataRepository,
    Pipeline,
    Retry,
    Session,
    YamlMetadataFileRepository,
)
from datatask.adapters.history.history import History
from tests.crash.harness import VERIFY_EVERY, engine, finish, load, verified
from tests.dask_kit import Dask

WORKERS = 2
SHARES = {"engine": 6, "worker": 3, "scheduler": 1}
PAUSES = (0.0, 0.15)
WRITES = (0, 1, 2, 4, 8, 12)
"""So often the log is written between two kills, however busy the machine is."""
PROGRESS_SECONDS = 60


def on_dask(folder: Path) -> Pipeline:
    """Return the pipeline over a folder that was laid out: squares, halves of them, and a copy made on the loop."""

    def note(task: str, job: str) -> None:
        from datatask.engine.run_context import current_run

        context = current_run.get()
        assert context is not None
        with (folder / "effects" / f"{job}.{task}").open("a") as file:
            file.write(f"{context.run}\n")

    def square(job: str, given: Any, squared: Any) -> Any:
        note("square", job)
        time.sleep(0.05)

        async def write() -> None:
            await squared.dump(job, {"n": (await given.info(job))["n"] ** 2})

        return write()

    async def half(job: str, squared: Any, halved: Any) -> None:
        note("half", job)
        if job == "j5":
            raise ValueError("unlucky")
        await halved.dump(job, {"n": (await squared.info(job))["n"] / 2})

    async def on_the_loop(job: str, halved: Any, told: Any) -> None:
        await told.dump(job, await halved.info(job))

    cluster = (folder / "cluster").read_text()
    again = Retry(infrastructure_attempts=100, backoff=0.01)
    given, squared = YamlMetadataFileRepository(folder / "in", name="in"), LogMetadataRepository("squared")
    halved, told = LogMetadataRepository("halved"), LogMetadataRepository("told")
    first = ExecutorTask("square", cluster, LogMetadataRepository("square.done"), func=square, retry=again)
    first.link("given", given, is_input=True)
    first.link("squared", squared, is_output=True)
    second = ExecutorTask("half", cluster, LogMetadataRepository("half.done"), func=half, retry=again)
    second.plug(first, require_success=True)
    second.link("halved", halved, is_output=True)
    third = InProcessSyncTask("tell", LogMetadataRepository("tell.done"), func=on_the_loop, retry=again)
    third.plug(second, require_success=True)
    third.link("told", told, is_output=True)
    return Pipeline([first, second, third], Session(), log=folder / "log.db", name="shop")


def lay_out(folder: Path, jobs: int) -> None:
    """Make the folder and the inputs."""
    for name in ("effects", "in"):
        (folder / name).mkdir(parents=True)
    for number in range(jobs):
        (folder / "in" / f"j{number}.yaml").write_text(f"n: {number}\n")


def undisturbed(folder: Path) -> list[str]:
    """Let one engine work on a cluster that nobody kills."""
    load()
    return _on(folder, lambda cluster: [])


def kill_at_random(folder: Path, kills: int, seed: int) -> list[str]:
    """Kill so many engines, workers and schedulers, then let an engine finish; return what was wrong."""
    load()
    return _on(folder, lambda cluster: _killed(folder, cluster, kills, Random(seed)))


def _on(folder: Path, life: Any) -> list[str]:
    cluster = Dask(WORKERS)
    (folder / "cluster").write_text(cluster.url)
    try:
        found: list[str] = life(cluster)
        # The engine that begins a run of a task lets go of what killed ones have left of it.
        (folder / "in" / "last.yaml").write_text("n: 7\n")
        code = finish(folder, on_dask)
        left = cluster.left()[0]
    finally:
        cluster.close()
    found += verified(folder)
    found += [f"left at the scheduler: {left}"] if left else []
    return found + ([f"the last engine ended with {code}"] if code else [])


def _killed(folder: Path, cluster: Dask, kills: int, random: Random) -> list[str]:
    found: list[str] = []
    lives = engine(folder, on_dask)
    for number in range(kills):
        if not _writes(folder, random.choice(WRITES), lives):
            return [*found, f"all was done after {number} kills: lay out more jobs"]
        time.sleep(random.uniform(*PAUSES))
        what = random.choices(list(SHARES), list(SHARES.values()))[0]
        if what == "engine":
            with suppress(ProcessLookupError):
                os.killpg(lives, signal.SIGKILL)
            os.waitpid(lives, 0)
            lives = engine(folder, on_dask)
        elif what == "worker":
            name = random.choice(list(cluster.workers))
            cluster.kill_worker(name)
            cluster.start_worker(name)
        else:
            cluster.kill_scheduler()
            for name in list(cluster.workers):
                cluster.kill_worker(name)
            cluster.start_scheduler()
            for worker in range(WORKERS):
                cluster.start_worker(f"w{worker}")
        with (folder / "kills").open("a") as file:
            file.write(f"{what}\n")
        if what == "engine" and number % VERIFY_EVERY == 0:
            found += verified(folder)
    with suppress(ProcessLookupError):
        os.killpg(lives, signal.SIGKILL)
    os.waitpid(lives, 0)
    return found


def _writes(folder: Path, writes: int, lives: int) -> bool:
    """Wait until the engine has written to the log: what was killed before it did, was no engine yet. False where it ended."""
    until, before = time.monotonic() + PROGRESS_SECONDS, _written(folder)
    while writes and time.monotonic() < until:
        time.sleep(0.003)
        if os.waitid(os.P_PID, lives, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None:
            return False
        if (now := _written(folder)) != before:
            writes, before = writes - 1, now
    if writes:
        raise TimeoutError(f"no engine wrote for {PROGRESS_SECONDS} s")
    return True


def _written(folder: Path) -> int:
    with suppress(FileNotFoundError):
        return (folder / "log.db-wal").stat().st_mtime_ns
    return 0


def begun(folder: Path) -> Counter[str]:
    """Return how often each run's function was called."""
    return Counter(
        f"{path.suffix[1:]} {line}"
        for path in (folder / "effects").iterdir()
        for line in path.read_text().splitlines()
    )


def ends(folder: Path) -> Counter[tuple[str, str]]:
    """Return how many runs of each task and job have an end that counts."""
    with History(folder / "log.db") as history:
        return Counter(
            (run["task"], run["job"]) for run in history.runs() if run["state"] in ("succeeded", "failed")
        )
