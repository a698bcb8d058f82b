"""The beginning of a log is moved away, and nothing that was known is lost."""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import json
import os
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from random import Random
from typing import Any

import pytest

from datatask import History, InProcessSyncTask, LogMetadataRepository, Pipeline, Session, replay, verify
from datatask.adapters.cli.recorded import changed
from datatask.adapters.history.states import fold, refold
from datatask.adapters.history.verify.verify import verify_log
from datatask.adapters.log.locate import checkpoints_path
from datatask.adapters.log.maintenance.archives import archives_of, as_row, check_archive
from datatask.adapters.log.maintenance.cut import Cut, Who, cut
from datatask.adapters.log.maintenance.restored import WholeReader, restore
from datatask.adapters.log.reader import LogReader
from datatask.engine.core.checkpoints import fingerprint
from datatask.schema.codec import chain, payload_digest
from datatask.schema.errors import (
    CallerError,
    DatataskError,
    LeaseHeldError,
    LogDamagedError,
    UnknownNameError,
)
from datatask.schema.events import ArchiveCut
from datatask.schema.units import iso
from tests.effort import share
from tests.integration.cli_kit import Project

WHO = Who("ada@lab: datatask log-archive", "the disk is small", time.time_ns(), "0.1.0")


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def pipeline(path: Path) -> Pipeline:
    """Two tasks that copy a number; odd ones fail in the second."""
    numbers, doubled = LogMetadataRepository("numbers"), LogMetadataRepository("doubled")
    double = InProcessSyncTask("double", LogMetadataRepository("double.done"))
    double.link("n", numbers, is_input=True)
    double.link("doubled", doubled, is_output=True)

    @double
    async def _double(job: str, n: Any, doubled: Any) -> None:
        await asyncio.sleep(0.001)  # it is seen running
        await doubled.dump(job, 2 * await n.info(job))

    check = InProcessSyncTask("check", LogMetadataRepository("check.done"))
    check.link("doubled", doubled, is_input=True)

    @check
    async def _check(job: str, doubled: Any) -> None:
        if await doubled.info(job) % 4:
            raise ValueError("odd")

    return Pipeline([double, check], Session(), log=path)


async def work(path: Path, first: int, last: int) -> None:
    """Put jobs and run them."""
    async with pipeline(path) as pipe:
        for number in range(first, last):
            await pipe.put("numbers", f"j{number}", number)
        await pipe.run(timeout=100)


def cut_at(path: Path, at: int, step: Callable[[str], None] = lambda name: None) -> Cut:
    """Cut the log at the batch boundary that holds a position."""
    with LogReader(path) as reader:
        state = fold(reader, reader.end_of_batch(at))
    return cut(path, state, WHO, step)


def _file(done: Cut) -> Path:
    """Return the archive of a cut that moved something."""
    assert done.archive is not None
    return done.archive


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """A log of twenty jobs, and a copy of it as it was."""
    path = tmp_path / "log.db"
    asyncio.run(work(path, 0, 20))
    shutil.copy(path, tmp_path / "before.db")
    return path


async def test_what_is_cut_lies_in_a_checked_archive_and_the_state_is_the_same(log: Path) -> None:
    with History(log) as history:
        before, head = fingerprint(history.state()), history.head
    done = cut_at(log, 100)
    head_of = check_archive(_file(done))
    assert (head_of.first, head_of.last) == (1, done.until)
    with History(log) as history:
        assert history.head == head + 1
        assert fingerprint(history.state(head)) == before
        (cut_event,) = history.events(kind="ArchiveCut")
        assert isinstance(cut_event.event, ArchiveCut)
        assert (cut_event.event.actor, cut_event.event.reason) == (WHO.actor, WHO.reason)
        assert history.status()["tasks"]["double"]["succeeded"] == 20


async def test_an_engine_goes_on_and_reads_values_that_were_archived(log: Path) -> None:
    done = cut_at(log, 150)
    async with pipeline(log) as pipe:
        assert await pipe.find("doubled").info("j3") == 6
        await pipe.put("numbers", "j20", 20)
        outcome = await pipe.run(timeout=100)
        assert not outcome.stuck
    told = verify(log)
    assert told.ok, told
    assert any(f"position {done.until}" in line for line in told.rests_on)
    assert replay(log, verify=True).ok


async def test_with_its_archives_a_log_answers_as_before(log: Path, tmp_path: Path) -> None:
    cut_at(log, 80)
    await work(log, 20, 25)
    cut_at(log, 200)
    with History(tmp_path / "before.db") as before, History(log, archives=True) as whole:
        assert whole.url.endswith("/log.db")
        for at in (1, 40, 80, 120, before.head):
            assert fingerprint(whole.state(at)) == fingerprint(before.state(at))
        until = before.head
        assert list(whole.events(until=until)) == list(before.events())
        sql = f"SELECT * FROM events WHERE position <= {until}"
        assert list(whole.query(sql)) == list(before.query(sql))
        assert list(whole.runs(until=until)) == list(before.runs())
        assert whole.reader.chain_at(until) == before.reader.chain_at(until)
        assert whole.status()["tasks"]["double"]["succeeded"] == 25
    assert verify(restore(log)).replayed.broken_at is None


async def test_archives_follow_on_each_other(log: Path) -> None:
    first, second = cut_at(log, 60), cut_at(log, 160)
    heads = [check_archive(path) for path in archives_of(log, check_archive(_file(first)).log)]
    assert [head.last for head in heads] == [first.until, second.until]
    assert heads[0].chain_after == heads[1].chain_before
    assert verify(log).ok


async def test_a_point_that_was_archived_is_named_with_the_remedy(log: Path) -> None:
    until = cut_at(log, 100).until
    with History(log) as history:
        with pytest.raises(UnknownNameError, match=r"archived.*with-archives"):
            history.state(50)
        with pytest.raises(UnknownNameError, match="with-archives"):
            history.reader.fetch([2, 3])
        again = cut(log, history.state(until), WHO)
        assert (again.until, again.events, again.archive) == (until, 0, None)


def test_the_command_moves_tells_and_is_read_with_its_archives(tmp_path: Path) -> None:
    project = Project(tmp_path)
    project.put(**{f"j{number}": number for number in range(10)})
    project.ok("run")
    before = project.ok("status", "--at", "20", "--json").json
    planned = project.ok("log-archive", "--before", "30", "--dry-run", "--json").json
    assert planned["dry_run"]
    assert not Path(planned["archive"]).exists()
    told = project.ok("log-archive", "--before", "30", "--reason", "the disk is small").out
    assert f"up to position {planned['until']}" in told
    refused = project.call("status", "--at", "20")
    assert refused.code == 2
    assert "--with-archives" in refused.err
    assert project.ok("--with-archives", "status", "--at", "20", "--json").json["tasks"] == before["tasks"]
    for before_then in (str(planned["until"]), "3", "2000-01-01", "-90d"):
        assert project.ok("log-archive", "--before", before_then, "--json").json["events"] == 0
    cut_event = json.loads(project.ok("log", "--kind", "ArchiveCut", "--json").out)
    assert cut_event["data"]["reason"] == "the disk is small"
    assert "log-archive" in cut_event["actor"]
    assert project.ok("verify").out.count("archive")
    project.ok("--with-archives", "replay", "--verify")
    with project.engine():
        assert project.call("log-archive", "--before", "40").code == 4


def test_what_does_not_read_archives_refuses_to(tmp_path: Path) -> None:
    project = Project(tmp_path)
    project.put(a=1)
    for command in (["run"], ["pause", "double"], ["log-archive", "--before", "3"], ["backup", "copy"]):
        refused = project.call(*command, "--with-archives")
        assert refused.code == 2
        assert "does not read archives" in refused.err
    for command in (["status"], ["log-anchor"], ["cat", "double.numbers", "a"], ["replay"]):
        project.ok("--with-archives", *command)


async def test_a_missing_archive_is_named(log: Path) -> None:
    first, second, third = (cut_at(log, at) for at in (60, 120, 180))
    _file(second).rename(log.with_name("elsewhere"))
    assert verify(log).ok, "the log does not need it"
    with pytest.raises(CallerError, match=f"from {first.until + 1} on is missing") as told:
        History(log, archives=True)
    assert told.value.where == str(second.archive)
    log.with_name("elsewhere").rename(_file(second))
    with History(log, archives=True) as whole:
        assert whole.position(third.until) == third.until


async def test_a_time_before_the_cut_is_refused_and_one_behind_it_answered(log: Path) -> None:
    with History(log) as history:
        times = {event.position: event.event.at for event in history.events()}
    until = cut_at(log, 100).until
    with History(log) as history:
        assert history.position(iso(times[until])) >= until
        with pytest.raises(
            UnknownNameError, match=rf"were archived, this part into log.db.archives/1-{until}"
        ):
            history.position(iso(times[until] - 2_000_000))
        with pytest.raises(UnknownNameError, match="archived"):
            history.state("2000-01-01")
        with pytest.raises(UnknownNameError, match="archived"):
            list(history.events(until=until - 1))
        assert history.state("-0s").position > until


def _while_running(log: Path) -> int:
    """Return a batch boundary at which runs are open that have started."""
    with History(log) as history:
        started = max(event.position for event in history.events(kind="RunStarted", task="double"))
        end = history.reader.end_of_batch(started)
        assert any(run.started_at for run in history.state(end).open_runs.values())
    return end


async def test_runs_that_are_open_at_the_cut_are_told_of_as_before(log: Path) -> None:
    end = _while_running(log)
    with History(log) as history:
        runs = {row[0]: row for row in history.reader.query("SELECT * FROM runs").rows}
        lineage = set(history.reader.query("SELECT * FROM lineage").rows)
        still = set(history.state(end).open_runs)
    cut_at(log, end)
    with History(log) as history:
        for row in history.reader.query("SELECT * FROM runs").rows:
            assert row == runs[row[0]]
            still.discard(row[0])
        assert not still
        assert set(history.reader.query("SELECT * FROM lineage WHERE link IS NOT NULL").rows) <= lineage
        assert history.trace("j3").job == "j3"
        assert history.explain("check", "j3").job == "j3"


async def test_a_cut_at_the_head_with_runs_that_are_open(log: Path) -> None:
    end = _while_running(log)
    with sqlite3.connect(log) as connection:  # as if the engine had died there
        connection.execute("DELETE FROM log WHERE position > ?", (end,))
        used = "SELECT max(max(kind), max(actor), max(coalesce(task, 0)), max(coalesce(repository, 0)), max(coalesce(job, 0))) FROM log"
        connection.execute(f"DELETE FROM names WHERE id > ({used})")
    connection.close()
    shutil.rmtree(checkpoints_path(log), ignore_errors=True)
    done = cut_at(log, end)
    assert done.until == end
    await work(log, 40, 42)
    told = verify(log)
    assert told.ok, told
    with History(log) as history, History(log, archives=True) as whole:
        assert history.status()["tasks"]["double"]["succeeded"] == 22
        assert fingerprint(history.state()) == fingerprint(whole.state())
    told = verify(restore(log))
    assert told.ok, told


async def test_a_base_that_another_fold_made_is_folded_anew_from_the_archive(
    log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with History(log) as history:
        before = {at: fingerprint(history.state(at)) for at in (history.position(160), history.head)}
    with monkeypatch.context() as older:
        older.setattr("datatask.adapters.log.maintenance.cut.FOLD_VERSION", 0)
        older.setattr("datatask.engine.core.checkpoints.FOLD_VERSION", 0)
        with LogReader(log) as reader:
            state = refold(reader, reader.end_of_batch(100))
        archive = _file(cut(log, state, WHO))
    shutil.rmtree(checkpoints_path(log), ignore_errors=True)
    with History(log) as history:
        assert {at: fingerprint(history.state(at)) for at in before} == before
    assert verify(log).ok
    await work(log, 50, 51)
    shutil.rmtree(checkpoints_path(log), ignore_errors=True)
    archive.rename(log.with_name("elsewhere"))
    with History(log) as history, pytest.raises(LogDamagedError, match=r"version 0 of the fold.*is missing"):
        history.state()


async def test_an_archive_of_another_log_is_not_overwritten(log: Path, tmp_path: Path) -> None:
    foreign = _file(cut_at(log, 100))
    body = foreign.read_bytes()
    for name in ("log.db", "log.db-wal", "log.db-shm"):
        log.with_name(name).unlink(missing_ok=True)
    shutil.rmtree(checkpoints_path(log), ignore_errors=True)
    await work(log, 0, 20)
    with LogReader(log) as reader:
        end = reader.end_of_batch(100)
    foreign.rename(foreign.with_name(f"1-{end}.jsonl.gz"))
    with pytest.raises(CallerError, match="of another log is in the way"):
        cut_at(log, 100)
    assert foreign.with_name(f"1-{end}.jsonl.gz").read_bytes() == body
    with History(log) as history:
        assert history.position(1) == 1


async def test_the_whole_copy_follows_the_log_and_is_made_anew_where_the_log_was_put_back(log: Path) -> None:
    cut_at(log, 100)
    backup = log.with_name("kept.db")
    shutil.copy(log, backup)
    await work(log, 20, 22)
    with History(log, archives=True) as whole:
        assert whole.status()["tasks"]["double"]["succeeded"] == 22
        first = whole.reader.path
        head = whole.head
        await work(log, 22, 23)
        assert isinstance(whole.reader, WholeReader)
        assert changed(whole.reader, head, 1.0), "as `log --follow` asks"
        assert whole.status()["tasks"]["double"]["succeeded"] == 23
    for name in ("log.db-wal", "log.db-shm"):
        log.with_name(name).unlink(missing_ok=True)
    shutil.copy(backup, log)
    shutil.rmtree(checkpoints_path(log), ignore_errors=True)
    await work(log, 30, 31)
    with History(log, archives=True) as whole, History(log) as part:
        assert whole.reader.path == first
        assert fingerprint(whole.state()) == fingerprint(part.state())
        assert whole.reader.chain_at(whole.head) == part.reader.chain_at(part.head)
    cut_at(log, 150)
    with History(log, archives=True) as whole:
        copies = list(whole.reader.path.parent.glob("whole-*.db"))
        assert copies == [whole.reader.path], "that of the cut before is gone"


def test_a_blob_of_a_value_that_was_carried_is_missed(tmp_path: Path) -> None:
    project = Project(tmp_path)
    project.put(a=1)
    project.ok("run")
    project.ok("log-archive", "--before", "-0s")
    (value,) = project.ok("query", "SELECT digest FROM values_now WHERE repository = 'blobs'", "--json").json[
        "rows"
    ]
    (blob,) = tmp_path.rglob(value[0])
    blob.unlink()
    told = project.call("verify")
    assert told.code == 3
    assert f"the blob {value[0]}" in told.out


@pytest.mark.parametrize("places", [(0,), (-1,), (10, 40), (20, 21, 70), (5, -1)])
async def test_wherever_it_is_cut_every_state_and_value_stays(log: Path, places: tuple[int, ...]) -> None:
    values = "SELECT * FROM values_now ORDER BY repository, job"
    with History(log) as history:
        ends = [
            end for (end,) in history.reader.query("SELECT position FROM log WHERE chain IS NOT NULL").rows
        ]
        states = {end: fingerprint(history.state(end)) for end in ends[::7]}
        present = history.reader.query(values).rows
    for place in places:
        last = cut_at(log, ends[place]).until
    with History(log) as part, History(log, archives=True) as whole:
        for end, expected in states.items():
            assert fingerprint(whole.state(end)) == expected
            assert end < last or fingerprint(part.state(end)) == expected
        assert part.reader.query(values).rows == whole.reader.query(values).rows == present
    assert verify(log).ok


async def test_a_cache_that_was_damaged_is_made_anew(log: Path) -> None:
    cut_at(log, 100)
    whole = restore(log)
    whole.write_bytes(b"no database at all" * 1000)
    assert restore(log) == whole
    with History(log, archives=True) as history:
        assert history.state(50).position >= 50


async def test_both_halves_of_a_whole_log_are_verified(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = _file(cut_at(log, 150))
    monkeypatch.setattr("datatask.adapters.history.verify.fold.TWO_FROM", 10)
    with History(log, archives=True) as whole:
        assert verify_log(whole.reader).ok
        path = whole.reader.path
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE log SET at = at + 1 WHERE position = 20")
    connection.close()
    with LogReader(path) as reader:
        told = verify_log(reader)
    assert not told.ok
    assert told.divergences[0].position <= 20
    assert archive.exists()


async def test_verify_tells_of_an_archive_that_was_damaged(log: Path) -> None:
    archive = _file(cut_at(log, 100))
    lines = gzip.decompress(archive.read_bytes()).replace(b'"origin":"injected"', b'"origin":"observed"')
    archive.write_bytes(gzip.compress(lines))
    told = verify(log)
    assert [archive.name in line.what for line in told.divergences] == [True]
    archive.write_bytes(b"nothing")
    assert not verify(log).ok


async def test_a_changed_archive_is_found(log: Path) -> None:
    archive = _file(cut_at(log, 60))
    body = bytearray(archive.read_bytes())
    body[len(body) // 2] ^= 1
    archive.write_bytes(body)
    with pytest.raises(LogDamagedError, match=archive.name):
        check_archive(archive)


@pytest.mark.parametrize(
    "tamper",
    [
        "UPDATE base SET state = zeroblob(10)",
        "UPDATE base SET carried = zeroblob(32)",
        "UPDATE base SET fold_version = fold_version + 1",
        "UPDATE meta SET value = '9' WHERE key = 'written_by'",
        "UPDATE names SET text = 'another' WHERE id = (SELECT n.id FROM names n WHERE n.text = 'LogCreated')",
        "INSERT INTO names SELECT max(id) + 1, 'one more' FROM names",
        "UPDATE log SET job = 9999 WHERE position = (SELECT min(position) FROM log WHERE job > 0)",
        "UPDATE log SET salt = NULL, digest = zeroblob(32) WHERE position = (SELECT min(position) FROM log WHERE position > 1 AND payload LIKE '%value%')",
        "UPDATE log SET chain = zeroblob(32) WHERE position = 1",
        "INSERT INTO base SELECT 1, fold_version, state, carried FROM base",
        "UPDATE log SET payload = replace(payload, '1', '2') WHERE position < 120 AND payload LIKE '%value%1%'",
        "UPDATE log SET at = at + 1 WHERE position = (SELECT min(position) FROM log WHERE position > 1)",
        "DELETE FROM log WHERE position = (SELECT min(position) FROM log WHERE position > 1)",
    ],
)
async def test_a_changed_base_is_found(log: Path, tamper: str) -> None:
    cut_at(log, 120)
    with sqlite3.connect(log) as connection:
        connection.execute(tamper)
    connection.close()
    try:
        told = verify(log)
    except DatataskError:
        return
    assert not told.ok


@pytest.mark.parametrize("seed", share(range(25), quick=5))
async def test_a_base_with_a_changed_byte_is_found_whatever_it_is(log: Path, seed: int) -> None:
    """Bytes that still make a state, that make one nothing leads to, and that make none."""
    cut_at(log, 120)
    with closing(sqlite3.connect(log)) as connection:
        ((body,),) = connection.execute("SELECT state FROM base").fetchall()
        changed = bytearray(body)
        changed[Random(seed).randrange(len(body))] ^= 1 << seed % 8
        connection.execute("UPDATE base SET state = ?", (bytes(changed),))
        connection.commit()
    assert _refused(log) or not verify(log).ok


def _refused(log: Path) -> bool:
    try:
        verify(log)
    except LogDamagedError as error:
        return "the state that the log stands on" in error.what
    return False


async def test_archives_that_are_not_in_their_place_are_told(log: Path) -> None:
    first, second = (_file(cut_at(log, at)) for at in (60, 120))
    assert f"{first.name}, {second.name}" in " ".join(verify(log).rests_on)
    shutil.copy(first, log.with_name("kept"))
    first.unlink()
    told = verify(log)
    assert told.ok
    assert f"the events 1 to {check_archive(second).first - 1} are in archives that are not here" in " ".join(
        told.rests_on
    )
    lines = gzip.decompress(log.with_name("kept").read_bytes()).splitlines(keepends=True)
    head = json.loads(lines[0])
    rows = [json.loads(line) for line in lines[1:-1]]
    rows[10][1] += 1  # and all hashes anew
    previous, batch = bytes(32), []
    for row in rows:
        batch.append(row)
        if row[14] is not None:
            digests = [one[13] or payload_digest(one[11] and one[11].encode(), one[12]) for one in batch]
            previous = chain(
                previous, head["log"], batch[0][0], [as_row(tuple(one)) for one in batch], digests
            )
            row[14] = previous.hex()
            batch = []
    head["chain_after"] = previous.hex()
    body = b"".join(json.dumps(one).encode() + b"\n" for one in (head, *rows))
    tail = {"rows": len(rows), "sha256": hashlib.sha256(body).hexdigest()}
    first.write_bytes(gzip.compress(body + json.dumps(tail).encode() + b"\n"))
    check_archive(first)
    told = verify(log)
    assert [one.what for one in told.divergences] == [f"the archive {first.name}"]


async def test_what_an_interrupted_cut_left_goes_with_the_next_one(log: Path) -> None:
    def stop(name: str) -> None:
        if name == "checked":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cut_at(log, 60, stop)
    (left,) = log.with_name("log.db.archives").iterdir()
    kept = left.read_bytes()
    done = cut_at(log, 120)
    assert [path.name for path in left.parent.iterdir()] == [_file(done).name]
    left.write_bytes(kept)  # or stays, where that was interrupted too
    told = verify(log)
    assert told.ok, told
    assert f"nothing in {left.name}" in " ".join(told.rests_on)
    with History(log, archives=True) as whole:
        assert whole.position(1) == 1


async def test_a_log_that_an_engine_has_is_left_alone(log: Path) -> None:
    async with pipeline(log):
        with pytest.raises(LeaseHeldError):
            cut_at(log, 60)
    assert not archives_of(log, "")


DIES = """
import os, sys
sys.path.insert(0, {root!r})
from pathlib import Path
from tests.integration.test_archives import cut_at
cut_at(Path({path!r}), 120, lambda name: os._exit(9) if name == {step!r} else None)
"""


@pytest.mark.parametrize(
    "step", ["archived", "checked", "in the transaction", "written", "committed", "tidied"]
)
async def test_killed_at_any_step_nothing_is_lost_and_again_completes_it(
    log: Path, step: str, tmp_path: Path
) -> None:
    program = DIES.format(root=str(Path(__file__).parents[2]), path=str(log), step=step)
    died = subprocess.run([sys.executable, "-c", program], timeout=60, check=False, env=dict(os.environ))  # noqa: ASYNC221
    assert died.returncode == 9
    assert verify(log).ok
    with History(log) as history:
        until, head = history.reader.header.base, history.head
    if not until:
        until = cut_at(log, 120).until
    with History(tmp_path / "before.db") as before, History(log, archives=True) as whole:
        assert fingerprint(whole.state(before.head)) == fingerprint(before.state())
    assert verify(log).ok
    assert head >= until
    await work(log, 30, 32)
