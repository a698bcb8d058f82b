"""Any programs that read and write a few keys at once leave what some order of them, one after another, leaves.

A job's program is a list of steps: wait, read a key, or add its name to a key that it has read. Each job that has
succeeded is in each key that it writes exactly once; of two that write two keys the same one is first in both.
"""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from itertools import combinations
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from datatask import (
    ExecutorTask,
    InProcessMetadataRepository,
    InProcessSyncTask,
    LogMetadataRepository,
    Pipeline,
    Retry,
    Session,
    YamlMetadataFileRepository,
)

KEYS = ("a", "b")
STORES = ("log", "process", "files")
places = st.tuples(st.sampled_from(STORES), st.sampled_from(KEYS))
steps = st.one_of(
    st.integers(0, 4),
    st.tuples(st.sampled_from(("read", "add", "look", "fail")), places),
)
programs = st.lists(st.lists(steps, max_size=6), min_size=2, max_size=6)


class Program:
    """What the runs of a job do; one that fails does so in its first attempt, before it adds: what it wrote would stand."""

    def __init__(self, steps: list[Any]) -> None:
        self.steps = steps
        self.failures = 0

    async def run(self, job: str, stores: dict[str, Any]) -> None:
        """Take the steps."""
        added = False
        for number, step in enumerate(self.steps):
            if isinstance(step, int):
                await asyncio.sleep(step / 2000)
                continue
            what, (place, key) = step
            store = stores[place]
            if what == "look":
                await store.contains(key)
            elif what == "fail" and self.failures < 1 and not added:
                self.failures += 1
                raise ValueError("in its first attempt")
            elif what == "read":
                await store.info(key) if await store.contains(key) else None
            elif what == "add":
                added = True
                old = (await store.info(key))["jobs"] if await store.contains(key) else []
                await store.dump(key, {"jobs": [*old, f"{job}.{number}"]})

    def added(self) -> dict[tuple[str, str], list[int]]:
        """Return which steps add to which place."""
        found: dict[tuple[str, str], list[int]] = {}
        for number, step in enumerate(self.steps):
            if not isinstance(step, int) and step[0] == "add":
                found.setdefault(step[1], []).append(number)
        return found


async def left_by(all_of_them: list[Program], how: str, folder: Path) -> dict[tuple[str, str], list[str]]:
    """Run the programs at once, and return what is in each place."""
    stores: dict[str, Any] = {
        "log": LogMetadataRepository("log"),
        "process": InProcessMetadataRepository(name="process"),
        "files": YamlMetadataFileRepository(folder, name="files"),
    }
    jobs, done = LogMetadataRepository("jobs"), LogMetadataRepository("done")
    retry = Retry(attempts=2, backoff=0.001)

    async def func(job: str, log: Any, process: Any, files: Any) -> None:
        await all_of_them[int(job[1:])].run(job, {"log": log, "process": process, "files": files})

    task: Any = (
        InProcessSyncTask("t", done, func=func, retry=retry)
        if how == "loop"
        else ExecutorTask("t", lambda: ThreadPoolExecutor(4), done, func=func, retry=retry)
    )
    task.link("jobs", jobs, is_input=True)
    for name, store in stores.items():
        task.link(name, store, is_output=True)
    async with Pipeline([task], Session(), log="memory:") as pipeline:
        for number in range(len(all_of_them)):
            await jobs.dump(f"j{number}", {})
        await asyncio.wait_for(pipeline.run(), 60)
        assert not [job async for job in task.failed]
        return {
            (place, key): (await store.info(key))["jobs"]
            for place, store in stores.items()
            for key in KEYS
            if await store.contains(key)
        }


@settings(max_examples=settings().max_examples // 2)
@given(plans=programs, how=st.sampled_from(("loop", "threads")))
def test_what_programs_leave_some_order_of_them_leaves(plans: list[list[Any]], how: str) -> None:
    """Each update once, and in one order wherever two jobs meet."""
    all_of_them = [Program(plan) for plan in plans]
    with TemporaryDirectory() as folder:
        left = asyncio.run(left_by(all_of_them, how, Path(folder)))
    expected: dict[tuple[str, str], list[str]] = {}
    for job, program in enumerate(all_of_them):
        for place, numbers in program.added().items():
            expected.setdefault(place, []).extend(f"j{job}.{number}" for number in numbers)
    assert {place: sorted(names) for place, names in left.items()} == {
        place: sorted(names) for place, names in expected.items()
    }
    orders = [list(dict.fromkeys(name.partition(".")[0] for name in names)) for names in left.values()]
    for one, other in combinations(orders, 2):
        assert [job for job in one if job in other] == [job for job in other if job in one]
