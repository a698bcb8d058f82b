"""Spools: there while their process lives, gone with it, and nobody else's."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from datatask.adapters import spools
from datatask.adapters.spools import Spool, sweep_spools
from datatask.adapters.trust import UnsafePlaceError

LIVES = """
import sys
from datatask.adapters.spools import Spool
spool = Spool(sys.argv[1])
spool.path("x").write_bytes(b"x")
print(spool.folder, flush=True)
sys.stdin.read()
"""


def test_a_spool_is_made_when_it_is_used_and_goes_when_it_is_closed(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    assert not spool.has("x")
    assert list(tmp_path.iterdir()) == []
    spool.path("x").write_bytes(b"x")
    assert spool.has("x")
    assert spool.folder.stat().st_mode & 0o777 == 0o700
    spool.close()
    assert list(tmp_path.iterdir()) == []
    assert not spool.has("x")
    spool.close()
    spool.path("y").write_bytes(b"y")
    spool.close()
    assert list(tmp_path.iterdir()) == []


def test_a_forgotten_spool_goes_too(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    spool.path("x").write_bytes(b"x")
    del spool
    gc.collect()
    assert list(tmp_path.iterdir()) == []


def test_spools_of_the_dead_are_removed_and_no_others(tmp_path: Path) -> None:
    """Killed or alive is told by the lock; what is no spool stays, and what a link leads to."""
    command = [sys.executable, "-c", LIVES, str(tmp_path)]
    alive, killed = (
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(2)
    )
    try:
        folders = [Path(process.stdout.readline().strip()) for process in (alive, killed)]  # type: ignore[union-attr]
        killed.send_signal(signal.SIGKILL)
        killed.wait(100)
        precious = tmp_path / "precious"
        precious.mkdir()
        link = tmp_path / f"{spools._PREFIX}link"
        link.symlink_to(precious)
        mine = Spool(tmp_path)
        mine.path("x").write_bytes(b"x")
        sweep_spools(tmp_path)
        assert [folder.exists() for folder in folders] == [True, False]
        assert precious.exists()
        assert mine.has("x")
        mine.close()
    finally:
        for process in (alive, killed):
            process.kill()
            process.communicate(timeout=100)


def test_a_forked_process_leaves_its_parents_spool_alone(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    spool.path("x").write_bytes(b"x")
    child = os.fork()
    if child == 0:
        spool.close()
        os._exit(0)
    os.waitpid(child, 0)
    assert spool.has("x")
    spool.close()


def test_a_temporary_folder_in_which_others_can_exchange_it_is_refused(tmp_path: Path) -> None:
    """A sticky one is used, as /tmp is."""
    tmp_path.chmod(0o777)
    with pytest.raises(UnsafePlaceError, match="chmod o-w"):
        _ = Spool(tmp_path).folder
    tmp_path.chmod(0o1777)
    spool = Spool(tmp_path)
    assert spool.folder.stat().st_mode & 0o777 == 0o700
    spool.close()
