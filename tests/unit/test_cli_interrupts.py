"""A Ctrl-C ends a command with 130, wherever the interpreter was when it came."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

SWALLOWED = """
import os, signal
from datatask.adapters.cli.terminal import note_interrupts, raise_if_interrupted

class Finalized:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGINT)
        for _ in range(10): pass  # where Python looks for signals

note_interrupts()
Finalized()
try:
    raise_if_interrupted()
except KeyboardInterrupt:
    print("told")
"""

IN_AN_EXEC = """
from datatask.adapters.cli import main
main.make_group = lambda *arguments: exec("raise KeyboardInterrupt")
main.main()
"""


def test_one_that_a_finalizer_swallowed_is_told() -> None:
    done = subprocess.run(
        [sys.executable, "-c", SWALLOWED], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stdout == "told\n"
    assert "Exception ignored" in done.stderr


def test_one_that_passed_through_an_exec_does_not_kill(tmp_path: Path) -> None:
    """CPython remembers it, and would end a program that was started by `-m` by the signal."""
    (tmp_path / "program.py").write_text(IN_AN_EXEC)
    command = [sys.executable, "-m", "program"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (130, "interrupted\n")
