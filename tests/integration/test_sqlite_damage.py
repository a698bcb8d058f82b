"""Files that are no log, are damaged, or are of another format: refused, by what is wrong with them."""

from __future__ import annotations

import hashlib
import os
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from datatask.adapters.log import locate
from datatask.adapters.log.integrity.verify import verify_chain
from datatask.adapters.log.reader import LogReader
from datatask.adapters.log.sqlite import SqliteLog
from datatask.schema.errors import (
    CallerError,
    FutureLogError,
    LogDamagedError,
    LogError,
)
from datatask.schema.events import (
    PayloadRedacted,
)
from tests.integration.sqlite_kit import NOW, fill, opened, put, rows


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "log.db"


async def refused(path: Path, kind: type[LogError], match: str) -> None:
    """Check that the reader, the engine, or both refuse in words of ours and leave the file as it is."""
    before = path.read_bytes()
    with pytest.raises(kind, match=match) as caught:
        await opened(path)
    assert str(path) in caught.value.where
    assert caught.value.remedy
    assert path.read_bytes() == before


async def test_an_empty_file_is_damage(path: Path) -> None:
    path.touch()
    await refused(path, LogDamagedError, "empty")
    with pytest.raises(LogDamagedError, match="empty"):
        LogReader(path)


async def test_a_file_that_is_no_database_is_damage(path: Path) -> None:
    path.write_bytes(b"this is not a database, but it is long enough to be looked at\n" * 100)
    await refused(path, LogDamagedError, "not a log")


async def test_another_programs_database_is_not_a_log(path: Path) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE t (x)")
    await refused(path, LogDamagedError, "not a log")


@pytest.mark.parametrize("keep", [0.3, 0.6, 0.95])
async def test_a_cut_file_is_damage(path: Path, keep: float) -> None:
    log = await opened(path)
    for _ in range(5):
        await log.append([put(f"j{number}", reason="x" * 100) for number in range(200)])
    await log.close()
    os.truncate(path, int(path.stat().st_size * keep) // 4096 * 4096)
    with pytest.raises(LogDamagedError):
        await opened(path)
    with pytest.raises(LogDamagedError), LogReader(path) as reader:
        list(reader.batches())


@pytest.mark.parametrize(("key", "kind"), [("may_write", FutureLogError), ("may_read", FutureLogError)])
async def test_a_newer_format_is_refused(path: Path, key: str, kind: type[LogError]) -> None:
    await (await opened(path)).close()
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE meta SET value = 99 WHERE key = ?", (key,))
    connection.close()
    await refused(path, kind, "format 99")
    if key == "may_write":
        assert LogReader(path).head == 1


async def test_another_pipelines_log_is_refused(path: Path) -> None:
    await (await opened(path)).close()
    with pytest.raises(CallerError, match=r"'p'.*'q'"):
        await SqliteLog.open(path, pipeline="q", clock_now=NOW, version="0", host="h", pid=1)


@pytest.mark.parametrize(
    ("change", "broken"),
    [
        ("UPDATE log SET payload = json_set(payload, '$.reason', 'y') WHERE position = 2", 2),
        ("UPDATE log SET at = at + 1 WHERE position = 4", 4),
        ("DELETE FROM log WHERE position = 6", 6),
        ("UPDATE log SET chain = NULL WHERE position = 12", 11),
        ("UPDATE names SET text = 'z' WHERE text = 'd'", 13),
        ("UPDATE log SET payload = NULL, digest = zeroblob(32) WHERE position = 5", 5),
    ],
)
async def test_every_change_of_what_was_written_breaks_the_chain_where_it_is(
    path: Path, change: str, broken: Any
) -> None:
    await fill(path)
    with LogReader(path) as reader:
        assert verify_chain(reader) is None
    rows(path, change)
    with LogReader(path) as reader:
        assert verify_chain(reader) == broken


async def test_a_changed_last_batch_is_noticed_on_opening(path: Path) -> None:
    await fill(path)
    rows(path, "UPDATE log SET at = at + 1 WHERE position = 15")
    await refused(path, LogDamagedError, "last batch")


async def test_a_missing_event_is_named_while_reading(path: Path) -> None:
    await fill(path)
    rows(path, "DELETE FROM log WHERE position = 6")
    with LogReader(path) as reader, pytest.raises(LogDamagedError, match="6 to 6") as caught:
        list(reader.batches())
    assert caught.value.where.endswith("position 7")


async def test_a_redacted_payload_leaves_the_chain_whole_when_an_event_tells_of_it(path: Path) -> None:
    await fill(path)
    with sqlite3.connect(path) as connection:
        payload, salt = connection.execute("SELECT payload, salt FROM log WHERE position = 2").fetchone()
        hashed = hashlib.sha256(salt.to_bytes(8, "big", signed=True) + payload.encode()).digest()
        connection.execute(
            "UPDATE log SET payload = NULL, salt = NULL, digest = ? WHERE position = 2", (hashed,)
        )
    with LogReader(path) as reader:
        assert verify_chain(reader) == 2
    log = await opened(path)
    await log.append([PayloadRedacted(at=NOW, position=2)])
    await log.close()
    with LogReader(path) as reader:
        assert verify_chain(reader) is None


async def test_a_write_ahead_log_without_its_log_is_not_played_into_a_new_one(path: Path) -> None:
    path.with_name("log.db-wal").write_bytes(b"x" * 100)
    with pytest.raises(LogDamagedError, match="is gone"):
        await opened(path)


async def test_network_file_systems_are_refused_by_name(path: Path) -> None:
    mounts = f"22 1 8:1 / / rw - ext4 /dev/root rw\n30 22 0:50 / {path.parent} rw - nfs4 server:/x rw\n"
    with pytest.raises(CallerError, match="nfs4"):
        await opened(path, mounts=mounts)
    assert not path.exists()
    assert locate.file_system(Path("/"), mounts) == "ext4"


@pytest.mark.parametrize(
    ("given", "file"),
    [
        ("sqlite:////var/x/log.db", Path("/var/x/log.db")),
        ("sqlite+aiosqlite:////var/a%20b.db", Path("/var/a b.db")),
        ("/var/x/log.db", Path("/var/x/log.db")),
        ("sqlite:///x.db", Path.cwd() / "x.db"),
        ("memory:", None),
        ("sqlite://", None),
    ],
)
def test_places(given: Any, file: Any) -> None:
    assert locate.locate(given).path == file


@pytest.mark.parametrize("given", ["mysql://x/y", "http://x"])
def test_a_place_that_no_log_has_is_refused(given: Any) -> None:
    with pytest.raises(CallerError, match="not the place"):
        locate.locate(given)
