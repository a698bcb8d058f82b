"""Executors that are away, forget calls, make them twice, or cannot say how much they hold."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Callable
from concurrent.futures import BrokenExecutor, Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import loky
import pytest

from datatask.adapters.execute.functions import executor_runs
from datatask.engine.ports import Filters
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


@pytest.fixture(params=EXECUTORS)
def executor(request: pytest.FixtureRequest) -> Callable[[], Executor]:
    """What makes an executor."""
    return EXECUTORS[request.param]


class Uncancellable(Future[Any]):
    def cancel(self) -> bool:
        raise NotImplementedError("there is no cancel")


class NeverBegins(Executor):
    """An executor whose first machine is still to come."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        return Uncancellable()


async def test_a_cancel_that_raises_stops_nothing_else() -> None:
    """The job that the executor still has is cancelled all the same; it counts no time-out."""
    task = simple(NeverBegins(), lambda job: None, timeout=0.2, grace=0.1)
    done = given(task, "one", "other")
    async with of_pipeline(task) as pipeline:
        running = asyncio.create_task(pipeline.run(timeout=SECONDS))
        async with asyncio.timeout(SECONDS):
            while len([job async for job in task.live]) < 2:
                await asyncio.sleep(0.01)
            await asyncio.sleep(0.5)
            assert not running.done()
            assert done == {}
            for job in ("one", "other"):
                await task.cancel(job)
            await running


class Unsized(Executor):
    """Two worker processes, and not a word about them."""

    def __init__(self) -> None:
        self.pool = ProcessPoolExecutor(2, mp_context=SPAWN)
        self.inside = self.most = 0

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        self.inside += 1
        self.most = max(self.most, self.inside)
        future = self.pool.submit(fn, *args, **kwargs)
        future.add_done_callback(self._left)
        return future

    def _left(self, future: Future[Any]) -> None:
        self.inside -= 1

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        self.pool.shutdown(wait, cancel_futures=cancel_futures)


async def test_a_timeout_does_not_count_the_time_in_an_executor_of_unknown_size() -> None:
    """Eight jobs of a third of the time-out, two at a time; one more than runs is handed over."""
    with Unsized() as executor:
        task = simple(executor, lambda job: time.sleep(0.5), timeout=1.5, grace=0.1)
        done = given(task, *(f"j{n}" for n in range(8)))
        await run(of_pipeline(task))
    assert {entry["result"] for entry in done.values()} == {"success"}
    assert len(done) == 8
    assert executor.most <= 4  # one of them may have ended, of which the executor has not told yet


class Rerunning(Executor):
    """Gives a call whose worker process died to the other one, as clusters do."""

    def __init__(self) -> None:
        self.pools = [self.make(), self.make()]

    def make(self) -> ProcessPoolExecutor:
        return ProcessPoolExecutor(1, mp_context=SPAWN)

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        outer: Future[Any] = Future()
        outer.set_running_or_notify_cancel()
        self._attempt(outer, 0, fn, args)
        return outer

    def _attempt(self, outer: Future[Any], tries: int, fn: Callable[..., Any], args: Any) -> None:
        which = tries % 2
        try:
            inner = self.pools[which].submit(fn, *args)
        except BrokenExecutor:
            self.pools[which] = self.make()
            inner = self.pools[which].submit(fn, *args)

        def over(inner: Future[Any]) -> None:
            error = inner.exception()
            if isinstance(error, BrokenExecutor) and tries < 3:
                self._attempt(outer, tries + 1, fn, args)
            elif error is not None:
                outer.set_exception(error)
            else:
                outer.set_result(inner.result())

        inner.add_done_callback(over)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        for pool in self.pools:
            pool.shutdown(wait, cancel_futures=cancel_futures)


@pytest.mark.parametrize("ends", ["time", "death"])
async def test_a_call_that_is_begun_again_elsewhere_is_not_made(tmp_path: Path, ends: str) -> None:
    """One that was stopped ends so; one whose worker died is lost, and it is the task's to try again."""

    def body(job: str) -> None:
        with open(tmp_path / "begun", "a") as file:
            file.write("x")
        if ends == "death" and len((tmp_path / "begun").read_text()) == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        if ends == "time":
            time.sleep(60)

    with Rerunning() as executor:
        task = simple(executor, body, timeout=2.0, grace=0.1)
        done = given(task, "j")
        async with of_pipeline(task) as pipeline:
            await pipeline.run(timeout=SECONDS)
            assert pipeline.log is not None
            ends_of = [
                recorded.event.outcome  # type: ignore[attr-defined]
                async for recorded in pipeline.log.read(filters=Filters(kinds=("RunEnded",)))
            ]
    assert done["j"]["result"] == ("timeout" if ends == "time" else "success")
    assert ends_of == (["timed_out"] if ends == "time" else ["lost", "succeeded"])
    assert (tmp_path / "begun").read_text() == ("x" if ends == "time" else "xx")


class Forgetful(Rerunning):
    """Says nothing of a call whose worker process died; or believes that it did, and gives the call to the other one."""

    def __init__(self, believes: bool, begun: Path) -> None:
        super().__init__()
        self.believes, self.begun = believes, begun
        self.calls = 0

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        self.calls += 1
        if self.calls > 1:
            return super().submit(fn, *args, **kwargs)
        outer: Future[Any] = Future()
        inner = self.pools[0].submit(fn, *args)
        inner.add_done_callback(lambda inner: inner.exception())

        loop = asyncio.get_running_loop()

        def again() -> None:
            if not self.begun.exists():
                loop.call_later(0.1, again)
                return
            self.pools[1].submit(fn, *args).add_done_callback(lambda inner: outer.set_result(inner.result()))

        if self.believes:
            again()
        return outer


@pytest.mark.parametrize("believes", [True, False])
async def test_a_call_of_which_its_executor_knows_nothing_is_lost(
    tmp_path: Path, believes: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When it is certain that its function has ended: it does not run twice at a time."""
    monkeypatch.setattr(executor_runs, "LOST_SECONDS", 1.0 if not believes else 30.0)

    def body(job: str) -> None:
        with open(tmp_path / "begun", "a") as file:
            file.write(f"{os.getpid()}\n")
        if len((tmp_path / "begun").read_text().split()) == 1:
            if not believes:
                os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(100)
        first = int((tmp_path / "begun").read_text().split()[0])
        assert not Path(f"/proc/{first}/exe").exists()

    with Forgetful(believes, tmp_path / "begun") as executor:
        task = simple(executor, body)
        done = given(task, "j")
        await run(of_pipeline(task))
    assert done["j"]["result"] == "success", done["j"]
    assert len((tmp_path / "begun").read_text().split()) == 2


@pytest.mark.parametrize("harm", ["shut down", "broken"])
async def test_jobs_wait_for_an_executor_that_cannot_be_made_anew(
    harm: str, caplog: pytest.LogCaptureFixture
) -> None:
    """It is told once, with the remedy; the jobs are as they were."""
    executor = loky.ProcessPoolExecutor(1) if harm == "broken" else ThreadPoolExecutor(1)
    if harm == "broken":
        with pytest.raises(BrokenExecutor):
            executor.submit(os.kill, executor.submit(os.getpid).result(), signal.SIGKILL).result(SECONDS)
    executor.shutdown(wait=False)
    task = simple(executor, lambda job: None)
    done = given(task, "one", "other")
    async with of_pipeline(task) as pipeline:
        outcome = await pipeline.run(timeout=SECONDS)
    assert (outcome.failed, outcome.stuck, outcome.exit_code) == (0, {"t: adapter": 2}, 6)
    assert done == {}
    (line,) = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert "pass a function that makes the executor" in line
    assert "\n" not in line


class NoExecutor:
    """Has a `submit`, of another kind."""

    def submit(self, function: Callable[..., Any], timeout: float, /, *args: Any) -> Any:
        return function(*args)


async def test_what_a_maker_returns_is_looked_at_before_it_is_kept() -> None:
    """Each job is refused by the same words, and closing finds nothing to shut down."""
    maker: Any = NoExecutor
    task = simple(maker, lambda job: None)
    done = given(task, "one", "other")
    await run(of_pipeline(task))
    words = {entry["exception"].partition(": ")[2] for entry in done.values()}
    assert len(done) == 2
    assert len(words) == 1
    assert "NoExecutor, which is no executor" in words.pop()


async def test_an_executor_that_is_away_is_waited_for() -> None:
    """A maker that cannot reach its cluster yet uses up no attempt."""
    tries: list[int] = []

    def maker() -> Executor:
        tries.append(1)
        if len(tries) < 3:
            raise ConnectionRefusedError("the scheduler is not there")
        return ThreadPoolExecutor(1)

    task = simple(maker, lambda job: None)
    done = given(task, "one", "other")
    await run(of_pipeline(task))
    assert {entry["result"] for entry in done.values()} == {"success"}


async def test_a_call_that_its_executor_drops_is_lost_and_made_again() -> None:
    """Its owner cancels it."""

    class Drops(ThreadPerCall):
        dropped = 0

        def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
            if self.dropped:
                return super().submit(fn, *args, **kwargs)
            self.dropped = 1
            future: Future[Any] = Future()
            asyncio.get_running_loop().call_later(0.1, future.cancel)
            return future

    task = simple(Drops(), lambda job: None)
    done = given(task, "j")
    await run(of_pipeline(task))
    assert done["j"]["result"] == "success"


class OnALoop(ThreadPerCall):
    """Calls functions inside a running event loop, as ipyparallel's engines do; or inside the engine's own."""

    def __init__(self, own: bool) -> None:
        self.own = own

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        async def called() -> Any:
            return fn(*args, **kwargs)

        if self.own:
            future: Future[Any] = Future()
            future.set_result(fn(*args, **kwargs))
            return future
        return super().submit(lambda: asyncio.run(called()))


@pytest.mark.parametrize("own", [True, False])
async def test_a_running_loop_is_the_engines_or_another(own: bool) -> None:
    """In another one a function has a thread of its own, and may run a loop there."""
    task = simple(OnALoop(own), lambda job: asyncio.run(asyncio.sleep(0)))
    done = given(task, "j")
    await run(of_pipeline(task))
    assert done["j"]["result"] == ("refused" if own else "success")
    if own:
        assert "the engine's event loop" in done["j"]["exception"]
