"""Folders that are watched: what is told, what is not, and what is doubted."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from inotify_simple import Event, flags

from datatask.adapters.store import inotify, watching
from datatask.adapters.store.directories import DirectoryRepository
from datatask.adapters.store.files import FileRepository
from datatask.engine.api.repositories import StoredRepository
from datatask.engine.ports import Appeared, Change, Doubtful


class Told:
    """The changes told of one repository."""

    def __init__(self) -> None:
        self.changes: list[Change] = []

    async def next(self) -> list[tuple[str, str]]:
        """Return what was told since; the kernel's queue is full at once, the loop needs a turn to read it."""
        for _ in range(3):
            await asyncio.sleep(0.01)
        told, self.changes = self.changes, []
        return [
            (type(change).__name__, change.why if isinstance(change, Doubtful) else change.job)
            for change in told
        ]


def watch(repository: StoredRepository) -> tuple[Told, Callable[[], None]]:
    told = Told()
    stop = repository.store.watch(lambda change: told.changes.append(change))
    assert stop is not None
    return told, stop


async def files(path: Path, **options: Any) -> FileRepository:
    repository = FileRepository(path / "files", **options)
    await repository.validate()
    return repository


async def test_a_file_written_in_place_counts_when_it_is_closed(tmp_path: Path) -> None:
    repository = await files(tmp_path, extension=".txt")
    told, stop = watch(repository)
    with open(repository.fullpath("a"), "w") as file:
        file.write("half")
        file.flush()
        assert await told.next() == []
    assert await told.next() == [("Appeared", "a")]
    with open(repository.fullpath("a"), "a") as file:
        file.write("more")
    assert await told.next() == [("Appeared", "a")]
    (repository.basedir / "a.other").touch()
    (repository.basedir / ".hidden.txt").touch()
    (repository.basedir / "folder.txt").mkdir()
    assert await told.next() == []
    repository.fullpath("a").unlink()
    assert await told.next() == [("Vanished", "a")]
    stop()


async def test_renamed_and_linked_files_count_at_once(tmp_path: Path) -> None:
    repository = await files(tmp_path)
    outside = tmp_path / "outside"
    outside.write_text("x")
    told, stop = watch(repository)
    os.link(outside, repository.basedir / "hard")
    assert await told.next() == [("Appeared", "hard")]
    (repository.basedir / "soft").symlink_to(outside)
    assert await told.next() == [("Appeared", "soft")]
    (repository.basedir / "nowhere").symlink_to(tmp_path / "absent")
    assert await told.next() == []
    outside.rename(repository.basedir / "moved")
    assert await told.next() == [("Appeared", "moved")]
    (repository.basedir / "moved").rename(repository.basedir / "again")
    assert await told.next() == [("Vanished", "moved"), ("Appeared", "again")]
    (repository.basedir / "again").rename(tmp_path / "away")
    assert await told.next() == [("Vanished", "again")]
    stop()


async def test_our_own_write_is_told_under_the_version_that_it_returned(tmp_path: Path) -> None:
    repository = await files(tmp_path)
    told: list[Change] = []
    stop = repository.store.watch(told.append)
    assert stop is not None
    async with repository.open("a", "w") as stream:
        await stream.write("x")
    version = await repository.store.version("a")
    await asyncio.sleep(0.03)
    assert told == [Appeared("", "a", version)]
    stop()


async def test_another_spelling_of_the_extension_keeps_the_member(tmp_path: Path) -> None:
    repository = await files(tmp_path, extension=".txt", case_insensitive=True)
    for name in ("a.txt", "a.TXT"):
        (repository.basedir / name).touch()
    told, stop = watch(repository)
    (repository.basedir / "a.txt").unlink()
    assert await told.next() == [("Appeared", "a")]
    (repository.basedir / "a.TXT").unlink()
    assert await told.next() == [("Vanished", "a")]
    stop()


async def test_two_repositories_on_one_folder_are_both_told(tmp_path: Path) -> None:
    texts, datas = await files(tmp_path, extension=".txt"), await files(tmp_path, extension=".dat")
    (told, stop), (told_too, stop_too) = watch(texts), watch(datas)
    (texts.basedir / "a.txt").touch()
    (texts.basedir / "b.dat").touch()
    assert (await told.next(), await told_too.next()) == ([("Appeared", "a")], [("Appeared", "b")])
    stop()
    (texts.basedir / "c.dat").touch()
    assert (await told.next(), await told_too.next()) == ([], [("Appeared", "c")])
    stop_too()
    assert asyncio.get_running_loop() not in inotify._watchers, "the last one closes it"


# --- doubt --------------------------------------------------------------------------------------------------


async def test_an_overflow_puts_every_watched_store_in_doubt(tmp_path: Path) -> None:
    first = await files(tmp_path)
    second = DirectoryRepository(tmp_path / "d", discard_empty=True)
    await second.validate()
    (told, stop), (told_too, stop_too) = watch(first), watch(second)
    (tmp_path / "d" / "missed").mkdir()
    watcher = inotify._watchers[asyncio.get_running_loop()]
    watcher.dispatch([Event(-1, flags.Q_OVERFLOW, 0, "")])
    doubt = ("Doubtful", "the notification queue overflowed")
    assert await told.next() == [doubt]
    assert doubt in await told_too.next()
    (tmp_path / "d" / "missed" / "file").touch()
    assert await told_too.next() == [("Appeared", "missed")], "folders that were missed are watched"
    stop()
    stop_too()


@pytest.mark.parametrize("loss", ["renamed", "removed"])
async def test_a_root_that_goes_is_doubted_and_watched_again_when_it_is_back(
    loss: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watching, "RETRY_SECONDS", 0.01)
    repository = await files(tmp_path)
    told, stop = watch(repository)
    if loss == "renamed":
        repository.basedir.rename(tmp_path / "away")
    else:
        repository.basedir.rmdir()
    assert await told.next() == [("Doubtful", "the folder was removed, renamed or unmounted")]
    if loss == "renamed":
        (tmp_path / "away" / "a").touch()
    assert await told.next() == [], "what happens elsewhere is not ours"
    repository.basedir.mkdir()
    assert await told.next() == [("Doubtful", "the folder is there again")]
    (repository.basedir / "b").touch()
    assert await told.next() == [("Appeared", "b")]
    stop()


async def test_an_entry_that_cannot_be_looked_at_is_doubted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository = await files(tmp_path)
    told, stop = watch(repository)
    real = os.stat

    def broken(path: Any, **kwargs: Any) -> os.stat_result:
        if str(path).endswith("/a"):
            raise OSError(errno.EIO, "Input/output error")
        return real(path, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(os, "stat", broken)
        (repository.basedir / "a").touch()
        ((kind, why),) = await told.next()
    assert kind == "Doubtful"
    assert "Input/output error" in why
    stop()


async def test_where_the_limit_is_reached_nothing_is_watched_and_that_is_said_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    repository = await files(tmp_path)

    def full(self: object, path: Path, handler: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(inotify.FolderWatcher, "add", full)
    for _ in range(2):
        assert repository.store.watch(lambda change: None) is None
    (record,) = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert "max_user_watches" in record.getMessage()
    assert asyncio.get_running_loop() not in inotify._watchers


def test_without_a_loop_nothing_is_watched(tmp_path: Path) -> None:
    assert FileRepository(tmp_path).store.watch(lambda change: None) is None


@pytest.mark.parametrize(
    ("kind", "remote"),
    [("ext4", False), ("nfs4", True), ("fuse.sshfs", True), ("9p", True), ("overlay", False)],
)
async def test_file_systems_that_others_change_are_not_watched(
    kind: str, remote: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mounts = tmp_path / "mountinfo"
    mounts.write_text(
        "22 27 0:21 / /proc rw - proc proc rw\n"
        "27 1 254:0 / / rw - ext4 /dev/vda rw\n"
        f"28 27 0:9 / /data\\040sets rw,relatime shared:1 - {kind} server rw\n"
        "29 27 0:9 / /data rw - nfs server rw\n"
    )
    assert inotify.is_remote(Path("/data sets/x"), mounts) is remote
    assert not inotify.is_remote(Path("/database"), mounts)
    assert not inotify.is_remote(Path("/x"), tmp_path / "absent")
    monkeypatch.setattr(watching, "is_remote", lambda path: remote)
    stop = (await files(tmp_path)).store.watch(lambda change: None)
    assert (stop is None) is remote
    if stop is not None:
        stop()


# --- folders -----------------------------------------------------------------------------------------------------


async def test_folders_count_when_they_are_made(tmp_path: Path) -> None:
    repository = DirectoryRepository(tmp_path)
    told, stop = watch(repository)
    await repository.mkdir("a")
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "a")
    assert await told.next() == [("Appeared", "a"), ("Appeared", "link")]
    (tmp_path / "a" / "within").touch()
    assert await told.next() == []
    await repository.delete("a")
    assert ("Vanished", "a") in await told.next()
    stop()


async def test_folders_count_when_they_hold_something_where_empty_ones_are_discarded(tmp_path: Path) -> None:
    repository = DirectoryRepository(tmp_path, discard_empty=True)
    await repository.mkdir("old")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").touch()
    told, stop = watch(repository)
    await repository.mkdir("new")
    assert await told.next() == []
    for job in ("old", "new"):
        (tmp_path / job / "x").touch()
        (tmp_path / job / "y").touch()
        assert await told.next() == [("Appeared", job)]
    (tmp_path / "full" / "y").touch()
    assert await told.next() == [], "it was a member before"
    (tmp_path / "full" / "y").unlink()
    (tmp_path / "full" / "x").unlink()
    assert await told.next() == [("Vanished", "full")]
    await repository.delete("old")
    assert await told.next() == [("Vanished", "old")]
    (tmp_path / "new").rename(tmp_path / "newer")
    assert await told.next() == [("Vanished", "new"), ("Appeared", "newer")]
    (tmp_path / "newer" / "x").unlink()
    (tmp_path / "newer" / "y").unlink()
    assert await told.next() == [("Vanished", "newer")]
    stop()


async def test_too_many_folders_to_watch_are_listed_instead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watching, "SUBFOLDERS_MAX", 1)
    monkeypatch.setattr(watching, "DEGRADED_SECONDS", 0.005)
    repository = DirectoryRepository(tmp_path, discard_empty=True)
    await repository.mkdir("a")
    told, stop = watch(repository)
    await repository.mkdir("b")
    doubts = await told.next()
    assert len(doubts) > 1, "again and again"
    assert set(doubts) == {("Doubtful", "not all folders can be watched")}
    stop()
    assert await told.next() == []
    assert repository.store.watch(lambda change: None) is None
