"""Runs on a real Dask cluster: what they see, what becomes of them when workers, the scheduler or the engine are killed."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from datatask import (
    ExecutorTask,
    History,
    InvalidValueError,
    LogBlobRepository,
    LogMetadataRepository,
    Parameter,
    Pipeline,
    ResourceManager,
    Resources,
    Retry,
    Session,
    identities,
)
from datatask.adapters.execute.functions.dask.holds import Holds
from datatask.adapters.execute.functions.dask.runner import DaskRunner
from datatask.adapters.log.reader import LogReader
from datatask.schema.messages import Adopted, Ended, Started, Unreachable
from tests.crash.harness import engine
from tests.dask_kit import Dask
from tests.run_kit import opened, spec, until


@pytest.fixture
def cluster() -> Iterator[Dask]:
    """A scheduler and two workers with two threads each."""
    started = Dask()
    yield started
    started.close()


def pipeline(folder: Path, cluster: Any, func: Callable[..., Any], **policy: Any) -> Pipeline:
    """Return one task on Dask that reads `docs` and may write `out` and `bytes`."""
    executor = cluster.url if isinstance(cluster, Dask) else cluster
    policy = {"retry": Retry(), **policy}
    task = ExecutorTask("t", executor, LogMetadataRepository("t.done"), func=func, **policy)
    task.link("doc", LogMetadataRepository("docs"), is_input=True)
    task.link("out", LogMetadataRepository("out"), is_output=True, required_for_output=False)
    task.link("data", LogBlobRepository("data"), is_output=True, required_for_output=False)
    return Pipeline([task], Session(), name="p", log=folder / "log.db")


async def done(pipe: Pipeline, jobs: int, seconds: float = 100) -> None:
    """Put so many jobs in and run."""
    async with pipe:
        await put(pipe, jobs)
        await pipe.run(timeout=seconds)


async def put(pipe: Pipeline, jobs: int) -> None:
    """Put so many jobs in."""
    await asyncio.gather(*(pipe.put("t.doc", f"j{number}", {"n": number}) for number in range(jobs)))


def runs(folder: Path) -> list[dict[str, Any]]:
    """Return all runs of the log."""
    with History(folder / "log.db") as history:
        return [dict(run) for run in history.runs()]


def states(folder: Path) -> Counter[str]:
    """Return how many runs are in which state."""
    return Counter(run["state"] for run in runs(folder))


async def nothing_left(cluster: Dask) -> None:
    """Wait until the scheduler knows no task and no lock of ours; what was kept from beginning is barred for half a minute."""
    async with asyncio.timeout(90):
        while await asyncio.to_thread(cluster.left) != ([], []):
            await asyncio.sleep(0.1)


# --- what a run sees ----------------------------------------------------------------------------------


async def test_values_go_with_a_run_and_come_back(cluster: Dask, tmp_path: Path) -> None:
    async def work(job: str, doc: Any, out: Any, data: Any) -> None:
        number = (await doc.info(job))["n"]
        await out.dump(job, {"twice": 2 * number})
        async with data.open(job, "wb") as stream:
            await stream.write(b"x" * number)

    pipe = pipeline(tmp_path, cluster, work)
    async with pipe:
        await put(pipe, 5)
        await pipe.run(timeout=100)
        assert await pipe.tasks["t"].links["out"].repo.info("j4") == {"twice": 8}
        data = pipe.tasks["t"].links["data"].repo
        assert isinstance(data, LogBlobRepository)
        async with data.open("j4", "rb") as stream:
            assert await stream.read() == b"xxxx"
    assert states(tmp_path) == {"succeeded": 5}
    assert {run["where"] for run in runs(tmp_path)} <= {"w0", "w1"}
    await nothing_left(cluster)


async def test_another_jobs_value_is_refused_in_one_line(cluster: Dask, tmp_path: Path) -> None:
    async def work(job: str, doc: Any) -> None:
        await doc.info("j1")

    await done(pipeline(tmp_path, cluster, work), 1)
    assert "a Dask worker has the values of its own job, j0" in runs(tmp_path)[0]["error"]


async def test_what_cannot_be_pickled_does_not_have_to_be(cluster: Dask, tmp_path: Path) -> None:
    class OddError(Exception):
        def __init__(self) -> None:
            super().__init__("odd")
            self.lock = threading.Lock()

    def work(job: str) -> object:
        if job == "j0":
            raise OddError
        return threading.Lock()

    await done(pipeline(tmp_path, cluster, work), 2)
    found = {run["job"]: run for run in runs(tmp_path)}
    assert found["j0"]["state"] == "failed"
    assert "odd" in found["j0"]["error"]
    assert found["j1"]["state"] == "succeeded"


async def test_a_run_goes_where_its_resources_are(cluster: Dask, tmp_path: Path) -> None:
    cluster.start_worker("big", "GPU=1")
    await done(pipeline(tmp_path, cluster, lambda job: None, resources={"GPU": 1}), 6)
    assert {run["where"] for run in runs(tmp_path)} == {"big"}


async def test_a_client_names_its_cluster(cluster: Dask, tmp_path: Path) -> None:
    from distributed import Client

    async with Client(cluster.address, asynchronous=True, set_as_default=False) as client:
        await done(pipeline(tmp_path, client, lambda job: None), 3)
        assert client.status == "running"
    assert states(tmp_path) == {"succeeded": 3}


async def test_a_worker_without_the_package_is_told_in_one_line(tmp_path: Path) -> None:
    cluster = Dask(1, bare=True)
    try:
        await done(pipeline(tmp_path, cluster, lambda job: None), 1)
    finally:
        cluster.close()
    (run,) = runs(tmp_path)
    assert run["state"] == "refused"
    assert "no datatask there" in run["error"]
    assert "\n" not in run["error"]
    assert "1 of 1 workers: tcp://127.0.0.1:" in run["error"]


async def test_time_in_dasks_queue_does_not_count(cluster: Dask, tmp_path: Path) -> None:
    await done(pipeline(tmp_path, cluster, lambda job: time.sleep(0.6), timeout=4.0, grace=0.1), 32)
    assert states(tmp_path) == {"succeeded": 32}


@pytest.mark.parametrize("executor", ["dask://host", "dask://:8786", "dask://host:port"])
def test_an_address_that_names_no_scheduler_is_refused(executor: str) -> None:
    with pytest.raises(InvalidValueError, match="names no scheduler"):
        ExecutorTask("t", executor, LogMetadataRepository("done"))


# --- killed workers and schedulers --------------------------------------------------------------------


async def test_one_killer_among_a_hundred_jobs_takes_none_with_it(tmp_path: Path) -> None:
    """Its workers die with it, as often as it is tried; the others are run again."""
    cluster = Dask(3)

    def work(job: str) -> None:
        if job == "j50":
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(0.02)

    stop = threading.Event()

    def restart() -> None:
        while not stop.wait(0.1):
            for name, pid in list(cluster.workers.items()):
                if not Path(f"/proc/{pid}").exists():
                    cluster.start_worker(name)

    keeper = threading.Thread(target=restart)
    keeper.start()
    try:
        retry = Retry(infrastructure_attempts=3, backoff=0.01)
        await done(pipeline(tmp_path, cluster, work, retry=retry), 100)
        assert (await asyncio.to_thread(cluster.left))[0] == []
    finally:
        stop.set()
        keeper.join()
        cluster.close()
    with History(tmp_path / "log.db") as history:
        state = history.state()
        succeeded, failed = (set(state.members(f"{view}(t)")) for view in ("succeeded", "failed"))
    assert failed == {"j50"}
    assert len(succeeded) == 99
    lost = Counter(run["job"] for run in runs(tmp_path) if run["state"] == "lost")
    assert lost.pop("j50") == 4
    assert set(lost.values()) <= {1}


async def test_dask_begins_nothing_again(cluster: Dask, tmp_path: Path) -> None:
    """A worker dies while it does a run: Dask gives it to the other one, where it is not begun."""
    begun = tmp_path / "begun"

    def work(job: str) -> None:
        with begun.open("a") as file:
            file.write("x")
        time.sleep(60)

    runner = runner_of(cluster, work)
    async with opened(runner) as facts:
        runner.start(spec(1))
        await facts.first(1, Started)
        cluster.kill_worker((await facts.first(1, Started)).where)
        ending = (await facts.end_of(1)).ending
        runner.forget(1)
        await nothing_left(cluster)
    assert ending.outcome == "lost"
    assert ending.error is not None
    assert ending.error.type == "WorkerDied"
    assert begun.read_text() == "x"


async def test_a_restarted_scheduler_has_forgotten_all(cluster: Dask, tmp_path: Path) -> None:
    """What was there is lost, with both schedulers' names as proof; what comes then runs on the new one."""
    runner = runner_of(cluster, lambda job: time.sleep(60 if job == "slow" else 0))
    async with opened(runner) as facts:
        runner.start(spec(1, "slow"))
        started = await facts.first(1, Started)
        for name in list(cluster.workers):
            cluster.kill_worker(name)
        cluster.kill_scheduler()
        await facts.first(1, Unreachable)
        runner.start(spec(2))
        cluster.start_scheduler()
        cluster.start_worker("w9")
        ending = (await facts.end_of(1)).ending
        assert (await facts.end_of(2)).ending.outcome == "succeeded"
    assert ending.outcome == "lost"
    assert ending.error is not None
    assert "was restarted" in ending.error.message
    assert str(started.handle["scheduler"]) in ending.error.message


async def test_a_result_that_went_with_its_worker_is_lost_and_not_made_again(
    cluster: Dask, tmp_path: Path
) -> None:
    """The first engine is gone when the run ends; its result dies with the worker before the next one comes."""
    begun = tmp_path / "begun"

    def work(job: str) -> None:
        with begun.open("a") as file:
            file.write("x")
        time.sleep(1)

    first = runner_of(cluster, work)
    async with opened(first) as facts:
        first.start(spec(1))
        where = (await facts.first(1, Started)).where
    await asyncio.sleep(2)
    cluster.kill_worker(where)
    second = runner_of(cluster, work)
    async with opened(second) as facts:
        await second.recover([spec(1, epoch=1)])
        assert (await facts.end_of(1)).ending.outcome == "lost"
    assert begun.read_text() == "x"


# --- killed engines -----------------------------------------------------------------------------------


def runner_of(cluster: Dask, func: Callable[..., Any]) -> DaskRunner:
    """Return the runner of a task around a function."""
    task = ExecutorTask("t", cluster.url, LogMetadataRepository("done"), func=func)
    assert isinstance(task.runner, DaskRunner)
    return task.runner


async def test_the_next_engine_adopts_what_runs_waits_or_has_ended(cluster: Dask) -> None:
    """And keeps what never came to the scheduler from being begun."""
    first = runner_of(cluster, lambda job: time.sleep(3 if job == "slow" else 0))
    async with opened(first) as facts:
        for run in range(1, 5):
            first.start(spec(run, "slow"))
        for run in range(1, 5):
            await facts.first(run, Started)
        first.start(spec(5, "good"))  # all threads are taken
        await until(
            lambda: (
                spec(5).run in first._runs and next(iter([r for r in first._runs if r.spec.run == 5])).future
            )
        )
    second = runner_of(cluster, lambda job: None)
    async with opened(second) as facts:
        began = time.monotonic()
        await second.recover([spec(1, "slow"), spec(2, "slow"), spec(5), spec(6)])
        assert time.monotonic() - began < 30
        assert [type(fact) for fact in facts.of(1)] == [Adopted]
        assert facts.of(5) == []
        (never,) = facts.of(6)
        assert isinstance(never, Ended)
        assert never.ending.outcome == "lost"
        assert (await facts.end_of(1)).ending.outcome == "succeeded"
        assert (await facts.end_of(5)).ending.outcome == "succeeded"
        for run in (1, 2, 5, 6):
            second.forget(run)


async def test_a_killed_engines_runs_are_done_once(cluster: Dask, tmp_path: Path) -> None:
    """Killed with runs that run and runs that wait in Dask's queue, which goes on without it."""
    effects = tmp_path / "effects"
    effects.mkdir()

    def work(job: str, out: Any) -> Any:
        with (effects / job).open("a") as file:
            file.write("x")
        time.sleep(0.3)
        return out.dump(job, {"done": True})

    async with pipeline(tmp_path, cluster, work) as pipe:
        await put(pipe, 24)
    pid = engine(tmp_path, lambda folder: pipeline(folder, cluster, work))
    await until(lambda: len(list(effects.iterdir())) > 2)
    os.killpg(pid, signal.SIGKILL)
    await asyncio.to_thread(os.waitpid, pid, 0)
    await until(lambda: len(list(effects.iterdir())) == 24)
    async with pipeline(tmp_path, cluster, work) as pipe:
        await pipe.run(timeout=100)
    assert states(tmp_path) == {"succeeded": 24}
    assert {path.read_text() for path in effects.iterdir()} == {"x"}
    await nothing_left(cluster)


ADOPTED_SECONDS = 10.0


async def test_the_next_engine_sweeps_and_adopts_when_it_opens(cluster: Dask, tmp_path: Path) -> None:
    """It launches nothing: what one that was killed had not let go of goes, of a task that is gone too; what runs is adopted soon."""

    def work(job: str) -> None:
        time.sleep(60 if job == "slow" else 0)

    def gone(job: str) -> None:
        """The task whose runs nobody adopts."""

    def both(folder: Path) -> Pipeline:
        pipe = pipeline(folder, cluster, work)
        other = ExecutorTask("gone", cluster.url, LogMetadataRepository("gone.done"), func=gone)
        other.link("doc", pipe.tasks["t"].links["doc"].repo, is_input=True)
        return Pipeline([pipe.tasks["t"], other], Session(), name="p", log=folder / "log.db")

    def never_lets_go(folder: Path) -> Pipeline:
        async def let_go(self: Holds, client: Any) -> None:
            self.gone.clear()

        Holds.let_go = let_go  # type: ignore[method-assign] # in the process that is killed
        return both(folder)

    async with both(tmp_path) as pipe:
        await put(pipe, 3)
        await pipe.put("t.doc", "slow", {})
    pid = engine(tmp_path, never_lets_go)
    await until(lambda: states(tmp_path) == {"succeeded": 7, "running": 1})
    os.killpg(pid, signal.SIGKILL)
    await asyncio.to_thread(os.waitpid, pid, 0)
    assert len((await asyncio.to_thread(cluster.left))[0]) == 8

    def adopted() -> int:
        with LogReader(tmp_path / "log.db") as reader:
            return sum(type(one.event).__name__ == "RunAdopted" for one in reader.read(0))

    alone = pipeline(tmp_path, cluster, work)
    alone.accepted = {"gone.done"}
    async with alone:
        began = time.monotonic()
        await until(adopted)
        assert time.monotonic() - began < ADOPTED_SECONDS
        async with asyncio.timeout(90):
            while len(left := (await asyncio.to_thread(cluster.left))[0]) > 1:
                await asyncio.sleep(0.1)
        assert left[0].startswith("t-")
        assert states(tmp_path) == {"succeeded": 7, "running": 1}


async def test_a_task_with_another_name_finds_its_runs(cluster: Dask) -> None:
    """A run is known by its identity, whatever its task was called when it was handed over."""
    first = runner_of(cluster, lambda job: time.sleep(2))
    async with opened(first) as facts:
        first.start(spec(1))
        await facts.first(1, Started)
    second = runner_of(cluster, lambda job: None)
    async with opened(second) as facts:
        await second.recover([spec(1)._replace(task="renamed")])
        assert [type(fact) for fact in facts.of(1)] == [Adopted]
        assert (await facts.end_of(1)).ending.outcome == "succeeded"
        second.forget(1)
        await nothing_left(cluster)


async def test_what_waits_in_dask_is_handed_back_and_what_runs_goes_on(cluster: Dask) -> None:
    """As at the first Ctrl-C: all that is not known to have begun is to be stopped."""
    runner = runner_of(cluster, lambda job: time.sleep(1.5))
    async with opened(runner) as facts:
        for run in range(1, 5):
            runner.start(spec(run))
        for run in range(1, 5):
            await facts.first(run, Started)
        for run in range(5, 8):
            runner.start(spec(run))
        await asyncio.sleep(0.2)
        held = list(runner.hold_back())
        assert held == [5, 6, 7]
        for run in held:
            runner.stop(run, "shutdown", 10**9)
        outcomes = [(await facts.end_of(run)).ending.outcome for run in range(1, 8)]
        assert outcomes == ["succeeded"] * 4 + ["cancelled"] * 3
        assert not [fact for run in held for fact in facts.of(run, Started)]


async def test_a_function_that_cannot_be_stopped_is_left_behind(cluster: Dask) -> None:
    """No worker's process is ended: it may do the work of others."""
    runner = runner_of(cluster, lambda job: time.sleep(2))
    async with opened(runner) as facts:
        runner.start(spec(1))
        await facts.first(1, Started)
        runner.stop(1, "timeout", 10**8)
        ending = (await facts.end_of(1)).ending
    assert ending.outcome == "timed_out"
    assert ending.error is not None
    assert "fenced off" in ending.error.message
    assert all(Path(f"/proc/{pid}").exists() for pid in cluster.workers.values())


async def test_runs_have_their_own_cards(tmp_path: Path, cluster: Dask) -> None:
    """Told by `identities`; two at a time, and none twice."""
    box = ResourceManager(Resources.parse(64, "64GiB", gpu=["a", "b"]))

    async def func(job: str, out: Any) -> None:
        await asyncio.sleep(0.1)
        await out.dump(job, list(identities("gpu")))

    one = Resources.parse(1, 1, gpu=1)
    pipe = pipeline(tmp_path, cluster, func, resource_manager=box, resources=one)
    await done(pipe, 4)
    given = [run["identities"]["gpu"] for run in runs(tmp_path)]
    assert {tuple(own) for own in given} == {("a",), ("b",)}
    with History(tmp_path / "log.db") as history:
        written = history.query("SELECT value FROM values_now WHERE repository = 'out'")
        assert sorted(json.loads(row["value"]) for row in written) == sorted(given)


async def test_parameters_reach_functions_on_workers(tmp_path: Path, cluster: Dask) -> None:
    """By name, with the value that was given; a worker sees neither the variable nor the file that declares it."""
    factor = Parameter("factor", 2)
    factor.give("5")

    async def func(job: str, doc: Any, out: Any, factor: int) -> None:
        await out.dump(job, {"n": factor * (await doc.info(job))["n"]})

    task = ExecutorTask("t", cluster.url, LogMetadataRepository("t.done"), func=func)
    out = LogMetadataRepository("out")
    task.link("doc", LogMetadataRepository("docs"), is_input=True)
    task.link("out", out, is_output=True)
    pipe = Pipeline([task], Session(), name="p", log=tmp_path / "log.db", parameters=[factor])
    async with pipe:
        await put(pipe, 3)
        assert (await pipe.run(timeout=100)).exit_code == 0
        assert await out.info_all() == {f"j{number}": {"n": 5 * number} for number in range(3)}
