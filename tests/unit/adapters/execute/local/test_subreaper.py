"""The process above a launcher has the exit codes of what the launcher leaves."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

KEPT = """
import os, sys, time
from datatask.adapters.execute.base import proctable
from datatask.adapters.execute.local import subreaper as keeper
def work(above):
    if not os.path.exists("first"):
        open("first", "w").close()
        if os.fork() == 0:
            os.setsid()
            time.sleep(0.3)
            os._exit(7)
        os._exit(3) if {how!r} == "fails" else os.kill(os.getpid(), 9)
    while not (zombies := [pid for pid, child in proctable.children(os.getppid()).items() if child.is_zombie]):
        time.sleep(0.01)
    print(proctable.status_of_stranger(zombies[0], proctable.start_time(zombies[0]), -1) >> 8)
    return 0
sys.exit(keeper.keep(work))
"""


@pytest.mark.parametrize("how", ["fails", "is killed"])
def test_a_keeper_has_the_exit_codes_of_what_a_launcher_leaves(tmp_path: Path, how: str) -> None:
    """Whatever ended it; the next one reads them."""
    done = subprocess.run(
        [sys.executable, "-c", KEPT.format(how=how)], cwd=tmp_path, capture_output=True, text=True, timeout=30
    )
    assert (done.stdout, done.returncode) == ("7\n", 0)


def test_a_keeper_that_has_nothing_to_keep_ends_as_its_launcher(tmp_path: Path) -> None:
    program = "import sys; from datatask.adapters.execute.local import subreaper as keeper; sys.exit(keeper.keep(lambda above: 5))"
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, timeout=100, check=False)
    assert done.returncode == 5
