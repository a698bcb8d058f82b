"""A log is opened only where nobody else can have put something into it, or in its place."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from datatask.adapters.log.checkpoints import FileCheckpoints, checkpoints_in, read_checkpoint
from datatask.adapters.log.reader import LogReader
from datatask.engine.core.checkpoints import dump
from datatask.engine.core.state import FOLD_VERSION
from datatask.engine.ports import Checkpoint
from tests.integration.cli_kit import Project

STRANGER = 54321
LARGE = b"bytes " * 20_000


def _wide(folder: Path, allowed: int = 0o700) -> list[str]:
    found = [folder, *folder.rglob("*")]
    return [str(path) for path in found if not path.is_symlink() and path.stat().st_mode & 0o777 & ~allowed]


@pytest.mark.parametrize("umask", [0o000, 0o002, 0o777])
def test_a_log_is_its_owners_alone_whatever_the_umask_is(tmp_path: Path, umask: int) -> None:
    """The folder, the log, blobs, checkpoints, inbox, archives."""
    before = os.umask(umask)
    try:
        project = Project(tmp_path)
        os.chmod(tmp_path / "pipeline.py", 0o644)
        project.ok("inject", "shout.blobs", "big", stdin=LARGE)
        (tmp_path / "numbers.jsonl").touch()
        os.chmod(tmp_path / "numbers.jsonl", 0o600)
        project.put(a=1)
        assert project.call("run").code == 0
        project.ok("log-archive", "--before", "-0s")
    finally:
        os.umask(before)
    assert _wide(project.log.parent) == []
    assert project.ok("cat", "shout.blobs", "big").out.encode() == LARGE


def test_wider_modes_are_narrowed_and_told_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """As earlier versions left them under a wide umask; who may read the log itself is its owner's choice."""
    project = Project(tmp_path)
    project.ok("inject", "shout.blobs", "big", stdin=LARGE)
    blobs = project.log.with_name("log.db.blobs")
    for path, mode in ((project.log.parent, 0o777), (project.log, 0o646), (blobs, 0o775)):
        path.chmod(mode)
    project.ok("pause", "double")
    (told,) = caplog.messages
    assert "which is ended: .datatask, log.db, log.db.blobs in" in told
    assert [path.stat().st_mode & 0o777 for path in (project.log.parent, project.log, blobs)] == [
        0o755,
        0o644,
        0o700,
    ]
    project.ok("resume", "double")
    assert len(caplog.messages) == 1


def test_a_log_in_a_folder_of_ones_own_leaves_that_folder_as_it_is(tmp_path: Path) -> None:
    """A project's folder is not the log's."""
    project = Project(tmp_path)
    tmp_path.chmod(0o755)
    project.ok("--log", "here.db", "pause", "double")
    assert tmp_path.stat().st_mode & 0o777 == 0o755


def test_a_folder_that_every_user_may_write_is_refused_with_the_remedy(tmp_path: Path) -> None:
    """Before anything is made in it; a sticky one is used, as is one that a group shares."""
    project = Project(tmp_path)
    tmp_path.chmod(0o777)
    result = project.call("pause", "double")
    assert (result.code, result.err.count("\n")) == (2, 1)
    assert f"{tmp_path}: every user may put another thing" in result.err
    assert f"`chmod o-w {tmp_path}`" in result.err
    assert project.call("pause", "double", env={"DATATASK_TRUST": "all"}).code == 0
    for mode in (0o1777, 0o2775):
        tmp_path.chmod(mode)
        assert project.call("run").code == 0


@pytest.mark.machine("root")
def test_what_belongs_to_another_user_is_refused_by_name(tmp_path: Path) -> None:
    """The folder, the log, a sidecar, each by its own name; a blob by the run that would read it."""
    project = Project(tmp_path)
    project.ok("inject", "shout.blobs", "big", stdin=LARGE)
    blobs = project.log.with_name("log.db.blobs")
    for path in (project.log.parent, project.log, blobs):
        os.chown(path, STRANGER, STRANGER)
        result = project.call("inject", "double.numbers", "k", stdin=b"{}")
        assert result.code == 2, result
        assert f"{path}: this belongs to uid {STRANGER}, not to root" in result.err
        trusting = {"DATATASK_TRUST": str(STRANGER)}
        assert project.call("inject", "double.numbers", "k", stdin=b"{}", env=trusting).code == 0
        os.chown(path, 0, 0)
    (blob,) = (path for path in blobs.rglob("*") if path.is_file())
    os.chown(blob, STRANGER, STRANGER)
    result = project.call("cat", "shout.blobs", "big")
    assert result.code == 2
    assert f"{blob}: this belongs to uid {STRANGER}" in result.err
    assert project.call("verify").code == 3


def test_a_blob_is_no_link_and_its_folder_may_lie_on_a_larger_disk(tmp_path: Path) -> None:
    """A link of one's own to the folder is followed; one in the place of a blob is refused."""
    project = Project(tmp_path)
    project.ok("inject", "shout.blobs", "big", stdin=LARGE)
    blobs = project.log.with_name("log.db.blobs")
    shutil.move(blobs, tmp_path / "larger")
    blobs.symlink_to(tmp_path / "larger")
    shutil.move(project.log.parent, tmp_path / "elsewhere.datatask")
    project.log.parent.symlink_to(tmp_path / "elsewhere.datatask")
    project.ok("pause", "double")
    assert project.ok("cat", "shout.blobs", "big").out.encode() == LARGE
    (blob,) = (path for path in (tmp_path / "larger").rglob("*") if path.is_file())
    blob.rename(tmp_path / "elsewhere")
    blob.symlink_to(tmp_path / "elsewhere")
    result = project.call("cat", "shout.blobs", "big")
    assert (result.code, "this is a link" in result.err) == (2, True), result


@pytest.mark.machine("root")
def test_a_checkpoint_that_another_user_left_is_passed_over_and_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The state is folded from the log instead."""
    project = Project(tmp_path)
    project.put(a=1)
    with LogReader(project.log) as reader:
        from datatask.adapters.history.states import fold

        state = fold(reader, reader.head)
        folder = project.log.with_name("log.db.checkpoints")
        kept = FileCheckpoints(folder, reader.uuid)
        chain = reader.chain_at(reader.head)
        kept.write(Checkpoint(reader.head, chain, FOLD_VERSION, dump(state)))
        (found,) = checkpoints_in(folder)
        assert read_checkpoint(found, reader.uuid, reader.chain_at, None) is not None
        os.chown(found.path, STRANGER, STRANGER)
        assert read_checkpoint(found, reader.uuid, reader.chain_at, None) is None
    assert f"{found.path}: this belongs to uid {STRANGER}" in caplog.text
    project.ok("pause", "double")
    assert project.ok("ls", "double.numbers").lines == ["a"]
