"""Repositories of files: names, whole writes, links, permissions."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from datatask.adapters.store.files import FileRepository
from datatask.adapters.store.inputs import MissingFileError
from datatask.adapters.store.staged import STAGED
from datatask.schema.errors import CallerError, TemporaryError
from datatask.schema.messages import Write
from tests.unit.repository_kit import in_order


async def test_files_are_written_read_listed_and_deleted(tmp_path: Path) -> None:
    repository = FileRepository(tmp_path / "deep" / "er", ".txt")
    await repository.validate()
    async with await repository.open("foo", "w") as stream:
        await stream.write("hello")
    assert (tmp_path / "deep" / "er" / "foo.txt").read_text() == "hello"
    async with repository.open("foo", "rb") as stream:
        assert [await stream.read(2), await stream.read(2), await stream.read(), await stream.read(1)] == [
            b"he",
            b"ll",
            b"o",
            b"",
        ]
    (repository.basedir / "other.dat").touch()
    assert await in_order(repository) == ["foo"]
    assert await repository.info("absent") == str(repository.basedir / "absent.txt")
    assert repository.fullpath("absent") == repository.basedir / "absent.txt"
    await repository.delete("absent")
    await repository.delete("foo")
    assert await in_order(repository) == []
    with pytest.raises(FileNotFoundError):
        async with repository.open("foo"):
            pass


async def test_a_large_value_streams_through_a_hidden_file(tmp_path: Path) -> None:
    repository = FileRepository(tmp_path)
    async with repository.open("a", "wb") as stream:
        for _ in range(5):
            await stream.write(b"x" * 700_000)
        assert await in_order(repository) == []
        (staged,) = tmp_path.iterdir()
        assert staged.name.startswith(".")
        assert staged.stat().st_size >= 2_000_000
    assert (tmp_path / "a").stat().st_size == 3_500_000
    with pytest.raises(CallerError, match="closed"):
        await stream.write(b"y")


async def test_the_extension_counts_in_any_case_when_asked(tmp_path: Path) -> None:
    for name in ("a.TXT", "b.txt", "c.Txt", "c.txt", "d.dat"):
        (tmp_path / name).write_text(name)
    exact, loose = FileRepository(tmp_path, ".txt"), FileRepository(tmp_path, ".txt", case_insensitive=True)
    assert await in_order(exact) == ["b", "c"]
    assert await in_order(loose) == ["a", "b", "c"]
    assert await loose.info("a") == str(tmp_path / "a.TXT")
    async with loose.open("c") as stream:
        assert await stream.read() == "c.txt", "the exact name first"
    async with loose.open("a", "w") as stream:
        await stream.write("new")
    assert (tmp_path / "a.TXT").read_text() == "new"
    await loose.delete("c")
    assert sorted(os.listdir(tmp_path)) == ["a.TXT", "b.txt", "d.dat"]


async def test_names_that_are_no_ids_are_told_once_and_hidden_ones_not_at_all(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("ok", "not ok", ".gitkeep", f".1{STAGED}", "é"):
        (tmp_path / name).touch()
    repository = FileRepository(tmp_path)
    for _ in range(3):
        assert await in_order(repository) == ["ok"]
    told = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(told) == 2


async def test_what_is_not_a_regular_file_is_no_member(tmp_path: Path) -> None:
    (tmp_path / "outside").write_text("x")
    folder = tmp_path / "files"
    repository = FileRepository(folder)
    await repository.validate()
    (folder / "folder").mkdir()
    os.mkfifo(folder / "fifo")
    (folder / "link").symlink_to(tmp_path / "outside")
    (folder / "nowhere").symlink_to(tmp_path / "absent")
    (folder / "circle").symlink_to(folder / "circle")
    assert await in_order(repository) == ["link"]
    for job in ("folder", "fifo", "nowhere", "circle"):
        assert not await repository.contains(job)
        with pytest.raises(MissingFileError):
            await repository.open(job)
    await repository.delete("folder")
    assert (folder / "folder").is_dir(), "not ours to delete"


async def test_writing_and_deleting_a_link_leave_what_it_points_to(tmp_path: Path) -> None:
    outside, folder = tmp_path / "outside", tmp_path / "files"
    outside.write_text("x")
    repository = FileRepository(folder)
    await repository.validate()
    for job in ("written", "deleted"):
        (folder / job).symlink_to(outside)
    async with repository.open("written", "w") as stream:
        await stream.write("new")
    await repository.delete("deleted")
    assert outside.read_text() == "x"
    assert ((folder / "written").read_text(), os.listdir(folder)) == ("new", ["written"])


async def test_a_rewritten_file_keeps_its_mode_and_a_new_one_follows_the_umask(tmp_path: Path) -> None:
    repository = FileRepository(tmp_path)
    before = os.umask(0o027)
    try:
        await repository.store.put(Write(repository="r", job="put", data=b"x"))
        async with repository.open("opened", "w") as stream:
            await stream.write("x")
    finally:
        os.umask(before)
    assert [stat.S_IMODE((tmp_path / job).stat().st_mode) for job in ("put", "opened")] == [0o640, 0o640]
    (tmp_path / "opened").chmod(0o604)
    async with repository.open("opened", "w") as stream:
        await stream.write("y")
    assert stat.S_IMODE((tmp_path / "opened").stat().st_mode) == 0o604


async def test_a_cancelled_writer_leaves_nothing(tmp_path: Path) -> None:
    repository = FileRepository(tmp_path)
    opened = asyncio.Event()

    async def writing() -> None:
        async with repository.open("a", "wb") as stream:
            await stream.write(b"x" * 2_000_000)
            opened.set()
            await asyncio.sleep(60)

    task = asyncio.create_task(writing())
    await opened.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert os.listdir(tmp_path) == []


async def test_a_writer_whose_disk_is_full_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository = FileRepository(tmp_path)
    stream = await repository.open("a", "wb")
    await stream.write(b"x")

    def full(fd: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(TemporaryError, match="No space"):
        await stream.close()
    assert os.listdir(tmp_path) == []


KILLED = """
import asyncio, os, signal, sys
from datatask.adapters.store.files import FileRepository

async def main():
    repository = FileRepository(sys.argv[1])
    async with repository.open("a", "wb") as stream:
        await stream.write(b"new" * 1_000_000)
        if sys.argv[2] == "writing":
            os.kill(os.getpid(), signal.SIGKILL)
        os.replace = lambda *paths: os.kill(os.getpid(), signal.SIGKILL)

asyncio.run(main())
"""


@pytest.mark.parametrize("when", ["writing", "renaming"])
@pytest.mark.parametrize("before", ["", "old"])
async def test_a_killed_writer_leaves_the_value_as_it_was(before: str, when: str, tmp_path: Path) -> None:
    repository = FileRepository(tmp_path / "files")
    await repository.validate()
    if before:
        (repository.basedir / "a").write_text(before)
    killed = await asyncio.to_thread(
        subprocess.run, [sys.executable, "-c", KILLED, str(repository.basedir), when], timeout=60, check=False
    )
    assert killed.returncode == -signal.SIGKILL
    assert await in_order(repository) == (["a"] if before else [])
    assert not before or (repository.basedir / "a").read_text() == before
    (staged,) = [path for path in repository.basedir.iterdir() if path.name != "a"]
    await repository.validate()
    assert not staged.exists(), "its writer is dead"


async def test_readers_see_the_old_value_or_the_new_one_never_a_part(tmp_path: Path) -> None:
    repository = FileRepository(tmp_path)
    values = [bytes([65 + n]) * (100_000 + n) for n in range(4)]

    async def write(value: bytes) -> None:
        for _ in range(5):
            async with repository.open("a", "wb") as stream:
                await stream.write(value)

    await write(values[0])
    writers = asyncio.gather(*map(write, values))
    while not writers.done():
        async with repository.open("a", "rb") as stream:
            assert await stream.read() in values
    await writers
    assert os.listdir(tmp_path) == ["a"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may do everything")
async def test_a_folder_that_cannot_be_written_is_refused_when_opening(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(PermissionError, match="cannot be written"):
        await FileRepository(tmp_path).validate()
    tmp_path.chmod(0o700)
