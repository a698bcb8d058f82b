"""The verification that goes on while an engine works, and states beside the log that somebody has changed."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from datatask.adapters.history.states import fold
from datatask.adapters.history.verify import background, progress
from datatask.adapters.log.checkpoints import (
    checkpoints_in,
    code,
    read_checkpoint,
    vouching,
    write_checkpoint,
)
from datatask.adapters.log.locate import checkpoints_path, verified_path
from datatask.adapters.log.reader import LogReader
from datatask.engine.core.checkpoints import dump
from datatask.schema.troubles import Divergence
from tests.integration.cli_kit import Project

JOBS = 2500


@pytest.fixture(scope="module")
def worked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project in which an engine has put 2,500 numbers and left a checkpoint."""
    project = Project(tmp_path_factory.mktemp("worked"))
    project.put(**{f"j{number}": number for number in range(JOBS)})
    return project.folder


@pytest.fixture
def project(worked: Path, tmp_path: Path) -> Project:
    shutil.copytree(worked, tmp_path / "project")
    return Project(tmp_path / "project")


def flip(project: Project) -> None:
    content = project.log.read_bytes()
    assert content.count(b'{"value":{"n":17}') == 1
    project.log.write_bytes(content.replace(b'{"value":{"n":17}', b'{"value":{"n":71}'))


def forge(path: Path, old: bytes, new: bytes) -> None:
    """Change a state in a file as somebody would who knows the format."""
    head, body = path.read_bytes().split(b"\n", 1)
    assert old in body
    body = body.replace(old, new)
    header = {**json.loads(head), "sha256": hashlib.sha256(body).hexdigest(), "size": len(body)}
    path.write_bytes(json.dumps(header).encode() + b"\n" + body)


def verify_in_background(
    project: Project, answer: bytes, over: Callable[[], bool] | None = None
) -> tuple[list[background.Told], bytes]:
    """Let the process that an engine starts do its work, with this answer; return what it told until it followed the log.

    Until `over` instead, where that is given, or until it ends by itself.
    """
    process = subprocess.Popen(
        [sys.executable, "-m", background.__name__, str(project.log)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    told: list[background.Told] = []

    def hear() -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        for line in process.stdout:
            told.append(msgspec.json.decode(line, type=background.Told))
            if told[-1].digest:
                process.stdin.write(answer)
                process.stdin.flush()

    hearing = threading.Thread(target=hear)
    hearing.start()
    try:
        deadline = time.monotonic() + 600
        while hearing.is_alive() and not (over() if over else any(one.digest for one in told)):
            assert time.monotonic() < deadline
            time.sleep(0.02)
    finally:
        process.kill()
        hearing.join()
        assert process.stderr is not None
        err = process.stderr.read()
        with process:
            pass
    return told, err


def test_it_tells_how_far_all_holds_and_asks_for_an_event_to_vouch_for_it(project: Project) -> None:
    told, err = verify_in_background(project, b"0\n")
    with LogReader(project.log) as reader:
        assert (told[-1].verified, err) == (reader.head, b"")
        state = fold(reader, reader.head)
    assert told[0].verified == 0
    assert told[-1].digest == hashlib.sha256(dump(state)).hexdigest()


def test_it_tells_the_first_divergence_and_ends(project: Project) -> None:
    flip(project)
    told, _ = verify_in_background(project, b"0\n")
    assert told[-1].divergence is not None
    assert "the hash of the batch" in told[-1].divergence.what
    assert told[-1].verified == 0


BLOB = b"0123456789abcdef" * 5000


def vouched(project: Project) -> None:
    """Let an engine run until its verification has kept a state; then the log is closed."""
    engine = project.spawn("run", "--forever")
    try:
        project.until(
            '"sha256"', "log", "--kind", "CheckpointWritten", "--grep", '"verified":true', seconds=600
        )
        project.until("-", "query", "SELECT '-'")
        engine.send_signal(signal.SIGTERM)
        engine.communicate(timeout=60)
    finally:
        engine.kill()


@pytest.mark.parametrize("damage", ["changed", "missing"])
def test_a_blob_that_is_damaged_is_a_divergence(project: Project, damage: str) -> None:
    """The process looks at blobs when it has come to the head, the one after another; it ends with the first that is wrong."""
    project.ok("inject", "shout.blobs", "first", stdin=BLOB)
    project.ok("inject", "shout.blobs", "big", stdin=BLOB + b"x")
    name = hashlib.sha256(BLOB + b"x").hexdigest()
    blob = project.log.with_name("log.db.blobs") / name[:2] / name
    if damage == "missing":
        blob.unlink()
    else:
        blob.write_bytes(b"x" + blob.read_bytes()[1:])
    told, err = verify_in_background(project, b"0\n", lambda: False)
    assert err == b""
    found = told[-1].divergence
    assert found is not None, told
    assert found.what == f"the blob {name} of blobs big"
    assert ("other bytes" if damage == "changed" else "missing") in str(found.recorded)


def test_all_blobs_are_hashed_once_and_that_is_told(project: Project) -> None:
    project.ok("inject", "shout.blobs", "big", stdin=BLOB)
    told, err = verify_in_background(project, b"0\n", lambda: progress.read_rounds(project.log).blobs_at > 0)
    assert (err, [one for one in told if one.divergence]) == (b"", [])
    known = project.ok("status", "--json").json["verified"]
    assert known["blobs_at"] > known["events_at"] > "2020"
    line = f"verified up to position 0 of {known['head']}; all events last at {known['events_at'][:19]}Z"
    assert line in project.ok("status").err
    assert f"; all blobs last at {known['blobs_at'][:19]}Z" in project.call("doctor").out


def test_a_round_of_blobs_goes_on_where_the_last_one_was_ended_and_goes_all_the_way_round(
    project: Project,
) -> None:
    """So the note beside the log keeps nothing from being looked at, whatever it says."""
    project.ok("inject", "shout.blobs", "big", stdin=BLOB)
    (blob,) = [path for path in project.log.with_name("log.db.blobs").rglob("*") if path.is_file()]
    blob.unlink()
    with LogReader(project.log) as reader:
        head = reader.head
    progress.write_rounds(project.log, progress.LastRounds(next_blob=head + 7))
    told, _ = verify_in_background(project, b"0\n", lambda: False)
    assert told[-1].divergence is not None
    assert told[-1].divergence.recorded == "missing"


def test_what_was_verified_is_verified_again_after_a_day(project: Project) -> None:
    """A bit that turned on the disk after it was verified, without anybody writing to the file."""
    vouched(project)
    flip(project)
    now = time.time_ns()
    day = int(background.AGAIN_SECONDS) * 10**9
    progress.write_rounds(project.log, progress.LastRounds(events_at=now, blobs_at=0))
    told, _ = verify_in_background(project, b"0\n", lambda: progress.read_rounds(project.log).blobs_at > 0)
    assert told[0].verified > JOBS
    assert [one.divergence for one in told if one.divergence] == []
    progress.write_rounds(project.log, progress.LastRounds(events_at=now - day, blobs_at=now))
    told, _ = verify_in_background(project, b"0\n", lambda: False)
    assert told[0].verified > JOBS
    assert told[-1].divergence is not None
    assert "the hash of the batch" in told[-1].divergence.what


@pytest.mark.parametrize(("at", "due"), [(-1, False), (-86_399, False), (-86_401, True), (3600, True)])
def test_a_round_is_due_after_a_day_and_where_a_clock_was_wrong(at: int, due: bool) -> None:
    assert background._is_due(background._now() + at * 10**9) is due


def test_an_engine_stops_launching_on_the_first_divergence(project: Project) -> None:
    """It says where, ends with exit code 5, and remembers nothing as verified behind that."""
    flip(project)
    (project.folder / "pipeline.py").write_text(
        (project.folder / "pipeline.py")
        .read_text()
        .replace(
            'double.link("numbers"',
            'double.link("go", datatask.LogMetadataRepository("go"), is_input=True)\ndouble.link("numbers"',
        )
    )  # so that no value is read before
    engine = project.spawn("run", "--forever")
    try:
        _, err = engine.communicate(timeout=120)
    finally:
        engine.kill()
    assert engine.returncode == 5, err
    assert b"log.db position " in err
    assert b"it is not what was written" in err
    assert b"restore the log from a backup" in err
    assert project.ok("status", "--json").json["verified"]["position"] == 0


def test_what_was_verified_is_remembered_only_where_the_log_vouches_for_it(project: Project) -> None:
    engine = project.spawn("run", "--forever")
    try:
        project.until(
            '"sha256"', "log", "--kind", "CheckpointWritten", "--grep", '"verified":true', seconds=600
        )
        project.until("-", "query", "SELECT '-'")
        engine.send_signal(signal.SIGTERM)
        engine.communicate(timeout=60)
    finally:
        engine.kill()
    known = project.ok("status", "--json").json["verified"]
    assert known["head"] >= known["position"] > JOBS
    assert f"verified up to position {known['position']} of" in project.call("doctor").out
    kept, *older = checkpoints_in(verified_path(project.log))
    for one in older:
        one.path.unlink()
    kept.path.rename(kept.path.with_name(f"{kept.position}-{kept.fold_version}-{kept.event - 1}"))
    assert project.ok("status", "--json").json["verified"]["position"] == 0
    kept.path.with_name(f"{kept.position}-{kept.fold_version}-{kept.event - 1}").rename(kept.path)
    os.utime(project.log)  # somebody has written to the file
    assert project.call("run", "--failures-ok").code == 0
    assert project.ok("status", "--json").json["verified"]["position"] == 0
    with LogReader(project.log) as reader:
        assert progress.verified(reader).position == 0


def test_a_changed_checkpoint_is_told_and_nobody_believes_it(
    project: Project, caplog: pytest.LogCaptureFixture
) -> None:
    """Its checksum is right, its hash is the log's, and its state is one that never was."""
    project.ok("run")
    (newest, *_) = checkpoints_in(checkpoints_path(project.log))
    forge(newest.path, b"j17", b"j7\xff"[:3])
    told = project.call("ls", "double.done")
    assert "j17" in told.out.split()
    assert f"{newest.path.name}: this is not the state that the log vouches for" in caplog.text
    found = project.call("verify")
    assert found.code == 3
    assert (
        f"the state in log.db.checkpoints/{newest.path.name}: expected the one that the log vouches for"
        in found.out
    )
    started = project.call("run")
    assert (started.code, "0 runs" in started.out) == (0, True), started
    assert project.ok("verify").code == 0


def test_a_changed_state_in_the_middle_is_told_and_nobody_believes_it(
    project: Project, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("datatask.adapters.history.states.FIRST_STEP", 500)
    monkeypatch.setattr("datatask.adapters.history.states.STEP_SECONDS", 0.0)
    monkeypatch.setattr("datatask.adapters.history.states.PACKED_MAX", 0)
    shutil.rmtree(checkpoints_path(project.log))
    project.ok("ls", "double.numbers", "--at", "2000")
    (rung, *_) = checkpoints_in(checkpoints_path(project.log) / "past")
    right = project.ok("ls", "double.numbers", "--at", str(rung.position)).out
    forge(rung.path, b"j17", b"zzz")
    assert f"past/{rung.path.name}" in project.call("verify").out
    again = project.call("ls", "double.numbers", "--at", str(rung.position))
    assert again.out == right
    assert f"{rung.path.name}: this is not the state that the log vouches for" in caplog.text


def test_a_changed_state_in_the_middle_with_a_right_code_is_told(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who can read the log can make the code that a reader's state bears; `verify` compares the state itself."""
    monkeypatch.setattr("datatask.adapters.history.states.FIRST_STEP", 500)
    monkeypatch.setattr("datatask.adapters.history.states.STEP_SECONDS", 0.0)
    shutil.rmtree(checkpoints_path(project.log))
    project.ok("ls", "double.numbers", "--at", "2000")
    folder = checkpoints_path(project.log) / "past"
    (rung, *_) = checkpoints_in(folder)
    with LogReader(project.log) as reader:
        kept = read_checkpoint(rung, reader.uuid, reader.chain_at, vouching(reader))
        assert kept is not None
        assert project.ok("verify").code == 0
        forged = kept._replace(body=kept.body.replace(b"j17", b"zzz"))
        assert forged != kept
        write_checkpoint(
            folder, reader.uuid, forged, mac=code(reader, forged.position, forged.fold_version, forged.body)
        )
    found = project.call("verify")
    assert found.code == 3
    assert f"the state in {rung.path.name}: expected as folded, recorded another one" in found.out


def test_a_long_divergence_fits_into_a_line() -> None:
    """The engine reads lines of bounded length."""
    found = background._short(Divergence(7, "what" * 50_000, "x" * 200_000, ["y"] * 50_000))
    assert len(msgspec.json.encode(background.Told(divergence=found))) < 4_000
    assert background._short(Divergence(7, "what", None, 3)) == Divergence(7, "what", None, "3")


def test_a_checkpoint_of_an_earlier_version_is_passed_over_in_silence(project: Project) -> None:
    """Nothing in such a log vouches for it."""
    (newest, *_) = checkpoints_in(checkpoints_path(project.log))
    newest.path.rename(newest.path.with_name(f"{newest.position}-{newest.fold_version}"))
    forge(newest.path.with_name(f"{newest.position}-{newest.fold_version}"), b"j17", b"zzz")
    told = project.ok("ls", "double.numbers")
    assert ("j17" in told.out.split(), told.err) == (True, "")


def test_a_changed_state_of_the_verification_is_told_and_it_begins_anew(project: Project) -> None:
    with LogReader(project.log) as reader:
        (newest, *_) = checkpoints_in(checkpoints_path(project.log))
        kept = verified_path(project.log) / newest.path.name
        kept.parent.mkdir()
        shutil.copy(newest.path, kept)
        assert (
            progress.verified(reader).position == 0
        )  # the event vouches for a state, and not for its being verified
    forge(kept, b"j17", b"zzz")
    found = project.call("verify")
    assert (found.code, f"verified/{kept.name}" in found.out) == (3, True)
