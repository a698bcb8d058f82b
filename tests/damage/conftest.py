"""Disks of a few megabytes, and a library of faults for the processes that are started."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.machine import mount, mounted

FAULTS = Path(__file__).with_name("faults.c")


class Disk:
    """A file system of its own, in memory."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def remount(self, *options: str) -> None:
        """Change size or mode."""
        mount(self.path, "remount", *options)

    def fill(self, leaving: int) -> Path:
        """Take all room but so many bytes; return the file that has it."""
        left = os.statvfs(self.path)
        ballast = self.path / "ballast"
        ballast.write_bytes(bytes(max(0, left.f_bavail * left.f_bsize - leaving)))
        return ballast


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    """A disk of 4 MB, for tests marked `machine("mounts")`."""
    made = Disk(tmp_path / "disk")
    with mounted(made.path, "size=4m"):
        yield made


@pytest.fixture(scope="session")
def faults(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The library to load before others: `LD_PRELOAD`."""
    library = tmp_path_factory.mktemp("faults") / "faults.so"
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", library, FAULTS, "-ldl"], check=True)
    return library
