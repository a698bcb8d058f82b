"""Blobs that nothing names go, and nothing else: whatever is under way, and whenever it is interrupted."""

from __future__ import annotations

import gzip
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest

import datatask
from datatask.adapters.log.blobs import FileBlobs
from datatask.adapters.log.locate import archives_path, blobs_path, checkpoints_path, inbox_path
from datatask.adapters.log.sqlite import SqliteLog
from datatask.schema.events import StoreWriteIntended, ValuePut
from datatask.schema.messages import Item, PutValues
from tests.integration.cli_kit import Project

OLD, NEW = b"old" * 30_000, b"new" * 30_000
NOW = 1_700_000_000_000_000_000


@pytest.fixture
def project(tmp_path: Path) -> Project:
    """A log with a blob that is replaced, one that is present, and a deleted one; and beside it an orphan."""
    project = Project(tmp_path)
    project.ok("inject", "shout.blobs", "a", stdin=OLD)
    project.ok("inject", "shout.blobs", "a", stdin=NEW)
    project.ok("inject", "shout.blobs", "gone", stdin=b"gone" * 30_000)
    project.ok("rm", "shout.blobs", "gone")
    store = FileBlobs(blobs_path(project.log))
    store.put_bytes(b"orphan" * 20_000)
    store.new().write_bytes(b"half of a val")
    (checkpoints_path(project.log) / "past").mkdir(parents=True)
    (checkpoints_path(project.log) / "past" / "new-1-2-3").write_bytes(b"half of a state")
    return project


def compact(project: Project, *options: str) -> Any:
    return project.ok("log-compact", "--grace", "0s", "--json", *options).json


def sizes(project: Project) -> list[int]:
    return sorted(path.stat().st_size for path in blobs_path(project.log).glob("??/*"))


def test_what_nothing_names_goes_and_everything_else_stays(project: Project) -> None:
    done = compact(project, "--reason", "tidy")
    assert (len(done["blobs"]), done["blob_bytes"]) == (1, 120_000)
    assert (len(done["leftovers"]), done["leftover_bytes"]) == (2, 28)
    assert sizes(project) == sorted([len(OLD), len(NEW), 120_000])
    found = datatask.verify(project.log)
    assert found.ok, found
    (event,) = (
        event
        for event in map(msgspec.json.decode, project.ok("log", "--kind", "BlobsCollected", "--json").lines)
    )
    assert event["position"] == done["position"]
    assert event["actor"].endswith(": datatask log-compact")
    data = event["data"]
    assert (data["count"], data["size"], data["kept"], data["reason"]) == (1, 120_000, "all", "tidy")
    assert compact(project)["position"] is None, "nothing found, nothing recorded"


def test_keep_current_leaves_what_present_values_need_and_verify_says_so(project: Project) -> None:
    assert len(compact(project, "--keep", "current")["blobs"]) == 3
    assert sizes(project) == [len(NEW)]
    found = datatask.verify(project.log)
    assert found.ok, found
    assert any("2 values that are no more named blobs that were collected" in line for line in found.rests_on)
    assert project.ok("cat", "shout.blobs", "a").out == NEW.decode()
    (blob,) = blobs_path(project.log).glob("??/*")
    blob.unlink()
    assert not datatask.verify(project.log).ok, "a present value's blob is missed all the same"


def test_a_blob_that_is_missing_is_not_excused_by_compacting_that_keeps_all(project: Project) -> None:
    compact(project)
    next(path for path in blobs_path(project.log).glob("??/*") if path.read_bytes() == OLD).unlink()
    assert not datatask.verify(project.log).ok


def test_a_dry_run_tells_and_changes_nothing_not_even_beside_an_engine(project: Project) -> None:
    with project.engine():
        told = compact(project, "--dry-run", "--keep", "current")
        assert (len(told["blobs"]), told["position"]) == (3, None)
        assert project.call("log-compact", "--grace", "0s", "--dry-run", "--exit-code").code == 3
        refused = project.call("log-compact")
        assert (refused.code, "pid" in refused.err) == (4, True), refused
    assert len(sizes(project)) == 4


def test_what_is_new_stays_and_putting_a_blob_makes_it_new(project: Project) -> None:
    """Who puts a blob that is there already names it only a moment later."""
    assert project.ok("log-compact", "--json").json["blobs"] == []
    store = FileBlobs(blobs_path(project.log))
    past = time.time() - 7200
    for path in [*blobs_path(project.log).glob("??/*"), *(blobs_path(project.log) / "new").iterdir()]:
        os.utime(path, (past, past))
    store.put_bytes(b"orphan" * 20_000)
    assert project.ok("log-compact", "--json").json["blobs"] == []
    assert project.call("log-compact", "--grace", "soon").code == 2


async def test_what_is_under_way_keeps_its_blobs(tmp_path: Path) -> None:
    """Intents that are to be carried out, and requests that no engine has answered yet, and archives."""
    path = tmp_path / "log.db"
    log = await SqliteLog.open(path, pipeline="p", clock_now=NOW, version="0", host="h", pid=1)
    store = log.blobs
    digests = [store.put_bytes(b"%d" % number)[0] for number in range(4)]
    await log.append(
        [
            StoreWriteIntended(at=NOW, repository="r", job="a", op="put", digest=digests[0], size=1),
            ValuePut(at=NOW, repository="r", job="b", digest="ab" * 32, size=1),
        ]
    )
    await log.close()
    items = (Item(job="c", digest=digests[1], size=1),)
    request = PutValues(id="x", actor="ada@lab: datatask inject", repository="r", items=items)
    (inbox_path(path) / "x.json").write_bytes(msgspec.json.encode(request))
    archives_path(path).mkdir()
    line = msgspec.json.encode(["ValuePut", msgspec.json.encode({"digest": digests[2]}).decode()])
    (archives_path(path) / "1-9.jsonl.gz").write_bytes(gzip.compress(b" " * 1_048_540 + line))
    done = Project(tmp_path).ok("--log", path, "log-compact", "--grace", "0s", "--json").json
    assert done["blobs"] == [digests[3]]


@pytest.mark.parametrize("step", ["written", "committed", "first removed", "removed", "vacuumed"])
def test_killed_at_any_step_nothing_is_lost_and_the_next_one_finishes(project: Project, step: str) -> None:
    code = (
        "import os\nfrom datatask.adapters.history.maintenance import compact_log\n"
        f"compact_log({str(project.log)!r}, actor='a@b: c', keep='current', grace_seconds=0,"
        f" step=lambda s: s != {step!r} or os._exit(9))\n"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60)
    assert ended.returncode == 9, ended
    assert datatask.verify(project.log).ok, datatask.verify(project.log)
    compact(project, "--keep", "current")
    assert sizes(project) == [len(NEW)]
    assert datatask.verify(project.log).ok


def test_free_pages_of_the_file_are_given_back(project: Project) -> None:
    """Redacting large documents frees pages; the file says the same afterwards."""
    for number in range(20):
        project.put(**{f"j{number}": number})
    document = '{"word": "' + "x" * 60_000 + '"}'
    for number in range(5):
        project.ok("inject", "double.numbers", f"big{number}", stdin=document.encode())
    asked = "SELECT position FROM events WHERE job LIKE 'big%' AND kind = 'ValuePut'"
    positions = project.ok("query", asked).lines[1:]
    project.ok("redact", *positions)
    before = project.log.stat().st_size
    done = compact(project)
    assert done["freed"] > 200_000
    assert project.log.stat().st_size == before - done["freed"]
    assert datatask.verify(project.log).ok


SLOW = """
import asyncio
import datatask

blobs = datatask.LogBlobRepository("blobs")
read = datatask.InProcessSyncTask("read", datatask.LogMetadataRepository("done"))
read.link("blobs", blobs, is_input=True)


@read
async def run_read(job, blobs):
    await asyncio.sleep(60)


pipeline = datatask.Pipeline([read], datatask.Session(), [])
"""


def test_what_an_open_run_was_decided_on_stays_although_it_was_replaced(tmp_path: Path) -> None:
    """The engine died; the next one may let the run go on, or say what it was decided on."""
    project = Project(tmp_path, SLOW)
    project.ok("inject", "read.blobs", "a", stdin=OLD)
    with project.engine() as engine:
        project.until("RunStarted", "log", "--kind", "RunStarted")
        project.ok("inject", "read.blobs", "a", stdin=NEW)
        engine.kill()
        engine.wait()
    assert compact(project, "--keep", "current")["blobs"] == []
    project.ok("cancel", "read", "a")
    assert len(compact(project, "--keep", "current")["blobs"]) == 1
    assert sizes(project) == [len(NEW)]
    found = datatask.verify(project.log)
    assert found.ok, found
