"""Processes of an earlier launcher are watched."""

from __future__ import annotations

import os
import selectors
import signal
import subprocess
import time

import pytest

from datatask.adapters.execute.base import proctable
from datatask.adapters.execute.local.process_tree import AdoptedProcesses


def test_a_run_of_an_earlier_launcher_is_watched_without_a_descriptor_too(
    sleeper: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is there: to take it for gone would start it once more."""

    def refused(pid: int) -> int:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(os, "pidfd_open", refused)
    strangers = AdoptedProcesses(selectors.DefaultSelector())
    start = proctable.start_time(sleeper.pid) or 0
    assert strangers.watch("a", sleeper.pid, start)
    assert not strangers.watch("b", sleeper.pid, start + 1)
    assert strangers.gone() == []
    sleeper.kill()
    deadline = time.monotonic() + 100
    while not (found := strangers.gone()) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert found == ["a"]
    assert strangers.gone() == []
    assert strangers.status("a") == (True, signal.SIGKILL)
    assert not strangers
