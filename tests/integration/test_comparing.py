"""What no notice tells: a comparison of everything finds it, says so where it should have been told, and is silent elsewhere."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from inotify_simple import Event, flags

from datatask import (
    DirectoryRepository,
    FileRepository,
    Pipeline,
    YamlMetadataFileRepository,
)
from datatask.adapters.cli.status import troubles
from datatask.adapters.store import filestore, finished, inotify, watching
from datatask.engine.ports import Found
from datatask.engine.runtime import comparing
from tests.integration.store_kit import over
from tests.machine import mount, mounted
from tests.run_kit import until

ALARM = "the file system did not report"


@pytest.fixture(autouse=True)
def _often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(comparing, "PAUSE_SECONDS", 0.02)
    monkeypatch.setattr(comparing, "REST", 1)
    monkeypatch.setattr(finished, "AGE_SECONDS", 0.0)


def deafen(monkeypatch: pytest.MonkeyPatch, to: Callable[[Event], bool] = lambda event: True) -> None:
    """Have notices get lost, as if the kernel had never sent them."""
    heard = inotify.FolderWatcher.dispatch

    def some(self: inotify.FolderWatcher, events: Iterable[Event]) -> None:
        heard(self, [event for event in events if not to(event)])

    monkeypatch.setattr(inotify.FolderWatcher, "dispatch", some)


def folder(path: Path) -> Path:
    (path / "in").mkdir()
    return path / "in"


async def compared(pipeline: Pipeline) -> None:
    """Return when everything has been compared, from the beginning, after this call."""
    observer = pipeline.engine.observer
    assert observer is not None
    count, real = 0, observer._comparer._suspects

    async def counted(*arguments: Any) -> list[str]:
        nonlocal count
        count += 1
        return await real(*arguments)

    observer._comparer._suspects = counted  # type: ignore[method-assign,assignment]
    await until(lambda: count >= 3)


async def test_what_no_notice_told_is_found_and_an_alarm_is_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path = folder(tmp_path)
    for name in ("goes", "changes"):
        (path / name).write_text("1")
    pipeline = over(FileRepository(path, name="in"))
    async with pipeline:
        deafen(monkeypatch)
        (path / "comes").write_text("1")
        (path / "goes").unlink()
        (path / "changes").write_text("22")
        version = pipeline.state.leaves["in"].versions[pipeline.state.job_index["changes"]]
        await until(lambda: pipeline.state.leaves["in"].missed == 3)
        assert sorted(pipeline.state.members("in")) == ["changes", "comes"]
        assert pipeline.state.leaves["in"].versions[pipeline.state.job_index["changes"]] != version
        assert "3 changes were not told by the file system" in troubles(pipeline.state)["in"]
        (line,) = [record.getMessage() for record in caplog.records if ALARM in record.getMessage()]
        assert line.startswith("in: 3 changes")
        await compared(pipeline)
        assert pipeline.state.leaves["in"].missed == 3, "it is mended"


async def test_documents_and_folders_that_no_notice_told_are_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("documents", "folders", "filled"):
        (tmp_path / name).mkdir()
    (tmp_path / "filled" / "a").mkdir()
    pipeline = over(
        YamlMetadataFileRepository(tmp_path / "documents", name="documents"),
        DirectoryRepository(tmp_path / "folders", name="folders"),
        DirectoryRepository(tmp_path / "filled", name="filled", discard_empty=True),
    )
    async with pipeline:
        deafen(monkeypatch)
        (tmp_path / "documents" / "a.yaml").write_text("n: 1")
        (tmp_path / "folders" / "a").mkdir()
        (tmp_path / "filled" / "a" / "file").touch()
        leaves = [pipeline.state.leaves[name] for name in ("documents", "folders", "filled")]
        await until(lambda: all(leaf.missed for leaf in leaves))
        (tmp_path / "folders" / "a" / "within").touch()
        await compared(pipeline)
        assert [(leaf.count, leaf.missed) for leaf in leaves] == [(1, 1)] * 3, "what is within is none of it"


async def test_nothing_is_alarming_about_links(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Their targets come, change and go in silence, also those of hard links."""
    path = folder(tmp_path)
    target, other = tmp_path / "target", tmp_path / "other"
    other.write_text("1")
    (path / "soft").symlink_to(target)
    os.link(other, path / "hard")
    pipeline = over(FileRepository(path, name="in"))

    def version(job: str) -> int:
        return pipeline.state.leaves["in"].versions[pipeline.state.job_index[job]]

    async with pipeline:
        assert pipeline.state.members("in") == ["hard"]
        target.write_text("1")
        await until(lambda: sorted(pipeline.state.members("in")) == ["hard", "soft"])
        before = version("soft"), version("hard")
        target.write_text("22")
        other.write_text("22")
        await until(lambda: version("soft") != before[0] and version("hard") != before[1])
        target.unlink()
        await until(lambda: pipeline.state.members("in") == ["hard"])
        assert pipeline.state.leaves["in"].missed == 0
    assert ALARM not in caplog.text


async def test_what_is_written_meanwhile_is_no_member_yet_and_no_alarm(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = folder(tmp_path)
    (path / "member").write_text("1")
    (path / "link").symlink_to(tmp_path / "target")
    pipeline = over(FileRepository(path, name="in"))
    async with pipeline:
        with (
            open(path / "fresh", "w") as fresh,
            open(path / "member", "a") as member,
            open(tmp_path / "target", "w"),
        ):
            for _ in range(3):
                print("more", file=fresh, flush=True)
                print("more", file=member, flush=True)
                await compared(pipeline)
            assert pipeline.state.members("in") == ["member"]
        await until(lambda: sorted(pipeline.state.members("in")) == ["fresh", "link", "member"])
        shutil.copy2(path / "member", path / "copy")
        os.utime(path / "fresh", (1, 1))
        await compared(pipeline)
        assert pipeline.state.leaves["in"].missed == 0
    assert ALARM not in caplog.text


async def test_what_is_told_during_a_closer_look_is_newer_than_that(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path = folder(tmp_path)
    real = filestore.FileStore.inspect

    def inspect(store: filestore.FileStore, job: str) -> Found:
        found = real(store, job)
        (path / job).unlink(missing_ok=True)
        return found

    monkeypatch.setattr(filestore.FileStore, "inspect", inspect)
    pipeline = over(FileRepository(path, name="in"))
    async with pipeline:
        deafen(monkeypatch, to=lambda event: not event.mask & flags.DELETE)
        for number in range(10):
            (path / f"j{number}").touch()
            await until(lambda number=number: not (path / f"j{number}").exists())
        await compared(pipeline)
        assert pipeline.state.members("in") == []
        assert pipeline.state.leaves["in"].missed == 0
    assert ALARM not in caplog.text


@pytest.mark.parametrize("watched", [True, False])
@pytest.mark.parametrize("any_case", [True, False])
async def test_what_is_written_while_it_is_listed_counts_when_it_is_closed(
    watched: bool, any_case: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At opening, after a doubt, and where a folder can only be listed: nobody begins with half a file."""
    if not watched:
        monkeypatch.setattr(watching, "is_remote", lambda path: True)
    path = folder(tmp_path)
    (path / "whole.txt").touch()
    pipeline = over(FileRepository(path, ".txt", any_case, name="in"))
    with open(path / f"half.{'TXT' if any_case else 'txt'}", "w"):
        await pipeline.open()
        assert pipeline.state.members("in") == ["whole"]
        with open(path / "whole.txt", "a"):
            await pipeline.engine.observer.sync(["in"])
            assert pipeline.state.members("in") == ["whole"], "a member stays one"
    await until(lambda: sorted(pipeline.state.members("in")) == ["half", "whole"])
    assert pipeline.state.leaves["in"].missed == 0
    await pipeline.close()


async def test_files_of_which_the_kernel_does_not_say_who_writes_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Those of other users: what has been quiet for a while is taken as it is, and its times may be set in silence."""
    monkeypatch.setattr(finished, "is_written", lambda path: None)
    monkeypatch.setattr(filestore, "is_written", lambda path: None)
    path = folder(tmp_path)
    (path / "a").touch()
    pipeline = over(FileRepository(path, name="in"))
    async with pipeline:
        leaf = pipeline.state.leaves["in"]
        before = leaf.versions[0]
        os.utime(path / "a", (1, 1))
        await compared(pipeline)
        assert leaf.versions[0] == before
        monkeypatch.setattr(finished, "QUIET_SECONDS", 0.0)
        await until(lambda: leaf.versions[0] != before)
        assert (leaf.count, leaf.missed) == (1, 0)
    assert ALARM not in caplog.text


async def test_a_folder_that_another_takes_the_place_of_unseen_is_listed_and_watched(tmp_path: Path) -> None:
    """As when a folder above is renamed: nothing tells of that."""
    (tmp_path / "data" / "in").mkdir(parents=True)
    pipeline = over(FileRepository(tmp_path / "data" / "in", name="in"))
    async with pipeline:
        (tmp_path / "data").rename(tmp_path / "before")
        (tmp_path / "data" / "in").mkdir(parents=True)
        (tmp_path / "data" / "in" / "a").touch()
        await until(lambda: pipeline.state.members("in") == ["a"])
        assert pipeline.state.leaves["in"].missed == 0
        (tmp_path / "data" / "in" / "b").touch()
        await until(lambda: sorted(pipeline.state.members("in")) == ["a", "b"])
        (tmp_path / "before" / "in" / "c").touch()
        await compared(pipeline)
        assert sorted(pipeline.state.members("in")) == ["a", "b"]


@pytest.mark.machine("mounts")
async def test_a_disk_that_is_mounted_late_is_seen(tmp_path: Path) -> None:
    path = folder(tmp_path)
    pipeline = over(FileRepository(path, name="in"))
    async with pipeline:
        with mounted(path, "size=1m"):
            (path / "a").touch()
            await until(lambda: pipeline.state.members("in") == ["a"])
            (path / "b").touch()
            await until(lambda: sorted(pipeline.state.members("in")) == ["a", "b"])
            async with asyncio.timeout(100):  # a comparison holds it for moments only
                while await asyncio.to_thread(subprocess.call, ["umount", path], stderr=subprocess.DEVNULL):
                    await asyncio.sleep(0.01)
            await until(lambda: pipeline.state.leaves["in"].held)
            await asyncio.to_thread(mount, path)
            for name in ("a", "b", "c"):
                (path / name).touch()
            await until(lambda: sorted(pipeline.state.members("in")) == ["a", "b", "c"])
            assert not pipeline.state.leaves["in"].held


async def test_many_that_are_gone_await_a_persons_word(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = folder(tmp_path)
    for number in range(150):
        (path / f"j{number}").touch()
    pipeline = over(FileRepository(path, name="in"))
    async with pipeline:
        deafen(monkeypatch)
        for number in range(120):
            (path / f"j{number}").unlink()
        await until(lambda: pipeline.state.leaves["in"].held)
        assert pipeline.state.leaves["in"].count == 150
