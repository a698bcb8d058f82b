"""A backup is whole or not there, is a log as it is, and is taken while an engine writes."""

from __future__ import annotations

import gzip
import json
import shutil
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest

import datatask
from datatask.adapters.history.states import refold
from datatask.adapters.log.checkpoints import FileCheckpoints
from datatask.adapters.log.locate import archives_path, blobs_path, checkpoints_path
from datatask.adapters.log.maintenance.backup import copy_log
from datatask.adapters.log.reader import LogReader
from datatask.engine.core.checkpoints import dump, fingerprint
from datatask.engine.core.state import FOLD_VERSION
from datatask.engine.ports import Checkpoint
from datatask.schema.errors import CallerError, LogDamagedError
from tests.integration.cli_kit import Project

BIG = b"0123456789abcdef" * 5000
APPENDER = Path(__file__).with_name("appender.py")


@pytest.fixture
def project(tmp_path: Path) -> Project:
    """A log with runs, a value in a blob, a checkpoint, and a file among the archives."""
    project = Project(tmp_path)
    project.put(a=1, b=2)
    project.ok("run")
    project.ok("inject", "shout.blobs", "big", stdin=BIG)
    with LogReader(project.log) as reader:
        head = reader.head
        kept = Checkpoint(head, reader.chain_at(head), FOLD_VERSION, dump(refold(reader)))
        FileCheckpoints(checkpoints_path(project.log), reader.uuid).write(kept)
    return project


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def state_of(log: Path) -> str:
    with LogReader(log) as reader:
        return fingerprint(refold(reader))


def leftovers(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if ".unfinished-" in path.name]


def test_a_backup_is_a_log_that_can_be_used_as_it_is(project: Project) -> None:
    before = contents(project.log.parent)
    shape = project.ok("backup", "copies/monday", "--verify", "--json").json
    copy = project.folder / "copies" / "monday" / "log.db"
    assert shape["log"] == str(copy)
    assert (shape["blobs"], shape["missing"], shape["checkpoints"]) == (3, 0, 1)
    assert contents(project.log.parent) == before, "nothing is changed"
    assert (state_of(copy), datatask.verify(copy).ok) == (state_of(project.log), True)
    assert project.ok("--log", copy, "cat", "shout.blobs", "big").out == BIG.decode()
    assert (
        project.ok("--log", copy, "status", "--json").json["tasks"]
        == project.ok("status", "--json").json["tasks"]
    )
    project.ok("--log", copy, "-p", "pipeline.py", "run")
    shutil.rmtree(copy.parent)
    assert contents(project.log.parent) == before, "what becomes of the copy is not seen in the log"


def test_a_backup_says_that_it_is_the_same_log_and_can_be_checked_later(project: Project) -> None:
    told = project.ok("backup", "copy")
    assert "let an engine go on with one of the two only" in told.err
    project.put(c=3)
    project.ok("run")
    before = contents(project.folder / "copy")
    shape = project.ok("backup", "copy", "--check", "--json").json
    assert (shape["divergences"], shape["behind"] > 0) == ([], True)
    assert contents(project.folder / "copy") == before
    assert "a whole copy, " in project.ok("backup", "copy", "--check").out
    blobs = blobs_path(project.folder / "copy" / "log.db")
    blob = max(blobs.glob("??/*"), key=lambda path: path.stat().st_size)
    blob.unlink()
    assert "no whole copy" in (found := project.call("backup", "copy", "--check")).out
    assert (found.code, blob.name in found.out) == (3, True)
    assert project.call("backup", "nowhere", "--check").code == 2


def test_what_has_gone_another_way_since_is_no_copy(project: Project) -> None:
    project.ok("backup", "copy")
    copy = project.folder / "copy" / "log.db"
    project.ok("--log", copy, "inject", "double.numbers", "other", stdin=b"n: 5")
    found = project.call("backup", "copy", "--check")
    assert (found.code, "the log behind this copy" in found.out) == (3, True), found
    project.ok("inject", "double.numbers", "another", "--reason", "longer", stdin=b"n: 6")
    project.ok("run")
    found = project.call("backup", "copy", "--check")
    assert (found.code, "the log behind this copy" in found.out) == (3, True), found


def test_everything_in_a_backup_is_for_its_owner_only(project: Project) -> None:
    done = datatask.backup(project.log, project.folder / "copy")
    for path in [done.log.parent, *done.log.parent.rglob("*")]:
        assert path.stat().st_mode & 0o077 == 0, path


def test_nothing_is_overwritten(project: Project) -> None:
    project.ok("backup", "copy")
    before = contents(project.folder / "copy")
    result = project.call("backup", "copy")
    assert (result.code, "overwrites nothing" in result.err) == (2, True), result
    assert contents(project.folder / "copy") == before
    with pytest.raises(CallerError, match="no log here"):
        datatask.backup(project.folder / "none.db", project.folder / "other")
    assert not leftovers(project.folder)


def test_a_backup_while_an_engine_appends_is_one_moment_of_it(tmp_path: Path) -> None:
    """Another process appends thousands of events; each of several copies verifies and is a prefix of the log."""
    log, acknowledged = tmp_path / "log.db", tmp_path / "acknowledged"
    with subprocess.Popen([sys.executable, APPENDER, log, acknowledged], stdout=subprocess.PIPE) as appender:
        try:
            assert appender.stdout is not None
            appender.stdout.readline()
            heads: list[tuple[int, str]] = []
            for number in range(4):
                time.sleep(0.3)
                told = int(acknowledged.read_bytes().split()[-1]) if acknowledged.exists() else 0
                done = copy_log(log, tmp_path / f"copy-{number}")
                assert done.head >= told, "what was acknowledged before is in it"
                heads.append((done.head, done.chain))
            assert appender.poll() is None
        finally:
            appender.kill()
    assert heads[-1][0] > heads[0][0] + 1000, heads
    with LogReader(log) as reader:
        assert [(head, reader.chain_at(head).hex()) for head, _ in heads] == heads


def test_a_backup_of_a_working_pipeline_verifies(project: Project) -> None:
    """With decisions, runs and blobs under way: all that verify checks holds in the copy."""
    with project.engine():
        lines = "".join(json.dumps({"job": f"j{number}", "n": number}) + "\n" for number in range(400))
        (project.folder / "many.jsonl").write_text(lines)
        project.ok("inject", "double.numbers", "--from", "many.jsonl")
        for number in range(3):
            assert project.ok("backup", f"copy-{number}", "--verify", "--json").json["missing"] == 0


def test_a_log_that_a_crashed_engine_left_is_copied_with_its_write_ahead_log(
    tmp_path: Path,
) -> None:
    log, acknowledged = tmp_path / "log.db", tmp_path / "acknowledged"
    with subprocess.Popen([sys.executable, APPENDER, log, acknowledged], stdout=subprocess.PIPE) as appender:
        assert appender.stdout is not None
        appender.stdout.readline()
        time.sleep(0.3)
        appender.kill()
    assert log.with_name("log.db-wal").stat().st_size > 0
    before = contents(tmp_path)
    done = datatask.backup(log, tmp_path / "copy")
    assert done.head >= int(acknowledged.read_bytes().split()[-1])
    after = contents(tmp_path)
    assert {name: after[name] for name in before if not name.endswith("-shm")} == {
        name: data for name, data in before.items() if not name.endswith("-shm")
    }
    assert not list((tmp_path / "copy").glob("*-wal"))


def test_a_log_in_a_folder_that_cannot_be_written_is_copied(project: Project) -> None:
    folder = project.log.parent
    shutil.rmtree(folder / "log.db.inbox")
    for path in [*folder.rglob("*"), folder]:
        path.chmod(0o500 if path.is_dir() else 0o400)
    try:
        done = datatask.backup(project.log, project.folder / "copy", verify=True)
    finally:
        for path in [folder, *folder.rglob("*")]:
            path.chmod(0o700 if path.is_dir() else 0o600)
    assert state_of(done.log) == state_of(project.log)


STEPS = ("begun", "file", "archives", "first blob", "blobs", "copied", "durable", "renamed")


@pytest.mark.parametrize("step", STEPS)
def test_killed_at_any_step_a_backup_is_whole_or_not_there(project: Project, step: str) -> None:
    """What is left beside the destination the next backup removes."""
    dest = project.folder / "copy"
    code = (
        "import os\nfrom pathlib import Path\nfrom datatask.adapters.log.maintenance.backup import copy_log\n"
        f"copy_log({str(project.log)!r}, Path({str(dest)!r}), step=lambda s: s != {step!r} or os._exit(9))\n"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60)
    assert ended.returncode == 9, ended
    assert datatask.verify(project.log).ok
    if step == "renamed":
        assert datatask.verify(dest / "log.db").ok
        assert not leftovers(project.folder)
        return
    assert not dest.exists()
    (left,) = leftovers(project.folder)
    assert project.ok("backup", "copy", "--json").json["removed"] == [str(left)]
    assert not leftovers(project.folder)
    assert datatask.verify(dest / "log.db").ok


def test_a_backup_that_is_under_way_is_not_taken_for_an_interrupted_one(project: Project) -> None:
    told: list[object] = []

    def meanwhile(step: str) -> None:
        if step == "copied":
            told.append(copy_log(project.log, project.folder / "copy").removed)

    with pytest.raises(CallerError, match="overwrites nothing"):
        copy_log(project.log, project.folder / "copy", step=meanwhile)
    assert told == [()]
    assert datatask.verify(project.folder / "copy" / "log.db").ok
    assert not leftovers(project.folder)


def test_archives_that_the_log_stands_on_come_along_with_their_blobs(project: Project) -> None:
    """An archive that ends behind the base is one of a cut that did not come to its end: the log has it all itself."""
    archives = archives_path(project.log)
    archives.mkdir()
    later = archives / "1-9.jsonl.gz"
    later.write_bytes(gzip.compress(b"{}"))
    assert datatask.backup(project.log, project.folder / "copy").archives == 0
    assert not archives_path(project.folder / "copy" / "log.db").exists()


def test_a_damaged_log_is_not_passed_off_as_a_backup(project: Project) -> None:
    """A broken chain and a blob of other bytes are told with their place, and leave nothing behind."""
    (blob,) = (path for path in blobs_path(project.log).glob("??/*") if path.stat().st_size == len(BIG))
    blob.write_bytes(b"x" * len(BIG))
    with pytest.raises(LogDamagedError, match="other bytes"):
        datatask.backup(project.log, project.folder / "copy")
    blob.unlink()
    assert datatask.backup(project.log, project.folder / "without").missing == 1
    with pytest.raises(LogDamagedError, match="does not verify"):
        datatask.backup(project.log, project.folder / "copy", verify=True)
    with closing(sqlite3.connect(project.log)) as connection:
        connection.execute("UPDATE log SET at = at - 1 WHERE position = 7")
        connection.commit()
    with pytest.raises(LogDamagedError, match="the copy does not hold"):
        datatask.backup(project.log, project.folder / "copy")
    assert not (project.folder / "copy").exists()
    assert not leftovers(project.folder)
