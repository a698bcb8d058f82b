"""A look into a run that goes on: its output as it comes, a shell in its folder, here and over SSH."""

from __future__ import annotations

import os
import pty
import re
import select
import shutil
import signal
import sqlite3
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from datatask.adapters.execute.base import proctable
from datatask.adapters.execute.local.process_tree import MARK
from tests.ssh_kit import server

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = """
from pathlib import Path
from datatask import *

here = Path({folder!r})
given = LogMetadataRepository("given")
task = ProcessTask(
    "work", {manager}, None, Resources(), LogMetadataRepository("pids"),
    f"echo first; echo mark > mark; while [ ! -e {{here}}/go ]; do sleep 0.1; done; echo last\\n",
    done=LogMetadataRepository("done"), stdout=LogBlobRepository("out"),
)
task.link("given", given, is_input=True)
pipeline = Pipeline([task], Session(), [], log=here / "log.db")
"""
LOCAL = "LocalLinuxManager('app', here / 'base')"
REMOTE = """SSHLinuxManager('app', SSHHost('127.0.0.1:{port}', None, 'far', dict(
    client_keys=['{keys}/user_key'], known_hosts='{keys}/known_hosts', agent_path=None, config=None)), here / 'base')"""


def datatask(folder: Path, *arguments: str) -> list[str]:
    """Return a command of ours on the pipeline in the folder."""
    return [sys.executable, "-m", "datatask", "-p", str(folder / "work.py"), *arguments]


def told(folder: Path, *arguments: str, given: str = "", code: int = 0) -> str:
    """Run a command; return what it prints."""
    done = subprocess.run(
        datatask(folder, *arguments), cwd=ROOT, input=given, capture_output=True, text=True, check=False
    )
    assert done.returncode == code, done.stderr
    slow = rf"{arguments[0]}: [\d.]+ s"  # said where the machine is busy
    return done.stdout + "".join(
        line for line in done.stderr.splitlines(keepends=True) if not re.fullmatch(slow, line.strip())
    )


@pytest.fixture(params=["here", pytest.param("far", marks=pytest.mark.server("sshd"))])
def engine(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """An engine of a pipeline whose one run goes on until `go` is there."""
    manager = LOCAL
    if request.param == "far":
        manager = REMOTE.format(port=server().port, keys=server().folder)
    (tmp_path / "work.py").write_text(PROGRAM.format(folder=str(tmp_path), manager=manager))
    told(tmp_path, "inject", "work.given", "one", given="{}\n")
    engine = subprocess.Popen(datatask(tmp_path, "run"), cwd=ROOT, stdout=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 60
        while not list((tmp_path / "base").rglob("mark")):
            assert time.monotonic() < deadline, "the run does not begin"
            time.sleep(0.05)
        yield engine
    finally:
        (tmp_path / "go").touch()
        assert engine.wait(120) in (0, -signal.SIGKILL)


@pytest.fixture
def running(engine: subprocess.Popen[bytes], tmp_path: Path) -> Iterator[Path]:
    """Its folder."""
    yield tmp_path
    (tmp_path / "go").touch()
    assert engine.wait(120) == 0


def test_output_is_printed_as_it_comes_until_the_run_is_over(running: Path) -> None:
    reader = subprocess.Popen(
        datatask(running, "cat", "work.stdout", "one"), cwd=ROOT, stdout=subprocess.PIPE
    )
    assert reader.stdout is not None
    assert os.read(reader.stdout.fileno(), 100) == b"first\n"
    assert reader.poll() is None
    (running / "go").touch()
    assert reader.communicate(timeout=100)[0] == b"last\n"
    assert reader.returncode == 0
    assert told(running, "cat", "work.stdout", "one") == "first\nlast\n"


def test_a_shell_has_the_terminal_where_there_is_one(running: Path) -> None:
    """Its size too, and what was typed before it was there."""
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (33, 77))
    command = datatask(running, "enter", "work", "one")
    shell = subprocess.Popen(
        command, cwd=ROOT, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True
    )
    os.close(theirs)
    shown = b""
    try:
        os.write(ours, b"stty size; cat mark; exit 3\n")
        while select.select([ours], [], [], 100)[0]:
            shown += os.read(ours, 1000)
    except OSError:  # nobody has the other end any more
        pass
    finally:
        os.close(ours)
        shell.kill()
    assert shell.wait() == 3
    assert b"33 77\r\nmark\r\n" in shown


def test_what_a_crash_has_left_is_its_log_s_until_that_is_gone(
    engine: subprocess.Popen[bytes], tmp_path: Path
) -> None:
    """A killed engine's run is open: nobody removes it. With its log deleted, it goes when it is asked for by name."""

    def alive() -> bool:
        return any(folder.startswith(f"{tmp_path}/base/app/") for folder in proctable.marked(MARK))

    engine.kill()
    engine.wait()
    assert "nothing is left of runs that are over" in told(tmp_path, "doctor", "--clean")
    assert alive()
    with closing(sqlite3.connect(tmp_path / "log.db")) as file:
        ((log,),) = file.execute("SELECT value FROM meta WHERE key = 'uuid'")
    other_log = ("--log", str(tmp_path / "other.db"))
    shown = told(tmp_path, *other_log, "doctor", "--clean", "--of", log, code=2)
    assert f"the log {log} is not gone, it is {tmp_path}/log.db" in shown
    assert alive()
    for path in tmp_path.glob("log.db*"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    stranger = {**os.environ, "DATATASK_RUN": f"{tmp_path}/base/other/{log}/{log}.1.9"}
    with subprocess.Popen(["sleep", "300"], env=stranger, start_new_session=True) as other:
        try:
            shown = told(tmp_path, "doctor", "--clean")
            assert f"1 runs are of another log, {log}" in shown
            assert f"doctor --clean --of {log}` does" in shown
            assert alive()
            assert "add --clean" in told(tmp_path, "doctor", "--of", log, code=2)
            assert "; removed" in told(tmp_path, "doctor", "--clean", "--of", log)
            assert not alive()
            assert not list((tmp_path / "base/app").rglob("mark"))
            assert other.poll() is None
            assert "another log" not in told(tmp_path, "doctor")
        finally:
            other.kill()


def test_a_shell_opens_in_the_folder_of_the_run(running: Path) -> None:
    assert told(running, "enter", "work", "one", given="pwd; cat mark; exit 3\n", code=3).endswith(
        "/cwd\nmark\n"
    )
    assert "work has no run of two now" in told(running, "enter", "work", "two", code=2)
    assert "there is no task play" in told(running, "enter", "play", "one", code=2)


@pytest.mark.server("sshd")
def test_doctor_removes_what_is_nobody_s_and_nothing_else(tmp_path: Path) -> None:
    """A folder with a process of a run that is over; one of another log stays."""
    (tmp_path / "work.py").write_text(
        PROGRAM.format(folder=str(tmp_path), manager=REMOTE.format(port=server().port, keys=server().folder))
    )
    (tmp_path / "go").touch()
    told(tmp_path, "inject", "work.given", "one", given="{}\n")
    told(tmp_path, "run")
    (log,) = [path for path in (tmp_path / "base/app/far").iterdir() if path.is_dir()]
    left = subprocess.Popen(["sleep", "600"], start_new_session=True)
    fields = Path(f"/proc/{left.pid}/stat").read_text().rpartition(")")[2].split()
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    for folder in (log / "1.999", log.parent / "fedcba9876543210/1.999"):
        (folder / "cwd").mkdir(parents=True)
    (log / "1.999/claim").write_text(f"{left.pid} {boot} {fields[19]} 1\n")
    assert "which no open run owns: it runs" in told(tmp_path, "doctor")
    assert left.poll() is None
    shown = told(tmp_path, "doctor", "--clean")
    assert "removed" in shown
    assert "1 runs are of another log, fe" in shown
    assert left.wait(100) == -9
    assert not (log / "1.999").exists()
    assert (log.parent / "fedcba9876543210/1.999").exists()
    assert "nothing is left" in told(tmp_path, "doctor")


@pytest.mark.server("sshd")
def test_doctor_ends_what_ended_runs_have_left_on_a_target_and_nothing_else(tmp_path: Path) -> None:
    """In sessions of their own, with a folder or without; those of open runs, other logs and other folders stay."""
    (tmp_path / "work.py").write_text(
        PROGRAM.format(folder=str(tmp_path), manager=REMOTE.format(port=server().port, keys=server().folder))
    )
    (tmp_path / "go").touch()
    told(tmp_path, "inject", "work.given", "one", given="{}\n")
    told(tmp_path, "run")
    (log,) = [path for path in (tmp_path / "base/app/far").iterdir() if path.is_dir()]
    (log / "1.999/cwd").mkdir(parents=True)
    marks = {
        "without a folder": f"{log}/1.998",
        "with a folder": f"{log}/1.999",
        "another log's": f"{log.parent}/fedcba9876543210/1.5",
        "another folder's": f"{tmp_path}/copy/{log.name}/1.998",
        "deeper": f"{log}/1.998/x",
        "no run's": f"{log.parent}/../1.998",
    }
    alive = {
        name: subprocess.Popen(
            ["sleep", "300"], env={**os.environ, "DATATASK_RUN": mark}, start_new_session=True
        )
        for name, mark in marks.items()
    }
    ours = ("without a folder", "with a folder")
    try:
        shown = told(tmp_path, "doctor")
        for number in (998, 999):
            assert f"{log.name}.1.{number}, which no open run owns: it runs" in shown
        assert "1 runs are of another log, fe" in shown
        assert told(tmp_path, "doctor", "--clean").count("removed") == 2
        assert [alive[name].wait(100) for name in ours] == [-9, -9]
        assert {alive[name].poll() for name in alive if name not in ours} == {None}
        assert not (log / "1.999").exists()
        assert "nothing is left" in told(tmp_path, "doctor")
    finally:
        for process in alive.values():
            process.kill()
            process.wait()


def test_doctor_removes_what_is_left_here_and_nothing_else(tmp_path: Path) -> None:
    """Folders and processes of runs that are over; those of another log and strangers stay."""
    (tmp_path / "work.py").write_text(PROGRAM.format(folder=str(tmp_path), manager=LOCAL))
    (tmp_path / "go").touch()
    told(tmp_path, "inject", "work.given", "one", given="{}\n")
    told(tmp_path, "run")
    with closing(sqlite3.connect(tmp_path / "log.db")) as file:
        ((log,),) = file.execute("SELECT value FROM meta WHERE key = 'uuid'")
    base = tmp_path / "base" / "app"
    (base / log / f"{log}.1.999" / "cwd").mkdir(parents=True)
    (base / "feedfacefeedface" / "feedfacefeedface.1.5").mkdir(parents=True)
    marks = {
        "ours": f"{base}/{log}/{log}.1.998",
        "with a folder": f"{base}/{log}/{log}.1.999",
        "another's": f"{base}/feedfacefeedface/feedfacefeedface.1.5",
        "a copy's": f"{tmp_path}/copy/app/{log}/{log}.1.998",
    }
    alive = {
        name: subprocess.Popen(
            ["sleep", "300"], env={**os.environ, "DATATASK_RUN": mark}, start_new_session=True
        )
        for name, mark in marks.items()
    }
    try:
        shown = told(tmp_path, "doctor")
        assert f"{log}.1.998, which no open run owns: it runs (pid {alive['ours'].pid})" in shown
        assert f"{log}.1.999, which no open run owns: it runs (pid {alive['with a folder'].pid})" in shown
        assert "1 runs are of another log, fe" in shown
        shown = told(tmp_path, "doctor", "--clean")
        assert shown.count("removed") == 2
        assert {name: alive[name].wait(100) for name in ("ours", "with a folder")} == dict.fromkeys(
            ("ours", "with a folder"), -9
        )
        assert {name: alive[name].poll() for name in ("another's", "a copy's")} == dict.fromkeys(
            ("another's", "a copy's")
        )
        assert not (base / log / f"{log}.1.999").exists()
        assert (base / "feedfacefeedface" / "feedfacefeedface.1.5").exists()
        assert "nothing is left" in told(tmp_path, "doctor")
    finally:
        for process in alive.values():
            process.kill()
            process.wait()
