"""The SQLite log among processes: kills, leases, readers beside a writer, and what lies beside the log."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import json
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
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
from datatask.engine.ports import Checkpoint, Filters
from datatask.schema.errors import (
    CallerError,
    LeaseHeldError,
    TemporaryError,
    TimeLimitError,
)
from datatask.schema.events import (
    CheckpointWritten,
    TaskPaused,
)
from datatask.schema.messages import PauseTask, Reply
from tests.integration.sqlite_kit import NOW, opened, put

KILLS = 10


APPENDER = Path(__file__).with_name("appender.py")


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


async def test_what_cannot_be_opened_for_a_moment_is_tried_again(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the write-ahead log has the same number as the one before it."""
    await (await opened(path)).close()
    made, tried = LogFile._made, itertools.count()

    def failing(self: LogFile, option: str) -> sqlite3.Connection:
        if next(tried) < 12:
            sqlite3.connect(f"{path.parent.as_uri()}/absent?mode=ro", uri=True)
        return made(self, option)

    monkeypatch.setattr(LogFile, "_made", failing)
    with LogReader(path) as reader:
        assert reader.head == 1
    assert next(tried) > 12


async def test_a_copy_that_is_begun_again_is_whole(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file changed while it was copied: what was copied of it is no log yet."""
    await (await opened(path)).close()
    steady, asked = LogFile._steady, itertools.count()
    with LogReader(path) as reader:
        assert reader.head == 1
        monkeypatch.setattr(LogFile, "_steady", lambda self: next(asked) > 1 and steady(self))
        reader.copy_to(path.with_name("copy.db"))
    with LogReader(path.with_name("copy.db")) as reader:
        assert reader.head == 1
    assert next(asked) > 2


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
