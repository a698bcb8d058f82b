"""What is slow makes others wait, and nothing grows meanwhile: disks, stores, launchers, readers."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from datatask import (
    InProcessSyncTask,
    LocalLinuxManager,
    LogMetadataRepository,
    MetadataRepository,
    Pipeline,
    ProcessTask,
    ResourceManager,
    Resources,
    Session,
)
from datatask.engine.runtime.performing import CALLS_MAX
from datatask.schema import messages as r
from datatask.schema.errors import StoreError, TemporaryError
from tests.integration.cli_kit import Project
from tests.unmeasured import plain_environment

PUTS = 2_000
PATIENCE_SECONDS = 60
OTHER_TASKS = 20
"""What an idle engine may have under way beside the calls of stores."""


class Slow(MetadataRepository):
    """A store of the user's own that takes its time, or is away."""

    def __init__(self, name: str, seconds: float = 0.001) -> None:
        super().__init__(name=name)
        self.documents: dict[str, Any] = {}
        self.seconds = seconds
        self.away = False
        self.harm: BaseException | None = None
        self.at_once = self.most_at_once = 0

    async def unfiltered_iter(self) -> AsyncIterator[str]:
        for job in list(self.documents):
            yield job

    async def info(self, job: str) -> Any:
        return self.documents.get(job)

    async def dump(self, job: str, data: Any) -> None:
        if self.away:
            raise TemporaryError("the store is away", where=str(self))
        if self.harm is not None:
            raise self.harm
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        await asyncio.sleep(self.seconds)
        self.documents[job] = data
        self.at_once -= 1

    async def delete(self, job: str) -> None:
        await asyncio.sleep(self.seconds)
        self.documents.pop(job, None)


def over(log: Path | str, *sources: Slow) -> Pipeline:
    """Return a pipeline that has these stores, and nothing to do."""

    async def nothing(job: str) -> None:
        pass

    task = InProcessSyncTask("task", LogMetadataRepository("done"), func=nothing)
    task.link("never", LogMetadataRepository("never"), is_input=True)
    for source in sources:
        task.link(str(source.name), source, required_for_start=False)
    return Pipeline([task], Session(), log=log)


def put_all(repository: str, count: int) -> r.PutValues:
    items = tuple(r.Item(job=f"j{number}", value=msgspec.Raw(b"%d" % number)) for number in range(count))
    return r.PutValues(id="put", actor="somebody", repository=repository, items=items)


async def test_a_thousand_values_for_a_slow_store_are_no_thousand_coroutines(tmp_path: Path) -> None:
    """As many calls as may be are under way; the rest waits, and all arrive."""
    slow = Slow("slow")
    async with over(tmp_path / "log.db", slow) as pipe:
        under_way = asyncio.create_task(pipe.request(put_all("slow", PUTS)))
        most = 0
        while not under_way.done():
            most = max(most, len(asyncio.all_tasks()))
            await asyncio.sleep(0.002)
        assert (await under_way).refusal is None
        assert slow.most_at_once == CALLS_MAX
        assert most < CALLS_MAX + OTHER_TASKS
        assert len(slow.documents) == len(pipe.state.members("slow")) == PUTS


async def test_a_store_that_is_away_holds_up_no_other(tmp_path: Path) -> None:
    """More writes wait for it than may be under way; another store is written at once, and its own when it is back."""
    away, well = Slow("away"), Slow("well")
    away.away = True
    async with over(tmp_path / "log.db", away, well) as pipe:
        waiting = asyncio.create_task(pipe.request(put_all("away", 3 * CALLS_MAX)))
        await asyncio.sleep(0.05)
        await asyncio.wait_for(pipe.put("well", "j", 1), PATIENCE_SECONDS)
        assert well.documents == {"j": 1}
        assert not waiting.done()
        away.away = False
        await asyncio.wait_for(waiting, PATIENCE_SECONDS)
        assert len(away.documents) == 3 * CALLS_MAX


@pytest.mark.parametrize("harm", [SystemExit(3), asyncio.CancelledError(), OSError("no")], ids=repr)
async def test_a_store_that_raises_anything_fails_that_write_and_takes_the_next(
    tmp_path: Path, harm: BaseException
) -> None:
    """More often than it has hands, and nobody waits for ever."""
    bad = Slow("bad", seconds=0)
    bad.harm = harm
    async with over(tmp_path / "log.db", bad) as pipe:
        reply = await asyncio.wait_for(pipe.request(put_all("bad", 2 * CALLS_MAX)), PATIENCE_SECONDS)
        assert reply.refusal is not None
        assert "not written: bad[j" in reply.refusal.what
        assert reply.refusal.what.endswith(f"; and {2 * CALLS_MAX - 3} more")
        assert pipe.state.members("bad") == []
        with pytest.raises(StoreError, match=r"not written: bad\[one\]"):
            await pipe.put("bad", "one", 1)
        bad.harm = None
        await asyncio.wait_for(pipe.put("bad", "good", 1), PATIENCE_SECONDS)
        assert bad.documents == {"good": 1}


async def test_writes_to_one_job_reach_a_slow_store_in_their_order(tmp_path: Path) -> None:
    """Though many are under way at once."""
    slow = Slow("slow")
    async with over(tmp_path / "log.db", slow) as pipe:
        await asyncio.gather(
            *(pipe.put("slow", f"j{number % 7}", number) for number in range(200)),
            pipe.put("slow", "j0", "last"),
        )
        expected = {f"j{rest}": max(n for n in range(200) if n % 7 == rest) for rest in range(7)}
        assert slow.documents == {**expected, "j0": "last"}


async def test_a_disk_that_stands_still_stops_the_launches_and_nothing_piles_up(tmp_path: Path) -> None:
    """Somebody else locks the file for a while: what waits is bounded by the runs in flight."""
    ran = 0

    async def count(job: str) -> None:
        nonlocal ran
        ran += 1

    log = tmp_path / "log.db"
    task = InProcessSyncTask("task", LogMetadataRepository("done"), func=count, concurrency=50)
    task.link("inp", LogMetadataRepository("inp"), is_input=True)
    async with Pipeline([task], Session(), log=log) as pipe:
        await pipe.request(put_all("inp", 1_000))
        other = sqlite3.connect(log, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        running = asyncio.create_task(pipe.run(timeout=PATIENCE_SECONDS))
        most = 0
        for _ in range(100):
            await asyncio.sleep(0.01)
            most = max(most, pipe.state.position - pipe.runtime.log.head)
        assert ran <= 50
        assert 50 <= most <= 4 * 50
        other.execute("ROLLBACK")
        other.close()
        outcome = await running
        assert outcome.failed == 0
        assert ran == 1_000


async def test_a_launcher_that_is_stopped_is_asked_no_more_than_the_quota(tmp_path: Path) -> None:
    """SIGSTOP and SIGCONT: the runs in flight wait, the others stay in the ready queue, each runs once."""
    manager = LocalLinuxManager("app", tmp_path)
    task = ProcessTask(
        "task", manager, ResourceManager(Resources.parse(10, 10)), Resources.parse(1, 1),
        LogMetadataRepository("pids"), f"echo {{{{ job }}}} >> {tmp_path}/effects", done=LogMetadataRepository("done"),
    )  # fmt: skip
    task.link("inp", LogMetadataRepository("inp"), is_input=True)
    async with Pipeline([task], Session(), log=tmp_path / "log.db") as pipe:
        await pipe.put("inp", "first", 0)
        await pipe.run(timeout=PATIENCE_SECONDS)
        pid = int((manager.basedir / "launcher.lock").read_text())
        await pipe.request(put_all("inp", 100))
        os.kill(pid, signal.SIGSTOP)
        try:
            running = asyncio.create_task(pipe.run(timeout=PATIENCE_SECONDS))
            await asyncio.sleep(1)
            assert len(pipe.state.open_runs) == 10
        finally:
            os.kill(pid, signal.SIGCONT)
        assert (await running).failed == 0
    lines = (tmp_path / "effects").read_text().split()
    assert sorted(lines) == sorted(["first", *(f"j{number}" for number in range(100))])


def test_a_follower_that_nobody_reads_keeps_nothing_and_holds_up_nobody(tmp_path: Path) -> None:
    """`log --follow` into a full pipe while thousands of events are written."""
    project = Project(tmp_path)
    lines = "".join(f'{{"job": "j{number}", "n": {number}}}\n' for number in range(400))
    (tmp_path / "jobs.jsonl").write_text(lines)
    project.ok("run")
    with subprocess.Popen(
        [sys.executable, "-m", "datatask", "log", "--follow", "--json"],
        cwd=tmp_path, stdout=subprocess.PIPE, env=plain_environment(),
    ) as follower:  # fmt: skip
        try:
            assert follower.stdout is not None
            while b'"EngineClosed"' not in follower.stdout.readline():
                pass
            before = _resident(follower.pid)
            project.ok("inject", "double.numbers", "--from", "jobs.jsonl")
            project.ok("run")
            time.sleep(0.5)
            assert _resident(follower.pid) - before < 16 << 20
            told, closed = 0, 0
            while closed < 2:  # the one that took the values in, and the one that ran
                closed += b'"EngineClosed"' in follower.stdout.readline()
                told += 1
            assert told > 2_000
        finally:
            follower.kill()


def _resident(pid: int) -> int:
    """Return the memory of a process in bytes."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")
