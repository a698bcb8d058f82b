"""Repositories of folders: made, listed, deleted whole."""

from __future__ import annotations

import os
from pathlib import Path

from datatask.adapters.store.directories import DirectoryRepository
from tests.unit.repository_kit import in_order


async def test_a_folder_is_made_twice_listed_and_deleted_whole(tmp_path: Path) -> None:
    repository = DirectoryRepository(tmp_path / "d")
    await repository.validate()
    await repository.mkdir("foo")
    await repository.mkdir("foo")
    (repository.basedir / "file").touch()
    assert await in_order(repository) == ["foo"]
    (repository.fullpath("foo") / "sub").mkdir()
    (repository.fullpath("foo") / "sub" / "file").touch()
    await repository.delete("foo")
    await repository.delete("foo")
    await repository.delete("file")
    assert os.listdir(repository.basedir) == ["file"]


async def test_empty_folders_do_not_count_when_discarded(tmp_path: Path) -> None:
    repository = DirectoryRepository(tmp_path, discard_empty=True)
    await repository.mkdir("foo")
    assert (await repository.contains("foo"), await in_order(repository)) == (False, [])
    (tmp_path / "foo" / "file").touch()
    assert (await repository.contains("foo"), await in_order(repository)) == (True, ["foo"])
    (tmp_path / "foo" / "file").unlink()
    assert not await repository.contains("foo")
    await repository.delete("foo")
    assert os.listdir(tmp_path) == []
    assert repr(repository) == f"DirectoryRepository({str(tmp_path)!r}, discard_empty=True)"


async def test_deleting_a_link_to_a_folder_leaves_the_folder(tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "file").touch()
    repository = DirectoryRepository(tmp_path / "d")
    await repository.validate()
    (tmp_path / "d" / "link").symlink_to(tmp_path / "outside")
    assert await in_order(repository) == ["link"]
    await repository.delete("link")
    assert (tmp_path / "outside" / "file").exists()
    assert os.listdir(tmp_path / "d") == []


async def test_a_folder_is_neither_blob_nor_document(tmp_path: Path) -> None:
    repository = DirectoryRepository(tmp_path)
    assert (repository.is_blob(), repository.is_metadata()) == (False, False)
