"""`datatask logs`: what runs printed is kept without being asked for, bounded, and shown where a failure is explained."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path

import pytest

from datatask import History
from tests.integration.cli_kit import Project

PIPELINE = """
import asyncio
import logging
import sys
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor

import datatask

given = datatask.LogMetadataRepository("given")


def entries(name):
    return datatask.LogMetadataRepository(name)


local = datatask.InProcessSyncTask("local", entries("local.done"), **OPTIONS)
local.link("given", given, is_input=True)

@local
async def run_local(job):
    for number in range(3):
        print(f"{job} {number}")
        await asyncio.sleep(0.001)
    logging.getLogger("mine").warning("about %s", job)
    if job == "b":
        raise ValueError("bad")

def work(job):
    for number in range(3):
        print(f"{job} {number}")
        time.sleep(0.001)

threads = datatask.ExecutorTask("threads", ThreadPoolExecutor, entries("threads.done"), func=work, **OPTIONS)
threads.link("given", given, is_input=True)
processes = datatask.ExecutorTask("processes", ProcessPoolExecutor, entries("processes.done"), func=work, **OPTIONS)
processes.link("given", given, is_input=True)

script = datatask.ProcessTask(
    "script", datatask.LocalLinuxManager("app", "RUNS"), None, datatask.Resources.parse(1, "1Mi"), pids=entries("pids"),
    template="echo out {{ job }}; echo err {{ job }} >&2; [ {{ job }} = a ] || exit 7", done=entries("script.done"), **OPTIONS,
)
script.link("given", given, is_input=True)
pipeline = datatask.Pipeline([TASKS], datatask.Session(), **PIPELINE_OPTIONS)
"""


def project(folder: Path, tasks: str, options: str = "{}", pipeline: str = "{}") -> Project:
    """Return a project with two jobs that are not done yet."""
    text = PIPELINE.replace("PIPELINE_OPTIONS", pipeline).replace("OPTIONS", options)
    made = Project(folder, text.replace("TASKS", tasks).replace("RUNS", str(folder / "runs")))
    for job in "ab":
        made.ok("inject", "given", job, stdin=b"1")
    return made


def streams(made: Project, task: str, job: str) -> dict[str, str]:
    """Return what is kept of a job's last run."""
    found = made.ok("logs", task, job, "--json").json
    assert (found["task"], found["job"], found["open"]) == (task, job, False)
    return {one["stream"]: one["text"] for one in found["streams"]}


def test_each_run_s_own_is_kept_also_where_many_share_a_process(tmp_path: Path) -> None:
    made = project(tmp_path, "local, threads, processes")
    made.call("run")
    for task in ("local", "threads", "processes"):
        for job in "ab":
            assert streams(made, task, job)["stdout"] == f"{job} 0\n{job} 1\n{job} 2\n", task
    assert streams(made, "local", "a")["stderr"] == "WARNING mine: about a\n"
    assert (tmp_path / ".datatask" / "log.db.logs").stat().st_mode & 0o777 == 0o600
    assert made.ok("logs", "local", "a", "--tail", "1").lines == [
        "--- stdout", "a 2", "--- stderr", "WARNING mine: about a"
    ]  # fmt: skip
    with History(made.log) as history:
        assert [one.stream for one in history.logs("local", "a")] == ["stdout", "stderr"]


def test_a_failure_shows_its_last_lines(tmp_path: Path) -> None:
    made = project(tmp_path, "local, script")
    assert streams_of_run(made) >= {"  | WARNING mine: about b", "  | err b"}
    assert streams(made, "script", "b") == {"stdout": "out b\n", "stderr": "err b\n"}
    assert "    | err b" in made.ok("why", "script", "b").lines
    (row,) = made.ok("runs", "--json", "--task", "script", "--state", "failed").json
    assert row["last_lines"] == ["err b"]
    (traced,) = made.ok("trace", "b", "--json").json
    assert traced["printed"]["script"]["lines"] == ["err b"]
    assert "  | err b" in made.ok("trace", "b", "--timeline").lines


def streams_of_run(made: Project) -> set[str]:
    """Run, and return the lines at its end."""
    result = made.call("run")
    assert result.code == 1
    return set(result.lines)


def test_it_is_bounded_and_can_be_left_out(tmp_path: Path) -> None:
    made = project(tmp_path, "local, script", '{"logs": "8"}')
    made.call("run")
    assert streams(made, "local", "a")["stdout"] == "a 0\n\n… 4 bytes left out …\na 2\n"
    assert streams(made, "script", "a")["stdout"] == "out a\n"
    other = tmp_path / "none"
    other.mkdir()
    made = project(other, "local, script", "{}", '{"logs": False}')
    made.call("run")
    assert not (other / ".datatask" / "log.db.logs").exists()
    assert "logs=False" in made.ok("logs", "local", "a").err


def test_what_a_script_prints_without_end_takes_no_more_of_the_disk(tmp_path: Path) -> None:
    made = project(tmp_path, "script", '{"logs": "64KiB"}')
    text = (tmp_path / "pipeline.py").read_text()
    loud = "head -c 30000000 /dev/zero | tr '\\\\0' x; touch printed; while [ ! -e SEEN ]; do sleep 0.05; done; echo; echo last"
    loud = loud.replace("SEEN", str(tmp_path / "seen")).replace("printed", str(tmp_path / "printed"))
    head, _, rest = text.partition('template="')
    (tmp_path / "pipeline.py").write_text(f'{head}template="{loud}"{rest[rest.index(chr(34)) + 1 :]}')
    blocks: list[int] = []

    def look() -> None:
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            sizes = [path.stat().st_blocks * 512 for path in (tmp_path / "runs").glob("**/stdout")]
            if sizes and (tmp_path / "printed").exists() and max(sizes) <= 1_000_000:
                blocks.append(max(sizes))
                break
            time.sleep(0.05)
        (tmp_path / "seen").touch()

    looking = threading.Thread(target=look)
    looking.start()
    made.call("run")
    looking.join()
    assert blocks, "the middle of what was printed stays on the disk"
    (stream,) = made.ok("logs", "script", "a", "--json").json["streams"]
    assert stream["size"] == 30_000_000 + len("\nlast\n")
    assert stream["text"].startswith("x" * 1000)
    assert stream["text"].endswith("x\nlast\n")


@pytest.mark.parametrize("task", ["local", "script"])
def test_a_run_that_goes_on_is_followed(tmp_path: Path, task: str) -> None:
    made = project(tmp_path, task)
    text = (tmp_path / "pipeline.py").read_text()
    go = tmp_path / "go"
    text = text.replace(
        "await asyncio.sleep(0.001)",
        f"await asyncio.sleep(0.1 if __import__('os').path.exists({str(go)!r}) else 2)",
    )
    text = text.replace("echo err {{ job }} >&2;", f"echo err >&2; while [ ! -e {go} ]; do sleep 0.1; done;")
    (tmp_path / "pipeline.py").write_text(text)
    with made.engine():
        deadline = time.monotonic() + 30
        while not made.call("runs", "--json", "--state", "running").json:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        with made.spawn("logs", task, "a", "--follow") as followed:
            assert followed.stdout is not None
            first = followed.stdout.readline()  # while the run goes on: it waits for us
            if first.startswith(b"---"):  # the name of the stream, where there are two by now
                first = followed.stdout.readline()
            go.touch()
            rest = followed.stdout.read()
    assert (first.decode(), followed.returncode) == ("a 0\n" if task == "local" else "out a\n", 0)
    assert rest


def test_unknown_runs_are_refused_in_one_line(tmp_path: Path) -> None:
    made = project(tmp_path, "local")
    made.call("run")
    for arguments, words in (
        (["other", "a"], "other"),
        (["local", "z"], "z has had no run in local"),
        (["local", "a", "--run", "1"], "run 1 is none of a in local"),
    ):
        refused = made.call("logs", *arguments)
        assert (refused.code, words in refused.err) == (2, True), refused
    assert json.loads(made.ok("logs", "local", "a", "--json").out)["run"] > 0
    made.ok("log-compact", "--keep", "current")
    assert streams(made, "local", "a")["stdout"].startswith("a 0")
