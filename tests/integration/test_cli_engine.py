"""Commands beside an engine that runs, signals, and scripts that end in `datatask.main(pipeline)`."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from datatask.adapters.log.lease import lease_holder
from tests.integration.cli_kit import PIPELINE, Project


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path)


def test_changes_reach_the_engine_that_runs(project: Project) -> None:
    """Every command that changes something goes through the inbox, loads no pipeline, and is answered."""
    with project.engine() as engine:
        # What the engine has loaded is all that is needed: nobody loads the file again.
        (project.folder / "pipeline.py").write_text("raise RuntimeError('loaded')")
        shape = project.call("inject", "double.numbers", "a", "--json", stdin=b"n: 4").json
        assert (shape["engine"], shape["count"]) == ("running", 1)
        project.until("a", "ls", "shout.succeeded")
        assert project.ok("cat", "shout.blobs", "a").out == "8!"
        assert project.ok("pause", "double").out == "pause double\n"
        project.ok("rm", "double", "a")
        assert project.ok("ls", "double.ready").lines == ["a"]
        assert project.ok("why", "double", "a", "--json").json["held_by"][0]["what"] == "paused"
        assert project.ok("cancel", "double", "a").out == "cancel double a\n"
        assert project.ok("ls", "double.ready").lines == []
        assert project.ok("launch", "double", "a", "--force", "--sync").out == "launch double a\n"
        assert project.ok("resume", "double", "--json").json["engine"] == "running"
        assert project.ok("retry", "double", "a").out == "retry double a\n"
        project.until("succeeded", "runs", "--job", "a", "--task", "double", "--limit", "1")
        assert "a done" in project.ok("rm", "double.done", "a").lines
        assert project.call("launch", "double", "nobody").code == 2
        large = json.dumps({"n": 1, "text": "x" * 100_000}).encode()
        project.ok("inject", "numbers", "large", stdin=large)
        project.until("large", "ls", "double.succeeded")
        dry = project.ok("rm", "double", "a", "--dry-run", "--json").json
        assert (dry["engine"], dry["position"]) == ("running", None)
        assert engine.poll() is None
    assert engine.returncode == 130
    assert project.ok("verify").out.endswith(": ok\n")


def test_a_second_engine_is_told_who_holds_the_log(project: Project) -> None:
    """Exit code 4, the holder's pid, and nothing is changed."""
    with project.engine() as engine:
        for command in ("run", "update"):
            refused = project.call(command)
            assert refused.code == 4
            assert f"pid {engine.pid}" in refused.err
        error = project.call("run", "--json").json["error"]
        assert error.keys() == {"code", "what", "where", "remedy"}
        assert error["code"] == "lease_held"
        assert "an engine runs" in project.ok("doctor").out


def test_log_follow_tells_what_is_appended(project: Project) -> None:
    """Whole batches as they become durable, until it is stopped."""
    with project.engine():
        follower = project.spawn("log", "--follow", "--json", "--kind", "RunEnded")
        found: list[bytes] = []
        lines = follower.stdout
        assert lines is not None
        reader = threading.Thread(target=lambda: found.extend(iter(lines.readline, b"")))
        reader.start()
        project.ok("inject", "double.numbers", "a", stdin=b"n: 1")
        deadline = time.monotonic() + 100
        while len(found) < 2 and time.monotonic() < deadline:
            time.sleep(0.05)
        follower.send_signal(signal.SIGINT)
        follower.wait(timeout=100)
        reader.join()
    assert [json.loads(line)["task"] for line in found] == ["double", "shout"]
    assert follower.stderr is not None
    assert b"Traceback" not in follower.stderr.read()
    lines.close()
    follower.stderr.close()
    assert follower.returncode == 130


def test_status_watch_prints_again_when_the_numbers_change(project: Project) -> None:
    """Once at the start, and once for each change that shows."""
    project.put(a=1)
    watcher = project.spawn("status", "--watch")
    assert watcher.stdout is not None
    assert watcher.stderr is not None
    assert watcher.stdout.readline() == b"double\n"
    assert watcher.stdout.readline() == b"double.numbers 1\n"
    assert project.call("run").code == 0
    line = b""
    while line != b"shout.blobs 1\n":
        line = watcher.stdout.readline()
        assert line, watcher.stderr.read()
    watcher.send_signal(signal.SIGINT)
    watcher.communicate(timeout=100)
    assert watcher.returncode == 130


def test_the_first_interrupt_drains_and_the_second_abandons(project: Project) -> None:
    """What runs ends after one; after two it is stopped, and opened anew next time."""
    project.ok("inject", "double.numbers", "slow", stdin=b"n: 1\nseconds: 1.5")
    process = project.spawn("run")
    project.until("running", "runs", "--job", "slow")
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=100)
    assert process.returncode == 130
    assert b"1 run (1 succeeded)" in out
    assert b"once more abandons" in err
    project.ok("inject", "double.numbers", "endless", stdin=b"n: 1\nseconds: 600")
    process = project.spawn("run")
    project.until("running", "runs", "--job", "endless")
    began = time.monotonic()
    project.interrupt(process, b"once more abandons")
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=100)
    assert process.returncode == 130
    assert time.monotonic() - began < 20
    assert project.ok("ls", "double.ready").lines == ["endless"]


def test_a_timeout_stops_and_says_so(project: Project) -> None:
    """Exit code 7; the work so far is in the log."""
    project.ok("inject", "double.numbers", "endless", stdin=b"n: 1\nseconds: 600")
    project.put(quick=1)
    stopped = project.call("run", "--timeout", "1")
    assert stopped.code == 7
    assert "not quiet after 1 s" in stopped.err
    assert project.ok("ls", "double.succeeded").lines == ["quick"]
    assert project.call("run", "--timeout", "0.5", "--json").json["timed_out"] is True


def test_a_killed_engine_leaves_nothing_that_stands_in_the_way(project: Project) -> None:
    """The next command opens the log itself, and what had been asked for is done once."""
    with project.engine() as engine:
        engine.kill()
        engine.wait()
    assert lease_holder(project.log) is None
    assert project.ok("inject", "double.numbers", "a", "--json", stdin=b"n: 1").json["engine"] == "opened"
    assert project.call("run").code == 0
    assert project.ok("ls", "shout.succeeded").lines == ["a"]


def test_a_script_is_the_same_command_line(project: Project) -> None:
    """`datatask.main(pipeline)`: its log is beside the script, wherever it is called from."""
    other = project.folder / "elsewhere"
    other.mkdir()
    script = project.folder / "pipeline.py"
    project.put(a=3)

    def call(*arguments: str) -> subprocess.CompletedProcess[str]:
        environment = {key: value for key, value in os.environ.items() if not key.startswith("DATATASK_")}
        return subprocess.run(
            [sys.executable, str(script), *arguments],
            cwd=other,
            env=environment,
            capture_output=True,
            text=True,
            timeout=60,
        )

    assert call("run").returncode == 0
    assert call("status").stdout == project.ok("status").out
    assert call("cat", "shout.blobs", "a").stdout == "6!"
    assert "pipeline.py run" in call("--help").stdout
    assert call("-p", "x.py", "status").returncode == 2


def test_a_script_may_add_verbs_of_its_own(project: Project) -> None:
    """pydatatask's `instrument(subparsers)`: plain and async functions get the pipeline and their arguments."""
    text = PIPELINE.replace(
        "    datatask.main(pipeline)",
        """
    async def count(pipeline, times):
        print(len([job async for job in numbers]) * times)

    def add(subparsers):
        verb = subparsers.add_parser("count", description="Count the numbers.")
        verb.add_argument("--times", type=int, default=1)
        verb.set_defaults(func=count)

    datatask.main(pipeline, instrument=add)""",
    )
    (project.folder / "pipeline.py").write_text(text)
    project.put(a=1, b=2)
    for arguments, expected in ((["count", "--times", "3"], "6\n"), (["--help"], "Count the numbers.")):
        found = subprocess.run(
            [sys.executable, "pipeline.py", *arguments],
            cwd=project.folder,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert expected in found.stdout, found


def test_an_unguarded_script_can_be_loaded_too(project: Project) -> None:
    """Its call of `datatask.main` does nothing while the command line loads it."""
    (project.folder / "pipeline.py").write_text(PIPELINE.replace('if __name__ == "__main__":\n    ', ""))
    project.put(a=1)
    assert project.call("run").code == 0
