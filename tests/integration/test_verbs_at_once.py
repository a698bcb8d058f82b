"""Many commands that change something at once, without an engine and while `run` comes and goes: each value is there, once."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from datatask.adapters.cli.asking import ANSWER_SECONDS, _Patience
from datatask.adapters.log import lease
from datatask.adapters.log.inbox import FileInbox
from datatask.adapters.log.inbox_client import leave
from datatask.adapters.log.lease import holder_of
from datatask.adapters.log.locate import inbox_path
from datatask.adapters.log.reader import LogReader
from datatask.schema.messages import AnyRequest, Item, LaunchJob, PutValues
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


def test_values_that_are_injected_at_once_into_a_new_log_are_all_there_once(tmp_path: Path) -> None:
    project = Project(tmp_path)
    jobs = [f"j{number}" for number in range(12)]
    done = at_once(tmp_path, *([["inject", "double.numbers", job]] for job in jobs))
    assert [code for code, _ in done] == [0] * 12, done
    assert put(project.log) == dict.fromkeys(jobs, 1)
    assert list(inbox_path(project.log).glob("*.json")) == []
    project.ok("verify")


def test_all_verbs_at_once_while_runs_come_and_go(tmp_path: Path) -> None:
    """What ends well is done; `run` waits for commands that have the log."""
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
    assert done[-1][0] in (0, 6), done[-1]  # 6: while shout is paused
    assert "holds the log" not in done[-1][1], done[-1]
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


def test_a_first_try_that_takes_long_is_not_the_last(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a busy machine two minutes pass before a command has looked at the log for the first time."""
    patience = _Patience()
    now = time.monotonic() + 10 * ANSWER_SECONDS
    monkeypatch.setattr("time.monotonic", lambda: now)
    assert not patience.is_over(None)
    assert not patience.is_over(7)
    assert not patience.is_over(8)
    now += ANSWER_SECONDS + 1
    assert patience.is_over(8)


def test_verbs_and_the_care_of_the_log_at_once(tmp_path: Path) -> None:
    """Those that need the log for themselves wait for those that have it for a moment."""
    project = Project(tmp_path)
    project.put(**{f"p{number}": number for number in range(12)})
    project.ok("run")
    verbs = [
        *(["inject", "double.numbers", f"j{number}"] for number in range(4)),
        *(["launch", "double", f"p{number}", "--force"] for number in range(3)),
        *(["retry", "double", f"p{number}"] for number in range(3, 6)),
        *(["cancel", "double", f"p{number}"] for number in range(6, 8)),
        ["rm", "double.numbers", "p8", "p9"],
        ["rm", "-r", "double", "p10"],
        ["pause", "shout"],
        ["update", "--failures-ok"],
        ["update", "--failures-ok"],
        ["log-compact"],
        ["log-archive", "--before", "10"],
        ["redact", "8", "--reason", "personal"],
        ["redact", "9"],
        ["backup", "copy"],
    ]
    done = at_once(tmp_path, *([verb] for verb in verbs))
    assert [code for code, _ in done] == [0] * len(verbs), [
        (verb, *told) for verb, told in zip(verbs, done, strict=True) if told[0]
    ]
    assert not [out for _, out in done if "internal" in out or "Traceback" in out]
    assert {job: put(project.log)[job] for job in ("j0", "j1", "j2", "j3")} == dict.fromkeys(
        ("j0", "j1", "j2", "j3"), 1
    )
    assert project.ok("status", "--json").json["tasks"]["shout"]["paused"]
    assert {"p8", "p9"}.isdisjoint(project.ok("ls", "double.numbers").lines)
    project.ok("verify")
    project.ok("--log", "copy/log.db", "verify")


HOLD = """
import sys
from pathlib import Path
from datatask.adapters.log.lease import Lease
lease = Lease(Path(sys.argv[1]), brief=sys.argv[2] == "brief")
print("held", flush=True)
sys.stdin.read()
"""


@contextlib.contextmanager
def held(log: Path, how: str) -> Iterator[subprocess.Popen[bytes]]:
    """Have another process hold a log, until its stdin is closed."""
    command = [sys.executable, "-c", HOLD, str(log), how]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        try:
            yield process
        finally:
            process.stdin.close()


@pytest.mark.parametrize("command", ["run", "update", "log-compact"])
def test_a_command_that_has_the_log_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    project = Project(tmp_path)
    project.put(a=1)
    paused = lease.Patience.pause
    with held(project.log, "brief") as process:
        assert holder_of(project.log) == (process.pid, True)

        def pause(self: lease.Patience, error: Any) -> Any:
            assert process.stdin is not None
            process.stdin.close()  # it ends only now that it is waited for
            return paused(self, error)

        monkeypatch.setattr(lease.Patience, "pause", pause)
        assert project.call(command).code == 0
        assert process.wait() == 0


def test_a_command_that_does_not_let_go_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "BRIEF_SECONDS", 0.2)
    project = Project(tmp_path)
    project.put(a=1)
    with held(project.log, "brief") as process:
        refused = project.call("run")
    assert refused.code == 4
    assert f"a command still has the log after 0 s: pid {process.pid}" in refused.err


def test_an_engine_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    project = Project(tmp_path)
    project.put(a=1)
    monkeypatch.setattr(lease, "PAUSE_SECONDS", None)  # a pause would fail
    with held(project.log, "long") as process:
        assert holder_of(project.log) == (process.pid, False)
        assert [project.call(command).code for command in ("run", "update", "log-compact")] == [4, 4, 4]


def test_a_function_that_others_launch_holds_up_no_other_command(tmp_path: Path) -> None:
    """It is left to an engine that waits for functions: that of a launch, or of `run`."""
    project = Project(tmp_path)
    project.ok("inject", "double.numbers", "slow", stdin=b'{"n": 1, "seconds": 3600}')
    project.put(a=1)
    request = LaunchJob(id="others", actor="ada@lab: test", task="double", job="slow", force=True)
    leave(project.log, request)
    for verb in (["cancel", "double", "a"], ["rm", "double.numbers", "a"], ["pause", "shout"]):
        project.ok(*verb)
    assert [path.name for path in inbox_path(project.log).glob("*.json")] == ["others.json"]
    assert project.ok("runs", "--json").out.strip() in ("", "[]")
    quick = LaunchJob(id="quick", actor="ada@lab: test", task="double", job="b", force=True)
    project.put(b=2, c=3)
    (inbox_path(project.log) / "others.json").unlink()
    leave(project.log, quick)
    project.ok("launch", "double", "c")
    assert set(project.ok("ls", "double.done").lines) >= {"b", "c"}
    assert list(inbox_path(project.log).glob("*.json")) == []


def test_run_does_not_end_before_it_has_done_what_was_left_to_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where its inbox is read later than its work is done."""
    project = Project(tmp_path)
    project.put(a=1)
    assert project.call("run").code == 0
    item = Item(job="b", value=msgspec.Raw(b'{"n":2}'))
    leave(project.log, PutValues(id="left", actor="ada@lab: test", repository="numbers", items=(item,)))
    read = FileInbox.pending

    def late(inbox: FileInbox) -> list[AnyRequest]:
        time.sleep(1.0)
        return read(inbox)

    monkeypatch.setattr(FileInbox, "pending", late)
    assert project.call("run").code == 0
    assert project.ok("ls", "double.done").lines == ["a", "b"]
