"""The launcher's journal of runs: what is in it, also when it was cut or refused."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from datatask.adapters.execute.local import journal as journals
from datatask.adapters.execute.local.journal import Journal, Syncs


def test_a_journal_gives_back_what_was_added(tmp_path: Path) -> None:
    """Facts of a run add up; forgotten runs and a torn last line are gone; the boot before is known."""
    first = Journal(str(tmp_path / "journal"), "boot-1")
    assert first.load() == {}
    first.add({"id": "a", "intended": True})
    first.add({"id": "a", "pid": 7})
    first.add({"id": "b", "intended": True})
    first.add({"id": "b", "forgotten": True})
    with open(tmp_path / "journal", "ab") as file:
        file.write(b'not json\n{"id":"c","torn')
    second = Journal(str(tmp_path / "journal"), "boot-2")
    assert second.load() == {"a": {"id": "a", "intended": True, "pid": 7}}
    assert second.boot_before == "boot-1"
    assert b"torn" not in (tmp_path / "journal").read_bytes()


def test_a_journal_keeps_what_the_disk_refuses(tmp_path: Path) -> None:
    """It waits in memory, and is written when the disk takes it again."""
    made = Journal(str(tmp_path / "journal"), "boot")
    made.load()
    kept, made._fd = made._fd, -1
    made.add({"id": "a", "intended": True})
    assert not made.write_out()
    made._fd = kept
    assert made.write_out()
    assert Journal(made.path, "boot").load() == {"a": {"id": "a", "intended": True}}


def test_a_large_journal_is_rewritten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As just the runs that are left."""
    monkeypatch.setattr(journals, "COMPACT_BYTES", 4096)
    made = Journal(str(tmp_path / "journal"), "boot")
    made.load()
    for number in range(200):
        made.add({"id": f"run{number}", "intended": True})
    made.compact({"run7": {"id": "run7", "pid": 1}})
    assert os.path.getsize(made.path) < 200
    made.add({"id": "run8", "pid": 2})
    assert set(Journal(made.path, "boot").load()) == {"run7", "run8"}


def test_syncs_cover_what_was_there_when_they_began(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One at a time; what comes meanwhile is for the next."""
    journal = Journal(str(tmp_path / "journal"), "boot")
    journal.load()
    free, woken = threading.Semaphore(0), threading.Semaphore(0)
    monkeypatch.setattr(os, "fdatasync", lambda file: free.acquire(timeout=100))
    syncs = Syncs(journal, woken.release)
    syncs.begin(["a", "b"])
    syncs.begin(["a", "b", "c"])
    assert syncs.done() == []
    free.release()
    assert woken.acquire(timeout=100)
    assert syncs.done() == ["a", "b"]
    syncs.begin(["c"])
    free.release()
    assert woken.acquire(timeout=100)
    assert syncs.done() == ["c"]


def test_a_sync_that_the_disk_refuses_is_over_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = Journal(str(tmp_path / "journal"), "boot")
    journal.load()
    woken = threading.Semaphore(0)

    def refused(file: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fdatasync", refused)
    syncs = Syncs(journal, woken.release)
    syncs.begin(["a"])
    assert woken.acquire(timeout=100)
    assert syncs.done() == ["a"]
