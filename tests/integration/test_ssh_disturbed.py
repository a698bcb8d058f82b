"""Over SSH, too, what is collected is what the process wrote, whatever becomes of its file's name meanwhile."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from datatask import SSHLinuxManager
from datatask.engine.ports import Ended, Started
from tests.contract.test_runner import contents, opened, spec
from tests.ssh_kit import server
from tests.ssh_runs import left_behind, make, message, runs_of, ssh_task, until

pytestmark = pytest.mark.server("sshd")
WAITS = "while [ ! -e {go} ]; do sleep 0.02; done"


async def disturbed(path: Path, disturb: Callable[[Path], object], script: str) -> tuple[Ended, list[bytes]]:
    """Return how a run ends whose folder is disturbed after its first line, and what is collected of it."""
    runner = ssh_task(path, script.format(go=path / "go") + "\n").runner
    async with opened(runner) as facts:
        runner.start(spec(1))
        await facts.first(1, Started)
        (folder,) = runs_of(path).glob("*.1")
        await until(lambda: (folder / "stdout").read_text() == "one\n")
        disturb(folder)
        (path / "go").touch()
        end = await facts.end_of(1)
        collected = [contents(write) for write in end.writes]
        runner.forget(1)
    return end, collected


def removed(folder: Path) -> None:
    (folder / "stdout").unlink()


def exchanged(folder: Path) -> None:
    (folder / "new").write_text("somebody else's\n")
    os.replace(folder / "new", folder / "stdout")


def linked(folder: Path) -> None:
    removed(folder)
    (folder / "other").write_text("somebody else's\n" * 9)
    (folder / "stdout").symlink_to(folder / "other")


def made_a_folder(folder: Path) -> None:
    removed(folder)
    (folder / "stdout").mkdir()


def cut(folder: Path) -> None:
    os.truncate(folder / "stdout", 0)


@pytest.mark.parametrize("disturb", [removed, exchanged, linked, made_a_folder])
async def test_an_output_that_lost_its_name_is_collected_all_the_same(
    tmp_path: Path, disturb: Callable[[Path], object]
) -> None:
    end, collected = await disturbed(tmp_path, disturb, f"echo one; {WAITS}; echo two; echo three >&2")
    assert (end.ending.outcome, collected) == ("succeeded", [b"one\ntwo\n", b"three\n"])


async def test_an_output_that_is_cut_fails_the_run_by_name(tmp_path: Path) -> None:
    end, collected = await disturbed(tmp_path, cut, f"echo one; {WAITS}")
    assert (end.ending.outcome, collected) == ("failed", [b"", b""])
    assert "its stdout was cut while it ran: 4 bytes were written, 0 are there" in message(end)


async def test_a_folder_above_that_is_renamed_changes_nothing(tmp_path: Path) -> None:
    """The shell that waits for a run records its end in the run's folder, whatever is above it by now."""
    script = f"echo one; {WAITS}; echo two\n".format(go=tmp_path / "go")
    async with left_behind(tmp_path, script, "a") as specs:
        (tmp_path / "remote").rename(tmp_path / "moved")
        runner = make(SSHLinuxManager("app", server().host(), tmp_path / "moved"), script).runner
        async with opened(runner) as facts:
            await runner.recover(specs)
            (tmp_path / "go").touch()
            end = await facts.end_of(1)
            assert (end.ending.outcome, contents(end.writes[0])) == ("succeeded", b"one\ntwo\n")
    assert not (tmp_path / "remote").exists()


async def test_a_copied_log_has_a_folder_of_its_own_there(tmp_path: Path) -> None:
    """It neither takes nor ends what runs for the original; each finds its own again, the original renamed meanwhile."""
    script = f"echo one; {WAITS}; echo two\n".format(go=tmp_path / "go")
    for name in ("log.db", "copy.db"):
        (tmp_path / name).touch()
    original, copy = (f"sqlite:///{tmp_path}/{name}" for name in ("log.db", "copy.db"))
    first = ssh_task(tmp_path, script).runner
    async with opened(first) as facts:
        first.start(spec(1)._replace(log=original))
        started = await facts.first(1, Started)
        assert isinstance(started, Started)
    known = spec(1)._replace(log=copy, handle=started.handle)
    second = ssh_task(tmp_path, "echo there\n").runner
    async with opened(second) as facts:
        await second.recover([known])
        assert (await facts.end_of(1)).ending.outcome == "lost"
        second.start(spec(2)._replace(log=copy))
        assert (await facts.end_of(2)).ending.outcome == "succeeded"
    assert sorted(path.name for path in (tmp_path / "remote").iterdir()) == ["app", "app~2"]
    (tmp_path / "log.db").rename(tmp_path / "moved.db")
    third = ssh_task(tmp_path, script).runner
    async with opened(third) as facts:
        await third.recover([known._replace(log=f"sqlite:///{tmp_path}/moved.db")])
        (tmp_path / "go").touch()
        end = await facts.end_of(1)
        assert (end.ending.outcome, contents(end.writes[0])) == ("succeeded", b"one\ntwo\n")
    fourth = ssh_task(tmp_path, "echo there\n").runner
    async with opened(fourth) as facts:
        fourth.start(spec(3)._replace(log=copy))
        await facts.end_of(3)
    assert len(list((tmp_path / "remote/app~2/target").glob("*/*.3"))) == 1
