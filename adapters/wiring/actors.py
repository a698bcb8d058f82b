"""Who acts, as events name them: `user@host: command`.

In: a command, or this process. Out: the text that stands as `actor` in what a person or a program of theirs
caused. Who nobody asked is `engine`; the two are told apart by the `@`.
"""

from __future__ import annotations

import getpass
import socket
import sys
from pathlib import Path


def actor(command: str) -> str:
    """Return who asks by this command: `user@host: command`."""
    try:
        user = getpass.getuser()
    except (OSError, KeyError):
        user = "unknown"
    return f"{user}@{socket.gethostname()}: {command}"


def this_program() -> str:
    """Return who asks by running this program: `user@host: main.py`."""
    name = Path(sys.argv[0]).name if sys.argv and sys.argv[0] not in ("", "-c", "-m") else ""
    return actor(name or "python")
