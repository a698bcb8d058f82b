"""One log under all its names, and a log's file that is taken away from those who have it open."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from datatask.adapters.log.file_changes import Presence
from datatask.adapters.log.lease import Possession
from datatask.adapters.log.locate import home, lease_path
from datatask.adapters.log.reader import LogReader
from datatask.schema.errors import DatataskError, LogGoneError
from tests.integration.cli_kit import Project


@pytest.fixture
def project(tmp_path: Path) -> Project:
    folder = tmp_path / "project"
    folder.mkdir()
    project = Project(folder)
    project.put(a=1)
    return project


def test_two_engines_never_have_one_log_under_two_names(project: Project, tmp_path: Path) -> None:
    """A symbolic link, a hard link, a folder that is a link: beside each name nothing of its own is made."""
    others = tmp_path / "others"
    others.mkdir()
    (others / "symbolic.db").symlink_to(project.log)
    os.link(project.log, others / "hard.db")
    (others / "folder").symlink_to(project.folder)
    names = [others / "symbolic.db", others / "hard.db", others / "folder" / ".datatask" / "log.db"]
    with project.engine():
        project.until("a", "ls", "double.done")
        for name in names:
            refused = project.call("--log", name, "run")
            assert (refused.code, "another engine holds the log: pid" in refused.err) == (4, True), refused
            assert str(project.log) in refused.err
        asked = project.call("--log", names[1], "inject", "double.numbers", "b", stdin=b'{"n": 2}')
        assert asked.code == 0, asked  # by the running engine, whose inbox it is
        project.until("b", "ls", "double.done")
    for name in names:
        assert project.call("--log", name, "run").code == 0
        assert project.call("--log", name, "cat", "shout.blobs", "b").out == "4!"
        assert project.call("--log", name, "verify").code == 0
    assert sorted(os.listdir(others)) == ["folder", "hard.db", "symbolic.db"]


@pytest.mark.machine("mounts")
def test_a_log_that_is_mounted_elsewhere_is_the_same_log(project: Project, tmp_path: Path) -> None:
    other = tmp_path / "bound.db"
    other.touch()
    subprocess.run(["mount", "--bind", project.log, other], check=True)
    try:
        assert home(other) == project.log
        with project.engine():
            assert project.call("--log", other, "run").code == 4
    finally:
        subprocess.run(["umount", other], check=True)


def test_another_name_that_leads_past_the_lease_meets_the_lock_of_the_file(
    project: Project, tmp_path: Path
) -> None:
    """Where the name that it was made under cannot be seen, such as from a container."""
    with project.engine():
        os.link(project.log, tmp_path / "hard.db")
        os.removexattr(project.log, "user.datatask.home")
        refused = project.call("--log", tmp_path / "hard.db", "run")
        assert (refused.code, "its file is locked (under another name" in refused.err) == (4, True), refused
    assert not (tmp_path / "hard.db.blobs").exists()


def test_a_copy_is_a_log_of_its_own_also_with_its_attributes(project: Project, tmp_path: Path) -> None:
    project.ok("run")
    subprocess.run(["cp", "-a", project.log.parent, tmp_path / "copy"], check=True)
    assert home(tmp_path / "copy" / "log.db") == tmp_path / "copy" / "log.db"


def test_a_project_that_was_moved_behind_a_link_is_where_it_is_now(project: Project, tmp_path: Path) -> None:
    project.ok("run")
    assert os.getxattr(project.log, "user.datatask.home") == os.fsencode(project.log)
    project.folder.rename(tmp_path / "moved")
    project.folder.symlink_to(tmp_path / "moved")
    assert home(project.log) == tmp_path / "moved" / ".datatask" / "log.db"


def test_closing_the_locked_file_drops_no_lock_of_sqlite(tmp_path: Path) -> None:
    """A descriptor is kept for as long as the process has another one of the file."""
    path = tmp_path / "file"
    path.touch()
    with path.open("rb") as other:
        possession = Possession(path)
        with pytest.raises(BlockingIOError):
            Possession(path)
        possession.release()
        assert len([fd for fd in os.listdir("/proc/self/fd") if _leads(fd, path)]) == 2
        assert other.fileno() >= 0
    again = Possession(path)
    again.release()
    assert not [fd for fd in os.listdir("/proc/self/fd") if _leads(fd, path)]


def _leads(fd: str, path: Path) -> bool:
    try:
        return os.readlink(f"/proc/self/fd/{fd}") == str(path)
    except OSError:
        return False


def _replace(log: Path) -> None:
    shutil.copyfile(log, log.with_name("copy"))
    os.replace(log.with_name("copy"), log)


TAKEN: dict[str, Callable[[Path], object]] = {
    "was removed or moved": lambda log: log.unlink(),
    "removed or moved": lambda log: log.parent.rename(log.parent.with_name("moved")),
    "another file was put in the log's place": _replace,
    "was emptied": lambda log: os.truncate(log, 0),
    "was cut from": lambda log: os.truncate(log, 8192),
    "log.db-wal was removed": lambda log: log.with_name("log.db-wal").unlink(),
    "log.db-shm was removed": lambda log: log.with_name("log.db-shm").unlink(),
}


@pytest.mark.parametrize("told", TAKEN)
def test_an_engine_whose_log_is_taken_away_stops_by_name(project: Project, told: str) -> None:
    engine = project.spawn("run", "--forever")
    try:
        project.until("a", "ls", "double.done")
        TAKEN[told](project.log)
        _, err = engine.communicate(timeout=100)
    finally:
        engine.kill()
    assert engine.returncode == 5, err
    assert told.encode() in err
    assert b"restore a backup" in err
    assert b"Traceback" not in err


@pytest.mark.parametrize("options", [(), ("--json",)])
def test_an_interrupted_engine_whose_log_is_taken_away_ends_with_130(
    project: Project, options: tuple[str, ...]
) -> None:
    """130 comes before 5; what is wrong with the log is told all the same."""
    project.ok("inject", "double.numbers", "slow", stdin=b'{"n": 1, "seconds": 60}')
    engine = project.spawn("run", "--grace", "40", *options)
    try:
        project.until("running", "runs", "--job", "slow")
        engine.send_signal(signal.SIGINT)
        project.log.unlink()
        out, err = engine.communicate(timeout=60)
    finally:
        engine.kill()
    assert engine.returncode == 130, err
    assert b"was removed or moved" in (out if options else err)
    assert b"Traceback" not in err


def test_a_log_that_goes_in_the_last_moment_is_told_too(project: Project) -> None:
    """No look comes between the deletion and the end: it is looked once more when the log is closed."""
    text = (project.folder / "pipeline.py").read_text()
    removal = f"value = await numbers.info(job)\n    __import__('os').unlink({str(project.log)!r})"
    (project.folder / "pipeline.py").write_text(text.replace("value = await numbers.info(job)", removal))
    ended = project.call("run")
    assert (ended.code, "removed or moved under this engine" in ended.err) == (5, True), ended


def test_who_watches_a_log_is_told_that_it_is_gone(project: Project) -> None:
    for arguments in (("status", "--watch"), ("log", "--follow")):
        watching = project.spawn(*arguments)
        assert watching.stdout is not None
        watching.stdout.readline()
        project.log.rename(project.log.with_name("away.db"))
        try:
            _, err = watching.communicate(timeout=100)
        finally:
            watching.kill()
        assert (watching.returncode, b"removed or moved" in err) == (5, True), err
        project.log.with_name("away.db").rename(project.log)


def test_a_log_that_is_emptied_while_it_is_read_is_told(project: Project) -> None:
    with project.engine(), LogReader(project.log) as reader:
        assert reader.head > 0
        os.truncate(project.log, 0)
        with pytest.raises(DatataskError, match="the file is empty"):
            _ = reader.head


def test_a_file_that_grows_and_a_lease_that_is_made_anew_are_no_loss(tmp_path: Path) -> None:
    path = tmp_path / "log.db"
    path.write_bytes(b"x")
    heard: list[DatataskError] = []
    presence = Presence(path, heard.append, seconds=60)
    path.write_bytes(b"xx")
    lease_path(path).touch()
    presence.check()
    path.write_bytes(b"")
    with pytest.raises(LogGoneError, match="emptied"):
        presence.check()
    presence.stop()
    assert heard == []
