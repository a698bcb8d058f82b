"""What runs printed, in a file beside the log: private, of one log, and worth no run when it cannot be written."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from datatask.adapters.log import kept
from datatask.adapters.log.kept import KeptWriter, copy_kept, forget_kept, kept_path, read_kept
from datatask.schema.messages import Printed

ONE = Printed("stdout", 3, b"one")
BIG = Printed("stderr", 10_000, b"begin", b"end")


def written(log: Path, uuid: str, *runs: int) -> None:
    """Keep the same of these runs."""
    writer = KeptWriter(log, uuid)
    for run in runs:
        writer.put(run, (ONE, BIG))
    writer.close()


def test_what_was_kept_is_read_by_run(tmp_path: Path) -> None:
    log = tmp_path / "log.db"
    assert read_kept(log, "u", [1]) == {}
    written(log, "u", 1, 2)
    assert read_kept(log, "u", [2, 3]) == {2: [ONE, BIG]}
    assert kept_path(log).stat().st_mode & 0o777 == 0o600


def test_another_log_s_is_not_taken_for_its_own(tmp_path: Path) -> None:
    log = tmp_path / "log.db"
    written(log, "u", 1)
    assert read_kept(log, "v", [1]) == {}
    written(log, "v", 2)
    assert read_kept(log, "v", [1, 2]) == {2: [ONE, BIG]}


def test_old_runs_are_forgotten_but_for_those_to_keep(tmp_path: Path) -> None:
    log = tmp_path / "log.db"
    written(log, "u", 1, 2, 3)
    assert forget_kept(log, below=3, keep=(2,)) == 1
    assert sorted(read_kept(log, "u", [1, 2, 3])) == [2, 3]
    copy_kept(log, tmp_path / "copy.db")
    assert sorted(read_kept(tmp_path / "copy.db", "u", [1, 2, 3])) == [2, 3]


def test_what_cannot_be_written_is_told_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = tmp_path / "log.db"
    kept_path(log).mkdir()
    with caplog.at_level(logging.WARNING, "datatask.engine"):
        writer = KeptWriter(log, "u")
        writer.put(1, (ONE,))
        writer.flush()
        writer.put(2, (ONE,))
        writer.close()
    assert [record.getMessage().startswith("what runs print is not kept") for record in caplog.records] == [
        True
    ]


def test_no_more_waits_than_memory_is_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept, "WAITING_BYTES_MAX", 5)
    monkeypatch.setattr(KeptWriter, "_work", lambda self: None)
    writer = KeptWriter(tmp_path / "log.db", "u")
    for run in range(3):
        writer.put(run, (ONE,))
    writer.flush()
    assert sorted(read_kept(tmp_path / "log.db", "u", range(3))) == [0]
