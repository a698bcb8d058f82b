"""How SSH runs ended is on the target's disk before it is told, and what a power cut tore there is told as lost."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from datatask.schema.messages import Ended, Started
from tests.run_kit import contents, opened, spec, until
from tests.ssh_kit import Server, serving
from tests.ssh_runs import left_behind, record_of, runs_of, ssh_task

pytestmark = pytest.mark.server("sshd")


@pytest.fixture
def slow_disk(tmp_path: Path) -> Iterator[Server]:
    """A target whose sync waits until `release` is there, and writes down what it was asked for."""
    bare = tmp_path / "bin"
    bare.mkdir()
    for tool in [
        "mkdir",
        "mv",
        "rm",
        "mkfifo",
        "ls",
        "id",
        "sleep",
        "sed",
        "sort",
        "env",
        "cat",
        "chmod",
        "rmdir",
        "setsid",
    ]:
        (bare / tool).symlink_to(shutil.which(tool) or "")
    (bare / "sync").write_text(
        f'#!/bin/sh\ncase ${{1-}} in */ended) exit ;; esac\necho "$*" >>{tmp_path}/asked\n'
        f'while [ ! -e {tmp_path}/release ]; do /bin/sleep 0.05; done\nexec {shutil.which("sync")} "$@"\n'
    )
    (bare / "sync").chmod(0o755)
    with serving(tmp_path / "server", f" PATH={bare}") as at:
        try:
            yield at
        finally:
            (tmp_path / "release").touch()


async def test_an_end_is_told_when_the_disk_has_it_and_one_sync_does_for_many(
    slow_disk: Server, tmp_path: Path
) -> None:
    runner = ssh_task(tmp_path, "echo {{ job }}\n", slow_disk.host()).runner
    async with opened(runner) as facts:
        for run in range(1, 21):
            runner.start(spec(run, f"j{run}"))
        for run in range(1, 21):
            await facts.first(run, Started)
        await until(lambda: all(record_of(tmp_path, f"1.{run}") for run in range(1, 21)))
        await asyncio.sleep(0.2)
        assert not any(isinstance(fact, Ended) for run in range(1, 21) for fact in facts.of(run)), (
            "not on the disk yet"
        )
        (tmp_path / "release").touch()
        for run in range(1, 21):
            assert contents((await facts.end_of(run)).writes[0]) == f"j{run}\n".encode()
    asked = (tmp_path / "asked").read_text().splitlines()
    assert len(asked) <= 4
    for run in range(1, 21):
        assert any(
            f"/ended/1.{run} " in line and line.endswith(f" {runs_of(tmp_path)}/ended") for line in asked
        )


def watchers(path: Path) -> list[int]:
    """Return the processes that tell ends on the target, in the order of their start."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            words = (process / "cmdline").read_bytes().decode().split("\0")
            if "watch" in words and str(path / "remote/app/target") in words:
                found.append(
                    (int((process / "stat").read_text().rpartition(")")[2].split()[19]), int(process.name))
                )
    return [pid for _, pid in sorted(found)]


@pytest.mark.parametrize("which", range(4))
async def test_a_killed_part_of_the_watcher_is_noticed_and_ends_are_told_again(
    slow_disk: Server, tmp_path: Path, which: int
) -> None:
    """While an end waits for the disk, so that no other end comes and wakes anybody."""
    runner = ssh_task(tmp_path, "echo {{ job }}\n", slow_disk.host()).runner
    async with opened(runner) as facts:
        runner.start(spec(1, "one"))
        await until((tmp_path / "asked").exists)
        parts = watchers(tmp_path)
        assert len(parts) == 4
        os.kill(parts[which], signal.SIGKILL)
        (tmp_path / "release").touch()
        assert contents((await facts.end_of(1)).writes[0]) == b"one\n"
        runner.start(spec(2, "two"))
        assert contents((await facts.end_of(2)).writes[0]) == b"two\n"


async def test_an_end_is_told_when_the_sync_of_its_record_is_killed_and_all_is_synced(tmp_path: Path) -> None:
    bare = tmp_path / "bin"
    bare.mkdir()
    (bare / "sync").write_text(
        f'#!/bin/sh\ncase ${{1-}} in */ended) exit ;; esac\necho "with $#" >>{tmp_path}/asked\n[ $# = 0 ] || kill -KILL $$\n'
    )
    (bare / "sync").chmod(0o755)
    with serving(tmp_path / "server", f" PATH={bare}:{os.environ['PATH']}") as at:
        runner = ssh_task(tmp_path, "true\n", at.host()).runner
        async with opened(runner) as facts:
            runner.start(spec(1))
            await facts.end_of(1)
    assert (tmp_path / "asked").read_text().splitlines() == ["with 2", "with 0"]


async def test_recovery_tells_an_end_only_when_the_disk_has_it(slow_disk: Server, tmp_path: Path) -> None:
    async with left_behind(tmp_path, "echo done\n", "quick") as specs:
        await until(lambda: record_of(tmp_path, "1.1") is not None)
    later = ssh_task(tmp_path, "true\n", slow_disk.host()).runner
    async with opened(later) as facts:
        recovering = asyncio.create_task(later.recover(specs))
        await until((tmp_path / "asked").exists)
        await asyncio.sleep(0.2)
        assert not any(isinstance(fact, Ended) for fact in facts.of(1))
        (tmp_path / "release").touch()
        await recovering
        assert (await facts.end_of(1)).ending.outcome == "succeeded"


@pytest.mark.parametrize("renamed", [False, True])
@pytest.mark.parametrize("tear", ["empty", "cut", "garbage", "zeros", "output cut", "output gone"])
async def test_what_a_power_cut_tore_is_lost_and_never_a_success(
    tmp_path: Path, tear: str, renamed: bool
) -> None:
    async with left_behind(tmp_path, "echo done\n", "quick") as specs:
        await until(lambda: record_of(tmp_path, "1.1") is not None)
        await asyncio.sleep(0.3)  # the last watcher may still be at it
        found = record_of(tmp_path, "1.1")
        assert found is not None
        record = found.rename(runs_of(tmp_path) / ("ended/1.1" if renamed else "1.1/1.1"))
        boot = str((specs[0].handle or {})["boot"])
        for file in (record, runs_of(tmp_path) / "1.1/claim"):
            file.write_text(file.read_text().replace(boot, "before"))
        whole = record.read_text()
        text = {
            "empty": "",
            "cut": whole[:30],
            "garbage": "x y\n0m0s 0m0s\n0m0s 0m0s\n.\n",
            "zeros": "\0" * len(whole),
        }
        record.write_text(text.get(tear, whole))
        if tear == "output cut":
            (runs_of(tmp_path) / "1.1/stdout").write_text("do")
        elif tear == "output gone":
            (runs_of(tmp_path) / "1.1/stdout").unlink()
        later = ssh_task(tmp_path, "true\n").runner
        async with opened(later) as facts:
            await later.recover(specs)
            end = await facts.end_of(1)
    assert end.ending.outcome == "lost"
    assert end.writes == ()
    assert end.ending.error is not None
    words = "it ended and now has" if tear.startswith("output") else "machine"
    assert words in end.ending.error.message
