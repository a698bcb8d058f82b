"""Servers that several tests use: none of the tests ends one, whether it fails or ends its own process group.

In: a command. Out: the server's process, in a session of its own; whoever starts it also ends it.
"""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from typing import Any


class SharedServer(subprocess.Popen[Any]):
    """A server that outlives the test that starts it: `tests/conftest.py` ends what else a failed test has left."""

    def __init__(self, command: Sequence[str], **options: Any) -> None:
        super().__init__(command, start_new_session=True, **options)
