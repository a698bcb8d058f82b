"""Whatever hangs, one signal or a time-out ends `run`, and `cancel` and `rm` come back; nothing is lost by it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from datatask.adapters.cli import errand
from datatask.adapters.wiring.last_bound import Guard
from tests.integration.cli_kit import Project

HEAD = """
import asyncio, os, signal, threading, time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
import datatask as d
from datatask.adapters.store.filestore import FileStore

HERE = Path(__file__).parent
session = d.Session()
inputs = d.LogMetadataRepository("inputs")

class Silent(FileStore):
    def _wait(self):
        (HERE / "asked").touch()
        while not (HERE / "mended").exists():
            time.sleep(0.05)
    def _put(self, write):
        self._wait()
        return super()._put(write)
    def _delete(self, job):
        self._wait()
        return super()._delete(job)

class SilentFiles(d.FileRepository):
    def _own_store(self):
        return Silent(self.basedir, self.extension, self.case_insensitive, self._id or "")

async def for_ever():
    (HERE / "asked").touch()
    await asyncio.Event().wait()

def function(inputs=inputs):
    task = d.InProcessSyncTask("t", d.LogMetadataRepository("t.done"))
    task.link("inputs", inputs, is_input=True)
    return task

def called(task, *, waits):
    def body(job):
        (HERE / "asked").touch()
        while not (HERE / "mended").exists():
            time.sleep(waits)
    async def on_loop(job):
        body(job)
    task(on_loop if isinstance(task, d.InProcessSyncTask) else body)
"""
TAIL = "\npipeline = d.Pipeline([t], session, [])\n"

SILENT_STORE = """
t = d.ProcessTask("t", d.LocalLinuxManager("bounded", HERE / ".procs"), None, d.Resources.parse(1, "1Mi"),
    d.LogMetadataRepository("pids"), "echo out", stdout=SilentFiles(HERE / "out", ".txt", name="out"),
    done=d.LogMetadataRepository("t.done"))
t.link("inputs", inputs, is_input=True)
"""
STUBBORN = """
t = function()
@t
async def run_t(job):
    (HERE / "asked").touch()
    while not (HERE / "mended").exists():
        try:
            await asyncio.sleep(0.1)
        except asyncio.CancelledError:
            pass
"""
BLOCKED_LOOP = "\nt = function()\ncalled(t, waits=0.1)\n"
IN_A_THREAD = """
t = d.ExecutorTask("t", lambda: ThreadPoolExecutor(1), d.LogMetadataRepository("t.done"))
t.link("inputs", inputs, is_input=True)
called(t, waits=0.1)
"""
SESSION = """
@session.resource
async def resource():
    if not (HERE / "mended").exists():
        await for_ever()
    yield 1
t = function()
@t
async def run_t(job):
    pass
"""
GOODBYE = """
@session.resource
async def resource():
    yield 1
    if not (HERE / "mended").exists():
        await for_ever()
t = function()
@t
async def run_t(job):
    if not (HERE / "mended").exists():
        await for_ever()
"""
HANGS = {
    "a store": SILENT_STORE,
    "a function that goes on": STUBBORN,
    "a function that blocks the loop": BLOCKED_LOOP,
    "a thread": IN_A_THREAD,
    "a session that opens": SESSION,
    "a session that closes": GOODBYE,
}
GRACE = "0.5"


def project(folder: Path, text: str) -> Project:
    made = Project(folder, HEAD + text + TAIL)
    (made.folder / "mended").touch()
    made.ok("inject", "t.inputs", "a", stdin=b"n: 1")
    (made.folder / "mended").unlink()
    return made


def await_file(path: Path, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 60
    while not path.exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)


def goes_on(made: Project) -> None:
    """Mended, the job is done: once more, or with what was there."""
    (made.folder / "mended").touch()
    assert made.call("run").code == 0, made.ok("log").out
    assert made.ok("ls", "t.succeeded").lines == ["a"]
    assert made.ok("replay", "--verify").code == 0


@pytest.mark.parametrize("hangs", HANGS)
def test_a_timeout_ends_a_run_whatever_hangs(tmp_path: Path, hangs: str) -> None:
    made = project(tmp_path, HANGS[hangs])
    ended = made.spawn("run", "--timeout", "1", "--grace", GRACE)
    out, err = ended.communicate(timeout=60)
    assert ended.returncode == 7, (out, err)
    goes_on(made)


def test_what_is_blocked_for_good_is_ended_a_second_after_the_grace(tmp_path: Path) -> None:
    made = project(tmp_path, HANGS["a function that blocks the loop"])
    for seconds in (1, 4, 16, 64):  # a busy machine may need longer to open the log
        ended = made.spawn("run", "--timeout", str(seconds), "--grace", GRACE)
        err = ended.communicate(timeout=120)[1].decode()
        if "not open after" not in err:
            break
    said = f"not ended {seconds + 1.5:g} s after its start: something blocks"
    assert (ended.returncode, said in err) == (7, True), err


def test_an_end_that_was_put_off_still_bounds_what_comes_after_the_work() -> None:
    guard = Guard()
    guard.within(20, 7, "too long")
    guard.put_off()
    guard.at_last(100, 0, "a thread")
    assert guard._due is not None
    assert 10 < guard._due[0] - time.monotonic() <= 20
    guard.put_off()
    fresh = Guard()
    fresh.at_last(100, 0, "a thread")
    assert fresh._due is not None
    assert fresh._due[0] - time.monotonic() > 50
    fresh.put_off()


@pytest.mark.parametrize(
    ("hangs", "number"),
    [
        ("a store", signal.SIGTERM),
        ("a function that blocks the loop", signal.SIGINT),
        ("a session that opens", signal.SIGINT),
        ("a session that closes", signal.SIGTERM),
    ],
)
def test_one_signal_ends_a_run_whatever_hangs(tmp_path: Path, hangs: str, number: signal.Signals) -> None:
    made = project(tmp_path, HANGS[hangs])
    running = made.spawn("run", "--grace", GRACE)
    await_file(made.folder / "asked", running)
    running.send_signal(number)
    out, err = running.communicate(timeout=60)
    assert running.returncode == 130, (out, err)
    goes_on(made)


# --- executors --------------------------------------------------------------------------------------

QUEUED = """
t = d.ExecutorTask("t", lambda: {executor}(1), d.LogMetadataRepository("t.done"), retry=d.Retry(attempts=1))
t.link("inputs", inputs, is_input=True)
called(t, waits=0.05)
"""


@pytest.mark.parametrize("executor", ["ThreadPoolExecutor", "ProcessPoolExecutor"])
def test_what_an_executor_has_only_queued_is_handed_back(tmp_path: Path, executor: str) -> None:
    """One Ctrl-C waits for what runs alone; the others are begun by the next engine, as if for the first time."""
    made = project(tmp_path, QUEUED.format(executor=executor))
    for number in range(8):
        made.ok("inject", "t.inputs", f"b{number}", stdin=b"n: 1")
    running = made.spawn("run")
    await_file(made.folder / "asked", running)
    made.until("9", "status", "--json", "--fields", "tasks")
    running.send_signal(signal.SIGINT)
    assert running.stderr is not None
    assert b"handing back 8 that have not begun" in running.stderr.readline()
    (made.folder / "mended").touch()
    out, err = running.communicate(timeout=60)
    assert (running.returncode, b"8 cancelled, 1 succeeded" in out) == (130, True), (out, err)
    assert made.call("run").code == 0
    runs = made.ok("runs", "--json", "--fields", "state,attempt").json
    assert [run["attempt"] for run in runs if run["state"] == "succeeded"] == [1] * 9


def test_a_run_that_was_shut_down_and_is_lost_with_its_engine_is_not_given_up(tmp_path: Path) -> None:
    made = project(tmp_path, IN_A_THREAD.replace('"t.done")', '"t.done"), retry=d.Retry(attempts=1)'))
    running = made.spawn("run", "--timeout", "1", "--grace", GRACE)
    assert (running.communicate(timeout=60), running.returncode)[1] == 7
    goes_on(made)


# --- without an engine ------------------------------------------------------------------------------


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands lose their patience sooner."""
    monkeypatch.setattr(errand, "PATIENCE_SECONDS", 0.5)
    monkeypatch.setattr(errand, "LEAST_SECONDS", 0.5)
    monkeypatch.setattr(errand, "CLOSING_SECONDS", 0.5)


@pytest.mark.parametrize("verb", [["cancel", "t", "a"], ["rm", "-r", "t.inputs", "a"]])
def test_what_is_asked_of_a_pipeline_that_does_not_open_waits_for_one_that_does(
    tmp_path: Path, hurried: None, verb: list[str]
) -> None:
    made = project(tmp_path, SESSION)
    left = made.ok(*verb)
    assert "did not answer in time: what was asked waits in the inbox; the next `datatask run`" in left.err
    (made.folder / "mended").touch()
    assert made.call("run").code == 0
    recorded = made.ok("log", "--kind", "CancelRequested", "--kind", "ValueDeleted").out
    assert f"datatask {verb[0]}" in recorded


def test_a_store_that_does_not_answer_is_written_by_the_next_engine(tmp_path: Path, hurried: None) -> None:
    made = project(tmp_path, SILENT_STORE)
    (made.folder / "mended").touch()
    assert made.call("run").code == 0
    (made.folder / "mended").unlink()
    left = made.ok("rm", "t", "__all__", "--json")
    assert left.json["left"] == ["recorded, and not done yet: the store of out: 1 write"]
    assert (made.folder / "out" / "a.txt").exists()
    (made.folder / "mended").touch()
    assert made.call("run", "--timeout", "20").code == 0
    deleted = made.ok("log", "--kind", "ValueDeleted", "--json").out.splitlines()
    assert "out" in {json.loads(line)["repository"] for line in deleted}


SCRIPT = """
t = d.ProcessTask("t", d.LocalLinuxManager("bounded", HERE / ".procs"), None, d.Resources.parse(1, "1Mi"),
    d.LogMetadataRepository("pids"), "echo $PPID > {folder}/asked; while ! [ -e {folder}/mended ]; do sleep 0.1; done",
    done=d.LogMetadataRepository("t.done"))
t.link("inputs", inputs, is_input=True)
"""


def test_a_run_that_cannot_be_stopped_now_is_stopped_by_the_next_engine(
    tmp_path: Path, hurried: None
) -> None:
    """Its launcher has been stopped; with --wait the command waits until it answers again."""
    made = project(tmp_path, SCRIPT.format(folder=tmp_path))
    assert made.call("run", "--timeout", "2", "--grace", GRACE).code == 7
    launcher = launchers(made.folder)
    assert launcher
    for pid in launcher:
        os.kill(pid, signal.SIGSTOP)
    try:
        left = made.ok("cancel", "t", "a")
        assert "asked to stop, and not ended yet: t a" in left.err
    finally:
        for pid in launcher:
            os.kill(pid, signal.SIGCONT)
    waiting = made.spawn("rm", "t", "a", "--wait")
    assert (waiting.communicate(timeout=60), waiting.returncode)[1] == 0
    assert made.ok("runs", "--json", "--fields", "state").json == [{"state": "cancelled"}]


def launchers(folder: Path) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                words = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if b"launcher" in words and os.fsencode(folder / ".procs") in words:
                found.append(int(entry.name))
    return found


UNCANCELLABLE = """
class Slow(ThreadPoolExecutor):
    def submit(self, *call):
        future = super().submit(*call)
        def cancel():
            raise NotImplementedError("Cancel not implemented")
        future.cancel = cancel
        return future

t = d.ExecutorTask("t", lambda: Slow(1), d.LogMetadataRepository("t.done"), timeout=0.5, grace=0.2)
t.link("inputs", inputs, is_input=True)
called(t, waits=0.05)
"""


def test_an_executor_that_takes_nothing_back_ends_no_engine(tmp_path: Path) -> None:
    made = project(tmp_path, UNCANCELLABLE)
    ended = made.call("run", "--failures-ok", "--grace", GRACE)
    (made.folder / "mended").touch()
    assert ended.code == 0, ended
    assert [run["state"] for run in made.ok("runs", "--json", "--fields", "state").json] == ["timed_out"]
