"""Who opens a log, and which: the actor that events name, the place of the log, and the log itself.

In: a command or this process, and the place that the user names, or none. Out: `user@host: command`, which tells people and
their programs from `engine` by the `@`; the URL of the log; and the log, whose lease this process has.
"""

from __future__ import annotations

import getpass
import os
import socket
import sys
from pathlib import Path

from datatask.adapters.log.locate import MEMORY, default_path, locate
from datatask.engine.ports import EventLog
from datatask.schema.version import VERSION

Location = str | Path | EventLog | None


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


def url_of(location: Location, default: Path | None) -> str:
    """Return the URL of a log; without a location it is `default`, or a file beside the running program."""
    if location is None:
        return locate(default or default_path(_program())).url
    return locate(location).url if isinstance(location, str | Path) else location.url


async def open_log(url: str, *, pipeline: str, durable: bool, now: int, brief: bool, waits: bool) -> EventLog:
    """Open the log with this URL, or make it, and take its lease."""
    if url == MEMORY:
        from datatask.adapters.log.memory import MemoryLog

        return MemoryLog(pipeline=pipeline, clock_now=now)
    from datatask.adapters.log.sqlite import SqliteLog

    return await SqliteLog.open(
        url,
        pipeline=pipeline,
        durability="full" if durable else "process",
        clock_now=now,
        version=VERSION,
        host=socket.gethostname(),
        pid=os.getpid(),
        brief=brief,
        waits=waits,
    )


def _program() -> Path:
    """Return the file of the running program, or the working directory in an interactive session."""
    file = getattr(sys.modules.get("__main__"), "__file__", None)
    return Path(file) if file is not None else Path.cwd()
