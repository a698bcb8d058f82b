"""What functions can do wrong, what happens to a pipeline that is killed, and that nothing is lost by either."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from datatask import (
    InProcessMetadataRepository,
    InProcessSyncTask,
    LeaseHeldError,
    LogMetadataRepository,
    Pipeline,
    Repository,
    Retry,
    Session,
)
from datatask.adapters.log.reader import LogReader
from datatask.schema import events as e

SECONDS = 100


@pytest.fixture(params=["memory", "sqlite"])
def log(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Where the log is."""
    return "memory:" if request.param == "memory" else str(tmp_path / "log.db")


def failing(names: dict[str, Any], **options: Any) -> tuple[InProcessSyncTask, InProcessMetadataRepository]:
    source = InProcessMetadataRepository(names)
    made = InProcessSyncTask("failing", LogMetadataRepository("done"), **options)
    made.link("inp", source, is_input=True)
    made.link("out", LogMetadataRepository("out"), is_output=True, required_for_output=False)
    return made, source


def pipeline(task: Any, log: str) -> Pipeline:
    return Pipeline([task], Session(), [], log=log, durability="process")


async def jobs(repository: Repository) -> set[str]:
    return {job async for job in repository}


class OddError(Exception):
    """Whose text and representation fail, too."""

    def __str__(self) -> str:
        raise RuntimeError("no text")

    __repr__ = __str__


async def do_harm(what: str, inp: Any) -> None:
    match what:
        case "raise":
            raise ValueError("a plain error\nof two lines \udcff")
        case "odd":
            raise OddError
        case "exit":
            sys.exit(3)
        case "cancel":
            raise asyncio.CancelledError
        case "group":
            raise ExceptionGroup("several", [ValueError("one"), OSError("two")])
        case "huge":
            raise ValueError("x" * 10_000_000)
        case "recursion":
            await do_harm(what, inp)
        case "stop":
            raise StopAsyncIteration
        case "assert":
            assert not what, what


HARM = ["raise", "odd", "exit", "cancel", "group", "huge", "recursion", "stop", "assert"]


async def test_whatever_a_function_raises_ends_its_run_and_nothing_else(log: str) -> None:
    task, _ = failing({**dict.fromkeys(HARM, 1), "good": 1})

    @task
    async def body(job: str, inp: Any, out: Any) -> None:
        await out.dump(job, "half")
        await do_harm(job, inp)

    async with pipeline(task, log) as pipe:
        outcome = await pipe.run(timeout=SECONDS)
        assert outcome.failed == len(HARM)
        assert outcome.exit_code == 1
        assert await jobs(task.succeeded) == {"good"}
        done = await task.done.info_all()
        assert {job for job, entry in done.items() if not entry["success"]} == set(HARM)
        assert all(done[job]["result"] == "exception" for job in HARM)
        assert done["raise"]["exception"].startswith("ValueError('a plain error")
        assert any("do_harm" in line for line in done["raise"]["traceback"])
        assert "SystemExit" in done["exit"]["exception"]
        assert len(done["huge"]["exception"]) < 10_000


async def test_what_a_failed_run_wrote_stays(log: str) -> None:
    task, _ = failing({"a": 1})

    @task
    async def body(job: str, out: Any) -> None:
        await out.dump(job, "half")
        raise ValueError

    async with pipeline(task, log) as pipe:
        await pipe.run(timeout=SECONDS)
        assert await jobs(task.output["out"]) == {"a"}


@pytest.mark.parametrize("stubborn", [False, True])
async def test_a_function_that_hangs_is_stopped_at_its_timeout(log: str, stubborn: bool) -> None:
    task, _ = failing({"hangs": 1, "good": 1}, timeout=0.2, grace=0.1)
    over = asyncio.Event()

    @task
    async def body(job: str, out: Any) -> None:
        if job == "hangs":
            for _ in range(20 if stubborn else 1):
                try:
                    await asyncio.sleep(10 if not stubborn else 0.05)
                except asyncio.CancelledError:
                    if not stubborn:
                        raise
            try:
                await out.dump(job, "too late")
            finally:
                over.set()

    async with pipeline(task, log) as pipe:
        began = time.monotonic()
        outcome = await pipe.run(timeout=SECONDS)
        assert 0.2 <= time.monotonic() - began < 5
        assert outcome.failed == 1
        entry = await task.done.info("hangs")
        assert (entry["result"], entry["success"]) == ("timeout", False)
        if stubborn:
            await asyncio.wait_for(over.wait(), SECONDS)
        assert not await task.output["out"].contains("hangs"), "what it writes later is fenced off"


async def test_a_function_may_delete_its_own_input(log: str) -> None:
    task, source = failing({"a": 1, "b": 2})

    @task
    async def body(job: str, inp: Any, out: Any) -> None:
        value = await inp.info(job)
        await inp.delete(job)
        await out.dump(job, value)

    async with pipeline(task, log) as pipe:
        assert (await pipe.run(timeout=SECONDS)).exit_code == 0
        assert source.data == {}
        assert await task.output["out"].info_all() == {"a": 1, "b": 2}
        await pipe.put(source, "a", 3)
        await pipe.run(timeout=SECONDS)
        assert await task.output["out"].info("a") == 1, "done entries hold the job back"


async def test_a_function_may_print_and_start_threads(log: str, capsys: pytest.CaptureFixture[str]) -> None:
    task, _ = failing({"a": 1})

    @task
    async def body(job: str, out: Any) -> None:
        print("from the function")
        results: list[int] = []
        threads = [threading.Thread(target=results.append, args=(n,)) for n in range(8)]
        for thread in threads:
            thread.start()
        await asyncio.gather(*(asyncio.to_thread(thread.join) for thread in threads))
        await out.dump(job, sorted(results))

    async with pipeline(task, log) as pipe:
        assert (await pipe.run(timeout=SECONDS)).exit_code == 0
        assert await task.output["out"].info("a") == list(range(8))
    assert "from the function" in capsys.readouterr().out


async def test_a_value_that_is_no_data_fails_its_run(log: str) -> None:
    task, _ = failing({"a": 1})

    @task
    async def body(job: str, out: Any) -> None:
        await out.dump(job, object())

    async with pipeline(task, log) as pipe:
        assert (await pipe.run(timeout=SECONDS)).failed == 1
        assert not await task.output["out"].contains("a")


# --- retries ----------------------------------------------------------------------------------------


async def test_a_failed_run_is_tried_again_after_its_backoff(log: str) -> None:
    task, _ = failing({"a": 1, "never": 1}, retry=Retry(attempts=3, backoff=(0.05, 2.0, 1.0), jitter=0.0))
    tries: Counter[str] = Counter()
    times: list[float] = []

    @task
    async def body(job: str) -> None:
        tries[job] += 1
        if job == "a":
            times.append(time.monotonic())
        if job == "never" or tries[job] < 3:
            raise ValueError(f"try {tries[job]}")

    async with pipeline(task, log) as pipe:
        decided: list[e.LaunchDecided] = []
        pipe.subscribe(
            lambda batch: decided.extend(x for x in batch.events if isinstance(x, e.LaunchDecided))
        )
        outcome = await pipe.run(timeout=SECONDS)
        assert outcome.failed == 1
        assert tries == {"a": 3, "never": 3}
        assert [each.attempt for each in decided if each.job == "a"] == [1, 2, 3]
        assert {each.episode for each in decided} == {1}
        assert times[1] - times[0] >= 0.05
        assert times[2] - times[1] >= 0.1
        assert (await task.done.info("a"))["success"] is True
        assert "try 3" in (await task.done.info("never"))["exception"]


async def test_timeouts_are_retried_only_when_the_policy_says_so(log: str) -> None:
    task, _ = failing({"a": 1}, retry=Retry(attempts=5, backoff=0.0, on=("failed",)), timeout=0.05)
    tries = 0

    @task
    async def body() -> None:
        nonlocal tries
        tries += 1
        await asyncio.sleep(10)

    async with pipeline(task, log) as pipe:
        assert (await pipe.run(timeout=SECONDS)).failed == 1
    assert tries == 1


# --- crashes ----------------------------------------------------------------------------------------

PROGRAM = """
import asyncio, sys
from pathlib import Path
from datatask import InProcessSyncTask, LogMetadataRepository, Pipeline, Session

folder = Path(sys.argv[1])
COUNT = 150
repos = [LogMetadataRepository(f"stage{n}") for n in range(4)]
tasks = []
for n in range(3):
    task = InProcessSyncTask(f"t{n}", LogMetadataRepository(f"done{n}"), concurrency=5)
    task.link("inp", repos[n], is_input=True)
    task.link("out", repos[n + 1], is_output=True)

    @task
    async def body(job, inp, out):
        await asyncio.sleep(0.002)
        await out.dump(job, (await inp.info(job)) + 1)

    tasks.append(task)

async def main():
    async with Pipeline(tasks, Session(), [], log=folder / "log.db", durability="process") as pipe:
        if not await repos[0].contains("j0"):
            await asyncio.gather(*(pipe.put(repos[0], f"j{n}", n) for n in reversed(range(COUNT))))
        (folder / "ready").touch()
        outcome = await pipe.run(timeout=60)
        assert await repos[3].info_all() == {f"j{n}": n + 3 for n in range(COUNT)}
        return outcome.exit_code

sys.exit(asyncio.run(main()))
"""


def start(folder: Path) -> subprocess.Popen[bytes]:
    (folder / "ready").unlink(missing_ok=True)
    return subprocess.Popen([sys.executable, "-c", PROGRAM, str(folder)])


def test_a_killed_pipeline_goes_on_and_ends_where_an_undisturbed_one_ends(tmp_path: Path) -> None:
    for kill in range(5):
        process = start(tmp_path)
        try:
            deadline = time.monotonic() + SECONDS
            while not (tmp_path / "ready").exists() and process.poll() is None:
                assert time.monotonic() < deadline
                time.sleep(0.005)
            time.sleep(0.03 + 0.04 * kill)
        finally:
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
    assert start(tmp_path).wait(60) == 0
    assert ended_runs(tmp_path / "log.db") == {(f"t{n}", f"j{j}"): 1 for n in range(3) for j in range(150)}


def ended_runs(path: Path) -> Counter[tuple[str, str]]:
    """Return how many runs succeeded, by task and job; each decided run must have exactly one end."""
    counts: Counter[tuple[str, str]] = Counter()
    decided: set[int] = set()
    ended: Counter[int] = Counter()
    with LogReader(path) as reader:
        for batch in reader.batches():
            for position, event in enumerate(batch.events, batch.first):
                if isinstance(event, e.LaunchDecided):
                    decided.add(position)
                elif isinstance(event, e.RunEnded):
                    ended[event.run or 0] += 1
                    counts[event.task or "", event.job or ""] += event.outcome == "succeeded"
    assert ended == dict.fromkeys(decided, 1)
    return counts


async def test_a_log_has_one_engine_at_a_time(tmp_path: Path) -> None:
    first, _ = failing({})
    second, _ = failing({})
    path = str(tmp_path / "log.db")
    for task in (first, second):
        task.func = do_nothing
    async with pipeline(first, path):
        with pytest.raises(LeaseHeldError):
            async with pipeline(second, path):
                pass
    third, _ = failing({})
    third.func = do_nothing
    async with pipeline(third, path):
        pass


async def do_nothing() -> None:
    """Succeed."""


async def test_a_filter_may_do_harm_too(log: str) -> None:
    task, _ = failing({})
    source = InProcessMetadataRepository({**dict.fromkeys(HARM, 1), "good": 1})

    async def choose(job: str) -> bool:
        await do_harm(job, None)
        return True

    task.link("chosen", source.map(lambda value: value, choose), required_for_start=True)
    task.links["inp"].required_for_start = False
    task.func = do_nothing
    async with pipeline(task, log) as pipe:
        outcome = await pipe.run(timeout=SECONDS)
        assert await jobs(task.succeeded) == {"good"}
        assert sum(outcome.stuck.values()) == len(HARM)
