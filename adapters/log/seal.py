"""Whether anybody has written to a log since the last engine closed it.

In: a log's path, at the end and at the beginning of an engine. Out: a note of the file's inode, size and time of change, in
`<log>.checkpoints/verified/sealed`; and whether it still fits. Where it does not, what was verified before is verified anew.
The note goes when an engine opens the log: one that was killed leaves none, and is not taken for a stranger.
"""

from __future__ import annotations

import os
import shutil
from contextlib import suppress
from pathlib import Path

from datatask.adapters.log.locate import verified_path

_NAME = "sealed"


def seal(path: Path) -> None:
    """Note how the closed file is; only where something was verified."""
    folder = verified_path(path)
    with suppress(OSError):
        if folder.is_dir():
            (folder / _NAME).write_text(_stamp(path))


def unseal(path: Path) -> None:
    """Take the note away; where the file is not as noted, what was kept as verified goes too."""
    note = verified_path(path) / _NAME
    try:
        noted = note.read_text()
        note.unlink()
    except (OSError, ValueError):
        return
    if noted != _stamp(path):
        shutil.rmtree(note.parent, ignore_errors=True)


def _stamp(path: Path) -> str:
    status = os.stat(path)
    return f"{status.st_ino} {status.st_size} {status.st_mtime_ns}"
