"""A byte changed in what a crashed engine left in the write-ahead log takes no event away unnoticed."""

from __future__ import annotations

import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from datatask import verify
from datatask.adapters.history.maintenance import redact
from datatask.adapters.log.file_changes import Lost, lost_frames
from datatask.adapters.log.open import Durability
from datatask.adapters.log.sqlite import SqliteLog
from datatask.schema.errors import LogDamagedError
from tests.golden.histories import FOLDER

PAGE = 4096 + 24


async def opened(path: Path, durability: Durability = "full") -> SqliteLog:
    return await SqliteLog.open(
        path, pipeline="shop", clock_now=1, version="0", host="here", pid=1, durability=durability
    )


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """The log of an engine that was killed."""
    shutil.copytree(FOLDER / "crashed", tmp_path / "log")
    return tmp_path / "log" / "log.db"


def wal_of(log: Path) -> Path:
    return log.with_name("log.db-wal")


def flip(wal: Path, offset: int) -> None:
    body = bytearray(wal.read_bytes())
    body[offset] ^= 0x10
    wal.write_bytes(body)


def test_what_a_crash_left_is_whole(log: Path) -> None:
    assert wal_of(log).stat().st_size > 10 * PAGE
    assert lost_frames(wal_of(log)) is None
    assert lost_frames(log.with_name("none")) is None
    assert verify(log).ok


@pytest.mark.parametrize("offset", [0, 9, 13, 25, 32 + 3, 32 + 9, 32 + 17, 32 + 1000, 32 + 3 * PAGE + 5])
def test_a_byte_that_was_changed_is_found_and_where(log: Path, offset: int) -> None:
    flip(wal_of(log), offset)
    told = verify(log)
    (fault,) = [one for one in told.divergences if "log.db-wal" in one.what]
    where = "the header" if offset < 32 else f"frame {1 + (offset - 32) // PAGE} of"
    assert where in fault.what
    assert fault.position == told.replayed.head + 1
    assert "hides" in str(fault.recorded)


def test_the_end_that_a_crash_cut_off_is_no_fault_and_is_told(log: Path) -> None:
    wal = wal_of(log)
    flip(wal, wal.stat().st_size - 10)
    told = verify(log)
    assert told.ok
    assert any("cut off by a crash" in line for line in told.rests_on)
    wal.write_bytes(wal.read_bytes()[: -PAGE // 2])
    assert verify(log).ok


def test_frames_of_an_earlier_round_are_none_that_are_hidden(tmp_path: Path) -> None:
    """A write-ahead log is written over from its beginning; what stands behind the end is of the round before."""
    path = tmp_path / "file.db"
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("CREATE TABLE t (x)")
        for _ in range(20):
            connection.execute("INSERT INTO t VALUES (randomblob(3000))")
        connection.execute("PRAGMA wal_checkpoint(RESTART)")
        connection.execute("INSERT INTO t VALUES (1)")
        wal = tmp_path / "file.db-wal"
        assert wal.stat().st_size > 10 * PAGE
        assert lost_frames(wal) is None
        body = wal.read_bytes()
    wal.write_bytes(body[:20])
    assert lost_frames(wal) is None
    flipped = bytearray(body)
    flipped[5] ^= 1
    wal.write_bytes(flipped)
    assert lost_frames(wal) == Lost(0, len(body) // PAGE, True)


@pytest.mark.parametrize("offset", [9, 32 + 3 * PAGE + 5])
async def test_nobody_writes_over_events_that_are_hidden(log: Path, offset: int) -> None:
    flip(wal_of(log), offset)
    before = wal_of(log).read_bytes()
    with pytest.raises(LogDamagedError, match="hides"):
        redact(log, [3], actor="ada@lab: datatask redact")
    with pytest.raises(LogDamagedError, match="hides"):
        await opened(log)
    assert wal_of(log).read_bytes() == before
    await (await opened(log, durability="process")).close()
