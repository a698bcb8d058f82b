"""What docs/executors.md says of executors of others, tried on the real ones.

The same claims for each of them. Those that take seconds to start are for the thorough effort. A cell of the table in the
documentation is what the test of that column has seen.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest

from datatask import (
    ExecutorTask,
    InProcessMetadataRepository,
    LogMetadataRepository,
    Pipeline,
    Retry,
    Session,
    TimeLimitError,
)
from datatask.adapters.execute.functions.pools import Pool
from datatask.engine.ports import Filters
from tests.run_kit import until
from tests.unmeasured import plain_environment

pytestmark = pytest.mark.filterwarnings("ignore")  # theirs, of what they use and leave open

SECONDS = 100
PAGE = Path(__file__).parents[2] / "docs" / "executors.md"
Making = Iterator[Callable[[], Executor]]


@contextlib.contextmanager
def standard(folder: Path) -> Making:
    yield lambda: ProcessPoolExecutor(2, mp_context=get_context("spawn"))


@contextlib.contextmanager
def with_loky(folder: Path) -> Making:
    from loky import get_reusable_executor

    yield lambda: get_reusable_executor(2)
    get_reusable_executor(2).shutdown(kill_workers=True)


@contextlib.contextmanager
def with_pebble(folder: Path) -> Making:
    import pebble

    class PebbleExecutor(Executor):
        def __init__(self, workers: int) -> None:
            self.pool, self._max_workers = pebble.ProcessPool(workers, context=get_context("spawn")), workers

        def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
            future: Future[Any] = self.pool.schedule(fn, args, kwargs)
            return future

        def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
            self.pool.stop()
            self.pool.join()

    yield lambda: PebbleExecutor(2)


@contextlib.contextmanager
def with_executorlib(folder: Path) -> Making:
    from executorlib import SingleNodeExecutor

    yield lambda: SingleNodeExecutor(max_workers=2, block_allocation=True)


@contextlib.contextmanager
def with_parsl(folder: Path) -> Making:
    from parsl import Config
    from parsl.concurrent import ParslPoolExecutor
    from parsl.executors import HighThroughputExecutor
    from parsl.providers import LocalProvider

    path = os.environ["PATH"]
    os.environ["PATH"] = f"{Path(sys.executable).parent}:{path}"  # where its programs are
    local = LocalProvider(init_blocks=1, max_blocks=1)
    workers = HighThroughputExecutor(max_workers_per_node=2, address="127.0.0.1", provider=local)
    executor = ParslPoolExecutor(Config(executors=[workers], run_dir=str(folder / "parsl"), usage_tracking=0))
    try:
        yield lambda: Borrowed(executor)
    finally:
        executor.shutdown(wait=False)
        os.environ["PATH"] = path


@contextlib.contextmanager
def with_ipyparallel(folder: Path) -> Making:
    import ipyparallel

    cluster = ipyparallel.Cluster(n=3, profile_dir=str(folder / "profile"), log_level=40)
    client = cluster.start_and_connect_sync()
    try:
        yield lambda: client.load_balanced_view().executor
    finally:
        cluster.stop_cluster_sync()


@contextlib.contextmanager
def with_distributed(folder: Path) -> Making:
    from distributed import Client, LocalCluster

    with (
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster,
        Client(cluster) as client,
    ):
        yield client.get_executor


def Borrowed(executor: Executor) -> Executor:
    """Return an executor over one that several tests use, which none of them shuts down."""
    lent = object.__new__(type(executor))
    vars(lent).update(vars(executor), shutdown=lambda wait=True: None)
    return lent


LIBRARIES = {
    "ProcessPoolExecutor": standard,
    "loky": with_loky,
    "pebble": with_pebble,
    "executorlib": with_executorlib,
    "distributed": with_distributed,
    "parsl": with_parsl,
    "ipyparallel": with_ipyparallel,
}
QUICK = ("loky",)


@pytest.fixture(
    scope="module",
    params=[
        name if name in QUICK else pytest.param(name, marks=pytest.mark.slow, id=name) for name in LIBRARIES
    ],
)
def library(request: pytest.FixtureRequest) -> str:
    """The library's name, as in the table."""
    return str(request.param)


@pytest.fixture(scope="module")
def maker(library: str, tmp_path_factory: pytest.TempPathFactory) -> Making:
    """What makes an executor of the library with two workers or more; what that needs is there for all tests."""
    with LIBRARIES[library](tmp_path_factory.mktemp(library)) as maker:
        yield maker


def cell(library: str, column: str) -> str:
    """Return what the documentation says."""
    rows = [
        [cell.strip().strip("`") for cell in line.strip("|\n").split("|")]
        for line in PAGE.read_text().splitlines()
        if line.startswith("|")
    ]
    (row,) = [row for row in rows if row[0] == library]
    return row[rows[0].index(column)]


def trying(maker: Callable[[], Executor], body: Callable[..., Any], **more: Any) -> ExecutorTask:
    task = ExecutorTask("t", maker, LogMetadataRepository("done"), func=body, **more)
    task.link("inp", LogMetadataRepository("inp"), is_input=True)
    task.link("out", InProcessMetadataRepository(), is_output=True)
    return task


async def outcomes(task: ExecutorTask, *jobs: str) -> dict[str, list[str]]:
    """Run the jobs; return how the runs of each ended, in order."""
    async with Pipeline([task], Session(), log="memory:") as pipeline:
        for job in jobs:
            await pipeline.put("inp", job, {"job": job})
        await pipeline.run(timeout=SECONDS)
        return await ends(pipeline)


async def ends(pipeline: Pipeline) -> dict[str, list[str]]:
    assert pipeline.log is not None
    found: dict[str, list[str]] = {}
    async for recorded in pipeline.log.read(filters=Filters(kinds=("RunEnded",))):
        event: Any = recorded.event
        found.setdefault(event.job, []).append(event.outcome)
    return found


def noting(folder: Path) -> Callable[[str], int]:
    """Return what notes that a job is begun here, and says how often it was."""

    def note(job: str) -> int:
        with open(folder / job, "a") as file:
            file.write(f"{os.getpid()}\n")
        return len((folder / job).read_text().split())

    return note


async def test_values_travel_and_failures_are_told(maker: Callable[[], Executor]) -> None:
    async def body(job: str, inp: Any, out: Any) -> None:
        if job == "bad":
            raise KeyError("no such thing")
        await out.dump(job, await inp.info(job))

    task = trying(maker, body)
    found = await outcomes(task, "good", "bad")
    assert found == {"good": ["succeeded"], "bad": ["failed"]}
    out: Any = task.links["out"].repo
    assert out.data == {"good": {"job": "good"}}


async def test_the_time_in_a_queue_is_not_counted(library: str, maker: Callable[[], Executor]) -> None:
    """All of them take longer together than each may."""
    executor = maker()
    assert cell(library, "says how many it runs") == ("no" if Pool(executor).slots is None else "yes")
    executor.shutdown()
    jobs = [f"j{number}" for number in range(24)]
    found = await outcomes(trying(maker, lambda job: time.sleep(0.5), timeout=5, grace=0.2), *jobs)
    assert found == {job: ["succeeded"] for job in jobs}


async def test_a_function_whose_time_is_up_ends_or_is_left_behind(
    library: str, maker: Callable[[], Executor], tmp_path: Path
) -> None:
    """It is begun once, whatever the executor does; other jobs succeed."""
    note = noting(tmp_path)

    def body(job: str) -> None:
        note(job)
        time.sleep(8 if job == "long" else 0.1)
        note(f"{job}-survived")

    found = await outcomes(
        trying(maker, body, timeout=2, grace=0.2), "long", *(f"j{number}" for number in range(4))
    )
    assert found.pop("long") == ["timed_out"]
    assert {each[-1] for each in found.values()} == {"succeeded"}
    assert len((tmp_path / "long").read_text().split()) == 1
    pid = int((tmp_path / "long").read_text())
    left = cell(library, "a function whose time is up") == "left behind"
    await until(lambda: (tmp_path / "long-survived").exists() if left else not Path(f"/proc/{pid}").exists())
    assert (tmp_path / "long-survived").exists() == Path(f"/proc/{pid}").exists() == left


async def test_an_async_function_ends_where_it_waits(maker: Callable[[], Executor], tmp_path: Path) -> None:
    note = noting(tmp_path)

    async def body(job: str) -> None:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            note(job)
            raise

    assert await outcomes(trying(maker, body, timeout=0.5, grace=60), "j") == {"j": ["timed_out"]}
    assert (tmp_path / "j").exists()


async def test_what_waits_in_the_executor_is_cancelled(maker: Callable[[], Executor], tmp_path: Path) -> None:
    """Whether it can be taken back or not, it never begins."""
    note, go = noting(tmp_path), tmp_path / "go"

    def body(job: str) -> None:
        note(job)
        while not go.exists():
            time.sleep(0.02)

    task = trying(maker, body, concurrency=12)
    jobs = [f"j{number:02}" for number in range(12)]
    async with Pipeline([task], Session(), log="memory:") as pipeline:
        for job in jobs:
            await pipeline.put("inp", job, {})
        running = asyncio.create_task(pipeline.run(timeout=SECONDS))
        await until(lambda: len(list(tmp_path.glob("j*"))) >= 2)
        await asyncio.sleep(0.5)
        begun = {path.name for path in tmp_path.glob("j*")}
        waiting = [job for job in jobs if job not in begun]
        assert waiting
        for job in waiting:
            await task.cancel(job)
        go.touch()
        await running
        found = await ends(pipeline)
    assert found == {**{job: ["succeeded"] for job in begun}, **{job: ["cancelled"] for job in waiting}}
    assert {path.name for path in tmp_path.glob("j*")} == begun


async def test_a_worker_that_dies_is_lost(maker: Callable[[], Executor], tmp_path: Path) -> None:
    """Whatever the executor calls it, and whether or not it begins the call again; then the task tries again."""
    note = noting(tmp_path)

    def body(job: str) -> None:
        if note(job) == 1 and job == "dies":
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(0.1)

    found = await outcomes(trying(maker, body), "dies", *(f"j{number}" for number in range(4)))
    assert found.pop("dies") == ["lost", "succeeded"]
    assert {each[-1] for each in found.values()} == {"succeeded"}
    assert {outcome for each in found.values() for outcome in each} <= {"lost", "succeeded"}
    assert len((tmp_path / "dies").read_text().split()) == 2


KILLER_SECONDS, CLOSING_SECONDS = 30.0, 30.0


async def test_a_job_that_kills_every_worker_is_given_up_within_its_budget(
    library: str, maker: Callable[[], Executor], tmp_path: Path
) -> None:
    """It takes no other with it for good; where the library starts no new workers, `run` ends in its time all the same."""
    note = noting(tmp_path)

    def body(job: str) -> None:
        note(job)
        if job == "killer":
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(0.05)

    task = trying(maker, body, retry=Retry(infrastructure_attempts=1, backoff=0.01))
    jobs = [f"j{number}" for number in range(8)]
    async with Pipeline([task], Session(), log="memory:") as pipeline:
        for job in ("killer", *jobs):
            await pipeline.put("inp", job, {})
        began = time.monotonic()
        with contextlib.suppress(TimeLimitError):
            await pipeline.run(timeout=KILLER_SECONDS)
        found = await ends(pipeline)
    assert time.monotonic() - began < KILLER_SECONDS + CLOSING_SECONDS
    assert set(found.pop("killer", [])) <= {"lost"}
    assert len((tmp_path / "killer").read_text().split()) <= 2
    assert {outcome for each in found.values() for outcome in each} <= {"lost", "succeeded"}
    if library != "ipyparallel":  # engines that died stay dead
        assert {job: each[-1] for job, each in found.items()} == dict.fromkeys(jobs, "succeeded")


ENGINE = """
import asyncio, os, time
from distributed import Client
from datatask import *
def body(job):
    open({path!r}, "w").write(str(os.getpid()))
    time.sleep(600)
async def main():
    with Client({address!r}) as client:
        task = ExecutorTask("t", client.get_executor(), InProcessMetadataRepository(), func=body)
        task.link("inp", InProcessMetadataRepository({{"j": 1}}), is_input=True)
        async with Pipeline([task], Session(), [], log="memory:") as pipeline:
            await pipeline.run()
asyncio.run(main())
"""


@pytest.mark.slow
async def test_a_worker_that_others_use_outlives_a_killed_engine(tmp_path: Path) -> None:
    """It goes on with what others have in it."""
    from distributed import Client, LocalCluster

    with (
        LocalCluster(n_workers=1, threads_per_worker=2, dashboard_address=None) as cluster,
        Client(cluster) as client,
    ):
        other = client.submit(time.sleep, 3)
        path = tmp_path / "pid"
        program = ENGINE.format(path=str(path), address=cluster.scheduler_address)
        engine = await asyncio.create_subprocess_exec(sys.executable, "-c", program, env=plain_environment())
        await until(lambda: path.exists() and path.read_text())
        engine.kill()
        await engine.wait()
        other.result(SECONDS)
        assert list(client.run(os.getpid).values()) == [int(path.read_text())]
