"""Many commands that change something at once, without an engine and while `run` comes and goes: each value is there, once."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

from datatask.adapters.cli.asking import ANSWER_SECONDS, _Patience
from datatask.adapters.log.locate import inbox_path
from datatask.adapters.log.reader import LogReader
from tests.integration.cli_kit import Project
from tests.unmeasured import plain_environment

AT_ONCE = """
import json, os, sys
from datatask.adapters.cli.main import invoke
import datatask.adapters.cli.inject, datatask.adapters.cli.run, datatask.adapters.log.sqlite, datatask.adapters.wiring.pipeline

def start(number, commands):
    if pid := os.fork():
        return pid
    code = 99
    try:
        with open(f"{number}.in", "wb") as file:
            file.write(b'{"n": 1}')
        os.dup2(os.open(f"{number}.in", os.O_RDONLY), 0)
        os.dup2(os.open(f"{number}.out", os.O_WRONLY | os.O_CREAT, 0o600), 1)
        os.dup2(1, 2)
        sys.stdin = os.fdopen(0)
        for command in commands:
            code = invoke(command)
    finally:
        sys.stdout.flush()
        os._exit(code)

pids = [start(number, commands) for number, commands in enumerate(json.loads(sys.argv[1]))]
print(json.dumps([os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]))
"""


def at_once(folder: Path, *commands: list[list[str]]) -> list[tuple[int, str]]:
    """Run lists of commands beside each other, each in a process of its own; return exit codes and what was printed."""
    done = subprocess.run(
        [sys.executable, "-c", AT_ONCE, json.dumps(commands)],
        cwd=folder,
        env=plain_environment(),
        stdout=subprocess.PIPE,
        timeout=300,
        check=True,
    )
    codes = json.loads(done.stdout.splitlines()[-1])
    return [(code, (folder / f"{number}.out").read_text()) for number, code in enumerate(codes)]


def put(log: Path) -> Counter[str]:
    """Return how often a value was put for each job of `numbers`."""
    with LogReader(log) as reader:
        events = [event for _, event in reader.read(0)]
    return Counter(
        event.job
        for event in events
        if type(event).__name__ == "ValuePut" and event.repository == "numbers" and event.job
    )


def test_values_that_are_injected_at_once_into_a_new_log_are_all_there_once(tmp_path):
    project = Project(tmp_path)
    jobs = [f"j{number}" for number in range(12)]
    done = at_once(tmp_path, *([["inject", "double.numbers", job]] for job in jobs))
    assert [code for code, _ in done] == [0] * 12, done
    assert put(project.log) == dict.fromkeys(jobs, 1)
    assert list(inbox_path(project.log).glob("*.json")) == []
    project.ok("verify")


def test_all_verbs_at_once_while_runs_come_and_go(tmp_path):
    """What ends well is done; only `run` itself may be refused, in one line, because another engine is at work."""
    project = Project(tmp_path)
    project.put(**{f"p{number}": number for number in range(8)})
    project.ok("run")
    verbs = [
        [["inject", "double.numbers", "j0"]],
        [["rm", "double.numbers", "p0"]],
        [["retry", "double", "p1"]],
        [["pause", "shout"]],
        [["launch", "double", "p2", "--force"]],
        [["cancel", "double", "p3"]],
        [["inject", "double.numbers", "j1"]],
        [["inject", "double.numbers", "j2"]],
        [["rm", "double.numbers", "p4", "p5"]],
        [["retry", "double", "p6"]],
    ]
    runs = [["run", "--failures-ok"]] * 3
    done = at_once(tmp_path, *verbs, runs)
    assert [code for code, _ in done[:-1]] == [0] * len(verbs), done
    assert all(
        line.count("datatask:") <= 1 and "internal" not in line
        for _, out in done
        for line in out.splitlines()
    )
    counts = put(project.log)
    assert [counts[job] for job in ("j0", "j1", "j2")] == [1, 1, 1]
    status = project.ok("status", "--json").json["tasks"]
    assert status["shout"]["paused"]
    assert set(project.ok("ls", "double.numbers").lines) == {"j0", "j1", "j2", "p1", "p2", "p3", "p6", "p7"}
    project.ok("verify")


def test_a_first_try_that_takes_long_is_not_the_last(monkeypatch):
    """On a busy machine two minutes pass before a command has looked at the log for the first time."""
    patience = _Patience()
    now = time.monotonic() + 10 * ANSWER_SECONDS
    monkeypatch.setattr("time.monotonic", lambda: now)
    assert not patience.is_over(None)
    assert not patience.is_over(7)
    assert not patience.is_over(8)
    now += ANSWER_SECONDS + 1
    assert patience.is_over(8)
