"""A manager of a user's own, with pydatatask's verbs alone: a whole pipeline on it, and pids that are used again."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any, Literal

import pytest

from datatask import (
    AbstractProcessManager,
    InProcessBlobRepository,
    InProcessMetadataRepository,
    LocalLinuxManager,
    Pipeline,
    ProcessTask,
    ResourceManager,
    Resources,
    Session,
)
from datatask.adapters.execute.base import proctable, targets
from datatask.schema.messages import Started
from tests.contract.test_runner import process_task
from tests.machine import mounted
from tests.run_kit import contents, cut, exchanged, opened, removed, spec, until


class Elsewhere(AbstractProcessManager):
    """A machine that has the verbs and nothing else; its pids are bytes, as pydatatask's were."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._machine = LocalLinuxManager("unused", path)

    @property
    def basedir(self) -> Path:
        return self._path / "elsewhere"

    async def get_live_pids(self, hint: set[str]) -> set[str]:
        return await self._machine.get_live_pids(hint)

    async def spawn(self, *given: Any) -> str:
        pid: Any = (await self._machine.spawn(*given)).encode()
        return pid  # type: ignore[no-any-return]

    async def kill(self, pid: str) -> None:
        await self._machine.kill(pid)

    def open(self, path: Path, mode: Literal["r", "rb", "w", "wb"]) -> AbstractAsyncContextManager[Any]:
        return self._machine.open(path, mode)

    async def mkdir(self, path: Path) -> None:
        await self._machine.mkdir(path)

    async def rmtree(self, path: Path) -> None:
        await self._machine.rmtree(path)


async def test_a_pipeline_runs_on_a_machine_of_ones_own(tmp_path: Path) -> None:
    names = [f"j{number}" for number in range(6)]
    given = InProcessBlobRepository({name: name.encode() for name in names})
    out, err = InProcessBlobRepository(), InProcessBlobRepository()
    done, pids = InProcessMetadataRepository(), InProcessMetadataRepository()
    quota = ResourceManager(Resources.parse(2, "1Gi"))
    task = ProcessTask(
        "work",
        lambda: Elsewhere(tmp_path),
        quota,
        Resources.parse(1, "1Mi"),
        pids,
        "cat; echo $WORD >&2; {% if job == 'j5' %}exit 3{% endif %}",
        environ={"WORD": "said", "PATH": "/usr/bin:/bin"},
        done=done,
        stdin=given,
        stdout=out,
        stderr=err,
    )
    async with Pipeline([task], Session(), [quota], log="memory:") as pipeline:
        await pipeline.run(timeout=60)
    assert task.basedir == tmp_path / "elsewhere/work"
    assert {job: entry["return_code"] for job, entry in done.data.items()} == {
        name: 3 * (name == "j5") for name in names
    }
    assert out.data == {name: name.encode() for name in names}
    assert err.data == dict.fromkeys(names, b"said\n")
    assert pids.data == {}
    assert list(task.basedir.iterdir()) == []


async def test_a_run_that_is_over_is_not_taken_for_who_has_its_pid_now(tmp_path: Path) -> None:
    """Its exit code is there; the stranger is neither adopted nor killed."""
    manager = Elsewhere(tmp_path)
    first = process_task(tmp_path, "echo done", manager).runner
    async with opened(first) as facts:
        first.start(spec(1))
        await facts.first(1, Started)
        await facts.end_of(1)
    stranger = await asyncio.create_subprocess_exec("sleep", "60", start_new_session=True)
    try:
        later = process_task(tmp_path, "echo done", manager).runner
        async with opened(later) as facts:
            await later.recover([spec(1)._replace(handle={"pid": str(stranger.pid)})])
            end = await facts.end_of(1)
            later.stop(1, "cancelled", 0)
            await asyncio.sleep(0.1)
        assert end.ending.outcome == "succeeded"
        assert stranger.returncode is None
    finally:
        stranger.kill()
        await stranger.wait()


@pytest.mark.parametrize("meanwhile", ["it is asked about", "it is to stop", "an engine begins"])
async def test_a_pid_that_is_another_process_by_now_is_not_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, meanwhile: str
) -> None:
    """It began at another time than the process that claimed the folder; it is not killed either."""
    monkeypatch.setattr(targets, "POLLS_PER_LOOK", 1)
    manager = Elsewhere(tmp_path)
    runner = process_task(tmp_path, "sleep 60", manager).runner
    async with opened(runner) as facts:
        runner.start(spec(1))
        started = await facts.first(1, Started)
        assert isinstance(started, Started)
        pid = int(str(started.handle["pid"]))
        claimed = Path(str(started.handle["folder"])) / "pid"
        await until(lambda: claimed.exists())
        assert f"{pid} {proctable.start_time(pid)} {proctable.boot_id()}\n" in claimed.read_text()
        await asyncio.sleep(1.5 * targets.POLL_SECONDS)
        assert len(facts.of(1)) == 1, "as long as it is the run, it runs"
        claimed.write_text(f"{pid} 17 {proctable.boot_id()}\n")
        if meanwhile == "it is to stop":
            runner.stop(1, "cancelled", 0)
        if meanwhile != "an engine begins":
            end = await facts.end_of(1)
    try:
        if meanwhile == "an engine begins":
            later = process_task(tmp_path, "sleep 60", manager).runner
            async with opened(later) as facts:
                await later.recover([spec(1)._replace(handle=started.handle)])
                end = await facts.end_of(1)
        assert end.ending.outcome == ("cancelled" if meanwhile == "it is to stop" else "lost")
        assert proctable.start_time(pid) is not None
    finally:
        os.kill(pid, signal.SIGKILL)


def emptied(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()


@pytest.mark.parametrize(
    ("disturb", "more", "outcome", "words"),
    [
        (removed, "; echo two", "succeeded", ""),
        (exchanged, "; echo two", "succeeded", ""),
        (cut, "", "failed", "its stdout was cut while it ran: 4 bytes were written, 0 are there"),
        (cut, "; exit 3", "failed", "exit code 3; its stdout was cut"),
        (emptied, "; echo two", "succeeded", ""),
    ],
)
async def test_what_is_collected_is_what_the_process_wrote(
    tmp_path: Path, disturb: Callable[[Path], object], more: str, outcome: str, words: str
) -> None:
    """Its file is removed, exchanged or cut meanwhile, or all of its folder is gone."""
    script = f"echo one; while [ ! -e {tmp_path}/go ]; do sleep 0.02; done{more}"
    runner = process_task(tmp_path, script, Elsewhere(tmp_path)).runner
    async with opened(runner) as facts:
        runner.start(spec(1))
        await facts.first(1, Started)
        (folder,) = (tmp_path / "elsewhere").glob("*/*")
        await until(lambda: (folder / "stdout").read_text() == "one\n")
        disturb(folder)
        (tmp_path / "go").touch()
        end = await facts.end_of(1)
        assert end.ending.outcome == outcome
        assert words in (end.ending.error.message if end.ending.error else "")
        (write,) = end.writes
        assert contents(write) == {"succeeded": b"one\ntwo\n", "failed": b""}[outcome]


class Unasked(Elsewhere):
    """Its processes seem to go on until somebody says that they may be looked at."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.is_asked = False

    async def get_live_pids(self, hint: set[str]) -> set[str]:
        return await super().get_live_pids(hint) if self.is_asked else hint


def written_anew(folder: Path) -> None:
    (folder / "stdout").write_text("ONE\n")


@pytest.mark.parametrize(
    ("disturb", "words"),
    [
        (removed, "its stdout was removed, and nothing is left of it"),
        (cut, "its stdout had 4 bytes when it ended and now has 0"),
        (exchanged, "its stdout was exchanged or written by somebody else after it had ended"),
        (written_anew, "its stdout was exchanged or written by somebody else after it had ended"),
        (
            emptied,
            "how long its outputs were was not written down when it ended; its stdout was removed, and",
        ),
    ],
)
async def test_an_output_that_is_not_what_it_was_when_it_is_collected_is_no_success(
    tmp_path: Path, disturb: Callable[[Path], object], words: str
) -> None:
    """Between the end and the moment that anybody asks."""
    manager = Unasked(tmp_path)
    runner = process_task(tmp_path, "echo one", manager).runner
    async with opened(runner) as facts:
        runner.start(spec(1))
        await facts.first(1, Started)
        (folder,) = (tmp_path / "elsewhere").glob("*/*")
        code = folder / "return_code"
        await until(lambda: code.exists() and code.read_text())
        kept = code.read_text()
        disturb(folder)
        code.write_text(kept)
        manager.is_asked = True
        end = await facts.end_of(1)
    assert (end.ending.outcome, end.writes) == ("lost", ())
    assert end.ending.error is not None
    assert end.ending.error.message.startswith(words)


@pytest.mark.machine("mounts")
async def test_an_output_for_which_the_disk_was_too_small_is_no_success(tmp_path: Path) -> None:
    """Whatever the script says."""
    with mounted(tmp_path / "elsewhere", "size=1m"):
        runner = process_task(tmp_path, "yes | head -c 10M; true", Elsewhere(tmp_path)).runner
        async with opened(runner) as facts:
            runner.start(spec(1))
            end = await facts.end_of(1)
    assert (end.ending.outcome, end.writes) == ("lost", ())
    assert end.ending.error is not None
    assert "the disk of its outputs was full when it ended" in end.ending.error.message


class KillsOne(Elsewhere):
    """Its `kill` reaches one process, as pydatatask's did."""

    async def kill(self, pid: str) -> None:
        os.kill(int(pid), signal.SIGKILL)


async def test_a_stop_reaches_the_program_by_verbs_that_kill_one_process(tmp_path: Path) -> None:
    runner = process_task(tmp_path, "#!/bin/sleep 60", KillsOne(tmp_path)).runner
    async with opened(runner) as facts:
        runner.start(spec(1))
        await facts.first(1, Started)
        (folder,) = (tmp_path / "elsewhere").glob("*/*")
        await until((folder / "program").exists)
        program = int((folder / "program").read_text())
        runner.stop(1, "cancelled", 0)
        assert (await facts.end_of(1)).ending.outcome == "cancelled"
        await until(
            lambda: (
                program not in proctable.pids()
                or not proctable.is_alive(program, proctable.start_time(program) or 0)
            )
        )
