"""Rungs left on the way to a point in the past: never wrong, never in the way, and gone without loss."""

from __future__ import annotations

import os
import random
import shutil
import threading
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from benchmarks.logs import make_log
from datatask.adapters.history import states
from datatask.adapters.history.states import CheckpointCache, fold, follow, superfluous
from datatask.adapters.log.checkpoints import Found, checkpoints_in
from datatask.adapters.log.locate import checkpoints_path
from datatask.adapters.log.reader import LogReader
from datatask.engine.core.checkpoints import fingerprint
from datatask.engine.core.state import FOLD_VERSION, State

JOBS = 700


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("written") / "log.db"
    make_log(path, JOBS, 2)
    return path


@pytest.fixture
def path(written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A log of 7,700 events whose rungs stand about a thousand events apart."""
    monkeypatch.setattr(states, "FIRST_STEP", 500)
    monkeypatch.setattr(states, "STEP_SECONDS", 0.0)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return Path(shutil.copy(written, tmp_path / "log.db"))


@pytest.fixture
def reader(path: Path) -> Iterator[LogReader]:
    with LogReader(path) as reader:
        yield reader


def rungs(path: Path) -> list[Found]:
    return checkpoints_in(checkpoints_path(path) / "past")


def plain(reader: LogReader, until: int) -> str:
    return fingerprint(follow(reader, State(), until))


def test_a_state_from_any_rung_is_the_state_folded_from_the_beginning(path: Path, reader: LogReader) -> None:
    fold(reader, reader.head)
    assert len(rungs(path)) >= 5
    draw = random.Random(4)
    for _ in range(12):
        until = reader.end_of_batch(draw.randrange(1, reader.head + 1))
        assert fingerprint(fold(reader, until)) == plain(reader, until), until


def test_the_second_answer_folds_only_what_lies_behind_the_nearest_rung(
    path: Path, reader: LogReader
) -> None:
    until = reader.end_of_batch(4000)
    fold(reader, until)
    near = CheckpointCache(reader).nearest(until)
    assert near is not None
    assert near.position == until
    before = CheckpointCache(reader).nearest(until - 1)
    assert before is not None
    assert 0 < until - before.position < 2500


def test_a_short_way_leaves_nothing(path: Path, reader: LogReader) -> None:
    fold(reader, reader.end_of_batch(100))
    assert not checkpoints_path(path).exists()


def test_what_does_not_fit_is_passed_over(path: Path, reader: LogReader, tmp_path: Path) -> None:
    until = reader.head
    right = plain(reader, until)
    fold(reader, until)
    last, second, third, fourth, *_ = rungs(path)
    last.path.write_bytes(last.path.read_bytes()[:-7])  # torn
    shutil.copy(fourth.path, second.path)  # of another position
    third.path.write_bytes(b"")
    folder = fourth.path.parent
    (folder / f"{until}-{FOLD_VERSION + 1}").write_bytes(last.path.read_bytes())  # of another version
    (folder / f"{until - 1}-{FOLD_VERSION}").mkdir()
    (folder / "notes.txt").write_text("somebody's")
    near = CheckpointCache(reader).nearest(until)
    assert near is not None
    assert near.position == fourth.position
    assert fingerprint(fold(reader, until)) == right


def test_rungs_of_another_log_are_passed_over(
    path: Path, reader: LogReader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fold(reader, reader.head)
    other = tmp_path / "other" / "log.db"
    other.parent.mkdir()
    monkeypatch.setattr("benchmarks.logs.WAVE", 90)  # the same uuid, another history: the chain tells
    make_log(other, JOBS, 2)
    shutil.copytree(checkpoints_path(path), checkpoints_path(other))
    with LogReader(other) as reader_of_other:
        until = reader_of_other.end_of_batch(5000)
        near = CheckpointCache(reader_of_other).nearest(until)
        assert near is None
        assert fingerprint(fold(reader_of_other, until)) == plain(reader_of_other, until)


def test_the_folder_may_vanish_at_any_time_and_readers_may_be_many(path: Path, reader: LogReader) -> None:
    points = [reader.end_of_batch(at) for at in (2500, 4000, 5500, reader.head)]
    right = {until: plain(reader, until) for until in points}
    wrong: list[object] = []
    done = threading.Event()

    def read(seed: int) -> None:
        draw = random.Random(seed)
        try:
            with LogReader(path) as own:
                for _ in range(4):
                    until = draw.choice(points)
                    if fingerprint(fold(own, until)) != right[until]:
                        wrong.append(until)
        except Exception as error:
            wrong.append(error)

    def remove() -> None:
        while not done.wait(0.01):
            shutil.rmtree(checkpoints_path(path), ignore_errors=True)

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(3)]
    remover = threading.Thread(target=remove)
    for thread in (*threads, remover):
        thread.start()
    for thread in threads:
        thread.join()
    done.set()
    remover.join()
    assert wrong == []


def test_the_log_itself_is_not_changed_and_nothing_but_rungs_appears(path: Path, reader: LogReader) -> None:
    before = path.read_bytes()
    fold(reader, reader.head)
    assert path.read_bytes() == before
    assert sorted(os.listdir(path.parent)) == ["log.db", "log.db.checkpoints"]
    assert all(rung.path.stat().st_mode & 0o777 == 0o600 for rung in rungs(path))
    assert checkpoints_path(path).stat().st_mode & 0o777 == 0o700
    assert not [name for name in os.listdir(rungs(path)[0].path.parent) if name.startswith("new-")]


def test_where_nothing_can_be_written_beside_the_log_the_users_cache_has_the_rungs(
    path: Path, reader: LogReader, tmp_path: Path
) -> None:
    checkpoints_path(path).write_text("a file where the folder should be")
    fold(reader, reader.head)
    folder = tmp_path / "cache" / "datatask" / reader.uuid
    assert len(checkpoints_in(folder)) >= 5
    near = CheckpointCache(reader).nearest(reader.head)
    assert near is not None
    assert near.position == reader.head


def test_a_log_of_somebody_else_gets_no_files_beside_it(
    path: Path, reader: LogReader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    fold(reader, reader.head)
    assert not checkpoints_path(path).exists()
    assert checkpoints_in(tmp_path / "cache" / "datatask" / reader.uuid)


def test_without_any_place_or_with_a_full_disk_the_answer_is_the_same(
    path: Path, reader: LogReader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = plain(reader, reader.head)
    monkeypatch.setattr(states, "FREE_MIN", 1 << 62)
    assert fingerprint(fold(reader, reader.head)) == right
    assert not checkpoints_path(path).exists()
    monkeypatch.undo()
    monkeypatch.setattr(states, "FIRST_STEP", 500)
    monkeypatch.setattr(states, "STEP_SECONDS", 0.0)
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    checkpoints_path(path).write_text("no folder")
    assert fingerprint(fold(reader, reader.head)) == right


def test_rungs_are_removed_wherever_they_are(path: Path, reader: LogReader, tmp_path: Path) -> None:
    fold(reader, reader.head)
    spare = tmp_path / "cache" / "datatask" / reader.uuid
    shutil.copytree(checkpoints_path(path) / "past", spare)
    for _ in range(2):
        CheckpointCache(reader).remove()
        assert rungs(path) == []
        assert not spare.exists()


def test_the_users_cache_keeps_few_logs(
    path: Path, reader: LogReader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(states, "LOGS_MAX", 2)
    root = tmp_path / "cache" / "datatask"
    for age, name in enumerate(("newest", "middle", "oldest")):
        (root / name).mkdir(parents=True)
        os.utime(root / name, (1_000_000 - age, 1_000_000 - age))
    checkpoints_path(path).write_text("no folder")
    fold(reader, reader.head)
    assert sorted(os.listdir(root)) == sorted(["newest", reader.uuid])


def test_rungs_are_few_and_stay_evenly_spread(
    path: Path, reader: LogReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(states, "RUNGS_MAX", 4)
    for until in (3000, 5000, reader.head):
        fold(reader, reader.end_of_batch(until))
    assert 2 <= len(rungs(path)) <= 4


def _found(position: int, size: int = 10, version: int = FOLD_VERSION) -> Found:
    return Found(position, version, size, Path(f"{position}-{version}"))


def test_what_is_superfluous_stands_close_to_others() -> None:
    even = [_found(position) for position in range(1000, 11_000, 1000)]
    crowded = [_found(position) for position in (5100, 5200, 5300)]
    assert {rung.position for rung in superfluous(even + crowded, 10, 10**6)} <= set(range(5000, 5400, 100))
    assert superfluous(even, 10, 100) == []
    left = [rung for rung in even if rung not in superfluous(even, 5, 10**6)]
    gaps = [after.position - before.position for before, after in pairwise(left)]
    assert len(left) == 5
    assert max(gaps) <= 3000
    assert len(superfluous(even, 10, 55)) == 5


def test_rungs_of_other_versions_go_first() -> None:
    old = _found(77, version=FOLD_VERSION - 1)
    assert superfluous([_found(1), old, _found(100)], 2, 10**6) == [old]
