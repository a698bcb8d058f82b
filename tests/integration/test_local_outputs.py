"""What is collected is what the process wrote, whatever somebody does to its file meanwhile; else the run is no success."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from datatask.adapters.execute.base import proctable
from datatask.schema.messages import Adopted, Ended, Fact
from tests.integration.local_kit import LOG, ends, kill_launcher, launcher_pid, spec, task_of
from tests.machine import mounted
from tests.run_kit import WAITS, cut, exchanged, linked, made_a_folder, removed, until

SCRIPT = f"echo one; {WAITS}; echo two"


def folder_of(path: Path) -> Path:
    return path / "base" / "app" / LOG / f"{LOG}.1.1"


def is_held(path: Path) -> bool:
    """Whether the launcher has an output open."""
    held = Path(f"/proc/{launcher_pid(path / 'base')}/fd")
    for fd in held.iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile
            if int(fd.name) > 2 and "/stdout" in os.readlink(fd):
                return True
    return False


async def disturbed(
    path: Path, disturb: Callable[[Path], object], script: str = SCRIPT, deaths: str = ""
) -> tuple[Ended, str]:
    """Return how a run ends whose folder is disturbed after its first line, and what is collected of it."""
    task = task_of(path / "base", script.format(go=path / "go"))
    facts: list[Fact] = []
    await task.runner.open(facts.append)
    task.runner.start(spec(1))
    stdout = folder_of(path) / "stdout"
    await until(lambda: facts and stdout.exists() and stdout.read_text() == "one\n")
    if deaths == "before":
        await kill_launcher(path / "base")
        await until(lambda: is_held(path))
    disturb(folder_of(path))
    if deaths == "after":
        await kill_launcher(path / "base")
        await until(lambda: is_held(path))
    (path / "go").touch()
    await until(lambda: ends(facts))
    end = ends(facts)[1]
    text = "".join(write.source.read_text() for write in end.writes if write.source is not None)
    await task.runner.close()
    return end, text


def renamed(folder: Path) -> None:
    (folder / "stdout").rename(folder / "elsewhere")


def all_removed(folder: Path) -> None:
    shutil.rmtree(folder.parent.parent)


@pytest.mark.parametrize(
    "disturb", [removed, exchanged, linked, made_a_folder, renamed, shutil.rmtree, all_removed]
)
async def test_an_output_that_lost_its_name_is_collected_all_the_same(
    tmp_path: Path, disturb: Callable[[Path], object]
) -> None:
    """The launcher has it open; `rmtree` takes the whole run's folder."""
    end, text = await disturbed(tmp_path, disturb)
    assert (end.ending.outcome, text) == ("succeeded", "one\ntwo\n")


@pytest.mark.parametrize("deaths", ["before", "after"])
async def test_the_next_launcher_has_it_from_the_process(tmp_path: Path, deaths: str) -> None:
    """Whether the name was lost before the launcher died or after it."""
    end, text = await disturbed(tmp_path, removed, deaths=deaths)
    assert (end.ending.outcome, text) == ("succeeded", "one\ntwo\n")


async def test_what_nobody_has_any_more_is_lost_by_name(tmp_path: Path) -> None:
    """Removed while there was no launcher, and its process has closed it."""

    def while_there_is_no_launcher(folder: Path) -> None:
        os.kill(launcher_pid(tmp_path / "base"), signal.SIGKILL)
        removed(folder)

    script = f"echo one; exec >&-; {WAITS}"
    end, _ = await disturbed(tmp_path, while_there_is_no_launcher, script)
    assert end.ending.outcome == "lost"
    assert end.ending.error is not None
    assert (
        end.ending.error.message
        == "its stdout was removed or exchanged while it ran, and nothing is left of it"
    )
    assert end.writes == ()


async def test_an_output_that_is_cut_fails_the_run_and_what_is_left_is_collected(tmp_path: Path) -> None:
    end, text = await disturbed(tmp_path, cut, f"echo one; {WAITS}")
    assert (end.ending.outcome, text) == ("failed", "")
    assert end.ending.error is not None
    assert "its stdout was cut while it ran: 4 bytes were written, 0 are there" in end.ending.error.message


async def test_an_output_that_is_emptied_while_its_process_goes_on_fails_the_run(tmp_path: Path) -> None:
    """What comes afterwards would hide it: it is as long as if nothing were missing."""

    def emptied(folder: Path) -> None:
        (folder / "stdout").write_text("")

    end, _ = await disturbed(tmp_path, emptied, f"echo one; {WAITS}; sleep 0.3; echo two")
    assert end.ending.outcome == "failed"
    assert end.ending.error is not None
    assert "its stdout was cut while it ran, when 4 bytes had been written" in end.ending.error.message


@pytest.mark.machine("mounts")
@pytest.mark.parametrize(
    ("script", "outcome"), [("yes | head -c 10M; true", "lost"), ("yes | head -c 10M", "failed")]
)
async def test_an_output_for_which_the_disk_was_too_small_is_no_success(
    tmp_path: Path, script: str, outcome: str
) -> None:
    """Whatever the script says: one may not have looked whether its words were written."""
    with mounted(tmp_path / "base", "size=1m"):
        task = task_of(tmp_path / "base", script)
        facts: list[Fact] = []
        await task.runner.open(facts.append)
        task.runner.start(spec(1))
        await until(lambda: ends(facts))
        ending = ends(facts)[1].ending
        await task.runner.close()
    assert ending.outcome == outcome
    assert ending.error is not None
    assert "the disk of its outputs was full when it ended" in ending.error.message


async def test_a_failure_keeps_its_own_code(tmp_path: Path) -> None:
    """What is wrong with its output is told besides."""
    end, _ = await disturbed(tmp_path, cut, f"echo one; {WAITS}; exit 3")
    assert (end.ending.outcome, end.ending.exit_code) == ("failed", 3)
    assert end.ending.error is not None
    assert end.ending.error.message.startswith("exit code 3; its stdout was cut")


async def test_a_moved_directory_is_served_by_the_same_launcher(tmp_path: Path) -> None:
    """The engine has died, the folder is renamed, and the next engine finds all under the new name."""
    task = task_of(tmp_path / "base", SCRIPT.format(go=tmp_path / "go"))
    facts: list[Fact] = []
    await task.runner.open(facts.append)
    task.runner.start(spec(1))
    await until(lambda: facts and (folder_of(tmp_path) / "stdout").read_text() == "one\n")
    await task.runner.close()
    launcher = launcher_pid(tmp_path / "base")
    (tmp_path / "base").rename(tmp_path / "moved")
    moved = task_of(tmp_path / "moved", "echo {{ job }}")
    found: list[Fact] = []
    await moved.runner.open(found.append)
    await moved.runner.recover([spec(1)])
    moved.runner.start(spec(2, epoch=2))
    (tmp_path / "go").touch()
    await until(lambda: len(ends(found)) == 2)
    assert launcher_pid(tmp_path / "moved") == launcher
    printed = {run: end.writes[0].source for run, end in ends(found).items()}
    assert {run: path.read_text() for run, path in printed.items() if path} == {1: "one\ntwo\n", 2: "j2\n"}
    await moved.runner.close()
    assert not (tmp_path / "base").exists()


@pytest.mark.parametrize("original", ["stays", "is renamed", "is removed"])
async def test_a_copied_directory_takes_what_runs_only_where_its_original_is_gone(
    tmp_path: Path, original: str
) -> None:
    """As after `cp -a` while a script goes on; `mv` to another file system copies and removes."""
    task = task_of(tmp_path / "base", SCRIPT.format(go=tmp_path / "go"))
    facts: list[Fact] = []
    await task.runner.open(facts.append)
    task.runner.start(spec(1))
    await until(lambda: facts and (folder_of(tmp_path) / "stdout").read_text() == "one\n")
    await task.runner.close()
    first = launcher_pid(tmp_path / "base")
    subprocess.run(["cp", "-a", tmp_path / "base", tmp_path / "copy"], check=True)  # noqa: ASYNC221 - in a moment
    (tmp_path / "copy/app" / f"{LOG}.owner").unlink()  # as if its home were gone
    if original == "is renamed":
        (tmp_path / "base").rename(tmp_path / "elsewhere")
    elif original == "is removed":
        shutil.rmtree(tmp_path / "base")
    copy = task_of(tmp_path / "copy", "true")
    found: list[Fact] = []
    await copy.runner.open(found.append)
    await copy.runner.recover([spec(1)])
    if original == "is removed":
        assert isinstance(found[0], Adopted)
        (tmp_path / "go").touch()
        await until(lambda: ends(found))
        end = ends(found)[1]
        assert end.ending.outcome in ("succeeded", "lost"), "how it ended is told by kernels from 6.15 on"
        if end.ending.outcome == "succeeded":
            assert end.writes[0].source is not None
            assert end.writes[0].source.read_text() == "one\ntwo\n"
    else:
        ending = ends(found)[1].ending
        assert ending.outcome == "lost"
        assert ending.error is not None
        assert ending.error.message.startswith("it runs for the project of which this is a copy")
        assert proctable.children(first), "the original's goes on"
        (tmp_path / "go").touch()
        await until(lambda: not proctable.children(first))
    await copy.runner.close()


@pytest.mark.parametrize("how", ["removed", "moved away"])
async def test_a_directory_that_goes_while_an_engine_works_uses_up_no_job(tmp_path: Path, how: str) -> None:
    """The next launcher is that of the folder made anew; what ran is found by its process, with what it has written."""
    task = task_of(tmp_path / "base", SCRIPT.format(go=tmp_path / "{{ job }}"))
    facts: list[Fact] = []
    await task.runner.open(facts.append)
    task.runner.start(spec(1))
    await until(lambda: facts and (folder_of(tmp_path) / "stdout").read_text() == "one\n")
    if how == "removed":
        shutil.rmtree(tmp_path / "base")
    else:
        (tmp_path / "base").rename(tmp_path / "elsewhere")
    (tmp_path / "j2").touch()
    task.runner.start(spec(2))
    await until(lambda: 2 in ends(facts))
    (tmp_path / "j1").touch()
    await until(lambda: len(ends(facts)) == 2)
    first, second = (ends(facts)[run] for run in (1, 2))
    assert second.ending.outcome == "succeeded"
    assert first.ending.outcome in ("succeeded", "lost"), "how it ended is told by kernels from 6.15 on"
    for end in (first, second):
        if end.ending.outcome == "succeeded":
            assert end.writes[0].source is not None
            assert end.writes[0].source.read_text() == "one\ntwo\n"
    await task.runner.close()
