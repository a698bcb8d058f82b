"""A pipeline as users use it: tasks of functions, over a log in memory and one in a file."""

from __future__ import annotations

import asyncio
import datetime as dt
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from datatask import (
    InProcessMetadataRepository,
    InProcessSyncTask,
    LogBlobRepository,
    Pipeline,
    Repository,
    ResourceManager,
    Resources,
    Session,
    Task,
    UnknownNameError,
)
from tests.integration.pipeline_kit import SECONDS, content, documents, jobs, pipeline, task

Body = Callable[..., Awaitable[Any]]


@pytest.fixture(params=["memory", "sqlite"])
def log(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Where the log is."""
    return "memory:" if request.param == "memory" else str(tmp_path / "log.db")


# --- stages -----------------------------------------------------------------------------------------


async def test_a_hundred_jobs_go_through_three_stages(log: str) -> None:
    given = {f"job{n}": {"n": n, "when": dt.datetime(2024, 1, 1, tzinfo=dt.UTC)} for n in range(100)}
    repos: list[Any] = [InProcessMetadataRepository(dict(given)), *(documents(f"stage{n}") for n in range(3))]
    tasks = [task(f"t{n}", repos[n], repos[n + 1]) for n in range(3)]
    async with pipeline(*tasks, log=log) as pipe:
        outcome = await pipe.run(timeout=SECONDS)
        assert (outcome.failed, outcome.stuck, outcome.exit_code) == (0, {}, 0)
        assert await content(repos[3]) == given
        done = await content(tasks[0].done)
        assert done.keys() == given.keys()
        assert done["job7"].keys() == {"result", "start_time", "end_time", "success"}
        assert done["job7"]["result"] == "success"
        assert done["job7"]["success"] is True
        assert done["job7"]["end_time"] >= done["job7"]["start_time"]
        assert done["job7"]["start_time"].tzinfo is not None


async def test_what_a_run_wrote_is_seen_whole_or_not_at_all(log: str) -> None:
    source, first, second = InProcessMetadataRepository({"a": 1}), documents("first"), documents("second")
    both = task("both", source)
    both.link("first", first, is_output=True)
    both.link("second", second, is_output=True)
    seen: list[tuple[bool, bool]] = []
    go_on = asyncio.Event()

    @both
    async def body(job: str, first: Any, second: Any) -> None:
        await first.dump(job, 1)
        assert await first.info(job) == 1, "a run sees its own writes"
        go_on.set()
        await asyncio.sleep(0.01)
        await second.dump(job, 2)

    async with pipeline(both, log=log) as pipe:
        pipe.subscribe(
            lambda _: seen.append((pipe.state.contains("first", "a"), pipe.state.contains("second", "a")))
        )
        running = asyncio.create_task(pipe.run(timeout=SECONDS))
        await go_on.wait()
        assert not await first.contains("a")
        await running
        assert await first.info("a") == 1
        assert await second.info("a") == 2
        assert (True, False) not in seen
        assert (False, True) not in seen


async def test_jobs_put_from_outside_are_run(log: str) -> None:
    source, blobs, target = documents("in"), LogBlobRepository("blobs"), documents("out")
    reading = task("reading", source, target)
    reading.link("blobs", blobs, is_input=True)

    @reading
    async def body(job: str, inp: Any, blobs: Any, out: Any) -> None:
        async with blobs.open(job) as stream:
            await out.dump(job, [await inp.info(job), await stream.read()])

    async with pipeline(reading, log=log) as pipe:
        await pipe.put(source, "a", {"n": 1})
        await pipe.put("reading.blobs", "a", "text")
        await pipe.put("blobs", "b", b"bytes only: not ready")
        await pipe.run(timeout=SECONDS)
        assert await content(target) == {"a": [{"n": 1}, "text"]}
        with pytest.raises(UnknownNameError, match="nowhere"):
            await pipe.put("nowhere", "a", 1)


async def test_values_of_any_size_go_through(log: str) -> None:
    source, target = documents("in"), documents("out")
    large = {"text": "x" * 300_000}
    async with pipeline(task("t", source, target), log=log) as pipe:
        await pipe.put(source, "large", large)
        await pipe.put(source, "small", 0)
        await pipe.run(timeout=SECONDS)
        assert await content(target) == {"large": large, "small": 0}


# --- plug, translators, filters ---------------------------------------------------------------------


@pytest.mark.parametrize("require_success", [False, True])
async def test_a_failure_goes_downstream_unless_success_is_required(log: str, require_success: bool) -> None:
    source, middle, target = (
        InProcessMetadataRepository({"good": 1, "bad": 2}),
        documents("mid"),
        documents("out"),
    )
    first = task("first", source)
    first.link("mid", middle, is_output=True, required_for_output=False)
    second = InProcessSyncTask("second", documents("second.done"))
    second.plug(first, output_links=[], require_success=require_success)
    second.link("out", target, is_output=True)

    @first
    async def half(job: str, mid: Any) -> None:
        await mid.dump(job, 1)
        if job == "bad":
            raise ValueError("half-way")

    @second
    async def body(job: str, out: Any) -> None:
        await out.dump(job, "seen")

    async with pipeline(first, second, log=log) as pipe:
        outcome = await pipe.run(timeout=SECONDS)
        assert outcome.failed == 1
        assert await jobs(target) == ({"good"} if require_success else {"good", "bad"})


async def test_a_plug_through_a_translator_stands_for_the_other_job(log: str) -> None:
    source, sizes = InProcessMetadataRepository({"cat": 3, "dog": 4}), documents("sizes")
    owner_of, greeting = documents("pet_of"), documents("greeting")
    measure = task("measure", source, sizes)
    greet = InProcessSyncTask("greet", documents("greet.done"))
    greet.plug(measure, translator=owner_of)
    greet.link("greeting", greeting, is_output=True)

    @greet
    async def body(job: str, out: Any, greeting: Any) -> None:
        await greeting.dump(job, await out.info(job))

    async with pipeline(measure, greet, log=log) as pipe:
        await pipe.put(owner_of, "ann", "cat")
        await pipe.put(owner_of, "bob", "bird")
        await pipe.run(timeout=SECONDS)
        assert await content(greeting) == {"ann": 3}
        await pipe.put(owner_of, "cid", "dog")  # a translation that comes later is seen
        await pipe.run(timeout=SECONDS)
        assert await content(greeting) == {"ann": 3, "cid": 4}


async def test_a_translation_can_read_what_was_written_a_moment_ago(tmp_path: Path) -> None:
    source = InProcessMetadataRepository({f"j{n}": n for n in range(200)})
    texts, target = LogBlobRepository("texts"), documents("out")
    write = task("write", source)
    write.link("texts", texts, is_output=True)

    @write
    async def body(job: str, texts: Any) -> None:
        async with texts.open(job, "w") as stream:
            await stream.write(f"j{int(job[1:]) // 2}")

    read = InProcessSyncTask("read", documents("read.done"))
    read.plug(write, translator=texts.map(lambda path: Path(path).read_text()))
    read.link("out", target, is_output=True)

    @read
    async def note(job: str, out: Any) -> None:
        await out.dump(job, 1)

    slow = Pipeline([write, read], Session(), [], log=tmp_path / "log.db")  # each commit waits for the disk
    async with slow as pipe:
        outcome = await pipe.run(timeout=SECONDS)
        assert outcome.stuck == {}
        assert len(await jobs(target)) == 200


async def test_a_filter_chooses_jobs_and_a_map_changes_values(log: str) -> None:
    source, target = documents("in"), documents("out")

    async def is_even(job: str) -> bool:
        return int(job) % 2 == 0

    async with pipeline(task("t", source.map(lambda n: n * 10, is_even), target), log=log) as pipe:
        for number in range(6):
            await pipe.put(source, str(number), number)
        await pipe.run(timeout=SECONDS)
        assert await content(target) == {"0": 0, "2": 20, "4": 40}


async def test_a_filter_that_fails_holds_its_job_and_is_told(log: str) -> None:
    source, target = InProcessMetadataRepository({"good": 1, "bad": 2}), documents("out")

    def choose(job: str) -> bool:
        if job == "bad":
            raise OSError("no route")
        return True

    async with pipeline(task("t", source.map(lambda n: n, choose), target), log=log) as pipe:
        outcome = await pipe.run(timeout=SECONDS)
        assert await content(target) == {"good": 1}
        assert outcome.exit_code == 6
        assert [count for reason, count in outcome.stuck.items() if "no route" in reason] == [1]


# --- order and limits -------------------------------------------------------------------------------


async def test_larger_priorities_go_first(log: str) -> None:
    order: list[str] = []
    source = InProcessMetadataRepository({str(n): n for n in range(8)})
    one = task("one", source, concurrency=1)

    @one
    async def body(job: str) -> None:
        order.append(job)

    async def priority(task: str, job: str) -> float:
        return float(job)

    async with pipeline(one, log=log, priority=priority) as pipe:
        await pipe.run(timeout=SECONDS)
    assert order == [str(n) for n in reversed(range(8))]


@pytest.mark.parametrize("by", ["concurrency", "quota"])
async def test_a_limit_is_never_exceeded_and_is_used_up(log: str, by: str) -> None:
    now = most = 0
    limited = task("limited", InProcessMetadataRepository({str(n): n for n in range(60)}))
    if by == "concurrency":
        limited.concurrency = 3
    else:
        limited.resource_manager = ResourceManager(Resources.parse(cpu="1", mem=0))
        limited.job_resources = Resources.parse(cpu="300m", mem=0)

    @limited
    async def body() -> None:
        nonlocal now, most
        now += 1
        most = max(most, now)
        await asyncio.sleep(0.001)
        now -= 1

    async with pipeline(limited, log=log) as pipe:
        assert (await pipe.run(timeout=SECONDS)).exit_code == 0
    assert most == 3


async def test_what_can_never_fit_is_told_as_stuck(log: str) -> None:
    large = task("large", InProcessMetadataRepository({"a": 1}), documents("out"))
    large.resource_manager = ResourceManager(Resources.parse(cpu="1", mem=0))
    large.job_resources = Resources.parse(cpu="2", mem=0)
    async with pipeline(large, log=log) as pipe:
        outcome = await pipe.run(timeout=SECONDS)
        assert outcome.exit_code == 6
        assert any(reason.startswith("large: ") for reason in outcome.stuck)


# --- opaque tasks, embedding ------------------------------------------------------------------------


class Elsewhere(Task):
    """A task of the user's own: it hands jobs to something that datatask knows nothing of."""

    def __init__(self, name: str, source: Repository, target: Any) -> None:
        super().__init__(name)
        self.link("source", source, is_input=True)
        self.link("target", target, is_output=True, inhibits_start=True)
        self.target = target
        self.working: set[str] = set()
        self.launched: list[str] = []

    async def launch(self, job: str) -> None:
        self.working.add(job)
        self.launched.append(job)

    async def update(self) -> bool:
        for job in sorted(self.working):
            await self.target.dump(job, "done elsewhere")
            self.working.discard(job)
            return True
        return bool(self.working)


async def test_a_task_of_ones_own_launches_and_updates(log: str) -> None:
    source, target = InProcessMetadataRepository({"a": 1, "b": 2}), documents("target")
    elsewhere = Elsewhere("elsewhere", source, target)
    async with pipeline(elsewhere, log=log) as pipe:
        assert (await pipe.run(timeout=SECONDS)).exit_code == 0
        assert await content(target) == {"a": "done elsewhere", "b": "done elsewhere"}
        await pipe.run(timeout=SECONDS)
    assert sorted(elsewhere.launched) == ["a", "b"]


async def test_two_pipelines_work_in_one_loop(tmp_path: Path) -> None:
    async def work(name: str) -> dict[str, Any]:
        target = documents("out")
        source = InProcessMetadataRepository({f"{name}{n}": n for n in range(50)})
        async with pipeline(task("t", source, target), log=str(tmp_path / f"{name}.db"), name=name) as pipe:
            await pipe.run(timeout=SECONDS)
            return await content(target)

    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            ticks += 1
            await asyncio.sleep(0)

    ticking = asyncio.create_task(tick())
    one, two = await asyncio.gather(work("one"), work("two"))
    ticking.cancel()
    assert len(one) == len(two) == 50
    assert not one.keys() & two.keys()
    assert ticks > 10


def test_run_sync_needs_no_loop(log: str) -> None:
    given = {"a": 1}
    target = InProcessMetadataRepository()
    outcome = pipeline(task("t", InProcessMetadataRepository(given), target), log=log).run_sync(
        timeout=SECONDS
    )
    assert outcome.exit_code == 0
    assert target.data == given


def test_run_sync_in_a_thread(log: str) -> None:
    outcomes = []
    pipe = pipeline(task("t", InProcessMetadataRepository({"a": 1}), documents("out")), log=log)
    thread = threading.Thread(target=lambda: outcomes.append(pipe.run_sync(timeout=SECONDS)))
    thread.start()
    thread.join(SECONDS)
    assert [outcome.exit_code for outcome in outcomes] == [0]


async def test_update_does_one_round(log: str) -> None:
    target = documents("out")
    async with pipeline(task("t", InProcessMetadataRepository({"a": 1}), target), log=log) as pipe:
        rounds = 0
        while await pipe.update():
            rounds += 1
            await asyncio.sleep(0.01)
            assert rounds < 100
        assert await content(target) == {"a": 1}


async def test_the_views_of_a_task_answer_without_being_linked(log: str) -> None:
    made = task("t", InProcessMetadataRepository({"a": 1, "b": 2}))

    @made
    async def body(job: str) -> None:
        if job == "b":
            raise ValueError(job)

    async with pipeline(made, log=log) as pipe:
        await pipe.run(timeout=SECONDS)
        assert await jobs(made.succeeded) == {"a"}
        assert await jobs(made.failed) == {"b"}
        assert await jobs(made.live) == set()
