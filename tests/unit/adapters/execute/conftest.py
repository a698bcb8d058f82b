"""A process that the tests of process tables and of launchers look at."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import pytest


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    """A process in a session of its own, with a telling argument."""
    process = subprocess.Popen(
        [sys.executable, "-c", "import time; time.sleep(60)", "/a/run"], start_new_session=True
    )
    yield process
    process.kill()
    process.wait()
