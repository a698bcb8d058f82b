"""Archives that are damaged, away, or were being made when a process was killed."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from random import Random

import pytest

from datatask import History, verify
from datatask.adapters.history.verify.verify import verify_log
from datatask.adapters.log.maintenance.archives import archives_of, as_row, check_archive
from datatask.adapters.log.maintenance.restored import restore
from datatask.adapters.log.reader import LogReader
from datatask.engine.core.checkpoints import fingerprint
from datatask.schema.codec import chain, payload_digest
from datatask.schema.errors import (
    DatataskError,
    LeaseHeldError,
    LogDamagedError,
)
from tests.effort import share
from tests.integration.archive_kit import cut_at, file_of, pipeline, twenty_jobs, work


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """A log of twenty jobs, and a copy of it as it was."""
    return twenty_jobs(tmp_path)


async def test_a_cache_that_was_damaged_is_made_anew(log: Path) -> None:
    cut_at(log, 100)
    whole = restore(log)
    whole.write_bytes(b"no database at all" * 1000)
    assert restore(log) == whole
    with History(log, archives=True) as history:
        assert history.state(50).position >= 50


async def test_both_halves_of_a_whole_log_are_verified(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = file_of(cut_at(log, 150))
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
    archive = file_of(cut_at(log, 100))
    lines = gzip.decompress(archive.read_bytes()).replace(b'"origin":"injected"', b'"origin":"observed"')
    archive.write_bytes(gzip.compress(lines))
    told = verify(log)
    assert [archive.name in line.what for line in told.divergences] == [True]
    archive.write_bytes(b"nothing")
    assert not verify(log).ok


async def test_a_changed_archive_is_found(log: Path) -> None:
    archive = file_of(cut_at(log, 60))
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
    first, second = (file_of(cut_at(log, at)) for at in (60, 120))
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
    assert [path.name for path in left.parent.iterdir()] == [file_of(done).name]
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
from tests.integration.archive_kit import cut_at
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
