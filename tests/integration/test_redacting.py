"""What was redacted is in no file any more, and the log says, replays and verifies as before."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec
import pytest

import datatask
from datatask.adapters.history.maintenance import redact
from datatask.adapters.history.states import CheckpointCache, fold, refold
from datatask.adapters.log.blobs import FileBlobs
from datatask.adapters.log.checkpoints import FileCheckpoints, write_checkpoint
from datatask.adapters.log.locate import blobs_path, checkpoints_path, inbox_path
from datatask.adapters.log.memory import MemoryLog
from datatask.adapters.log.reader import LogReader
from datatask.engine.core.checkpoints import dump, fingerprint
from datatask.engine.core.redaction import left_of, removed
from datatask.engine.core.state import FOLD_VERSION, State
from datatask.engine.core.tasks import Intent
from datatask.engine.ports import Checkpoint
from datatask.schema.codec import decode, encode
from datatask.schema.errors import CallerError
from datatask.schema.events import StoreWriteIntended, UnknownEvent, ValuePut
from datatask.schema.messages import Who
from tests.golden.samples import SAMPLES
from tests.integration.cli_kit import Project
from tests.integration.redacting_kit import (
    BLOB,
    PIPELINE,
    SECRET,
    WHO,
    copied,
    events,
    found_in,
    inject,
    leaked,
)


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A log in which a secret stands in a value, its copy, a blob, an error, and a reason."""
    return leaked(tmp_path_factory.mktemp("original"))


@pytest.fixture
def project(original: Project, tmp_path: Path) -> Project:
    """A copy of it, to be changed."""
    return copied(original, tmp_path)


def guilty(project: Project) -> list[int]:
    """Return the positions of the events in which the secret, or the blob that holds it, is named."""
    return [
        event["position"]
        for event in events(project)
        if SECRET in json.dumps(event["data"]) or (event["kind"], event["job"]) == ("ValuePut", "big")
    ]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def state_at(project: Project, position: int) -> str:
    """Return the state's fingerprint, but for the reason of the last opening, which it keeps only to show it."""
    with LogReader(project.log) as reader:
        state = refold(reader, position)
    assert state.engine is not None
    state.engine = msgspec.structs.replace(state.engine, reason="")
    return fingerprint(state)


def members(project: Project) -> dict[str, list[str]]:
    with LogReader(project.log) as reader:
        state = refold(reader)
    return {leaf: state.members(leaf) for leaf in state.leaves}


def test_what_was_redacted_is_in_no_file_beside_the_log(project: Project) -> None:
    """Value, copy, blob, error and reason; and what is kept beside: checkpoints, rungs, answers, write-ahead log."""
    with LogReader(project.log) as reader:
        chain = reader.chain_at(reader.head)
        body = dump(fold(reader, reader.head)) + SECRET.encode()
        kept = Checkpoint(reader.head, chain, FOLD_VERSION, body)
        FileCheckpoints(checkpoints_path(project.log), reader.uuid).write(kept)
        write_checkpoint(checkpoints_path(project.log) / "past", reader.uuid, kept)
    (inbox_path(project.log) / "old.reply").write_text(SECRET)
    half = FileBlobs(blobs_path(project.log)).new()
    half.write_text(SECRET)
    os.utime(half, (0, 0))
    positions = guilty(project)
    assert len(positions) >= 5
    assert len(found_in(project.log.parent)) >= 5
    shape = project.ok("redact", *map(str, positions), "--reason", "a leak", "--json").json
    assert [change["about"].split()[0] for change in shape["changes"]] == [str(one) for one in positions]
    assert (shape["engine"], len(shape["blobs"]), shape["wal_emptied"]) == ("opened", 1, True)
    assert found_in(project.log.parent) == []
    assert datatask.verify(project.log).ok, datatask.verify(project.log)
    told = [event for event in events(project) if event["kind"] == "PayloadRedacted"]
    assert [event["data"]["position"] for event in told] == positions
    assert {event["data"]["reason"] for event in told} == {"a leak"}
    assert all(event["actor"].endswith(": datatask redact") for event in told)


def test_a_redacted_log_replays_to_the_same_states(project: Project) -> None:
    """Every state, the memberships, and the chain."""
    with LogReader(project.log) as reader:
        head = reader.head
        chain = reader.chain_at(head)
    before = members(project), state_at(project, head)
    project.ok("redact", *map(str, guilty(project)))
    assert (members(project), state_at(project, head)) == before
    with LogReader(project.log) as reader:
        assert reader.chain_at(head) == chain
    project.ok("resume", "copy")
    inject(project, later={"word": "fine"})
    project.call("run")
    assert "later" in project.ok("ls", "copy.copies").lines
    assert datatask.verify(project.log).ok


def test_whoever_asks_for_a_redacted_value_is_told(project: Project) -> None:
    """`cat`, a run that reads it, and `values_now`; and what is put anew is a value as any other."""
    project.ok("redact", *map(str, guilty(project)))
    for what in (("copy.words", "bad"), ("copy.blobs", "big")):
        result = project.call("cat", *what)
        assert (result.code, "was redacted" in result.err) == (2, True), result
    project.ok("resume", "copy")
    inject(project, reads={"word": "x", "read": "big"})
    project.call("run")
    error = [event for event in events(project) if event["kind"] == "RunEnded"][-1]["data"]["error"]
    assert "was redacted" in error["message"]
    asked = "SELECT value FROM values_now WHERE job = 'bad' AND repository = 'words'"
    assert "$redacted" in project.ok("query", asked).out
    assert project.call("lineage", "bad").code == 0
    project.ok("inject", "copy.blobs", "big", stdin=b"new")
    assert project.ok("cat", "copy.blobs", "big").out == "new"


def test_a_blob_stays_while_another_event_names_it(project: Project) -> None:
    project.ok("inject", "copy.blobs", "other", stdin=BLOB)
    first, second = (
        event["position"]
        for event in events(project)
        if event["job"] in ("big", "other") and event["kind"] == "ValuePut"
    )
    shape = project.ok("redact", str(first), "--json").json
    assert (len(shape["blobs"]), len(shape["blobs_kept"])) == (0, 1)
    assert datatask.verify(project.log).ok
    assert len(project.ok("redact", str(second), "--json").json["blobs"]) == 1
    assert not list(blobs_path(project.log).glob("??/*"))


def test_the_reason_of_a_definition_and_of_a_redaction_can_go(tmp_path: Path) -> None:
    """Also of a task that goes on under another name, and of what keeps a log in order."""
    project = Project(tmp_path, PIPELINE)
    inject(project, good={"word": "plain"})
    project.call("run")
    (tmp_path / "pipeline.py").write_text(
        PIPELINE.replace('("copy", done)', '("duplicate", done, was="copy")')
    )
    why = ("--reason", f"for {SECRET}")
    project.ok("run", *why)
    project.ok("redact", str(next(e["position"] for e in events(project) if e["kind"] == "ValuePut")), *why)
    positions = guilty(project)
    kinds = {event["kind"] for event in events(project) if event["position"] in positions}
    assert {"PipelineDefined", "Renamed", "PayloadRedacted"} <= kinds
    states = members(project)
    project.ok("redact", *map(str, positions))
    assert found_in(project.log.parent) == []
    assert members(project) == states
    assert datatask.verify(project.log).ok, datatask.verify(project.log)
    project.ok("run")


def test_what_may_not_go_is_refused_in_one_line_and_nothing_is_changed(project: Project) -> None:
    (good,) = (event["position"] for event in events(project) if event["kind"] == "TaskPaused")
    decided = next(event["position"] for event in events(project) if event["kind"] == "DecisionRound")
    before = contents(project.log.parent)
    for positions, expected in (
        (["1"], "LogCreated"),
        ([str(good), str(decided)], "DecisionRound"),
        ([str(good), "9999"], "9999"),
    ):
        result = project.call("redact", *positions)
        assert (result.code, expected in result.err, result.err.count("\n")) == (2, True, 1), result
    assert project.call("redact", str(good), "--dry-run", "--exit-code").code == 3
    assert {name: data for name, data in contents(project.log.parent).items() if name in before} == before
    assert project.call("--log", str(project.folder / "none.db"), "redact", "1").code == 2


def test_a_running_engine_redacts_when_it_is_asked(project: Project) -> None:
    """The engine goes on, keeps no state that may hold the payload, and answers as any log does."""
    positions = guilty(project)
    with project.engine():
        shape = project.ok("redact", *map(str, positions), "--reason", "a leak", "--json").json
        assert (shape["engine"], shape["wal_emptied"]) == ("running", True)
        assert found_in(project.log.parent) == []
        refused = project.call("redact", "1")
        assert (refused.code, "LogCreated" in refused.err) == (2, True)
        project.ok("resume", "copy")
        inject(project, later={"word": "fine"})
        project.until("later", "ls", "copy.copies")
        again = project.ok("redact", *map(str, positions), "--json").json
        assert (again["count"], again["before"]) == (0, positions)
        reader = project.call("cat", "copy.words", "bad")
        assert "was redacted" in reader.err
    assert found_in(project.log.parent) == []
    found = datatask.verify(project.log)
    assert found.ok, found
    assert any("payloads were removed" in line for line in found.rests_on)


@pytest.mark.parametrize("step", ["noted", "written", "committed", "settled", "scrubbed"])
def test_killed_at_any_step_the_log_is_sound_and_repeating_finishes(project: Project, step: str) -> None:
    positions = guilty(project)
    code = (
        "import os, sys\n"
        "from datatask.adapters.history.maintenance import redact\n"
        f"redact({str(project.log)!r}, {positions}, actor='a@b: c', step=lambda s: s != {step!r} or os._exit(9))\n"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60)
    assert ended.returncode == 9, ended
    assert datatask.verify(project.log).ok
    done = redact(project.log, positions, actor=WHO)
    assert {one.position for one in done.found} | set(done.before) == set(positions)
    assert found_in(project.log.parent) == []
    assert datatask.verify(project.log).ok
    assert not (blobs_path(project.log) / "redacting").exists()


def test_what_is_left_of_a_payload_is_in_the_chain_too(project: Project) -> None:
    """Whoever changes it, or takes a payload out without saying so, is found."""
    position = guilty(project)[0]
    project.ok("redact", str(position))
    for statement in (
        f"UPDATE log SET payload = replace(payload, '$redacted', '$forgotten') WHERE position = {position}",
        f"UPDATE log SET payload = NULL WHERE position = {position}",
        f"UPDATE log SET salt = 5 WHERE position = {position}",
        f"UPDATE log SET digest = randomblob(32) WHERE position = {position}",
    ):
        copy = (
            Path(shutil.copytree(project.log.parent, project.folder / f"copy-{time.monotonic_ns()}"))
            / "log.db"
        )
        with closing(sqlite3.connect(copy)) as connection:
            connection.execute(statement)
            connection.commit()
        found = datatask.verify(copy)
        assert not found.ok, statement
        assert any(abs(one.position - position) <= 5 for one in found.divergences), found


@pytest.mark.parametrize("event", SAMPLES, ids=lambda event: type(event).__name__)
def test_every_kind_is_refused_or_keeps_what_can_be_read_and_not_twice(event: Any) -> None:
    """What is left decodes to itself, is smaller, and leaves nothing more to remove."""
    try:
        left = left_of(event, 7, 9)
    except CallerError as error:
        refused = error.what
    else:
        refused = ""
    if refused:
        assert type(event).__name__ in refused
        return
    assert decode(encode(left)) == left
    assert not isinstance(left, UnknownEvent)
    assert encode(left)[:10] == encode(event)[:10], "the envelope stays"
    words = ("gone bad", "größer", "Traceback", "personal data")
    assert not any(word in str(encode(left).payload) for word in words), left
    if isinstance(event, ValuePut):
        assert isinstance(left, ValuePut)
        assert (left.version, left.size, left.origin) == (event.version, event.size, event.origin)
    with pytest.raises(CallerError, match="nothing that can be removed"):
        left_of(left, 7, 11)


def test_an_intent_that_is_still_to_be_carried_out_stays() -> None:
    """Recovery needs it; once it is carried out it may go."""
    event = StoreWriteIntended(at=1, repository="r", job="a", op="put", value=msgspec.Raw(b'"x"'))
    state = State()
    state.intents["r", 0] = Intent(5, event)
    with pytest.raises(CallerError, match="not been carried out"):
        removed(state, [(5, event)], Who(WHO), 2)
    state.intents.clear()
    (told,) = removed(state, [(5, event)], Who(WHO, "a leak", "id"), 2)
    assert (told.position, told.job, told.actor, told.reason, told.request) == (5, "a", WHO, "a leak", "id")


async def test_a_log_in_memory_redacts_as_one_on_the_disk_does() -> None:
    log = MemoryLog(seed=1)
    await log.append([ValuePut(at=1, repository="r", job="a", value=msgspec.Raw(b'"x"'))])
    chain = log.chain_at(2)
    found = await log.fetch([2])
    state = State()
    state.position = 2
    await log.append(removed(state, list(zip([2], found, strict=True)), Who(WHO), 2))
    (left,) = await log.fetch([2])
    assert isinstance(left, ValuePut)
    assert bytes(left.value) == b'{"$redacted":3}'
    written = [event for batch in [b async for b in log.batches(1, 2)] for event in batch.events]
    assert [bytes(event.value) for event in written if isinstance(event, ValuePut)] == [bytes(left.value)]
    assert len(written) == 1
    assert log.chain_at(2) == chain


def test_who_reads_while_a_payload_is_removed_leaves_no_state_behind(project: Project) -> None:
    """A state that was folded before may still hold it."""
    with LogReader(project.log) as reader:
        cache = CheckpointCache(reader, cache=project.folder / "cache")
        state = refold(reader)
        cache.keep(state)
        assert list(cache.beside.iterdir())
        project.ok("redact", str(guilty(project)[0]))
        cache.keep(state)
        assert not cache.beside.exists()
