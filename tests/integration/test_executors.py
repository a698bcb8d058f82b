"""Functions in threads and worker processes, in whole pipelines: values travel, trouble is contained."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from datatask import (
    ExecutorTask,
    FileRepository,
    InProcessBlobRepository,
    InProcessMetadataRepository,
    LogMetadataRepository,
    Retry,
)
from datatask.engine.ports import Filters
from datatask.schema.errors import CallerError
from tests.integration.executor_kit import (
    EXECUTORS,
    SECONDS,
    SPAWN,
    ThreadPerCall,
    given,
    of_pipeline,
    run,
    simple,
)
from tests.machine import command_of


@pytest.fixture(params=EXECUTORS)
def executor(request: pytest.FixtureRequest) -> Callable[[], Executor]:
    """What makes an executor."""
    return EXECUTORS[request.param]


async def test_values_travel_both_ways(executor: Callable[[], Executor], tmp_path: Path) -> None:
    """Through this process, the log and files; a run sees its own writes before anybody else does."""
    inp, out = InProcessMetadataRepository({"j": {"n": 1}}), LogMetadataRepository()
    blobs, files = InProcessBlobRepository({"j": b"bytes"}), FileRepository(tmp_path / "files")
    task = ExecutorTask("t", executor, InProcessMetadataRepository())
    task.link("inp", inp, is_input=True)
    task.link("out", out, is_output=True)
    task.link("blobs", blobs)
    task.link("files", files, is_output=True)

    @task
    async def body(job: str, inp: Any, out: Any, blobs: Any, files: Any) -> None:
        document = await inp.info(job)
        async with await blobs.open(job, "rb") as stream:
            document["bytes"] = (await stream.read()).decode()
        document["members"] = [each async for each in inp]
        document["absent"] = await out.contains(job)
        await out.dump(job, document)
        document["present"] = await out.contains(job)
        document["again"] = await out.info(job)
        await out.dump(job, document)
        async with await blobs.open("large", "wb") as stream:
            await stream.write(b"x" * 3_000_000)
        async with await files.open(job, "w") as stream:
            await stream.write("in a file")

    async with of_pipeline(task) as pipeline:
        await pipeline.run(timeout=SECONDS)
        done = await task.done.info("j")
        assert done["result"] == "success", done
        found = await out.info("j")
        async with await files.open("j", "r") as stream:
            assert await stream.read() == "in a file"
    again = found.pop("again")
    assert found == {"n": 1, "bytes": "bytes", "members": ["j"], "absent": False, "present": True}
    assert again == {key: value for key, value in found.items() if key != "present"}
    assert len(blobs.data["large"]) == 3_000_000


async def test_plain_functions_do(executor: Callable[[], Executor]) -> None:
    """A function need not be async; what it raises is told as in its own process."""

    def body(job: str) -> None:
        if job == "bad":
            raise KeyError("no such thing")

    task = simple(executor, body)
    done = given(task, "good", "bad")
    await run(of_pipeline(task))
    assert (done["good"]["result"], done["good"]["success"]) == ("success", True)
    assert (done["bad"]["result"], done["bad"]["success"]) == ("exception", False)
    assert done["bad"]["exception"] == "KeyError('no such thing')"
    assert "in body" in "".join(done["bad"]["traceback"])


async def test_closures_may_hold_repositories(executor: Callable[[], Executor]) -> None:
    """A function refers to a repository of the pipeline that is not its parameter."""
    other = InProcessMetadataRepository()

    async def body(job: str) -> None:
        await other.dump(job, "from inside")

    task = simple(executor, body)
    task.link("other", other)
    done = given(task, "j")
    await run(of_pipeline(task))
    assert done["j"]["result"] == "success", done["j"]
    assert other.data == {"j": "from inside"}


async def test_a_job_that_kills_its_worker_fails_alone(tmp_path: Path) -> None:
    """The innocent succeed after one loss at most; the culprit uses up the infrastructure's budget."""

    def body(job: str) -> None:
        with open(tmp_path / job, "a") as file:
            file.write("x")
        if job == "killer":
            os._exit(9)
        time.sleep(0.05)

    task = simple(ProcessPoolExecutor(3, mp_context=SPAWN), body)
    done = given(task, "killer", *[f"good{n}" for n in range(6)])
    await run(of_pipeline(task))
    assert {job: entry["result"] for job, entry in done.items()} == {
        "killer": "lost",
        **{f"good{n}": "success" for n in range(6)},
    }
    assert "worker process of the pool died" in done["killer"]["exception"]
    assert len((tmp_path / "killer").read_text()) == 6
    assert all(len((tmp_path / f"good{n}").read_text()) <= 2 for n in range(6))


async def test_a_worker_process_is_killed_at_its_timeout() -> None:
    """Others of the pool that are lost with it run again, and use up nothing of the user's budget."""

    def body(job: str) -> None:
        time.sleep(60 if job == "slow" else 1.0)

    maker = EXECUTORS["spawned"]
    task = simple(maker, body, timeout=5.0, grace=0.2)
    done = given(task, "slow", "quick")
    began = time.monotonic()
    await run(of_pipeline(task))
    assert time.monotonic() - began < 30
    assert (done["slow"]["result"], done["quick"]["result"]) == ("timeout", "success")


async def test_a_thread_that_cannot_be_stopped_is_left_behind() -> None:
    """Its run ends, its slot is replaced, its later writes are refused."""
    release, late = threading.Event(), list[BaseException]()

    def body(job: str, out: Any) -> None:
        if job == "stuck":
            release.wait(60)
            try:
                asyncio.run(out.dump(job, "too late"))
            except BaseException as error:
                late.append(error)
        else:
            asyncio.run(out.dump(job, "in time"))

    with ThreadPoolExecutor(1) as executor:
        task = simple(executor, body, timeout=0.3, grace=0.1)
        done = given(task, "stuck", "waiting")
        await run(of_pipeline(task))
        assert (done["stuck"]["result"], done["waiting"]["result"]) == ("timeout", "success")
        out: Any = task.links["out"].repo
        assert out.data == {"waiting": "in time"}
        release.set()
    assert "fenced off" in str(late[0])


async def test_an_async_function_is_cancelled_where_it_waits(executor: Callable[[], Executor]) -> None:
    """In a worker process too, well before anything is killed."""

    async def body(job: str) -> None:
        await asyncio.sleep(60)

    task = simple(executor, body, timeout=1.0, grace=20.0)
    done = given(task, "j")
    began = time.monotonic()
    await run(of_pipeline(task))
    assert time.monotonic() - began < 15
    assert done["j"]["result"] == "timeout"


async def test_cancel_and_live(executor: Callable[[], Executor]) -> None:
    """`live` lists the run; `cancel` ends it."""

    async def body(job: str) -> None:
        await asyncio.sleep(60)

    task = simple(executor, body)
    done = given(task, "j")
    async with of_pipeline(task) as pipeline:
        running = asyncio.create_task(pipeline.run(timeout=SECONDS))
        async with asyncio.timeout(SECONDS):
            while [job async for job in task.live] != ["j"]:
                await asyncio.sleep(0.01)
            await asyncio.sleep(0.5)
            await task.cancel("j")
            await running
        assert [job async for job in task.live] == []
        assert pipeline.log is not None
        ends = pipeline.log.read(filters=Filters(kinds=("RunEnded",)))
        assert [recorded.event.outcome async for recorded in ends] == ["cancelled"]  # type: ignore[attr-defined]
    assert "j" not in done


async def test_failures_are_retried_in_executors(executor: Callable[[], Executor], tmp_path: Path) -> None:
    """The policy is the engine's; the second attempt is another call."""

    def body(job: str) -> None:
        with open(tmp_path / "tries", "a") as file:
            file.write("x")
        if len((tmp_path / "tries").read_text()) < 2:
            raise OSError("not yet")

    task = simple(executor, body, retry=Retry(3, backoff=0.01))
    done = given(task, "j")
    await run(of_pipeline(task))
    assert done["j"]["result"] == "success"
    assert (tmp_path / "tries").read_text() == "xx"


async def test_two_tasks_share_an_executor() -> None:
    """One thread, two tasks, joined by plug: as pydatatask's own test has it."""
    done1, done2 = InProcessMetadataRepository(), InProcessMetadataRepository()
    middle, out = InProcessMetadataRepository(), InProcessMetadataRepository()
    inp = InProcessMetadataRepository({str(n): "weh" for n in range(20)})
    with ThreadPoolExecutor(1) as executor:
        first = ExecutorTask("first", executor, done1)
        first.link("inp", inp, is_input=True)
        first.link("out", middle, is_output=True)

        @first
        async def ask(job: str, inp: Any, out: Any) -> None:
            await out.dump(job, await inp.info(job) + "!")

        second = ExecutorTask("second", executor, done2)
        second.plug(first)
        second.link("result", out, is_output=True)

        @second
        async def shout(job: str, out: Any, result: Any) -> None:
            await result.dump(job, await out.info(job) + "?")

        await run(of_pipeline(first, second))
    assert out.data == {str(n): "weh!?" for n in range(20)}


async def test_what_cannot_be_sent_is_refused_by_name() -> None:
    """A lock in a closure cannot travel."""
    lock = threading.Lock()

    def body(job: str) -> None:
        with lock:
            pass

    task = simple(EXECUTORS["spawned"], body)
    done = given(task, "j")
    await run(of_pipeline(task))
    assert done["j"]["result"] == "refused"
    assert "t[j]" in done["j"]["exception"]
    assert "cannot be sent to another process" in done["j"]["exception"]


async def test_workers_end_with_a_killed_engine(tmp_path: Path) -> None:
    """What a worker still did would be done twice; one that waits for its first call must not wait for ever."""
    program = f"""
import asyncio, time, sys
from concurrent.futures import ProcessPoolExecutor
from datatask import *
def body(job):
    import os
    open({str(tmp_path / "pid")!r}, "w").write(str(os.getpid()))
    time.sleep(60)
async def main():
    task = ExecutorTask("t", lambda: ProcessPoolExecutor(2), InProcessMetadataRepository(), func=body)
    task.link("inp", InProcessMetadataRepository({{"j": 1}}), is_input=True)
    async with Pipeline([task], Session(), [], log="memory:") as pipeline:
        await pipeline.run()
if __name__ == "__main__":
    asyncio.run(main())
"""
    (tmp_path / "engine.py").write_text(program)
    engine = await asyncio.create_subprocess_exec(sys.executable, str(tmp_path / "engine.py"))
    async with asyncio.timeout(SECONDS):
        while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text():
            await asyncio.sleep(0.02)
        engine.kill()
        await engine.wait()
        program_of = f"{tmp_path}/engine.py".encode()
        while any(program_of in line for line in map(command_of, Path("/proc").glob("[0-9]*"))):
            await asyncio.sleep(0.02)


async def test_a_program_that_ends_without_closing_ends_without_a_word(tmp_path: Path) -> None:
    """Its closing may have been cut."""
    program = f"""
import asyncio
from concurrent.futures import ProcessPoolExecutor
from datatask import *
def body(job):
    pass
async def main():
    task = ExecutorTask("t", lambda: ProcessPoolExecutor(1), InProcessMetadataRepository(), func=body)
    task.link("inp", InProcessMetadataRepository({{"j": 1}}), is_input=True)
    pipeline = Pipeline([task], Session(), [], log={str(tmp_path / "log.db")!r})
    await pipeline.open()
    await pipeline.run()
    print("ran", flush=True)
if __name__ == "__main__":
    asyncio.run(main())
"""
    (tmp_path / "cut.py").write_text(program)
    engine = await asyncio.create_subprocess_exec(
        sys.executable, str(tmp_path / "cut.py"), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    told = await asyncio.wait_for(engine.communicate(), SECONDS)
    assert told == (b"ran\n", b"")


async def test_a_connection_that_says_nothing_holds_up_no_worker() -> None:
    """Whoever can open the folder may connect; without the key that is all."""
    silent = socket.socket(socket.AF_UNIX)
    connected = threading.Event()

    class Disturbed(ThreadPerCall):
        def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
            if not connected.is_set():
                silent.connect(f"{args[0].gateway.folder}/socket")
                connected.set()
            return super().submit(fn, *args, **kwargs)

    task = simple(Disturbed(), lambda job: None)
    done = given(task, "j")
    with silent:
        await run(of_pipeline(task))
    assert connected.is_set()
    assert done["j"]["result"] == "success"


def test_only_executors_and_what_makes_them() -> None:
    """Anything else is the caller's mistake."""
    with pytest.raises(CallerError, match="no executor"):
        ExecutorTask("t", 7, InProcessMetadataRepository())
