"""The process table: a process is known by pid and start."""

from __future__ import annotations

import os
import signal
import subprocess
import time

from datatask.adapters.execute.base import proctable


def test_a_process_is_known_by_pid_and_start(sleeper: subprocess.Popen[bytes]) -> None:
    """Another start time is another process, and a zombie is none."""
    pidfd, start = os.pidfd_open(sleeper.pid), proctable.start_time(sleeper.pid)
    assert start is not None
    assert proctable.is_alive(sleeper.pid, start)
    assert not proctable.is_alive(sleeper.pid, start + 1)
    assert proctable.pids_in_session(sleeper.pid) == [sleeper.pid]
    deadline = time.monotonic() + 100
    while proctable.find_by_argument("/a/run") != sleeper.pid and time.monotonic() < deadline:
        time.sleep(0.01)
    assert proctable.find_by_argument("/a/run") == sleeper.pid
    assert proctable.find_by_argument("/no/such/run") is None
    proctable.kill_session(sleeper.pid, signal.SIGTERM)
    os.waitid(os.P_PID, sleeper.pid, os.WEXITED | os.WNOWAIT)
    assert not proctable.is_alive(sleeper.pid, start)
    status = proctable.status_of_stranger(sleeper.pid, start, pidfd)
    assert status is not None
    assert os.WTERMSIG(status) == signal.SIGTERM
    sleeper.wait()
    assert proctable.start_time(sleeper.pid) is None
    assert proctable.status_of_stranger(sleeper.pid, start, pidfd) in (None, status)  # as the kernel can tell
    proctable.kill_session(sleeper.pid)
    os.close(pidfd)


def test_the_boot_has_an_id() -> None:
    """The same one each time."""
    assert proctable.boot_id() == proctable.boot_id() != ""
