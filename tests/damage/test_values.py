"""Values that changed in the file or beside it after they were recorded: no run reads them, whichever way it gets its values."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.integration.cli_kit import Project

WAYS = {
    "function": "task = InProcessSyncTask('t', done)",
    "thread": "task = ExecutorTask('t', ThreadPoolExecutor(1), done)",
    "pool": "task = ExecutorTask('t', lambda: ProcessPoolExecutor(1), done)",
    "process": """
task = ProcessTask("t", LocalLinuxManager("values", HERE / "base"), None, Resources(), LogMetadataRepository("pids"),
    "#!/bin/sh\\necho {{ word.text }} >> %s\\ncat {{ blob }} >> %s\\n" % (HERE / "told", HERE / "told"), done=done)
""",
    "stdin": """
task = ProcessTask("t", LocalLinuxManager("values", HERE / "base"), None, Resources(), LogMetadataRepository("pids"),
    "#!/bin/sh\\ncat >> %s\\n" % (HERE / "told"), done=done, stdin=LogBlobRepository("input"))
""",
}
PIPELINE = """
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from datatask import *

HERE = Path(__file__).parent
done = LogMetadataRepository("done")
{way}
task.link("word", LogMetadataRepository("word"), is_input=True)
task.link("go", LogMetadataRepository("go"), is_input=True)
task.link("blob", LogBlobRepository("blob"), is_input=True)

def work(job, word):
    with open(HERE / "told", "a") as told:
        told.write(job)

async def work_async(job, word):
    work(job, word)

if not isinstance(task, ProcessTask):
    task(work_async if isinstance(task, InProcessSyncTask) else work)
pipeline = Pipeline([task], Session(), [])
"""
BLOB = b"honest" * 20_000


def waiting(folder: Path, way: str) -> Project:
    """Two jobs wait for a run, their values written by an engine that has ended."""
    project = Project(folder, PIPELINE.format(way=WAYS[way]))
    words = "".join(f'{{"job": "j{n}", "text": "honest-{n}"}}\n' for n in (1, 2))
    (folder / "words.jsonl").write_text(words)
    project.ok("inject", "t.word", "--from", "words.jsonl")
    for job in ("j1", "j2"):
        project.ok("inject", "t.blob", job, stdin=BLOB + job.encode())
        if way == "stdin":
            project.ok("inject", "t.stdin", job, stdin=BLOB)
        project.ok("inject", "t.go", job, stdin=b"{}")
    return project


def flip(path: Path, old: bytes, new: bytes) -> None:
    """Change bytes of a file where they stand."""
    content = path.read_bytes()
    assert content.count(old) == 1, path
    path.write_bytes(content.replace(old, new))


def blob_of(project: Project, end: bytes) -> Path:
    (path,) = (
        one
        for one in project.log.with_name("log.db.blobs").rglob("*")
        if one.is_file() and one.read_bytes().endswith(end)
    )
    return path


@pytest.mark.parametrize("way", WAYS)
def test_a_value_that_was_changed_in_the_log_starts_no_run(tmp_path: Path, way: str) -> None:
    project = waiting(tmp_path, way)
    intact = project.log.read_bytes()
    flip(project.log, b"honest-1", b"hOnest-1")
    stopped = project.call("run")
    assert stopped.code == 5, stopped
    assert re.search(r"log\.db position \d+: the event is not the one that was written", stopped.err)
    assert "restore the log from a backup" in stopped.err
    assert not (tmp_path / "told").exists()
    assert "LogDamagedError" in project.ok("runs", "--json").out
    assert project.call("cat", "t.word", "j1").code == 5
    project.log.write_bytes(intact)
    project.ok("run")
    assert (tmp_path / "told").exists()


@pytest.mark.parametrize("way", WAYS)
def test_a_blob_that_was_replaced_starts_no_run_and_others_go_on(tmp_path: Path, way: str) -> None:
    project = waiting(tmp_path, way)
    blob = blob_of(project, b"j1")
    blob.write_bytes(b"x" * blob.stat().st_size)
    assert project.call("cat", "t.blob", "j1").code == 5
    ended = project.call("run")
    assert ended.code == 1, ended
    assert project.ok("ls", "t.succeeded").out.split() == ["j2"]
    (refused,) = project.ok("runs", "--job", "j1", "--json").json
    assert refused["state"] == "refused"
    assert "the value of blob j1: the bytes are not the recorded ones" in refused["error"]
    assert str(blob) in refused["error"]
    assert "j1" not in (tmp_path / "told").read_text()
    project.ok("inject", "t.blob", "j1", stdin=BLOB + b"j1")  # the same value: the file is written anew
    assert blob.read_bytes() == BLOB + b"j1"
    project.ok("retry", "t", "j1")
    project.ok("run")
    assert sorted(project.ok("ls", "t.succeeded").out.split()) == ["j1", "j2"]


TASKS = {
    "function": "InProcessSyncTask('t', LogMetadataRepository('done'), retry=Retry(attempts=3, backoff=0))",
    "thread": "ExecutorTask('t', ThreadPoolExecutor(1), LogMetadataRepository('done'), retry=Retry(attempts=3, backoff=0))",
    "pool": "ExecutorTask('t', lambda: ProcessPoolExecutor(1), LogMetadataRepository('done'), retry=Retry(attempts=3, backoff=0))",
}
READING = """
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from datatask import *

task = {task}
task.link("go", LogMetadataRepository("go"), is_input=True)
task.link("word", LogMetadataRepository("word"))
task.link("blob", LogBlobRepository("blob"))

async def work(job, word, blob):
    {work}

task(work)
pipeline = Pipeline([task], Session(), [])
"""
WORD = "assert await word.info(job) is not None"
BYTES = "assert await blob.info(job) is not None"
TREATED = {
    "passed on": "{read}",
    "swallowed": """try:
        {read}
    except Exception:
        pass""",
    "wrapped": """try:
        {read}
    except Exception as error:
        raise ValueError("my own words") from error""",
}
SHELL = """
from pathlib import Path
from datatask import *

task = ProcessTask("t", LocalLinuxManager("values", Path(__file__).parent / "base"), None, Resources(),
    LogMetadataRepository("pids"), "#!/bin/sh\\n: TEXT\\n", done=LogMetadataRepository("done"))
task.link("go", LogMetadataRepository("go"), is_input=True)
task.link("word", LogMetadataRepository("word"))
task.link("blob", LogBlobRepository("blob"))
pipeline = Pipeline([task], Session(), [])
"""
WAYS_IN = [(task, how) for task in TASKS for how in TREATED] + [("process", "passed on")]


def reading(folder: Path, task: str, how: str, read: str) -> Project:
    """A project whose task reads beside its inputs."""
    if task == "process":
        text = "{{ word.text }}" if read == WORD else "{{ blob }}"
        return Project(folder, SHELL.replace("TEXT", text))
    return Project(folder, READING.format(task=TASKS[task], work=TREATED[how].format(read=read)))


@pytest.mark.parametrize(("task", "how"), WAYS_IN)
def test_what_a_function_reads_beside_its_inputs_is_checked_and_its_run_is_lost(
    tmp_path: Path, task: str, how: str
) -> None:
    """The job is run when the log is sound again, and has used up no attempt, whatever the function does with the error."""
    project = reading(tmp_path, task, how, WORD)
    project.ok("inject", "t.word", "j1", stdin=b'{"text": "honest-1"}')
    project.ok("inject", "t.go", "j1", stdin=b"{}")
    flip(project.log, b"honest-1", b"hOnest-1")
    assert project.call("run").code == 5
    (run,) = project.ok("runs", "--json").json
    assert (run["state"], run["error_type"], run["again"]) == (
        "lost",
        "LogDamagedError",
        "infrastructure 1 of 5",
    )
    with_run = project.log.read_bytes()
    assert with_run.count(b"hOnest-1") == 1
    project.log.write_bytes(with_run.replace(b"hOnest-1", b"honest-1"))
    project.ok("run")
    assert project.ok("ls", "t.succeeded").out.split() == ["j1"]


@pytest.mark.parametrize(("task", "how"), WAYS_IN)
def test_a_blob_that_a_function_reads_beside_its_inputs_is_checked_and_its_run_is_refused(
    tmp_path: Path, task: str, how: str
) -> None:
    """Other jobs go on; the job is not tried again on the user's attempts, and no success of it is told."""
    project = reading(tmp_path, task, how, BYTES)
    for job in ("j1", "j2"):
        project.ok("inject", "t.blob", job, stdin=BLOB + job.encode())
        project.ok("inject", "t.go", job, stdin=b"{}")
    blob = blob_of(project, b"j1")
    blob.write_bytes(b"x" * blob.stat().st_size)
    ended = project.call("run")
    assert ended.code == 1, ended
    (refused,) = project.ok("runs", "--job", "j1", "--json").json
    assert (refused["state"], refused["error_type"]) == ("refused", "ValueDamagedError")
    assert str(blob) in refused["error"]
    assert project.ok("ls", "t.succeeded").out.split() == ["j2"]
    project.ok("inject", "t.blob", "j1", stdin=BLOB + b"j1")
    project.ok("retry", "t", "j1")
    project.ok("run")
    assert sorted(project.ok("ls", "t.succeeded").out.split()) == ["j1", "j2"]
    project.ok("verify")


def test_damage_counts_for_more_than_the_time_that_is_over(tmp_path: Path) -> None:
    """While one run goes on, another one's input is found damaged; then the time is over."""
    task = "InProcessSyncTask('t', LogMetadataRepository('done'))"
    text = READING.format(task=task, work=f"await wait(job)\n    {WORD}")
    text = text.replace(
        "task = ",
        "import asyncio\n\nasync def wait(job):\n    await asyncio.sleep(60 * (job == 'a1'))\n\ntask = ",
        1,
    )
    project = Project(tmp_path, text)
    project.ok("inject", "t.word", "j1", stdin=b'{"text": "honest-1"}')
    for job in ("a1", "j1"):
        project.ok("inject", "t.go", job, stdin=b"{}")
    flip(project.log, b"honest-1", b"hOnest-1")
    ended = project.call("run", "--timeout", "3", "--grace", "1")
    assert ended.code == 5, ended


def test_a_value_carried_over_a_cut_is_checked_too(tmp_path: Path) -> None:
    project = waiting(tmp_path, "function")
    project.ok("rm", "t.go", "j1")
    head = project.ok("status", "--json").json["log"]["head"]
    project.ok("log-archive", "--before", str(head))
    project.ok("inject", "t.go", "j1", stdin=b"{}")
    flip(project.log, b"honest-1", b"hOnest-1")
    stopped = project.call("run")
    assert stopped.code == 5
    assert "carried over the cut" in stopped.err
    assert not (tmp_path / "told").exists() or "j1" not in (tmp_path / "told").read_text()
