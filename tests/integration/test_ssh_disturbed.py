"""Over SSH, too, what is collected is what the process wrote, whatever becomes of its file's name meanwhile."""

from __future__ import annotations

import contextlib
import functools
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from datatask import SSHLinuxManager
from datatask.schema.messages import Ended, Started
from tests.machine import mounted
from tests.run_kit import WAITS, contents, cut, exchanged, linked, made_a_folder, opened, removed, spec, until
from tests.ssh_kit import server, serving
from tests.ssh_runs import (
    ended,
    left_behind,
    make,
    message,
    on_each_server,
    on_server,
    record_of,
    runs_of,
    ssh_task,
)

pytestmark = pytest.mark.server("sshd")


async def disturbed(
    path: Path, disturb: Callable[[Path], object], script: str
) -> tuple[Ended, list[bytes | None]]:
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


def written_anew(folder: Path) -> None:
    (folder / "stdout").write_text("six\nteen bytes\n")


def written_with_as_many_bytes(folder: Path) -> None:
    (folder / "stdout").write_text("ONE\n")


def removed_and_made_again(folder: Path) -> None:
    removed(folder)
    written_anew(folder)


@pytest.mark.parametrize(
    "disturb", [exchanged, linked, written_anew, written_with_as_many_bytes, removed_and_made_again]
)
async def test_an_output_that_is_exchanged_after_its_end_is_no_success(
    tmp_path: Path, disturb: Callable[[Path], object]
) -> None:
    """While no engine looks; for a file that is at least as long, under the same inode or another one."""
    async with left_behind(tmp_path, "echo one\n", "a") as specs:
        await until(lambda: record_of(tmp_path, "1.1") is not None)
        disturb(runs_of(tmp_path) / "1.1")
        runner = ssh_task(tmp_path, "true\n").runner
        async with opened(runner) as facts:
            await runner.recover(specs)
            end = await facts.end_of(1)
    assert (end.ending.outcome, end.writes) == ("lost", ())
    assert message(end) == "its stdout was exchanged or written by somebody else after it had ended"


async def test_what_a_process_appends_that_outlives_the_run_is_no_exchange(tmp_path: Path) -> None:
    """A script may leave one in a session of its own, with its output."""
    script = (
        "setsid sh -c 'touch {go}ing; while [ ! -e {go} ]; do sleep 0.02; done; echo two; touch {go}ne' &\n"
        "while [ ! -e {go}ing ]; do sleep 0.02; done; echo one\n"
    )
    async with left_behind(tmp_path, script.format(go=tmp_path / "go"), "a") as specs:
        await until(lambda: record_of(tmp_path, "1.1") is not None)
        (tmp_path / "go").touch()
        await until((tmp_path / "gone").exists)
        runner = ssh_task(tmp_path, "true\n").runner
        async with opened(runner) as facts:
            await runner.recover(specs)
            end = await facts.end_of(1)
            assert (end.ending.outcome, contents(end.writes[0])) == ("succeeded", b"one\ntwo\n")


@pytest.mark.machine("mounts")
@pytest.mark.parametrize(
    ("script", "outcome"), [("yes | head -c 10M; true", "lost"), ("yes | head -c 10M", "failed")]
)
async def test_an_output_for_which_the_disk_there_was_too_small_is_no_success(
    tmp_path: Path, script: str, outcome: str
) -> None:
    """Whatever the script says: one may not have looked whether its words were written."""
    with mounted(tmp_path / "remote", "size=1m"):
        end = await ended(on_server(tmp_path), script + "\n")
    assert end.ending.outcome == outcome
    assert "the disk of its outputs was full when it ended" in message(end)


def holders(file: Path) -> list[list[str]]:
    """Return what each process has open that has this file open."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        names: list[str] = []
        with contextlib.suppress(OSError):
            names += [os.readlink(fd) for fd in (process / "fd").iterdir()]
        if str(file) in names:
            found.append(names)
    return found


def emptied(folder: Path) -> None:
    (folder / "stdout").write_bytes(b"")


def is_told(folder: Path, *, again: bool) -> bool:
    """Empty it, `again` after it had grown until then; whether that was noticed."""
    if again or (folder / "stdout").stat().st_size:
        (folder / "stdout").write_bytes(b"one\n")
        emptied(folder)
    return (folder / "cut.stdout").exists()


@pytest.mark.parametrize("mode", ["", ">>$DATATASK_RUN/stdout"])
@pytest.mark.parametrize("waits", ["with an engine", "without one"])
async def test_an_output_that_is_emptied_while_its_process_writes_on_fails_the_run(
    tmp_path: Path, mode: str, waits: str
) -> None:
    """What it writes afterwards hides it, with a hole in front or appended; a target's kernel tells it where there is python3."""
    script = f"exec {mode}; echo one; {WAITS}; seq 9; echo three >&2\n".format(go=tmp_path / "go")
    with serving(tmp_path / "server", f" PATH={Path(sys.executable).parent}:{os.environ['PATH']}") as at:
        runner = ssh_task(tmp_path, script, at.host()).runner
        async with opened(runner) as facts:
            runner.start(spec(1))
            started = await facts.first(1, Started)
            assert isinstance(started, Started)
            (run,) = runs_of(tmp_path).glob("*.1")
            await until(
                lambda: (run / "stdout").read_text() == "one\n" and holders(runs_of(tmp_path) / "cuts")
            )
            if waits == "with an engine":
                await until(functools.partial(is_told, run, again=bool(mode)))
                (tmp_path / "go").touch()
                await facts.end_of(1)
        later = ssh_task(tmp_path, "true\n", at.host()).runner
        async with opened(later) as facts:
            if waits == "without one":
                await until(functools.partial(is_told, run, again=bool(mode)))
                (tmp_path / "go").touch()
                await until(lambda: record_of(tmp_path, run.name) is not None)
            await later.recover([spec(1)._replace(handle=started.handle)])
            end = await facts.end_of(1)
            assert b"8\n9\n" in (contents(end.writes[0]) or b"")
            assert contents(end.writes[1]) == b"three\n"
        assert end.ending.outcome == "failed"
        assert "its stdout was cut while it ran, when 4 bytes had been written" in message(end)
        await until(lambda: holders(runs_of(tmp_path) / "cuts.lock") == [])


@on_each_server
async def test_a_folder_above_that_is_renamed_changes_nothing(tmp_path: Path) -> None:
    """The shell that waits for a run records its end in the run's folder, whatever is above it by now."""
    script = f"echo one; {WAITS}; echo two\n".format(go=tmp_path / "go")
    async with left_behind(tmp_path, script, "a") as specs:
        (run,) = runs_of(tmp_path).glob("*.1")
        await until(lambda: (run / "stdout").read_text() == "one\n")  # its interpreter has found the script
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
