"""How long a running pipeline still takes: worked out beside it, shown with what else is going on."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from pathlib import Path

import pytest

from datatask import InProcessSyncTask, LogMetadataRepository, Pipeline, Session
from datatask.adapters.cli import progress as foreseeing
from datatask.adapters.cli.progress import Foreseen, Progress, foresee
from datatask.adapters.execute.base.proctable import stat_fields

JOBS, AT_ONCE, SECONDS = 1500, 2, 0.2


def slow() -> tuple[InProcessSyncTask, LogMetadataRepository]:
    """A task that takes its time."""

    async def body(job: str, given: object) -> None:
        await asyncio.sleep(SECONDS)

    task = InProcessSyncTask("slow", LogMetadataRepository("done"), func=body, concurrency=AT_ONCE)
    given = LogMetadataRepository("given")
    task.link("given", given, is_input=True)
    return task, given


async def test_what_is_left_is_told_while_it_runs(tmp_path: Path) -> None:
    """Within a quarter of what it takes at the pace that it had then; nothing before the first run has ended."""
    task, given = slow()
    told: list[tuple[Foreseen, float]] = []
    async with Pipeline([task], Session(), log=tmp_path / "log.db") as pipe:
        for number in range(JOBS):
            await given.dump(f"j{number}", 1)
        began, seen = time.monotonic(), list[tuple[int, float]]()

        def tell(found: Foreseen | None) -> None:
            if found is None:
                return  # its process was not given what it needs: it is asked again
            done, at = next((done, at) for done, at in reversed(seen) if at <= found.at)
            told.append((found, at + (JOBS - done) * (at - began) / done))

        running = asyncio.create_task(pipe.run())
        beside = asyncio.create_task(foresee(tmp_path / "log.db", tell, first=1.0))
        while not told and not running.done() and not beside.done():
            seen.append((len(pipe.state.members("succeeded(slow)")), time.monotonic()))
            await asyncio.sleep(0.02)
        for work in (running, beside):
            work.cancel()
        await asyncio.gather(running, beside, return_exceptions=True)
    found, ends = told[0]
    assert found.least <= found.middle <= found.most
    assert found.at + found.middle == pytest.approx(ends, abs=max(3.0, found.middle / 4))


async def test_nothing_is_told_where_nobody_knows(tmp_path: Path) -> None:
    """No run has ended; and who is called off leaves no process behind."""
    task, given = slow()
    told: list[Foreseen | None] = []
    async with Pipeline([task], Session(), log=tmp_path / "log.db") as pipe:
        await given.dump("j", 1)
        beside = asyncio.create_task(foresee(tmp_path / "log.db", told.append, first=0))
        while not told:
            await asyncio.sleep(0.05)
        beside.cancel()
        again = asyncio.create_task(foresee(tmp_path / "log.db", told.append, first=0))
        await asyncio.sleep(0.3)
        again.cancel()
        await asyncio.gather(beside, again, return_exceptions=True)
        assert told == [None]
        await pipe.run()


async def test_who_is_called_off_takes_its_helpers_along(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A long simulation spreads over processes; none of them outlives the run that it was for."""
    said = tmp_path / "pid"
    script = f"sleep 600 & echo $! > {said}.new; mv {said}.new {said}; wait"
    monkeypatch.setattr(foreseeing, "_command", lambda log: ["sh", "-c", script])
    beside = asyncio.create_task(foresee(tmp_path / "log.db", lambda found: None, first=0))
    while not said.exists():
        await asyncio.sleep(0.02)
    beside.cancel()
    await asyncio.gather(beside, return_exceptions=True)
    while is_going(int(said.read_text())):
        await asyncio.sleep(0.02)


async def test_what_would_take_too_much_memory_is_not_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rather than to take it from the runs."""
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    greedy = f"import sys; sys.stdin.read(); bytearray({total // 4})"
    monkeypatch.setattr(foreseeing, "_command", lambda log: [sys.executable, "-c", greedy])
    found = await foreseeing._simulated(tmp_path / "log.db")
    assert found is None


def is_going(pid: int) -> bool:
    """Whether a process is there and no zombie."""
    fields = stat_fields(pid)
    return fields is not None and fields[0] != "Z"


def test_it_works_a_hundredth_of_the_time_of_a_core() -> None:
    assert foreseeing.rest(0.05) == foreseeing.REST_SECONDS
    assert foreseeing.rest(2.0) == 200.0
    cores = min(os.cpu_count() or 1, foreseeing.REPLICATIONS - 1)
    assert foreseeing.rest(10.0) == 1000.0 * cores


async def test_a_caption_counts_down(monkeypatch: pytest.MonkeyPatch) -> None:
    task, _ = slow()
    async with Pipeline([task], Session(), log="memory:") as pipe:
        progress = Progress(pipe)
        assert "left" not in progress.caption()
        progress.foresee(Foreseen(90.0, 60.0, 120.0, time.monotonic() - 29.5))
        assert progress.caption().endswith("about 1 min left (30 s to 1 min 30 s)")
        progress.foresee(Foreseen(5.0, 5.0, 5.0, time.monotonic() - 30))
        assert "left" not in progress.caption()
        progress.close()
