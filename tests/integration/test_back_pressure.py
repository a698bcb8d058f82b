"""What a machine refuses for the moment is tried again until there is room, uses up no attempt, and is told once."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import resource
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

import pytest

from datatask import (
    ExecutorTask,
    InProcessMetadataRepository,
    LogMetadataRepository,
    Pipeline,
    ProcessTask,
    Resources,
    Session,
)
from datatask.adapters.execute.base import pressure
from datatask.adapters.execute.base.pressure import Pressure, is_momentary
from datatask.adapters.execute.local.process_tree import Headroom
from datatask.adapters.history.history import History
from datatask.schema.messages import Fact, Noticed
from tests.integration.local_kit import ends, run_all, spec, task_of
from tests.integration.test_own_machines import Elsewhere
from tests.machine import mounted
from tests.run_kit import until

# --- who waits for whom -------------------------------------------------------------------------------


class Machine:
    """A machine with room for some starts, and the starts that it was asked for."""

    def __init__(self, room: int) -> None:
        self.room = room
        self.asked: list[int] = []
        self.facts: list[Fact] = []
        self.pressure = Pressure("t", self.facts.append)

    def admit(self, run: int) -> None:
        self.pressure.admit(run, lambda: self.start(run))

    def start(self, run: int) -> None:
        self.asked.append(run)
        if self.room:
            self.room -= 1
            self.pressure.accepted(run)
        else:
            self.pressure.refused(run, lambda: self.start(run), "no room")

    def told(self) -> list[int]:
        return [fact.run for fact in self.facts if isinstance(fact, Noticed)]


async def test_one_start_at_a_time_is_tried_again_and_all_get_through(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each that waits is told of once, and the first of them is the next."""
    monkeypatch.setattr(pressure, "PAUSE_SECONDS", (0.01, 0.05))
    machine = Machine(2)
    for run in range(1, 7):
        machine.admit(run)
    assert machine.asked == [1, 2, 3]
    await until(lambda: len(machine.asked) >= 6)
    assert set(machine.asked[3:]) == {3}
    machine.room = 10
    machine.pressure.freed()
    await until(lambda: machine.asked[-1] == 6)
    assert machine.asked[-4:] == [3, 4, 5, 6]
    assert machine.told() == [3, 4, 5, 6]
    machine.admit(7)
    assert machine.asked[-1] == 7, "nothing waits any more"


async def test_what_is_withdrawn_is_never_started(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pressure, "PAUSE_SECONDS", (0.01, 0.05))
    machine = Machine(0)
    for run in (1, 2, 3):
        machine.admit(run)
    assert machine.pressure.withdraw(2)
    assert not machine.pressure.withdraw(2)
    assert machine.pressure.waiting() == [1, 3]
    machine.room = 10
    await until(lambda: machine.asked[-1] == 3)
    assert 2 not in machine.asked
    machine.pressure.close()


def test_what_is_momentary() -> None:
    assert is_momentary(OSError(errno.EAGAIN, "x"))
    assert is_momentary(OSError(errno.ENOSPC, "x"))
    assert is_momentary(MemoryError())
    assert is_momentary(RuntimeError("can't start new thread"))
    assert not is_momentary(OSError(errno.EACCES, "x"))
    assert not is_momentary(RuntimeError("cannot schedule new futures after shutdown"))


# --- processes ----------------------------------------------------------------------------------------

PIPELINE = """
from pathlib import Path
from datatask import *

HERE = Path(__file__).parent
task = ProcessTask(
    "t", LocalLinuxManager("app", HERE / "base"), None, Resources.parse(1, "1Mi"), LogMetadataRepository("pids"),
    "sleep 0.4; echo x", stdout=LogBlobRepository("out"), done=LogMetadataRepository("done"), concurrency=30,
)
task.link("given", InProcessMetadataRepository({f"j{n}": {} for n in range(30)}), is_input=True)
pipeline = Pipeline([task], Session())
"""


@contextlib.contextmanager
def processes_bounded(most: int) -> Iterator[Path]:
    """A control group that holds so many processes; skipped where there is none to be had."""
    for top in (Path("/sys/fs/cgroup/pids"), Path("/sys/fs/cgroup")):
        # One of a process that had our number may be there still.
        group = top / f"bounded-{uuid.uuid4()}"
        try:
            group.mkdir()
            if not (group / "cgroup.procs").exists():
                raise OSError("no file system of control groups")
            (group / "pids.max").write_text(str(most))
        except OSError:
            with contextlib.suppress(OSError):
                group.rmdir()
            continue
        try:
            yield group
        finally:
            with contextlib.suppress(OSError):
                group.rmdir()  # stays while a process is in it
        return
    pytest.skip("no control group for processes is ours to make")


@pytest.mark.machine("root")
def test_jobs_wait_for_places_of_processes(tmp_path: Path) -> None:
    """All of them are done, each at its first attempt, and why one waits is in the log."""
    (tmp_path / "pipeline.py").write_text(PIPELINE)
    with processes_bounded(24) as group:
        enter = f"echo $$ > {group}/cgroup.procs; exec {sys.executable} -m datatask run"
        done = subprocess.run(
            ["sh", "-c", enter], cwd=tmp_path, capture_output=True, text=True, timeout=100, check=False
        )
        (group / "pids.max").write_text("max")
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("starts no more runs for the moment") >= 1
    with History(tmp_path / ".datatask" / "log.db") as history:
        runs = list(history.runs())
        told = [event.event for event in history.events() if type(event.event).__name__ == "RunObserved"]
    assert [(run["state"], run["attempt"]) for run in runs] == [("succeeded", 1)] * 30
    assert told
    assert len({event.run for event in told}) == len(told)


def test_the_last_processes_are_not_given_away(tmp_path: Path) -> None:
    """Of a control group that is nearly full, whatever it is mounted as; a script may need some more."""
    (tmp_path / "own").mkdir()
    (tmp_path / "mounts").write_text(f"1 1 0:1 / {tmp_path} rw - cgroup2 x rw\n")
    (tmp_path / "group").write_text("0::/own\n")
    for name, value in (("pids.max", "20"), ("pids.current", "10"), ("pids.events", "max 3")):
        (tmp_path / "own" / name).write_text(value)
    room = Headroom(str(tmp_path / "mounts"), str(tmp_path / "group"))
    assert room.short() == ""
    assert room.started() == 3
    assert room.short() == ""
    room.started()
    room.started()
    assert "10 of 20 processes are there" in room.short()
    (tmp_path / "own" / "pids.max").write_text("max")
    assert room.short() == ""
    assert room.refusals() == 3


# --- disks and descriptors ----------------------------------------------------------------------------


@pytest.mark.machine("mounts")
async def test_a_full_disk_delays_the_start(tmp_path: Path) -> None:
    with mounted(tmp_path / "small", "size=1m") as disk:
        (disk / "app").mkdir(mode=0o700)
        ballast = disk / "ballast"
        with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))
        await _delayed(disk, ballast.unlink)


async def test_too_few_descriptors_delay_the_start(tmp_path: Path) -> None:
    """Of the engine; those of other processes are its launcher's affair."""
    await run_all(task_of(tmp_path, "true"), spec(1))  # the launcher has more
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    task = task_of(tmp_path, "echo there")
    facts: list[Fact] = []
    await task.runner.open(facts.append)
    await task.render("j2")
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, before[1]))
    try:
        task.runner.start(spec(2))
        await until(lambda: facts)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert isinstance(facts[0], Noticed)
    await until(lambda: ends(facts))
    assert ends(facts)[2].ending.outcome == "succeeded"
    await task.runner.close()


async def _delayed(path: Path, make_room: Callable[[], None]) -> None:
    task = task_of(path, "echo there")
    facts: list[Fact] = []
    await task.runner.open(facts.append)
    task.runner.start(spec(1))
    task.runner.start(spec(2))
    await until(lambda: len(facts) == 2)
    await asyncio.sleep(0.5)
    assert [type(fact) for fact in facts] == [Noticed, Noticed], "told once"
    task.runner.stop(2, "cancelled", 0)
    assert ends(facts)[2].ending.outcome == "cancelled"
    make_room()
    await until(lambda: len(ends(facts)) == 2)
    assert ends(facts)[1].ending.outcome == "succeeded"
    await task.runner.close()


# --- functions, and machines of a user's own ------------------------------------------------------------


class ThreadsRefused(ThreadPoolExecutor):
    """The machine starts no thread for it for the first times; what it was given stays in its queue, as in Python."""

    refusals = 4

    def _adjust_thread_count(self) -> None:
        ThreadsRefused.refusals -= 1
        if ThreadsRefused.refusals in (0, 1, 3):
            raise RuntimeError("can't start new thread")
        super()._adjust_thread_count()


class ForksRefused(ProcessPoolExecutor):
    """The machine forks only one of its processes for the first times."""

    refusals = 4

    def _spawn_process(self) -> None:
        ForksRefused.refusals -= 1
        if ForksRefused.refusals in (0, 2):
            raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")
        super()._spawn_process()  # type: ignore[misc]


async def ended_once(pipeline: Pipeline, folder: Path, jobs: int) -> None:
    """Run it: each job at its first attempt, and each effect once."""
    async with pipeline:
        await pipeline.run(timeout=60)
    with History(folder / "log.db") as history:
        runs = list(history.runs())
        told = [event.event for event in history.events() if type(event.event).__name__ == "RunObserved"]
    assert [(run["state"], run["attempt"]) for run in runs] == [("succeeded", 1)] * jobs
    assert told
    assert [len(file.read_text()) for file in (folder / "effects").iterdir()] == [1] * jobs


@pytest.mark.parametrize("kind", [ThreadsRefused, ForksRefused])
async def test_an_executor_waits_for_its_threads_and_processes(
    tmp_path: Path, kind: Callable[[int], Executor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kind, "refusals", 4)
    (tmp_path / "effects").mkdir()
    task = ExecutorTask("t", lambda: kind(2), LogMetadataRepository("done"))
    task.link("given", InProcessMetadataRepository({f"j{n}": {} for n in range(5)}), is_input=True)
    folder = str(tmp_path / "effects")

    @task
    def work(job: str) -> None:
        with open(f"{folder}/{job}", "a") as file:
            file.write("x")

    await ended_once(Pipeline([task], Session(), log=tmp_path / "log.db"), tmp_path, 5)


class Crowded(Elsewhere):
    """A machine of a user's own that starts nothing for the first times."""

    refusals = 3

    async def spawn(self, *given: object) -> str:
        self.refusals -= 1
        if self.refusals >= 0:
            raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")
        return await super().spawn(*given)


async def test_a_machine_of_a_users_own_has_no_room_for_a_moment(tmp_path: Path) -> None:
    (tmp_path / "effects").mkdir()
    task = ProcessTask(
        "t", Crowded(tmp_path), None, Resources(), LogMetadataRepository("pids"),
        f"printf x >> {tmp_path}/effects/{{{{ job }}}}", done=LogMetadataRepository("done"),
    )  # fmt: skip
    task.link("given", InProcessMetadataRepository({f"j{n}": {} for n in range(3)}), is_input=True)
    await ended_once(Pipeline([task], Session(), log=tmp_path / "log.db"), tmp_path, 3)
