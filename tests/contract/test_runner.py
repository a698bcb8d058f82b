"""What every runner promises: one start, one end, idempotent by identity; stops end runs; nothing is silent.

The same claims for runs on the loop, in threads, in worker processes, in Dask's, as processes of this machine and of others,
and as pods.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest

from datatask import (
    AbstractProcessManager,
    ExecutorTask,
    InProcessBlobRepository,
    InProcessMetadataRepository,
    InProcessSyncTask,
    KubeTask,
    LocalLinuxManager,
    ProcessTask,
    Resources,
    SSHLinuxManager,
)
from datatask.adapters.execute.base.targets import PollingRunner
from datatask.engine.api.tasks import EngineTask
from datatask.engine.ports import Runner
from datatask.engine.runtime import calls
from datatask.schema.messages import Adopted, Ended, Started, Unreachable
from tests import dask_kit
from tests.kube.toy import target
from tests.run_kit import contents, opened, spec
from tests.ssh_kit import server, shared

SECOND = 1_000_000_000


async def behave(job: str) -> None:
    """Do what the job's name says."""
    if job.startswith("fail"):
        raise ValueError("as told")
    if job.startswith("slow"):
        await asyncio.sleep(60)


def behave_plainly(job: str) -> None:
    """Do what the job's name says, without a loop."""
    if job.startswith("fail"):
        raise ValueError("as told")
    if job.startswith("slow"):
        time.sleep(60)


SCRIPT = """\
{% if job.startswith("fail") %}exit 3{% elif job.startswith("slow") %}sleep 60{% elif job.startswith("odd") %}{{ nothing }}
{% else %}echo done{% endif %}
"""


def function_task(func: Callable[..., Any], executor: Any = None) -> EngineTask:
    """Return a task around a function."""
    done = InProcessMetadataRepository()
    task = (
        ExecutorTask("t", executor, done, func=func) if executor else InProcessSyncTask("t", done, func=func)
    )
    task.link("inp", InProcessMetadataRepository(), is_input=True)
    return task


def process_task(
    path: Path, template: str = SCRIPT, manager: AbstractProcessManager | None = None, **more: Any
) -> ProcessTask:
    """Return a process task below a folder, on this machine unless the manager is that of another one."""
    manager = manager or LocalLinuxManager("app", path)
    pids = InProcessMetadataRepository()
    out = InProcessBlobRepository()
    out._id = "out"
    task = ProcessTask("t", manager, None, Resources(), pids, template, stdout=out, **more)
    task.link("inp", InProcessMetadataRepository(), is_input=True)
    return task


POD = """
kind: Pod
spec: {containers: [{name: main, image: IMAGE, command: [sh, -c, {{ script }}]}]}
"""


def pod_task(path: Path) -> KubeTask:
    """Return a task whose runs are pods of an application of its own."""
    app = "app" + hashlib.sha256(str(path).encode()).hexdigest()[:16]
    out = InProcessBlobRepository()
    out._id = "out"
    there = target()
    template = POD.replace("{{ script }}", QUOTED).replace("IMAGE", there.image)
    task = KubeTask("t", there.manager(app), None, template, out, None)
    task.link("inp", InProcessMetadataRepository(), is_input=True)
    return task


QUOTED = "'" + SCRIPT.replace("\n", " ") + "'"
PROCESSES = (
    "processes",
    "polled",
    pytest.param("sshd", marks=pytest.mark.server("sshd")),
    pytest.param("dropbear", marks=[pytest.mark.server("dropbear"), pytest.mark.machine("root")]),
    "pods",
)
WORKERS = get_context("forkserver")
WORKERS.set_forkserver_preload([__name__])  # imported once, and not by each worker of each test
KINDS = ("loop", "threads", "workers", "dask", *PROCESSES)


def make_task(kind: str, path: Path) -> EngineTask:
    """Return a fresh task whose runs go where `kind` says."""
    match kind:
        case "loop":
            return function_task(behave)
        case "threads":
            return function_task(behave, lambda: ThreadPoolExecutor(2))
        case "workers":
            return function_task(behave_plainly, lambda: ProcessPoolExecutor(2, mp_context=WORKERS))
        case "dask":
            return function_task(behave, dask_kit.shared().url)
        case "pods":
            return pod_task(path)
        case "sshd" | "dropbear":
            with shared(kind):
                return process_task(path, manager=SSHLinuxManager("app", server().host(), path / "remote"))
    return process_task(path)


def make_runner(kind: str, path: Path) -> Runner:
    """Return the task's runner; for `polled` the one that gets by with a manager's verbs."""
    task = make_task(kind, path)
    if kind == "polled":
        assert isinstance(task, ProcessTask)
        return PollingRunner(task.manager, task.recipe(), poll_seconds=0.05)
    return task.runner


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> Iterator[str]:
    """Where runs go."""
    yield str(request.param)
    if (
        request.param == "dask"
    ):  # runs that were not forgotten are held there, and the next test has runs of the same identities
        dask_kit.shared().clear()


async def test_a_run_starts_and_then_ends_well(kind: str, tmp_path: Path) -> None:
    """`Started` comes once and before `Ended`, times are in order."""
    runner = make_runner(kind, tmp_path)
    async with opened(runner) as facts:
        runner.start(spec(1))
        ending = (await facts.end_of(1)).ending
    assert [type(fact) for fact in facts.of(1)] == [Started, Ended]
    assert ending.outcome == "succeeded"
    assert ending.error is None
    assert ending.ended_at is not None
    assert (ending.started_at or 0) <= ending.ended_at


async def test_a_failing_run_ends_failed_and_says_why(kind: str, tmp_path: Path) -> None:
    """The exception's type and text, or the exit code."""
    runner = make_runner(kind, tmp_path)
    async with opened(runner) as facts:
        runner.start(spec(1, "fail"))
        ending = (await facts.end_of(1)).ending
    assert ending.outcome == "failed"
    assert ending.error is not None
    if ending.exit_code is None:
        assert (ending.error.type, ending.error.message) == ("ValueError", "as told")
        assert "as told" in ending.error.traceback
    else:
        assert (ending.exit_code, ending.error.message) == (3, "exit code 3")


async def test_starting_twice_is_starting_once(kind: str, tmp_path: Path) -> None:
    """The same identity, while it runs and after it has ended."""
    runner = make_runner(kind, tmp_path)
    async with opened(runner) as facts:
        runner.start(spec(1))
        runner.start(spec(1))
        runner.start(spec(2))
        await facts.end_of(1)
        await facts.end_of(2)
        await asyncio.sleep(0.05)
        assert [type(fact) for fact in facts.of(1)] == [Started, Ended]


@pytest.mark.parametrize(
    ("reason", "outcome"), [("timeout", "timed_out"), ("cancelled", "cancelled"), ("deleted", "cancelled")]
)
async def test_a_stopped_run_ends_by_the_reason(kind: str, tmp_path: Path, reason: Any, outcome: str) -> None:
    """Within the grace, or shortly after it."""
    runner = make_runner(kind, tmp_path)
    async with opened(runner) as facts:
        runner.start(spec(1, "slow"))
        await facts.first(1, Started)
        await asyncio.sleep(0.3 if kind == "workers" else 0.02)
        runner.stop(1, reason, SECOND // 5)
        ended = await facts.end_of(1)
    assert ended.ending.outcome == outcome
    assert ended.ending.error is not None
    assert "stopped" in ended.ending.error.message


async def test_a_run_can_be_stopped_right_after_its_start(kind: str, tmp_path: Path) -> None:
    """Before it has begun; there is one end all the same."""
    runner = make_runner(kind, tmp_path)
    async with opened(runner) as facts:
        runner.start(spec(1, "slow"))
        runner.stop(1, "cancelled", SECOND // 5)
        ended = await facts.end_of(1)
        await asyncio.sleep(0.05)
    assert ended.ending.outcome == "cancelled"
    assert len([fact for fact in facts.of(1) if isinstance(fact, Ended)]) == 1


async def test_stopping_what_is_unknown_does_nothing(kind: str, tmp_path: Path) -> None:
    """Also after the end, and after it was forgotten."""
    runner = make_runner(kind, tmp_path)
    async with opened(runner) as facts:
        runner.stop(99, "cancelled", 0)
        runner.start(spec(1))
        await facts.end_of(1)
        runner.stop(1, "cancelled", 0)
        runner.forget(1)
        runner.stop(1, "cancelled", 0)
        runner.forget(99)
        runner.start(spec(2))
        await facts.end_of(2)
    assert facts.of(99) == []


async def test_what_was_never_started_is_lost_when_recovered(kind: str, tmp_path: Path) -> None:
    """Recovery accounts for each run before it returns; a pod's name is fixed, so it is begun."""
    runner = make_runner(kind, tmp_path)
    if kind == "pods":
        async with opened(runner) as facts:
            await runner.recover([spec(1), spec(2)])
            assert [(await facts.end_of(run)).ending.outcome for run in (1, 2)] == ["succeeded"] * 2
        return
    async with opened(runner) as facts:
        await runner.recover([spec(1), spec(2)])
        for run in (1, 2):
            (ended,) = facts.of(run)
            assert isinstance(ended, Ended)
            assert ended.ending.outcome == "lost"
            assert ended.ending.error is not None


async def test_many_runs_end_once_each(kind: str, tmp_path: Path) -> None:
    """All at once."""
    runner = make_runner(kind, tmp_path)
    async with opened(runner) as facts:
        for run in range(1, 41):
            runner.start(spec(run, f"fail{run}" if run % 4 == 0 else f"good{run}"))
        endings = [await facts.end_of(run) for run in range(1, 41)]
        for run in range(1, 41):
            runner.forget(run)
    assert [ended.ending.outcome == "failed" for ended in endings] == [run % 4 == 0 for run in range(1, 41)]
    assert len([fact for fact in facts.all if isinstance(fact, Ended)]) == 40


@pytest.mark.parametrize("kind", PROCESSES)
async def test_what_cannot_be_rendered_is_refused(kind: str, tmp_path: Path) -> None:
    """By task, job and the undefined name."""
    runner = make_runner(kind, tmp_path)
    async with opened(runner) as facts:
        runner.start(spec(1, "odd"))
        ended = await facts.end_of(1)
    assert ended.ending.outcome == "refused"
    message = ended.ending.error.message if ended.ending.error else ""
    assert "t[odd]" in message
    assert "'nothing' is undefined" in message


@pytest.mark.parametrize("kind", PROCESSES)
async def test_a_later_engine_adopts_what_runs_and_collects_what_ended(kind: str, tmp_path: Path) -> None:
    """The first engine lets go of two runs; the second one finds one ended and one alive."""
    first = make_runner(kind, tmp_path)
    async with opened(first) as facts:
        first.start(spec(1, "good"))
        first.start(spec(2, "slow"))
        await facts.end_of(1)
        await facts.first(2, Started)
    second = make_runner(kind, tmp_path)
    async with opened(second) as facts:
        await second.recover([spec(1, "good"), spec(2, "slow")])
        ended = await facts.end_of(1)
        assert ended.ending.outcome == "succeeded"
        assert [contents(write) for write in ended.writes] == [b"done\n"]
        assert isinstance((await facts.first(2, Adopted, Ended, Unreachable)), Adopted)
        second.stop(2, "cancelled", SECOND)
        assert (await facts.end_of(2)).ending.outcome == "cancelled"
        second.forget(1)
        second.forget(2)


async def test_a_function_that_ignores_its_cancellation_is_fenced_off(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The run ends after the grace; what the function writes later is refused."""
    refused: list[BaseException] = []
    go_on = asyncio.Event()
    out = InProcessMetadataRepository()

    async def stubborn(job: str) -> None:
        from datatask.engine.run_context import current_run

        while not go_on.is_set():
            with contextlib.suppress(asyncio.CancelledError):
                await go_on.wait()
        context = current_run.get()
        assert context is not None
        try:
            context.delete("out", job)
        except Exception as error:
            refused.append(error)

    task = function_task(stubborn)
    task.link("out", out, is_output=True)
    with caplog.at_level(logging.WARNING):
        async with opened(task.runner) as facts:
            task.runner.start(spec(1))
            await facts.first(1, Started)
            task.runner.stop(1, "timeout", SECOND // 100)
            ended = await facts.end_of(1)
            assert (ended.ending.outcome, ended.writes) == ("timed_out", ())
            go_on.set()
            await asyncio.sleep(0.01)
    assert "fenced off" in caplog.text
    assert "has ended" in str(refused[0])


@pytest.mark.parametrize(
    "error", [SystemExit(3), KeyboardInterrupt(), GeneratorExit(), asyncio.CancelledError("me")]
)
async def test_nothing_that_a_function_raises_gets_out(error: BaseException) -> None:
    """Not even what usually ends a program."""

    async def raising(job: str) -> None:
        raise error

    task = function_task(raising)
    async with opened(task.runner) as facts:
        task.runner.start(spec(1))
        ending = (await facts.end_of(1)).ending
    assert (ending.outcome, ending.error.type if ending.error else "") == ("failed", type(error).__name__)


async def test_a_function_that_blocks_the_loop_is_named(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By task and job, with the line where it is; nobody can stop it."""
    monkeypatch.setattr(calls, "BLOCKED_SECONDS", 0.2)

    async def blocking(job: str) -> None:
        time.sleep(0.6)  # noqa: ASYNC251 - this is what is tested

    task = function_task(blocking)
    with caplog.at_level(logging.WARNING):
        async with opened(task.runner) as facts:
            await asyncio.sleep(0.1)
            task.runner.start(spec(1))
            await facts.end_of(1)
    assert "t[good] has blocked the event loop" in caplog.text
    assert "time.sleep(0.6)" in caplog.text
