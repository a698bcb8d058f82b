"""The beginning of a log is moved away, and nothing that was known is lost."""

from __future__ import annotations

import json
import shutil
import sqlite3
from pathlib import Path

import pytest

from datatask import History, replay, verify
from datatask.adapters.cli.recorded import changed
from datatask.adapters.history.states import refold
from datatask.adapters.log.locate import checkpoints_path
from datatask.adapters.log.maintenance.archives import archives_of, check_archive
from datatask.adapters.log.maintenance.cut import cut
from datatask.adapters.log.maintenance.restored import WholeReader, restore
from datatask.adapters.log.reader import LogReader
from datatask.engine.core.checkpoints import fingerprint
from datatask.schema.errors import (
    CallerError,
    LogDamagedError,
    UnknownNameError,
)
from datatask.schema.events import ArchiveCut
from datatask.schema.units import iso
from tests.integration.archive_kit import WHO, cut_at, file_of, pipeline, twenty_jobs, work
from tests.integration.cli_kit import Project


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """A log of twenty jobs, and a copy of it as it was."""
    return twenty_jobs(tmp_path)


async def test_what_is_cut_lies_in_a_checked_archive_and_the_state_is_the_same(log: Path) -> None:
    with History(log) as history:
        before, head = fingerprint(history.state()), history.head
    done = cut_at(log, 100)
    head_of = check_archive(file_of(done))
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
    heads = [check_archive(path) for path in archives_of(log, check_archive(file_of(first)).log)]
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
    file_of(second).rename(log.with_name("elsewhere"))
    assert verify(log).ok, "the log does not need it"
    with pytest.raises(CallerError, match=f"from {first.until + 1} on is missing") as told:
        History(log, archives=True)
    assert told.value.where == str(second.archive)
    log.with_name("elsewhere").rename(file_of(second))
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
        assert history.why("check", "j3").job == "j3"


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
        archive = file_of(cut(log, state, WHO))
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
    foreign = file_of(cut_at(log, 100))
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
