"""Each service of a whole engine is made to fail: what it is there for happens all the same, or the engine stops by name."""

from __future__ import annotations

import asyncio
import uuid
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
from inotify_simple import INotify

from datatask import (
    ExecutorTask,
    FileRepository,
    InProcessBlobRepository,
    InProcessMetadataRepository,
    InProcessSyncTask,
    LocalLinuxManager,
    LogMetadataRepository,
    Pipeline,
    ProcessTask,
    Resources,
    Session,
    SSHLinuxManager,
)
from datatask.adapters.execute.base import targets
from datatask.adapters.execute.functions.gateway import EngineGateway
from datatask.adapters.execute.kube.watch import Watch
from datatask.adapters.execute.local.client import LauncherClient
from datatask.adapters.execute.ssh.target import Target
from datatask.adapters.log import file_changes
from datatask.adapters.log.inbox import FileInbox
from datatask.adapters.log.inbox_client import ask
from datatask.adapters.log.writer import Writer
from datatask.adapters.store.watching import FolderWatch
from datatask.adapters.wiring import engine_services
from datatask.engine.runtime import observe
from datatask.engine.runtime import services as module
from datatask.engine.runtime.observe import Observer
from datatask.engine.runtime.services import Services, enter
from datatask.schema.errors import DatataskError, InternalError, ServiceFailedError
from datatask.schema.messages import Ping, Reply, ServiceHealth
from tests.integration.test_own_machines import Elsewhere
from tests.kube.runner_kit import ready, running
from tests.run_kit import until
from tests.ssh_kit import server

ALWAYS = 10**9


@pytest.fixture(autouse=True)
def quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PAUSE_SECONDS", (0.001, 0.01))
    monkeypatch.setattr(targets, "POLL_SECONDS", 0.05)
    monkeypatch.setattr(observe, "POLL_SECONDS", 0.02)
    monkeypatch.setattr(engine_services, "WATCH_SECONDS", 0.02)


def broken(monkeypatch: pytest.MonkeyPatch, owner: type, method: str, times: int = 3) -> None:
    """Have a method fail so often, with an error that nobody expects, and then work."""
    whole, left = getattr(owner, method), [times]

    def call(*arguments: Any, **more: Any) -> Any:
        left[0] -= 1
        if left[0] >= 0:
            raise RuntimeError(f"{method} is broken")
        return whole(*arguments, **more)

    monkeypatch.setattr(owner, method, call)


def pipeline_of(folder: Path, *tasks: Any, **more: Any) -> Pipeline:
    return Pipeline(tasks, Session(), log=folder / "log.db", **more)


def echo(folder: Path) -> tuple[InProcessSyncTask, LogMetadataRepository]:
    """Return a task whose jobs are the files in a folder, and what it makes."""
    made = LogMetadataRepository("made")
    task = InProcessSyncTask("echo", LogMetadataRepository("done"))
    task.link("files", FileRepository(folder / "files", extension=".txt"), is_input=True)
    task.link("made", made, is_output=True)

    @task
    async def run(job: str, files: Any, made: Any) -> None:
        await made.dump(job, {})

    return task, made


def restarted(pipeline: Pipeline, name: str) -> ServiceHealth:
    health = pipeline.runtime.services.health()
    (found,) = [one for one in health if one.name == name] or [one for one in health if name in one.name]
    return found


async def asked(folder: Path) -> Reply:
    request = Ping(id=str(uuid.uuid4()), actor="ada")
    return await asyncio.to_thread(ask, folder / "log.db", request, timeout_seconds=100)


@pytest.mark.parametrize(("method", "name"), [("pending", "the inbox"), ("answer", "answers")])
async def test_the_inbox_answers_after_it_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str, name: str
) -> None:
    broken(monkeypatch, FileInbox, method)
    (tmp_path / "files").mkdir()
    async with pipeline_of(tmp_path, echo(tmp_path)[0]) as pipeline:
        assert (await asked(tmp_path)).position
        assert restarted(pipeline, name).restarts == 3


@pytest.mark.parametrize("method", ["pending", "answer"])
async def test_an_inbox_that_fails_for_ever_stops_the_engine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    broken(monkeypatch, FileInbox, method, ALWAYS)
    (tmp_path / "files").mkdir()
    async with pipeline_of(tmp_path, echo(tmp_path)[0]) as pipeline:
        if method == "answer":
            assert pipeline.log is not None
            inbox: Any = pipeline.log.inbox
            inbox._known.append(Ping(id="p", actor="ada"))
            inbox._look = lambda: (1,)
            inbox._stamp = (1,)
        with pytest.raises(
            ServiceFailedError, match=r"inbox failed 21 times in a row: RuntimeError: .* is broken"
        ):
            await pipeline.run(forever=True)


@pytest.mark.parametrize(
    ("owner", "method"), [(INotify, "read"), (FolderWatch, "_on_event"), (FolderWatch, "_look")]
)
async def test_files_are_seen_after_notices_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, owner: type, method: str
) -> None:
    task, made = echo(tmp_path)
    (tmp_path / "files").mkdir()
    broken(monkeypatch, owner, method)
    async with pipeline_of(tmp_path, task) as pipeline:
        pipeline.runtime.launching = True
        for number in range(5):
            (tmp_path / "files" / f"{number}.txt").touch()
            await asyncio.sleep(0.01)
        await until(lambda: len(pipeline.state.members(made.id)) == 5)
        assert restarted(pipeline, "notices").restarts > 0


async def test_a_change_that_cannot_be_taken_stops_the_engine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "files").mkdir()
    async with pipeline_of(tmp_path, echo(tmp_path)[0]) as pipeline:
        broken(monkeypatch, Observer, "_taken", ALWAYS)
        (tmp_path / "files" / "a.txt").touch()
        with pytest.raises(InternalError, match="failed: RuntimeError"):
            await pipeline.run(forever=True)


async def test_folders_that_are_listed_are_listed_again_after_that_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task, made = echo(tmp_path)
    (tmp_path / "files").mkdir()
    monkeypatch.setattr("datatask.adapters.store.watching.is_remote", lambda path: True)
    async with pipeline_of(tmp_path, task) as pipeline:
        pipeline.runtime.launching = True
        broken(monkeypatch, Observer, "sync")
        await until(lambda: restarted(pipeline, "listing").restarts == 3)
        (tmp_path / "files" / "a.txt").touch()
        await until(lambda: pipeline.state.members(made.id))


@pytest.mark.parametrize("method", ["_next_group", "_write"])
async def test_a_writer_that_fails_stops_the_engine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    (tmp_path / "files").mkdir()
    async with pipeline_of(tmp_path, echo(tmp_path)[0]) as pipeline:
        broken(monkeypatch, Writer, method, ALWAYS)
        (tmp_path / "files" / "a.txt").touch()
        (tmp_path / "files" / "b.txt").touch()
        with pytest.raises(DatataskError, match="is broken"):
            await pipeline.run(forever=True)


def script(manager: Any) -> ProcessTask:
    out = InProcessBlobRepository()
    task = ProcessTask("t", manager, None, Resources(), InProcessMetadataRepository(), "echo hi", stdout=out)
    task.link("inp", InProcessMetadataRepository(), is_input=True)
    task.out_for_test = out  # type: ignore[attr-defined]
    return task


async def run_of(task: Any, folder: Path, name: str, restarts: int) -> None:
    """Run one job of a task, whose service of this name fails meanwhile."""
    async with pipeline_of(folder, task) as pipeline:
        await task.links["inp"].repo.dump("a", {})
        assert (await pipeline.run()).failed == 0
        assert pipeline.state.members(task.succeeded.id) == ["a"]
        assert restarted(pipeline, name).restarts == restarts


@pytest.mark.parametrize("method", ["_answered", "_keep_connecting"])
async def test_local_runs_end_after_the_connection_to_the_launcher_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    broken(monkeypatch, LauncherClient, method)
    task = script(LocalLinuxManager("app", local_path=tmp_path / "runs"))
    await run_of(task, tmp_path, "launcher", 3)


async def test_runs_of_a_users_own_manager_end_after_the_asking_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken(monkeypatch, targets.PollingRunner, "_poll")
    await run_of(script(Elsewhere(tmp_path)), tmp_path, "asking", 3)


def nothing(job: str, inp: Any) -> None:
    """The work of a worker process."""


async def test_worker_processes_are_served_after_their_gateway_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken(monkeypatch, EngineGateway, "_accept")
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        task = ExecutorTask("t", pool, LogMetadataRepository("done"))
        task.link("inp", InProcessMetadataRepository(), is_input=True)
        task(nothing)
        await run_of(task, tmp_path, "gateway", 3)


@pytest.mark.server("sshd")
async def test_runs_over_ssh_end_after_the_link_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken(monkeypatch, Target, "_serve")
    manager = SSHLinuxManager("app", server().host(), tmp_path / "remote")
    await run_of(script(manager), tmp_path, "link", 3)


async def test_pods_are_seen_after_the_watch_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    failures: list[BaseException] = []
    services = Services(failures.append)
    enter(services)
    async with ready(logs=False) as (api, runner, facts):
        name = await running(api, runner, facts, 1)
        broken(monkeypatch, Watch, "_take")
        api.end(name)
        await facts.end_of(1)
    assert failures == []
    assert any("watch" in one.name and one.restarts for one in services.health())


async def test_a_log_of_which_it_cannot_be_seen_whether_it_is_there_stops_the_engine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "files").mkdir()
    monkeypatch.setattr(file_changes.Presence.__init__, "__kwdefaults__", {"seconds": 0.001})
    broken(monkeypatch, file_changes.Presence, "check", file_changes.FAILURES_MAX + 1)
    with pytest.raises(
        DatataskError, match=r"cannot be seen whether the log is still there .*check is broken"
    ):
        async with pipeline_of(tmp_path, echo(tmp_path)[0]) as pipeline:
            await pipeline.run(forever=True)


async def test_the_verification_of_the_log_goes_on_after_it_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However often: it needs a process, and a machine that has none to give stops no engine."""
    (tmp_path / "files").mkdir()
    monkeypatch.setattr(engine_services, "PAUSE_SECONDS", 0.001)
    monkeypatch.setattr(engine_services, "START_CPU_SECONDS", 0.0)
    monkeypatch.setattr(module, "WELL_SECONDS", 0.0)
    broken(monkeypatch, engine_services.Verification, "_verified", 30)
    async with pipeline_of(tmp_path, echo(tmp_path)[0]) as pipeline:
        work = engine_services.Verification(pipeline.runtime, tmp_path / "log.db", start_seconds=0.0)
        await until(lambda: work.position and restarted(pipeline, "verification").state == "up")
        assert restarted(pipeline, "verification").restarts == 30
        assert pipeline.runtime.failure is None
        await work.close()
