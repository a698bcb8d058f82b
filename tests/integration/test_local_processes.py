"""Processes of this machine run once, are stopped whole, tell how they ended, and leave nothing behind."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from datatask import (
    InProcessBlobRepository,
    InProcessMetadataRepository,
    LocalLinuxManager,
    Pipeline,
    ProcessTask,
    ResourceManager,
    Resources,
    Session,
)
from datatask.adapters.execute.base import proctable
from datatask.adapters.execute.base.machines import STDOUT
from datatask.adapters.execute.local.client import LauncherClient
from datatask.adapters.execute.local.runner import LocalRunner
from datatask.schema.errors import CallerError
from datatask.schema.messages import Adopted, Fact, Started, Unreachable
from tests.integration.local_kit import LOG, ends, launcher_pid, run_all, spec, task_of
from tests.run_kit import until

SECOND = 1_000_000_000


async def test_a_stop_reaches_the_whole_session(tmp_path: Path) -> None:
    """Children that ignore TERM, also in process groups of their own, are killed after the grace."""
    script = f"""#!/bin/bash
    set -m
    trap '' TERM
    (trap '' TERM; echo $BASHPID > {tmp_path}/child; sleep 60) &
    sleep 60 & wait; wait
    """
    task = task_of(tmp_path, script)
    facts: list[Fact] = []
    await task.runner.open(facts.append)
    task.runner.start(spec(1))
    await until(lambda: (tmp_path / "child").exists() and (tmp_path / "child").read_text())
    child = int((tmp_path / "child").read_text())
    began = time.monotonic()
    task.runner.stop(1, "timeout", SECOND // 2)
    await until(lambda: ends(facts))
    assert time.monotonic() - began < 5
    ending = ends(facts)[1].ending
    assert (ending.outcome, ending.exit_code) == ("timed_out", 137)
    assert ending.error is not None
    assert ending.error.message == "stopped: its time was up (killed by SIGKILL)"
    await until(lambda: (proctable.stat_fields(child) or ["Z"])[0] in "ZX")
    await task.runner.close()


@pytest.mark.parametrize("way", ["setsid", "setsid env -i", "setsid setsid"])
@pytest.mark.parametrize("heeds", [True, False], ids=["heeds TERM", "ignores TERM"])
async def test_a_stop_reaches_grandchildren_that_left_the_session(
    tmp_path: Path, way: str, heeds: bool
) -> None:
    """Wherever they went: by descent when the stop came, by the mark in their environment."""
    task = task_of(
        tmp_path,
        f"""#!/bin/sh
        {"" if heeds else "trap '' TERM"}
        {way} /bin/sh -c 'trap "" TERM; echo $$ > {tmp_path}/child; while :; do sleep 0.01; done' &
        wait; sleep 60
        """,
    )
    facts: list[Fact] = []
    await task.runner.open(facts.append)
    task.runner.start(spec(1))
    await until(lambda: (tmp_path / "child").exists() and (tmp_path / "child").read_text())
    child = int((tmp_path / "child").read_text())
    assert os.getsid(child) == child
    task.runner.stop(1, "cancelled", SECOND // 5)
    await until(lambda: ends(facts))
    assert ends(facts)[1].ending.outcome == "cancelled"
    assert (proctable.stat_fields(child) or ["Z"])[0] in "ZX"
    await task.runner.close()


async def test_what_made_a_session_of_its_own_outlives_a_run_that_ends_by_itself(tmp_path: Path) -> None:
    """A service that a script starts on purpose; the launcher takes it in, so that no zombie of it stays."""
    task = task_of(tmp_path, f"setsid sh -c 'echo $$ > {tmp_path}/child; exec sleep 60' & sleep 0.2")
    await run_all(task, spec(1))
    child = int((tmp_path / "child").read_text())
    fields = proctable.stat_fields(child)
    assert fields is not None
    assert (fields[0], int(fields[1])) == ("S", launcher_pid(tmp_path))
    os.kill(child, signal.SIGKILL)
    await until(lambda: proctable.stat_fields(child) is None)


async def test_what_a_run_leaves_in_its_group_is_killed(tmp_path: Path) -> None:
    """A background process does not hold the quota of a run that has ended."""
    task = task_of(tmp_path, f"sleep 60 & echo $! > {tmp_path}/child")
    await run_all(task, spec(1))
    child = int((tmp_path / "child").read_text())
    await until(lambda: (proctable.stat_fields(child) or ["Z"])[0] in "ZX")


@pytest.mark.parametrize(
    ("script", "outcome", "message"),
    [
        ("exit 0", "succeeded", None),
        ("exit 7", "failed", "exit code 7"),
        ("kill -SEGV $$", "failed", "killed by SIGSEGV"),
        ("#!/no/such/interpreter\n", "refused", "the interpreter /no/such/interpreter"),
        ("#!/etc/passwd\n", "refused", "the interpreter /etc/passwd"),
    ],
)
async def test_ends_are_told_in_words(tmp_path: Path, script: str, outcome: str, message: str | None) -> None:
    """Exit codes, signals by name, interpreters that are not there."""
    ending = (await run_all(task_of(tmp_path, script), spec(1)))[1].ending
    assert ending.outcome == outcome
    assert (message is None) == (ending.error is None)
    if ending.error is not None:
        assert message is not None
        assert message in ending.error.message
    if outcome != "refused":
        assert ending.usage is not None
        assert ending.usage["rss_bytes_max"] > 0


async def test_an_interpreter_that_is_no_program_of_this_machine_is_refused(tmp_path: Path) -> None:
    """It is made for another processor, say; a shell in its place would take the script for its own."""
    (tmp_path / "foreign").write_bytes(b"\x7fELF" + bytes(100))
    (tmp_path / "foreign").chmod(0o755)
    script = f"#!{tmp_path}/foreign\ntouch {tmp_path}/mark\n"
    ending = (await run_all(task_of(tmp_path, script), spec(1)))[1].ending
    assert ending.outcome == "refused"
    assert ending.error is not None
    assert f"Exec format error: the interpreter {tmp_path}/foreign" in ending.error.message
    assert not (tmp_path / "mark").exists()


async def test_streams_directory_and_environment(tmp_path: Path) -> None:
    """stdin is the repository's bytes, stderr joins stdout, the environment is what was given and the run's mark."""
    stdin = InProcessBlobRepository({"j1": b"given\n"})
    script = "cat; echo err >&2; pwd; env | grep -v -e PWD -e SHLVL -e _="
    task = task_of(tmp_path, script, stdin=stdin, stderr=STDOUT, environ={"TOKEN": "secret-value"})
    (write,) = (await run_all(task, spec(1)))[1].writes
    assert write.source is not None
    folder = tmp_path / "app" / LOG / f"{LOG}.1.1"
    *rest, first, second = write.source.read_text().split()
    assert rest == ["given", "err", str(folder / "cwd")]
    assert {first, second} == {"TOKEN=secret-value", f"DATATASK_RUN={folder}"}
    assert oct(folder.stat().st_mode)[-3:] == "700"
    on_disk = [path for path in (tmp_path / "app").rglob("*") if path.is_file() and path != write.source]
    assert not [path for path in on_disk if b"secret-value" in path.read_bytes()]


async def test_an_environment_that_cannot_be_is_named_without_its_values(tmp_path: Path) -> None:
    """The message has the variable's name alone."""
    with pytest.raises(CallerError) as caught:
        task_of(tmp_path, "true", environ={"TOKEN": b"secret-value"})
    assert "TOKEN" in str(caught.value)
    assert "secret-value" not in str(caught.value)


async def test_a_live_foreign_log_keeps_its_directory_and_another_gets_one_beside_it(tmp_path: Path) -> None:
    owner = task_of(tmp_path, "sleep 5")
    facts: list[Fact] = []
    await owner.runner.open(facts.append)
    owner.runner.start(spec(1))
    await until(lambda: facts)
    other = spec(1)._replace(identity="0000beef.1.1")
    end = (await run_all(task_of(tmp_path, "echo there"), other))[1]
    assert (end.ending.outcome, end.writes[0].source) == (
        "succeeded",
        tmp_path / "app~2/0000beef/0000beef.1.1/stdout",
    )
    assert not (tmp_path / "app" / "0000beef").exists() or not list((tmp_path / "app/0000beef").iterdir())
    owner.runner.stop(1, "cancelled", 0)
    await until(lambda: ends(facts))
    await owner.runner.close()


async def test_a_log_that_has_runs_in_anothers_directory_waits_for_them(tmp_path: Path) -> None:
    """They are not told as absent, nor begun again elsewhere, while the other's engine works there."""
    first = task_of(tmp_path, "sleep 60")
    facts: list[Fact] = []
    await first.runner.open(facts.append)
    first.runner.start(spec(1))
    await until(lambda: facts)
    await first.runner.close()
    beef = tmp_path / "app" / "0000beef.owner"
    beef.write_text('{"epoch":0,"home":["",0,0],"engine":[]}')  # as it was when both shared a directory
    owner = task_of(tmp_path, "sleep 60")
    found: list[Fact] = []
    await owner.runner.open(found.append)
    owner.runner.start(spec(2)._replace(identity="0000beef.1.2"))
    await until(lambda: found)
    later = task_of(tmp_path, "true")
    told: list[Fact] = []
    await later.runner.open(told.append)
    recovery = asyncio.create_task(later.runner.recover([spec(1)]))
    await until(lambda: told)
    assert isinstance(told[0], Unreachable)
    assert "has runs of this one" in told[0].message
    owner.runner.stop(2, "cancelled", 0)
    await until(lambda: ends(found))
    await owner.runner.close()
    await until(lambda: [fact for fact in told if isinstance(fact, Adopted | Started)])
    await recovery
    later.runner.stop(1, "cancelled", 0)
    await until(lambda: ends(told))
    await later.runner.close()


async def test_what_earlier_engines_left_is_swept(tmp_path: Path) -> None:
    """A run that had ended, and was never forgotten, is removed by the next engine of that log."""
    await run_all(task_of(tmp_path, "true"), spec(1))
    assert (tmp_path / "app" / LOG / f"{LOG}.1.1").exists()
    await run_all(task_of(tmp_path, "true"), spec(9, epoch=2))
    assert not (tmp_path / "app" / LOG / f"{LOG}.1.1").exists()
    assert (tmp_path / "app" / LOG / f"{LOG}.2.9").exists()


async def test_a_long_base_directory_is_fine(tmp_path: Path) -> None:
    """A socket's path may have 107 bytes; a directory may have more."""
    deep = tmp_path / ("d" * 120) / ("e" * 120)
    assert (await run_all(task_of(deep, "true"), spec(1)))[1].ending.outcome == "succeeded"


async def test_a_foreign_directory_is_refused(tmp_path: Path) -> None:
    """A link in a shared temporary folder could lead anywhere."""
    (tmp_path / "app").symlink_to("/")
    with pytest.raises(CallerError, match="this is a link"):
        await task_of(tmp_path, "true").runner.open(lambda fact: None)


async def test_an_idle_launcher_ends(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """With no runs and no engine it goes away by itself."""
    await run_all(task_of(tmp_path, "true"), spec(1))
    pid = launcher_pid(tmp_path)
    await until(lambda: not Path(f"/proc/{pid}").exists(), 30)
    assert (await run_all(task_of(tmp_path, "true"), spec(2)))[2].ending.outcome == "succeeded"


async def test_stdin_and_template_are_read_for_the_run(tmp_path: Path) -> None:
    """Infos are fetched when the template uses them; filters quote."""
    asked: list[str] = []

    class Asked(InProcessMetadataRepository):
        async def info(self, job: str) -> Any:
            asked.append(job)
            return {"name": "it's", "n": [1, 2]}

    task = task_of(
        tmp_path, "echo {{ doc.name | sh }} {{ doc.n | json | sh }} {{ doc.n | yaml | sh }} {{ task }}"
    )
    task.link("doc", Asked())
    task.link("unused", Asked())
    assert await task.render("j") == """echo 'it'"'"'s' '[1, 2]' '[1, 2]' t"""
    assert asked == ["j"]


async def test_a_launcher_client_without_users_holds_nothing(tmp_path: Path) -> None:
    """Opening and closing alone starts no launcher."""
    client = LauncherClient(tmp_path / "app")
    runner = LocalRunner(client, task_of(tmp_path, "true").recipe())
    await runner.open(lambda fact: None)
    await runner.close()
    assert sorted(path.name for path in (tmp_path / "app").iterdir()) == []


async def test_fifty_jobs_within_a_quota(tmp_path: Path) -> None:
    """A whole pipeline: interleaved streams, return codes, quota, no pids at the end, no folders left."""
    inp = InProcessBlobRepository({str(n): str(n).encode() for n in range(50)})
    out, done, pids = InProcessBlobRepository(), InProcessMetadataRepository(), InProcessMetadataRepository()
    quota = ResourceManager(Resources.parse("1", "1Gi"))
    task = ProcessTask(
        "process",
        lambda: LocalLinuxManager("app", tmp_path),
        quota,
        Resources.parse("100m", "1Mi"),
        pids,
        "#!/bin/sh\necho start; cat; echo; echo bye >&2; echo {{ job }} >> " + str(tmp_path / "effects"),
        done=done,
        stdin=inp,
        stdout=out,
        stderr=STDOUT,
    )
    async with Pipeline([task], Session(), [quota], log="memory:") as pipeline:
        await pipeline.run(timeout=60)
    assert {job: entry["return_code"] for job, entry in done.data.items()} == {str(n): 0 for n in range(50)}
    assert all(entry["success"] and entry["start_time"] <= entry["end_time"] for entry in done.data.values())
    assert out.data == {str(n): f"start\n{n}\nbye\n".encode() for n in range(50)}
    assert pids.data == {}
    assert sorted((tmp_path / "effects").read_text().split(), key=int) == [str(n) for n in range(50)]
    assert list((tmp_path / "app").glob("*/*")) == []


async def test_a_template_that_does_not_render_fails_its_job_at_once(tmp_path: Path) -> None:
    """The done entry says what is undefined; it is not tried again."""
    done, pids = InProcessMetadataRepository(), InProcessMetadataRepository()
    manager = LocalLinuxManager("app", tmp_path)
    task = ProcessTask("t", manager, None, Resources(), pids, "{{ missing }}", done=done)
    task.link("inp", InProcessMetadataRepository({"j": 1}), is_input=True)
    async with Pipeline([task], Session(), [], log="memory:") as pipeline:
        await pipeline.run(timeout=60)
    assert done.data["j"]["return_code"] is None
    assert "'missing' is undefined" in done.data["j"]["error"]
