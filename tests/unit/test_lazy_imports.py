"""What only reads a log does not load what only writing needs."""

from __future__ import annotations

import subprocess
import sys

import pytest


@pytest.mark.parametrize("module", ["status", "main", "log", "runs"])
def test_a_command_that_reads_loads_no_sqlalchemy(module: str) -> None:
    """It takes longer to load than all the rest of `status`."""
    code = f"import datatask.adapters.cli.{module}, sys; sys.exit('sqlalchemy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_task_of_threads_loads_nothing_of_dasks() -> None:
    """It takes seconds; only a runner of Dask's opens it."""
    code = "import datatask, sys; datatask.ExecutorTask; sys.exit('distributed' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
