"""A batch that does not get into the log is the last one: whatever raises at whatever line, no later one takes its place."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

import datatask
from datatask.adapters.log.integrity.verify import verify_chain
from datatask.adapters.log.reader import LogReader
from datatask.engine.core.effects import Outbox
from datatask.engine.core.state import State
from datatask.schema.errors import DatataskError, LogDamagedError, SystemTroubleError
from datatask.schema.events import RunStarted, TaskPaused
from tests.integration.sqlite_kit import opened, put

FILES = ("/log/tail.py", "/log/sqlite.py", "/log/writer.py")


class Line:
    """Raises at the n-th line that is executed in `FILES`, on this thread."""

    def __init__(self, number: int, error: type[BaseException]) -> None:
        self.left = number
        self.error = error

    def __call__(self, frame: FrameType, event: str, argument: Any) -> Any:
        """Trace the frames of these files."""
        if not frame.f_code.co_filename.endswith(FILES):
            return None
        if event == "line" and self.left > 0:
            self.left -= 1
            if self.left == 0:
                raise self.error("for a test")
        return self

    @contextlib.contextmanager
    def traced(self) -> Iterator[None]:
        """Trace what is done here."""
        before = sys.gettrace()
        sys.settrace(self)
        try:
            yield
        finally:
            sys.settrace(before)


@pytest.mark.parametrize("error", [MemoryError, TypeError])
async def test_an_append_that_fails_at_any_line_leaves_no_hole(
    tmp_path: Path, error: type[BaseException]
) -> None:
    raised = 0
    while True:
        path = tmp_path / f"{raised}.db"
        log = await opened(path, durability="process")
        await log.append([put("before")])
        line = Line(raised + 1, error)
        with line.traced(), contextlib.suppress(error, DatataskError):
            log.enqueue([put("new", "another"), put("newer", "other")])
        with contextlib.suppress(error, DatataskError):
            await log.append([put("after", "third"), TaskPaused(at=0, task="new")])
        with contextlib.suppress(DatataskError):
            await log.close()
        with LogReader(path) as reader:
            assert verify_chain(reader) is None, f"line {raised + 1}"
            jobs = [event.job for batch in reader.batches() for event in batch.events]
        assert jobs[1:] in (
            ["before"],
            ["before", "after", None],
            ["before", "new", "newer"],
            ["before", "new", "newer", "after", None],
        )
        if line.left:
            break
        raised += 1
    assert raised > 20


def test_a_state_that_was_folded_in_part_goes_nowhere() -> None:
    outbox = Outbox(State())
    with pytest.raises(LogDamagedError):
        outbox.emit([RunStarted(at=1, run=7, task="t", job="j")])
    with pytest.raises(LogDamagedError):
        outbox.take()


async def test_the_end_of_a_run_that_is_not_taken_stops_the_engine() -> None:
    """Its runner tells it once: the run would be open for as long as the engine is up."""
    session = datatask.Session()
    numbers = datatask.InProcessMetadataRepository()
    task = datatask.InProcessSyncTask("t", datatask.InProcessMetadataRepository())
    task.link("numbers", numbers, is_input=True)

    @task
    async def work(job: str) -> None:
        pass

    def line(frame: FrameType, event: str, argument: Any) -> Any:
        if event == "line":
            raise MemoryError
        return line

    def trace(frame: FrameType, event: str, argument: Any) -> Any:
        return line if frame.f_code.co_name == "judged" else None

    before = sys.gettrace()
    async with datatask.Pipeline([task], session, []) as pipeline:
        await numbers.dump("j", {})
        sys.settrace(trace)
        try:
            with pytest.raises(SystemTroubleError, match="no memory is left"):
                await asyncio.wait_for(pipeline.run(), 100)
        finally:
            sys.settrace(before)
