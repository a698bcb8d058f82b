"""What ends a command from the outside ends it with its own exit code, wherever the interpreter was when it came."""

from __future__ import annotations

import errno
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import errno
from datatask.adapters.cli import main

def refused(number):
    raise OSError(number, "here")

main.make_group = lambda *arguments: {broken}
main.main()
"""


def ended(folder: Path, broken: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a command line whose commands are replaced by a statement that raises."""
    (folder / "program.py").write_text(PROGRAM.format(broken=broken))
    command = [sys.executable, "-m", "program", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60, check=False)


def test_a_ctrl_c_that_passed_through_an_exec_does_not_kill(tmp_path: Path) -> None:
    """CPython remembers it, and would end a program that was started by `-m` by the signal."""
    done = ended(tmp_path, 'exec("raise KeyboardInterrupt")')
    assert (done.returncode, done.stderr) == (130, "interrupted\n")


@pytest.mark.parametrize("number", [errno.EBADF, errno.EINVAL, errno.ENOTSOCK])
def test_an_event_loop_whose_files_were_closed_ends_run_with_70(tmp_path: Path, number: int) -> None:
    """The number of a closed file is given to the next one, which is no epoll and no socket."""
    done = ended(tmp_path, f"refused({number})", "run")
    assert done.returncode == 70
    assert done.stderr.startswith("datatask: a function closed files that are not its own")


def test_another_refusal_is_told_in_its_own_words(tmp_path: Path) -> None:
    done = ended(tmp_path, "refused(errno.EINVAL)", "status")
    assert (done.returncode, done.stderr.startswith("datatask: datatask status: ")) == (1, True)
