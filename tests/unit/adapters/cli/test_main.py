"""A Ctrl-C ends a command with 130, wherever the interpreter was when it came."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

IN_AN_EXEC = """
from datatask.adapters.cli import main
main.make_group = lambda *arguments: exec("raise KeyboardInterrupt")
main.main()
"""


def test_one_that_passed_through_an_exec_does_not_kill(tmp_path: Path) -> None:
    """CPython remembers it, and would end a program that was started by `-m` by the signal."""
    (tmp_path / "program.py").write_text(IN_AN_EXEC)
    command = [sys.executable, "-m", "program"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (130, "interrupted\n")
