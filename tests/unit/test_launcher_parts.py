"""What the launcher is made of: its journal of runs, and what it asks the process table."""

from __future__ import annotations

import os
import selectors
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from datatask.adapters.execute.base import proctable
from datatask.adapters.execute.local import journal as journals
from datatask.adapters.execute.local.journal import Journal, Syncs
from datatask.adapters.execute.local.launcher import REBOOTED, TORN, Launcher
from datatask.adapters.execute.local.process_tree import Strangers


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    """A process in a session of its own, with a telling argument."""
    process = subprocess.Popen(
        [sys.executable, "-c", "import time; time.sleep(60)", "/a/run"], start_new_session=True
    )
    yield process
    process.kill()
    process.wait()


def test_a_journal_gives_back_what_was_added(tmp_path: Path) -> None:
    """Facts of a run add up; forgotten runs and a torn last line are gone; the boot before is known."""
    first = Journal(str(tmp_path / "journal"), "boot-1")
    assert first.load() == {}
    first.add({"id": "a", "intended": True})
    first.add({"id": "a", "pid": 7})
    first.add({"id": "b", "intended": True})
    first.add({"id": "b", "forgotten": True})
    with open(tmp_path / "journal", "ab") as file:
        file.write(b'not json\n{"id":"c","torn')
    second = Journal(str(tmp_path / "journal"), "boot-2")
    assert second.load() == {"a": {"id": "a", "intended": True, "pid": 7}}
    assert second.boot_before == "boot-1"
    assert b"torn" not in (tmp_path / "journal").read_bytes()


def test_a_journal_keeps_what_the_disk_refuses(tmp_path: Path) -> None:
    """It waits in memory, and is written when the disk takes it again."""
    made = Journal(str(tmp_path / "journal"), "boot")
    made.load()
    kept, made._fd = made._fd, -1
    made.add({"id": "a", "intended": True})
    assert not made.write_out()
    made._fd = kept
    assert made.write_out()
    assert Journal(made.path, "boot").load() == {"a": {"id": "a", "intended": True}}


def test_a_large_journal_is_rewritten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As just the runs that are left."""
    monkeypatch.setattr(journals, "COMPACT_BYTES", 4096)
    made = Journal(str(tmp_path / "journal"), "boot")
    made.load()
    for number in range(200):
        made.add({"id": f"run{number}", "intended": True})
    made.compact({"run7": {"id": "run7", "pid": 1}})
    assert os.path.getsize(made.path) < 200
    made.add({"id": "run8", "pid": 2})
    assert set(Journal(made.path, "boot").load()) == {"run7", "run8"}


def test_a_process_is_known_by_pid_and_start(sleeper: subprocess.Popen[bytes]) -> None:
    """Another start time is another process, and a zombie is none."""
    pidfd, start = os.pidfd_open(sleeper.pid), proctable.start_time(sleeper.pid)
    assert start is not None
    assert proctable.is_alive(sleeper.pid, start)
    assert not proctable.is_alive(sleeper.pid, start + 1)
    assert proctable.pids_in_session(sleeper.pid) == [sleeper.pid]
    deadline = time.monotonic() + 10
    while proctable.find_by_argument("/a/run") != sleeper.pid and time.monotonic() < deadline:
        time.sleep(0.01)
    assert proctable.find_by_argument("/a/run") == sleeper.pid
    assert proctable.find_by_argument("/no/such/run") is None
    proctable.kill_session(sleeper.pid, signal.SIGTERM)
    os.waitid(os.P_PID, sleeper.pid, os.WEXITED | os.WNOWAIT)
    assert not proctable.is_alive(sleeper.pid, start)
    status = proctable.status_of_stranger(sleeper.pid, start, pidfd)
    assert status is not None
    assert os.WTERMSIG(status) == signal.SIGTERM
    sleeper.wait()
    assert proctable.start_time(sleeper.pid) is None
    assert proctable.status_of_stranger(sleeper.pid, start, pidfd) in (None, status)  # as the kernel can tell
    proctable.kill_session(sleeper.pid)
    os.close(pidfd)


def test_the_boot_has_an_id() -> None:
    """The same one each time."""
    assert proctable.boot_id() == proctable.boot_id() != ""


def test_what_ended_before_the_machine_went_down_is_collected_unless_its_output_is_torn(
    tmp_path: Path,
) -> None:
    """Whole outputs have the recorded size; what was running is lost."""
    whole, torn, silent, running = (f"log.1.{number}" for number in (1, 2, 3, 4))
    before = Journal(str(tmp_path / "journal"), "the boot before")
    before.load()
    for identity, sizes in ((whole, {"stdout": 3}), (torn, {"stdout": 9}), (silent, {})):
        end = {
            "ended": identity,
            "code": 0,
            "began": 1,
            "at": 2,
            "stopped": None,
            "pid": 5,
            "usage": {},
            "why": "",
        }
        before.add({"id": identity, "pid": 5, "start": 1, "began": 1, "ended": {**end, "sizes": sizes}})
    before.add({"id": running, "pid": 5, "start": 1, "began": 1})
    for identity in (whole, torn):
        (tmp_path / "log" / identity).mkdir(parents=True)
        (tmp_path / "log" / identity / "stdout").write_text("abc")
    launcher = Launcher(str(tmp_path))
    launcher.runs = launcher.journal.load()
    launcher._take_over()
    found = {
        identity: (facts["ended"]["code"], facts["ended"]["why"]) for identity, facts in launcher.runs.items()
    }
    assert found == {whole: (0, ""), silent: (0, ""), torn: (None, TORN), running: (None, REBOOTED)}


def test_syncs_cover_what_was_there_when_they_began(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One at a time; what comes meanwhile is for the next."""
    journal = Journal(str(tmp_path / "journal"), "boot")
    journal.load()
    free, woken = threading.Semaphore(0), threading.Semaphore(0)
    monkeypatch.setattr(os, "fdatasync", lambda file: free.acquire(timeout=10))
    syncs = Syncs(journal, woken.release)
    syncs.begin(["a", "b"])
    syncs.begin(["a", "b", "c"])
    assert syncs.done() == []
    free.release()
    assert woken.acquire(timeout=10)
    assert syncs.done() == ["a", "b"]
    syncs.begin(["c"])
    free.release()
    assert woken.acquire(timeout=10)
    assert syncs.done() == ["c"]


def test_a_sync_that_the_disk_refuses_is_over_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = Journal(str(tmp_path / "journal"), "boot")
    journal.load()
    woken = threading.Semaphore(0)

    def refused(file: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fdatasync", refused)
    syncs = Syncs(journal, woken.release)
    syncs.begin(["a"])
    assert woken.acquire(timeout=10)
    assert syncs.done() == ["a"]


KEPT = """
import os, sys, time
from datatask.adapters.execute.base import proctable
from datatask.adapters.execute.local import subreaper as keeper
def work(above):
    if not os.path.exists("first"):
        open("first", "w").close()
        if os.fork() == 0:
            os.setsid()
            time.sleep(0.3)
            os._exit(7)
        os._exit(3) if {how!r} == "fails" else os.kill(os.getpid(), 9)
    while not (zombies := [pid for pid, child in proctable.children(os.getppid()).items() if child.is_zombie]):
        time.sleep(0.01)
    print(proctable.status_of_stranger(zombies[0], proctable.start_time(zombies[0]), -1) >> 8)
    return 0
sys.exit(keeper.keep(work))
"""


@pytest.mark.parametrize("how", ["fails", "is killed"])
def test_a_keeper_has_the_exit_codes_of_what_a_launcher_leaves(tmp_path: Path, how: str) -> None:
    """Whatever ended it; the next one reads them."""
    done = subprocess.run(
        [sys.executable, "-c", KEPT.format(how=how)], cwd=tmp_path, capture_output=True, text=True, timeout=30
    )
    assert (done.stdout, done.returncode) == ("7\n", 0)


def test_a_keeper_that_has_nothing_to_keep_ends_as_its_launcher(tmp_path: Path) -> None:
    program = "import sys; from datatask.adapters.execute.local import subreaper as keeper; sys.exit(keeper.keep(lambda above: 5))"
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, timeout=30, check=False)
    assert done.returncode == 5


DIES_BEFORE_IT_WAITS = """
import os, time
from datatask.adapters.execute.base import proctable
from datatask.adapters.execute.local.launcher import Launcher
launcher = Launcher(".")
launcher.runs = launcher.journal.load()
pid = os.posix_spawn("/bin/sh", ["/bin/sh", "-c", {script!r}], {{}})
launcher.runs["log.1.1"] = facts = {{"id": "log.1.1", "pid": pid, "start": proctable.start_time(pid), "began": 1}}
launcher.journal.add(facts)
launcher.children[pid] = "log.1.1"
os.wait4 = lambda pid, options: os.waitpid(pid, 0) and os._exit(9)
while True:
    launcher._reap()
    time.sleep(0.01)
"""


@pytest.mark.parametrize(
    ("script", "code"),
    [
        ("exit 7", 7),
        ("kill -SEGV $$", -11),
        ("kill -9 $$", None),
        ("kill -TERM $$", None),
        ("exit 143", None),
    ],
)
def test_an_end_is_known_to_the_next_launcher_once_the_last_one_has_waited(
    tmp_path: Path, script: str, code: int | None
) -> None:
    """It is told once: whoever waited for it, and died of it, has written it down before.

    By a signal that ends all there is, the launcher too, no script has ended by itself.
    """
    program = DIES_BEFORE_IT_WAITS.format(script=script)
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, timeout=30, check=False)
    assert done.returncode == 9
    later = Launcher(str(tmp_path))
    later.runs = later.journal.load()
    later._take_over()
    ended = later.runs["log.1.1"]["ended"]
    assert ended["code"] == code
    assert ("was being stopped" in ended["why"]) is (code is None)


def test_a_run_of_an_earlier_launcher_is_watched_without_a_descriptor_too(
    sleeper: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is there: to take it for gone would start it once more."""

    def refused(pid: int) -> int:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(os, "pidfd_open", refused)
    strangers = Strangers(selectors.DefaultSelector())
    start = proctable.start_time(sleeper.pid) or 0
    assert strangers.watch("a", sleeper.pid, start)
    assert not strangers.watch("b", sleeper.pid, start + 1)
    assert strangers.gone() == []
    sleeper.kill()
    deadline = time.monotonic() + 10
    while not (found := strangers.gone()) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert found == ["a"]
    assert strangers.gone() == []
    assert strangers.status("a") == (True, signal.SIGKILL)
    assert not strangers
