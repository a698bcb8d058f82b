"""A run's finished output becomes a repository's file without a copy, unless somebody may still write to it."""

from __future__ import annotations

import os
import subprocess
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from datatask.adapters.store import finished
from datatask.adapters.store.filestore import FileStore
from datatask.schema.messages import Write


@pytest.fixture
def store(tmp_path: Path) -> FileStore:
    (tmp_path / "store").mkdir()
    return FileStore(tmp_path / "store", ".txt")


@pytest.fixture
def output(tmp_path: Path) -> Path:
    path = tmp_path / "stdout"
    path.write_bytes(b"said\n")
    path.chmod(0o600)
    return path


@pytest.fixture
def umask() -> Iterator[int]:
    before = os.umask(0o027)
    yield 0o027
    os.umask(before)


def put(store: FileStore, source: Path) -> Path:
    store._put(Write(repository="r", job="a", source=source))
    assert [path.name for path in store.basedir.iterdir()] == ["a.txt"]
    return store.basedir / "a.txt"


def test_an_output_that_nobody_writes_gets_a_second_name(store: FileStore, output: Path, umask: int) -> None:
    stored = put(store, output)
    assert stored.samefile(output)
    assert stored.stat().st_mode & 0o777 == 0o666 & ~umask
    assert put(store, output).samefile(output)  # again, as after a crash


def test_an_output_that_somebody_may_still_write_is_copied(store: FileStore, output: Path) -> None:
    with output.open("ab") as file, subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=file) as writer:
        file.close()
        stored = put(store, output)
        assert writer.stdin is not None
        writer.stdin.write(b"more\n")
        writer.stdin.close()
        assert writer.wait() == 0
    assert (output.read_bytes(), stored.read_bytes()) == (b"said\nmore\n", b"said\n")


def test_a_link_in_place_of_an_output_is_not_taken_over(
    store: FileStore, output: Path, tmp_path: Path
) -> None:
    (tmp_path / "planted").symlink_to(output)
    stored = put(store, tmp_path / "planted")
    assert not stored.is_symlink()
    assert not stored.samefile(output)
    assert stored.read_bytes() == b"said\n"


def test_a_blob_is_copied(store: FileStore, output: Path) -> None:
    """Who changes the repository's file must not change what the log says was put."""
    store._put(Write(repository="r", job="a", source=output, digest="0" * 64, size=5))
    assert not (store.basedir / "a.txt").samefile(output)
    assert output.stat().st_mode & 0o777 == 0o600


def test_what_is_there_is_replaced_whole(store: FileStore, output: Path) -> None:
    (store.basedir / "a.txt").write_bytes(b"before")
    (store.basedir / "a.txt").chmod(0o640)
    stored = put(store, output)
    assert (stored.read_bytes(), stored.stat().st_mode & 0o777) == (b"said\n", 0o640)


def test_a_pipe_in_place_of_an_output_is_an_error_and_does_not_wait(store: FileStore, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert finished.linked(tmp_path / "pipe", store.basedir / "a.txt") is None


def test_who_asks_at_once_shares_a_sync_that_begins_after_the_asking(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the first sync is held up 15 more ask: one more sync serves them all."""
    begun, free = threading.Semaphore(0), threading.Event()
    syncs: list[str] = []

    def slow(folder: str) -> None:
        syncs.append(folder)
        begun.release()
        assert free.wait(100)

    monkeypatch.setattr(finished, "sync", slow)
    with ThreadPoolExecutor(16) as pool:
        first = pool.submit(finished.sync_folder, tmp_path)
        assert begun.acquire(timeout=100)
        others = [pool.submit(finished.sync_folder, tmp_path) for _ in range(15)]
        while finished._syncs[os.fspath(tmp_path)].waiting < 15:
            pass
        assert not first.done()
        free.set()
        for one in (first, *others):
            one.result(timeout=100)
    assert len(syncs) == 2


def test_a_sync_that_failed_is_tried_by_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = iter([OSError(5, "bad"), None])

    def failing(folder: str) -> None:
        if (error := next(answers)) is not None:
            raise error

    monkeypatch.setattr(finished, "sync", failing)
    with pytest.raises(OSError, match="bad"):
        finished.sync_folder(tmp_path)
    finished.sync_folder(tmp_path)
