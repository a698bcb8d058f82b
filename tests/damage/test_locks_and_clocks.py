"""File systems that lie about locks, clocks that are set, engines that start at once, readers that never finish."""

from __future__ import annotations

import os
import re
import sqlite3
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest

from datatask.adapters.log.locate import lease_path
from tests.integration.cli_kit import Project, complaints

ENGINES = 6
READERS = 4


def start(project: Project, *arguments: str, **environment: str) -> subprocess.Popen[str]:
    """Start a command in a process of its own, with something more in its environment."""
    return subprocess.Popen(
        [sys.executable, "-m", "datatask", *arguments],
        cwd=project.folder, env={**os.environ, **environment}, stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def ended(process: subprocess.Popen[str], seconds: float = 60) -> tuple[int, str, str]:
    """Wait for a command; return its code and what it said."""
    out, err = process.communicate(timeout=seconds)
    return process.returncode, out, err


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path)


@pytest.mark.server("gcc")
def test_a_file_system_that_lies_about_locks_is_told_by_doctor(project: Project, faults: Path) -> None:
    project.put(a=1)
    code, out, _ = ended(start(project, "doctor"))
    assert (code, "locked file keeps other processes off" in out) == (0, True)
    code, out, _ = ended(start(project, "doctor", LD_PRELOAD=str(faults), FAULTS_LOCKS="lie"))
    assert code == 2
    (line,) = [line for line in out.splitlines() if line.startswith("locks")]
    assert str(project.log.parent) in line
    assert "two engines could write one log" in line
    assert "keep the log on a local disk" in line
    assert not list(project.log.parent.glob(".datatask-doctor-*"))


@pytest.mark.server("gcc")
def test_a_clock_that_is_set_back_by_an_hour(project: Project, faults: Path) -> None:
    """Under an engine, and between two: time in the log never goes back, nothing waits for an hour, all is told."""
    clock = project.folder / "clock"
    clock.write_text("0")
    environment = {"LD_PRELOAD": str(faults), "FAULTS_CLOCK": str(clock)}
    project.put(a=1)
    engine = start(project, "run", "--forever", **environment)
    project.until("a", "ls", "double.done")
    clock.write_text("-3600")
    project.put(b=2)
    project.until("b", "ls", "double.done")
    project.until("ClockStepped", "log", "--kind", "ClockStepped")
    engine.terminate()
    assert ended(engine)[0] in (0, 130, 143)
    project.put(c=3)
    began = time.monotonic()
    code, _, err = ended(start(project, "run", **environment))
    assert (code, complaints(err)) == (0, [])
    assert time.monotonic() - began < 30
    assert project.ok("status", "--json").json["tasks"]["double"]["succeeded"] == 3
    times = [
        at for (at,) in project.ok("query", "SELECT at FROM events ORDER BY position", "--json").json["rows"]
    ]
    assert times == sorted(times)
    assert project.ok("verify", "--json").json["divergences"] == []
    assert project.ok("replay", "--verify", "--json").json["divergences"] == []


def test_engines_that_start_in_the_same_millisecond(project: Project) -> None:
    """One works, the others are told who does, in one line and with their own exit code; every job runs once."""
    project.put(**{f"j{n}": n for n in range(20)})
    (project.folder / "numbers.jsonl").write_text('{"job": "slow", "n": 1, "seconds": 3}\n')
    project.ok("inject", "double.numbers", "--from", "numbers.jsonl")
    with ThreadPoolExecutor(ENGINES) as pool:
        engines = list(pool.map(lambda _: start(project, "run"), range(ENGINES)))
        told = list(pool.map(ended, engines))
    assert sorted(code for code, _, _ in told)[0] == 0
    lost = [(code, err) for code, _, err in told if code != 0]
    assert len(lost) == ENGINES - 1, told
    for code, err in lost:
        assert code == 4, err
        assert re.fullmatch(r"datatask: .*pid \d+.*\n", err), err
    rows = project.ok(
        "query", "SELECT task, job, count(*) FROM runs GROUP BY task, job HAVING count(*) > 1", "--json"
    )
    assert rows.json["rows"] == []
    assert project.ok("verify", "--json").json["divergences"] == []


def test_two_engines_make_one_log_at_once(project: Project) -> None:
    """Not even the file is there before: one makes it."""
    with ThreadPoolExecutor(ENGINES) as pool:
        engines = list(pool.map(lambda _: start(project, "run"), range(ENGINES)))
        told = list(pool.map(ended, engines))
    assert {code for code, _, _ in told} <= {0, 4}, told
    assert 0 in {code for code, _, _ in told}
    assert project.ok("verify", "--json").json["divergences"] == []
    opened = project.ok("query", "SELECT count(*) FROM events WHERE kind = 'LogCreated'", "--json").json
    assert opened["rows"] == [[1]]


def test_nobody_is_told_that_the_database_is_locked(project: Project) -> None:
    """An engine, readers without a pause, and people who change things: all are answered, none for want of a lock."""
    project.put(**{f"j{n}": n for n in range(50)})
    with project.engine():
        until = time.monotonic() + 4

        def work(number: int) -> list[tuple[int, str, str]]:
            told = []
            commands = (
                ("status",), ("log", "--last", "20"), ("runs",), ("verify",), ("query", "SELECT * FROM events"),
                ("inject", "double.numbers", f"late{number}"), ("why", "double"),
            )  # fmt: skip
            turn = number
            while time.monotonic() < until:
                command = commands[turn % len(commands)]
                turn += 1
                process = subprocess.run(
                    [sys.executable, "-m", "datatask", *command], cwd=project.folder, capture_output=True,
                    text=True, input="n: 1", timeout=60, check=False,
                )  # fmt: skip
                told.append((process.returncode, " ".join(command), process.stderr))
            return told

        with ThreadPoolExecutor(READERS) as pool:
            answers = [answer for told in pool.map(work, range(READERS)) for answer in told]
    assert answers
    assert [answer for answer in answers if answer[0] != 0 or complaints(answer[2])] == []


def test_a_reader_that_keeps_its_transaction_open(project: Project) -> None:
    """The engine goes on; the write-ahead log waits for the reader, and is short again once that is gone."""
    project.put(first=1)
    project.ok("run")
    ahead = project.log.with_name(project.log.name + "-wal")

    def work(name: str, done: int) -> None:
        for turn in range(4):
            project.put(**{f"{name}{turn}x{n}": n for n in range(150)})
        deadline = time.monotonic() + 60
        while project.ok("status", "--json").json["tasks"]["shout"]["succeeded"] < done:
            assert time.monotonic() < deadline
            time.sleep(0.1)

    with project.engine():
        with closing(
            sqlite3.connect(f"{project.log.as_uri()}?mode=ro", uri=True, isolation_level=None)
        ) as reader:
            reader.execute("BEGIN")
            seen = reader.execute("SELECT max(position) FROM log").fetchone()
            work("a", 601)
            assert reader.execute("SELECT max(position) FROM log").fetchone() == seen
            held = ahead.stat().st_size
            assert held > 500_000
            reader.execute("ROLLBACK")
        work("b", 1201)
        work("c", 1801)
        work("d", 2401)
        assert ahead.stat().st_size < 3 * held  # it is written over from its beginning again
    assert not ahead.exists() or ahead.stat().st_size == 0
    assert project.ok("verify", "--json").json["divergences"] == []


def test_a_lease_file_that_is_taken_away(project: Project) -> None:
    """Whoever deletes the lease of a working engine does not let a second one in beside it for long."""
    project.put(a=1)
    with project.engine() as engine:
        lease_path(project.log).unlink()
        project.put(b=2)
        _, err = engine.communicate(timeout=100)
        assert engine.returncode not in (0, None), err
        assert b"lease" in err
        assert err.count(b"\n") == 1
    project.ok("run")
    assert project.ok("status", "--json").json["tasks"]["double"]["succeeded"] == 2
    assert project.ok("verify", "--json").json["divergences"] == []
