"""The SQLite log among processes: kills, leases, readers beside a writer, plain sqlite3, damage."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import random
import shutil
import signal
import sqlite3
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from datatask.adapters.log import locate
from datatask.adapters.log.inbox import FileInbox
from datatask.adapters.log.inbox_client import ask
from datatask.adapters.log.integrity.verify import verify_chain
from datatask.adapters.log.lease import lease_holder
from datatask.adapters.log.log_file import LogFile
from datatask.adapters.log.reader import LogReader
from datatask.adapters.log.sqlite import SqliteLog
from datatask.engine.ports import Checkpoint, Filters
from datatask.schema.errors import (
    CallerError,
    FutureLogError,
    LeaseHeldError,
    LogDamagedError,
    LogError,
    TemporaryError,
    TimeLimitError,
)
from datatask.schema.events import (
    CheckpointWritten,
    ErrorInfo,
    LaunchDecided,
    PayloadRedacted,
    RepositoryReset,
    RunEnded,
    RunStarted,
    TaskPaused,
    ValueDeleted,
    ValuePut,
)
from datatask.schema.messages import PauseTask, Reply
from datatask.schema.tables import VIEW_COLUMNS

NOW = 1_700_000_000_000_000_000
KILLS = 10
APPENDER = Path(__file__).with_name("appender.py")


async def opened(path: Path | str, **options: Any) -> SqliteLog:
    return await SqliteLog.open(
        path, pipeline="p", clock_now=NOW, version="0", host="here", pid=os.getpid(), **options
    )


def put(job: str = "j", repository: str = "r", **fields: object) -> ValuePut:
    return ValuePut(at=NOW, repository=repository, job=job, **fields)  # type: ignore[arg-type]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "log.db"


@contextmanager
def appending(path: Path, *options: str) -> Iterator[tuple[subprocess.Popen[str], Path, int]]:
    """Run the appender for the length of the block; give it, the file of acknowledgements, and its child's pid."""
    acknowledged = path.with_name("acknowledged")
    process = subprocess.Popen(
        [sys.executable, str(APPENDER), str(path), str(acknowledged), *options],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    child = int(process.stdout.readline())
    try:
        yield process, acknowledged, child
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
        if child:
            os.kill(child, signal.SIGKILL)


def wait_until_appended(path: Path, more: int) -> None:
    with LogReader(path) as reader:
        goal = reader.head + more
        while reader.head < goal:
            time.sleep(0.005)


# --- crashes ----------------------------------------------------------------------------------------


async def test_ten_kills_in_mid_append_lose_nothing_that_was_acknowledged(path: Path) -> None:
    chance = random.Random(7)
    for _ in range(KILLS):
        with appending(path) as (process, acknowledged, _):
            wait_until_appended(path, 100)
            time.sleep(chance.uniform(0, 0.05))  # noqa: ASYNC251 - kill at some moment
            process.kill()
            process.wait()
            told = [int(line) for line in acknowledged.read_text().split()]
            with LogReader(path) as reader:  # on the dead engine's write-ahead log
                assert reader.head >= max(told)
                assert verify_chain(reader) is None
                assert all(len(batch.events) == 3 for batch in reader.batches(after=1))
    log = await opened(path)
    assert log.epoch == KILLS + 1
    assert log.head >= max(told)
    await log.close()


async def test_the_lease_is_free_after_a_kill_although_a_forked_child_lives_on(path: Path) -> None:
    with appending(path, "--fork") as (process, _, child):
        with pytest.raises(LeaseHeldError, match=f"pid {process.pid} on appender-host") as caught:
            await opened(path)
        assert caught.value.exit_code == 4
        assert lease_holder(path) == ("appender-host", process.pid, 1)
        process.kill()
        process.wait()
        os.kill(child, 0)
        assert lease_holder(path) is None
        log = await opened(path)
        assert log.epoch == 2
        await log.close()


async def test_a_second_opener_in_the_same_process_is_refused_too(path: Path) -> None:
    log = await opened(path)
    with pytest.raises(LeaseHeldError, match=f"pid {os.getpid()} on here"):
        await opened(path)
    assert lease_holder(path) == ("here", os.getpid(), 1)
    assert log.holds_lease
    await log.append([put()])
    await log.close()
    assert lease_holder(path) is None


async def test_a_creation_that_was_cut_short_leaves_no_log(path: Path) -> None:
    path.with_name("log.db.new").write_bytes(b"half of it")
    log = await opened(path)
    assert log.head == 1
    await log.close()
    assert not path.with_name("log.db.new").exists()


# --- readers ----------------------------------------------------------------------------------------


async def test_a_reader_beside_a_writer_sees_whole_batches_only(path: Path) -> None:
    with appending(path), LogReader(path) as reader:
        seen = 0
        while seen < 3_000:
            for batch in reader.batches(after=max(seen, 1)):
                assert len(batch.events) == 3
                assert batch.first == max(seen, 1) + 1
                seen = batch.last
            assert len(reader.chain_at(seen)) == 32


async def test_reading_a_closed_log_changes_nothing_and_leaves_nothing(path: Path) -> None:
    log = await opened(path)
    await log.append([put("a"), put("b")])
    await log.close()
    before, files = hashlib.sha256(path.read_bytes()).digest(), sorted(os.listdir(path.parent))
    with LogReader(path) as reader:
        assert [recorded.position for recorded in reader.read(filters=Filters(jobs=("a",)))] == [2]
        assert reader.fetch([3]) == [put("b")]
        assert reader.query("SELECT count(*) AS n FROM events") == (("n",), [(3,)], False)
        assert (reader.pipeline, reader.uuid, reader.header.epoch) == ("p", log.uuid, 1)
    assert hashlib.sha256(path.read_bytes()).digest() == before
    assert sorted(os.listdir(path.parent)) == files


async def test_a_reader_follows_a_log_through_opening_and_closing(path: Path) -> None:
    """The immutable connection of a closed log is given up as soon as somebody writes."""
    await (await opened(path)).close()
    with LogReader(path) as reader:
        for head in (2, 3, 4):
            assert reader.head == head - 1
            log = await opened(path)
            assert reader.head == head - 1
            await log.append([put(f"j{head}")])
            assert reader.head == head
            await log.close()
            assert reader.fetch([head]) == [put(f"j{head}")]


async def test_a_log_that_is_closed_just_as_it_is_opened_is_read(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its write-ahead log was seen, and is removed before SQLite opens it; for `query` too."""
    await (await opened(path)).close()
    ways: tuple[Callable[[LogReader], object], ...] = (
        lambda reader: reader.head,
        lambda reader: reader.query("SELECT max(position) FROM log"),
    )
    for read in ways:
        writer = sqlite3.connect(path, isolation_level=None)
        writer.execute("CREATE TABLE IF NOT EXISTS more (x)")
        writer.execute("INSERT INTO more VALUES (1)")
        made = LogFile._made
        seen: list[str] = []

        def late(self: LogFile, option: Any, writer: Any = writer, made: Any = made, seen: Any = seen) -> Any:
            seen.append(option)
            if len(seen) == 1:
                writer.close()
                sqlite3.connect(path.with_name("nothing").as_uri() + "?mode=ro", uri=True)  # cannot be opened
            return made(self, option)

        monkeypatch.setattr(LogFile, "_made", late)
        with LogReader(path) as reader:
            assert read(reader)
        monkeypatch.setattr(LogFile, "_made", made)
        assert seen[0] == "mode=ro"
        assert seen[-1] == "immutable=1"


async def test_worker_threads_fetch_while_the_loop_appends(path: Path) -> None:
    log = await opened(path)
    await log.append([put(f"j{number}") for number in range(2, 102)])
    failures: list[BaseException] = []

    def work() -> None:
        try:
            for position in range(2, 102):
                assert log._checked.fetch([position])[0] == put(f"j{position}")
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for _ in range(50):
        await log.append([put()])
    for thread in threads:
        await asyncio.to_thread(thread.join)
    await log.close()
    assert failures == []


async def test_queries_are_limited_in_time_rows_and_kind(path: Path) -> None:
    await (await opened(path)).close()
    endless = "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c) SELECT"
    with LogReader(path) as reader:
        with pytest.raises(TimeLimitError):
            reader.query(f"{endless} count(*) FROM c", timeout_seconds=0.05)
        assert reader.query(f"{endless} x FROM c", rows_max=2) == (("x",), [(1,), (2,)], True)
        for sql in (
            "DELETE FROM log",
            "ATTACH 'x.db' AS x",
            "PRAGMA journal_mode = DELETE",
            "VACUUM INTO 'x.db'",
            "SELEC",
            "SELECT 1; SELECT 2",
            "",
        ):
            with pytest.raises(CallerError):
                reader.query(sql)
    assert sorted(name for name in os.listdir(path.parent) if "x.db" in name) == []


def test_a_log_that_is_not_there_is_the_callers_mistake(path: Path) -> None:
    with pytest.raises(CallerError, match="no log here"):
        LogReader(path)
    assert not path.exists()


# --- the file as it stands --------------------------------------------------------------------------


async def fill(path: Path) -> None:
    """Append one run that failed, one that runs, one that is decided, and some values."""
    log = await opened(path)
    await log.append([put("a", value=msgspec.Raw(b'"text"'), reason="x"), put("b", digest="ef" * 32, size=5)])
    inputs = {"input": 2}
    await log.append(
        [LaunchDecided(at=NOW + 10**9, task="t", job="a", episode=1, attempt=1, inputs=inputs)]
    )  # 4
    await log.append([RunStarted(at=NOW + 2 * 10**9, task="t", job="a", run=4, where="node-1")])
    error = ErrorInfo(type="ValueError", message="no")
    await log.append(
        [
            put("a", repository="out", run=4, value=msgspec.Raw(b"[1, 2]")),  # 6
            RunEnded(
                at=NOW + 3 * 10**9, task="t", job="a", run=4, outcome="failed", exit_code=3, error=error
            ),
        ]
    )
    await log.append([LaunchDecided(at=NOW, task="t", job="b", episode=1, attempt=1, priority=2.0)])  # 8
    await log.append([RunStarted(at=NOW, task="t", job="b", run=8)])
    await log.append([LaunchDecided(at=NOW, task="t", job="a", episode=2, attempt=1, origin="forced")])  # 10
    await log.append([ValueDeleted(at=NOW, repository="r", job="b"), put("a", value=msgspec.Raw(b"2"))])  # 12
    await log.append(
        [put("c", "tmp"), RepositoryReset(at=NOW, repository="tmp", incarnation=2), put("d", "tmp")]
    )
    await log.close()


def rows(path: Path, sql: str) -> list[tuple[object, ...]]:
    """Run one statement and close the file, as the command `sqlite3` does."""
    with closing(sqlite3.connect(path)) as connection, connection:
        return connection.execute(sql).fetchall()


async def test_the_views_have_their_documented_columns_and_nothing_else(path: Path) -> None:
    await (await opened(path)).close()
    documentation = (Path(__file__).parents[2] / "docs" / "log.md").read_text()
    with sqlite3.connect(path) as connection:
        for view, columns in VIEW_COLUMNS.items():
            described = connection.execute(f"SELECT * FROM {view}").description
            assert [column[0] for column in described] == list(columns)
            section = documentation.split(f"### `{view}`")[1].split("\n#")[0]
            for column, meaning in columns.items():
                assert f"| `{column}` | {meaning} |" in section


async def test_events_read_with_plain_sqlite3(path: Path) -> None:
    await fill(path)
    assert rows(
        path, "SELECT position, time, kind, actor, task, repository, job, run FROM events WHERE job = 'b'"
    ) == [
        (3, "2023-11-14T22:13:20.000000Z", "ValuePut", "engine", None, "r", "b", None),
        (8, "2023-11-14T22:13:20.000000Z", "LaunchDecided", "engine", "t", None, "b", 8),
        (9, "2023-11-14T22:13:20.000000Z", "RunStarted", "engine", "t", None, "b", 8),
        (11, "2023-11-14T22:13:20.000000Z", "ValueDeleted", "engine", None, "r", "b", None),
    ]
    assert rows(
        path, "SELECT json_extract(payload, '$.value'), chain, digest FROM events WHERE position = 2"
    ) == [("text", None, None)]
    with LogReader(path) as reader:
        assert rows(path, "SELECT chain, digest FROM events WHERE position = 3") == [
            (reader.chain_at(3).hex(), None)
        ]


async def test_runs_with_plain_sqlite3(path: Path) -> None:
    await fill(path)
    columns = (
        "run, task, job, episode, attempt, origin, state, where_, exit_code, error_type, error, priority"
    )
    assert rows(path, f"SELECT {columns} FROM runs ORDER BY run") == [
        (4, "t", "a", 1, 1, "derived", "failed", "node-1", 3, "ValueError", "no", None),
        (8, "t", "b", 1, 1, "derived", "running", None, None, None, None, 2.0),
        (10, "t", "a", 2, 1, "forced", "decided", None, None, None, None, None),
    ]
    seconds = "(started_at - decided_at) / 1e9, (ended_at - started_at) / 1e9"
    assert rows(path, f"SELECT {seconds}, ended, end_position FROM runs WHERE run = 4") == [
        (1.0, 1.0, "2023-11-14T22:13:23.000000Z", 7)
    ]


async def test_values_now_and_lineage_with_plain_sqlite3(path: Path) -> None:
    await fill(path)
    columns = "repository, job, position, value, digest, size, run"
    assert rows(path, f"SELECT {columns} FROM values_now ORDER BY position") == [
        ("out", "a", 6, "[1,2]", None, None, 4),
        ("r", "a", 12, "2", None, None, None),
        ("tmp", "d", 15, None, None, None, None),
    ]
    assert rows(path, "SELECT run, task, job, direction, link, repository, position FROM lineage") == [
        (4, "t", "a", "input", "input", "r", 2),
        (4, "t", "a", "output", None, "out", 6),
    ]


async def test_all_files_are_for_the_owner_only(path: Path) -> None:
    log = await opened(path)
    log.blobs.put_bytes(b"x")
    log.inbox.answer(Reply(id="x"))
    for folder, _, names in os.walk(path.parent):
        for name in names:
            assert stat.S_IMODE(os.stat(os.path.join(folder, name)).st_mode) == 0o600, name
    await log.close()


async def test_the_log_has_one_secondary_index_and_strict_tables(path: Path) -> None:
    await (await opened(path)).close()
    assert rows(path, "SELECT name FROM sqlite_master WHERE type = 'index' AND tbl_name = 'log'") == [
        ("log_job_position",)
    ]
    assert rows(path, "SELECT name FROM pragma_table_list WHERE strict ORDER BY name") == [
        ("base",),
        ("log",),
        ("meta",),
        ("names",),
    ]


# --- damage and refusals ----------------------------------------------------------------------------


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


# --- beside the log ---------------------------------------------------------------------------------


async def test_requests_are_asked_answered_and_gone(path: Path) -> None:
    log = await opened(path)
    request = PauseTask(id="a-1", actor="ada", task="t")
    asking = asyncio.create_task(asyncio.to_thread(ask, path, request, timeout_seconds=100))
    while not log.inbox.pending():
        await asyncio.sleep(0.005)
    assert log.inbox.pending() == [request]
    log.inbox.answer(Reply(id="a-1", position=7, count=1))
    assert log.inbox.pending() == []
    assert await asking == Reply(id="a-1", position=7, count=1)
    assert os.listdir(log.inbox.root) == []
    with pytest.raises(TimeLimitError, match="not answered"):
        await asyncio.to_thread(ask, path, request, timeout_seconds=0.02)
    assert log.inbox.pending() == [request]  # it stays, and is answered when the engine gets to it
    await log.close()


async def test_a_request_that_nobody_understands_is_refused_and_not_kept(path: Path) -> None:
    log = await opened(path)
    (log.inbox.root / "b-2.json").write_text('{"ask":"Unheard","id":"b-2","actor":"ada"}')
    assert log.inbox.pending() == []
    reply = msgspec.json.decode((log.inbox.root / "b-2.reply").read_bytes(), type=Reply)
    assert reply.refusal is not None
    assert "understood" in reply.refusal.what
    await log.close()


async def test_asking_notices_that_the_engine_died_and_what_it_did_before(path: Path) -> None:
    request = PauseTask(id="c-3", actor="ada", task="t")
    with pytest.raises(TemporaryError, match="no engine"):
        ask(path, request, timeout_seconds=1)
    log = await opened(path)
    alive = iter([os.getpid(), None])
    with pytest.raises(TemporaryError, match="before it carried"):
        ask(path, request, timeout_seconds=100, alive=lambda _: next(alive))
    assert log.inbox.pending() == []
    asking = asyncio.create_task(
        asyncio.to_thread(
            ask, path, request, timeout_seconds=100, alive=lambda _: None if log.head > 1 else 1
        )
    )
    while not log.inbox.pending():
        await asyncio.sleep(0.005)
    await log.append([TaskPaused(at=NOW, task="t", request="c-3")])
    assert await asking == Reply(id="c-3", position=2, count=1)
    await log.close()


def test_an_unchanged_inbox_is_not_listed_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inbox = FileInbox(tmp_path)
    os.utime(tmp_path, ns=(NOW, NOW))
    assert inbox.pending() == []
    monkeypatch.setattr(inbox, "_list", lambda: pytest.fail("listed"))
    for _ in range(3):
        assert inbox.pending() == []


async def test_old_foreign_and_changed_checkpoints_are_passed_over(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    log = await opened(path)
    for _ in range(5):
        await log.append([put()])
        head, body = log.head, b"x" * log.head
        digest = hashlib.sha256(body).hexdigest()
        (event,) = await log.append([CheckpointWritten(at=NOW, position=head, fold_version=1, sha256=digest)])
        await log.checkpoint(Checkpoint(head, log.chain_at(head), 1, body, event))
    folder = locate.checkpoints_path(path)
    assert sorted(os.listdir(folder)) == ["10-1-11", "6-1-7", "8-1-9"]
    newest = folder / "10-1-11"
    newest.write_bytes(newest.read_bytes()[:-1])
    found = await log.latest_checkpoint(1)
    assert found is not None
    assert found.position == 8
    shutil.copy(folder / "6-1-7", folder / "8-1-9")
    found = await log.latest_checkpoint(1)
    assert found is not None
    assert found.position == 6
    edited = (folder / "6-1-7").read_bytes().split(b"\n")
    header = {**json.loads(edited[0]), "sha256": hashlib.sha256(b"y" * 6).hexdigest()}
    (folder / "6-1-7").write_bytes(json.dumps(header).encode() + b"\n" + b"y" * 6)
    assert await log.latest_checkpoint(1) is None
    assert "6-1-7: this is not the state that the log vouches for" in caplog.text
    assert not (folder / "6-1-7").exists()
    await log.close()
