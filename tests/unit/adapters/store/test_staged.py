"""What killed writers leave is swept when the folder is next opened; what anybody still writes is not touched."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from datatask import DirectoryRepository, FileRepository
from datatask.adapters.store import inotify
from datatask.adapters.store.staged import STAGED, STAGED_SECONDS_MAX, create, staged_path, sweep

WRITES = """
import asyncio, sys
from datatask import FileRepository

async def main():
    async with FileRepository(sys.argv[1]).open("a", "w") as stream:
        await stream.write("x" * 3_000_000)
        print("writing", flush=True)
        await asyncio.to_thread(sys.stdin.readline)

asyncio.run(main())
"""
REMOVES = """
import asyncio, os, signal, sys
from datatask import DirectoryRepository
from datatask.adapters.store import directories

directories.remove = lambda path: os.kill(os.getpid(), signal.SIGKILL)
asyncio.run(DirectoryRepository(sys.argv[1]).delete("a"))
"""


def left(folder: Path) -> list[str]:
    return [name for name in os.listdir(folder) if name.endswith(STAGED)]


def writer(folder: Path) -> subprocess.Popen[str]:
    """Start a process that is half-way through a value."""
    process = subprocess.Popen(
        [sys.executable, "-c", WRITES, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "writing\n"
    return process


async def test_a_living_writers_is_left_alone_and_a_killed_ones_swept_at_the_next_opening(
    tmp_path: Path,
) -> None:
    """However old they are."""
    living, killed = writer(tmp_path), writer(tmp_path)
    try:
        killed.kill()
        killed.wait()
        for name in left(tmp_path):
            os.utime(tmp_path / name, (0, 0))
        assert len(left(tmp_path)) == 2
        await FileRepository(tmp_path).validate()
        assert len(left(tmp_path)) == 1
        living.send_signal(signal.SIGSTOP)  # a suspended one lives
        await FileRepository(tmp_path).validate()
        living.send_signal(signal.SIGCONT)
        await asyncio.to_thread(living.communicate, "\n", 30)
    finally:
        for process in (living, killed):
            process.kill()
            process.communicate()
    assert living.returncode == 0
    assert (tmp_path / "a").stat().st_size == 3_000_000
    assert left(tmp_path) == []


async def test_a_folder_whose_removal_was_killed_is_swept(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "file").write_text("x")
    killed = await asyncio.to_thread(
        subprocess.run, [sys.executable, "-c", REMOVES, str(tmp_path)], timeout=100, check=False
    )
    assert killed.returncode == -signal.SIGKILL
    assert len(left(tmp_path)) == 1
    await DirectoryRepository(tmp_path).validate()
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("why", ["other hosts write there too", "it knows no locks"])
def test_where_locks_do_not_tell_age_does(why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if why.startswith("other"):
        monkeypatch.setattr(inotify, "is_remote", lambda path: True)
    else:

        def refuse(fd: int, how: int) -> None:
            raise OSError(errno.ENOLCK, "no locks")

        monkeypatch.setattr(fcntl, "flock", refuse)
    fresh, old = staged_path(tmp_path), staged_path(tmp_path)
    for path in (fresh, old):
        for fd in create(path):
            os.close(fd)
    long_ago = time.time() - STAGED_SECONDS_MAX - 60
    os.utime(old, (long_ago, long_ago))
    sweep(tmp_path)
    assert left(tmp_path) == [fresh.name]


def test_a_link_of_another_name_and_what_is_no_staged_entry_stay(tmp_path: Path) -> None:
    """A link is judged by its own age; what it points to is never touched."""
    (tmp_path / "precious").write_text("x")
    link = staged_path(tmp_path)
    link.symlink_to("precious")
    (tmp_path / f"visible{STAGED}").write_text("x")
    sweep(tmp_path)
    assert link.is_symlink()
    os.utime(link, (0, 0), follow_symlinks=False)
    sweep(tmp_path)
    assert sorted(os.listdir(tmp_path)) == ["precious", f"visible{STAGED}"]


def test_who_is_swept_before_it_could_lock_begins_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = staged_path(tmp_path)
    tries: list[int] = []
    real = fcntl.flock

    def swept_first(fd: int, how: int) -> None:
        if not tries:
            path.unlink()
        tries.append(fd)
        real(fd, how)

    monkeypatch.setattr(fcntl, "flock", swept_first)
    fd, held = create(path)
    assert len(tries) == 2
    assert os.path.samestat(os.fstat(fd), path.stat())
    os.close(fd)
    os.close(held)
