"""Disks of a few megabytes, and a library of faults for the processes that are started."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

FAULTS = Path(__file__).with_name("faults.c")


class Disk:
    """A file system of its own, in memory."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def mount(self, *options: str) -> None:
        """Mount it, or mount it otherwise."""
        subprocess.run(
            ["mount", "-t", "tmpfs", "-o", ",".join(options), "tmpfs", self.path],
            check=True,
            capture_output=True,
        )

    def remount(self, *options: str) -> None:
        """Change size or mode."""
        self.mount("remount", *options)

    def fill(self, leaving: int) -> Path:
        """Take all room but so many bytes; return the file that has it."""
        left = os.statvfs(self.path)
        ballast = self.path / "ballast"
        ballast.write_bytes(bytes(max(0, left.f_bavail * left.f_bsize - leaving)))
        return ballast


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    """A disk of 4 MB."""
    made = Disk(tmp_path / "disk")
    made.path.mkdir()
    try:
        made.mount("size=4m")
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"may not mount: {error}")
    try:
        yield made
    finally:
        subprocess.run(["umount", "--lazy", made.path], check=True)


@pytest.fixture(scope="session")
def faults(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The library to load before others: `LD_PRELOAD`."""
    library = tmp_path_factory.mktemp("faults") / "faults.so"
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", library, FAULTS, "-ldl"], check=True)
    return library
