"""A Ctrl-C that Python swallowed is found."""

from __future__ import annotations

import subprocess
import sys

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


def test_one_that_a_finalizer_swallowed_is_told() -> None:
    done = subprocess.run(
        [sys.executable, "-c", SWALLOWED], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stdout == "told\n"
    assert "Exception ignored" in done.stderr
