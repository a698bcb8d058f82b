"""What lies beside a log, and the log itself: nobody but its owner may have put it there.

In: a log's path, before whoever will write it reads anything back. Out: nothing, or `UnsafePlaceError` with the folder
or file and the remedy; the inbox looks after itself. Modes that older versions left wider than docs/log.md promises are narrowed, and that is told.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path

from datatask.adapters.log.locate import (
    DEFAULT,
    archives_path,
    blobs_path,
    checkpoints_path,
    lease_path,
)
from datatask.adapters.trust import check_above, check_found, check_own, make_private

logger = logging.getLogger("datatask.log")

_READABLE = 0o644
"""A log may be readable by others where its owner said so; written it is by one user only."""


def guard(path: Path) -> None:
    """Make the log's folder where it is missing; raise `UnsafePlaceError` where others can exchange what is in it."""
    folder = path.parent
    if not folder.exists():
        make_private(folder)
    # One that an earlier version made; another folder is not the log's alone.
    narrowed = _narrowed(folder, "folder", 0o755) if folder.name == DEFAULT.parent.name else []
    check_above(path, group=True)
    for file in (
        path,
        *(path.with_name(path.name + end) for end in ("-wal", "-shm", "-journal")),
        lease_path(path),
    ):
        narrowed += _narrowed(file, "file", _READABLE)
    for sidecar in (blobs_path(path), archives_path(path), checkpoints_path(path)):
        narrowed += _narrowed(sidecar, "folder", 0o700)
    if narrowed:
        names = ", ".join(one.name for one in narrowed)
        logger.warning("other users might open these, which is ended: %s in %s", names, folder)


def _narrowed(path: Path, kind: str, allowed: int) -> list[Path]:
    """Check one; return it where its mode was narrowed. A link is followed where it is ours, as to a larger disk."""
    try:
        if path.is_symlink():
            if os.lstat(path).st_uid not in (0, os.geteuid()):
                check_found(path, kind)  # another user's: told as a link
            check_above(path / "x", group=True)
            path = path.resolve()
        return [path] if check_own(path, kind, allowed=allowed) else []
    except FileNotFoundError:
        return []
