"""Folders of runs: made and removed whatever is in them, and spread where the file system can."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
from pathlib import Path

import pytest

from datatask.adapters.execute.local import folders


def test_a_folder_of_a_run_is_made_with_those_above_it_and_again(tmp_path: Path) -> None:
    folder = tmp_path / "app/log/log.1.1"
    for _ in range(2):
        folders.make(str(folder))
        assert (folder / "cwd").is_dir()
    assert {stat.S_IMODE(path.stat().st_mode) for path in (folder, folder.parent)} == {0o700}


def test_a_disk_that_refuses_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError):
        folders.make(str(tmp_path / "file/log/log.1.1"))


@pytest.mark.parametrize("left", ["", "cwd/file", "deep/er/file"])
def test_a_folder_is_removed_with_what_a_run_left_in_it(tmp_path: Path, left: str) -> None:
    folder = tmp_path / "log.1.1"
    folders.make(str(folder))
    folders.write(f"{folder}/exe", 0o700, b"#!/bin/true\n")
    if left:
        (folder / left).parent.mkdir(parents=True, exist_ok=True)
        (folder / left).touch()
    folders.remove(str(folder))
    assert not folder.exists()
    with pytest.raises(FileNotFoundError):
        folders.remove(str(folder))


def test_the_folders_of_a_log_are_spread_where_that_is_possible(tmp_path: Path) -> None:
    """And made all the same where it is not."""
    folders.make(str(tmp_path / "log/log.1.1"))
    kind = subprocess.run(["stat", "-f", "-c", "%T", str(tmp_path)], capture_output=True, text=True).stdout
    if kind.startswith("ext") and shutil.which("lsattr"):
        shown = subprocess.run(
            ["lsattr", "-d", str(tmp_path / "log")], capture_output=True, text=True, check=True
        )
        assert "T" in shown.stdout.split()[0]
    if os.path.isdir("/dev/shm"):
        name = f"/dev/shm/datatask-{os.getpid()}"
        folders.spread_below(name)
        folders.remove(name)
