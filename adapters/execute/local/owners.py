"""Who starts runs in a launcher's directory: one file a log, so that a copy of a log is told from the log itself.

In: an engine's log, epoch and the place of its file. Out: which other copy starts runs here, none being the usual.
Copies have the same uuid and count their epochs alike, so that runs of both would have the same identities. Imports the
standard library only.
"""

from __future__ import annotations

import json
import os
from typing import Any

from datatask.adapters.execute import proctable

Claim = dict[str, Any]


class Owners:
    """`{directory}/{log}.owner`: the engine that started runs last."""

    def __init__(self, directory: str) -> None:
        self._directory = directory
        self._sure: dict[str, Claim] = {}

    def path(self, log: str) -> str:
        """Return where it is written down; a person may remove the file."""
        return os.path.join(self._directory, f"{log}.owner")

    def other(self, log: str, claim: Claim) -> str:
        """Return which other copy of the log starts runs here, else remember this one; `OSError` from the disk.

        `claim` has `epoch`, `home` (path, device and inode of the log's file) and `engine`. A log whose file is gone
        from where it was has moved.
        """
        if self._sure.get(log) == claim:
            return ""
        known = self._known(log)
        if known is not None and known != claim:
            path, *file_of = known["home"]
            if path != claim["home"][0] and _is_file(path, file_of):
                return f"the log {path}, of which this is a copy,"
            if claim["epoch"] <= known["epoch"]:
                return "a later state of this log"
        with open(self.path(log) + ".new", "w") as file:
            json.dump(claim, file)
        os.rename(self.path(log) + ".new", self.path(log))
        self._sure[log] = claim
        return ""

    def home(self, log: str) -> str:
        """Return the file of a log, where it is still the one whose runs were started here."""
        known = self._known(log)
        if known is None or not _is_file(known["home"][0], known["home"][1:]):
            return ""
        return str(known["home"][0])

    def _known(self, log: str) -> Claim | None:
        try:
            with open(self.path(log), "rb") as file:
                known: Claim = json.load(file)
                return known
        except (OSError, ValueError):
            return None


def is_elsewhere(facts: dict[str, Any], place: list[int]) -> bool:
    """Whether a run goes on in another directory than ours, whose journal this is a copy of: `place`, device and inode.

    That of a copied project, however it is called by now, is told from one that was copied away and removed: of this
    what its processes have open is deleted.
    """
    began = str(facts.get("folder", ""))
    if _is_file(os.path.dirname(os.path.dirname(began)), place):
        return True
    pid = facts.get("pid")
    if pid is None or proctable.start_time(pid) != facts.get("start"):
        return False
    opened = [_target(f"/proc/{pid}/{name}") for name in ("cwd", "fd/1", "fd/2", "fd/0")]
    inside = [path for path in opened if f"/{facts['id']}/" in path]
    return not any(path.endswith(" (deleted)") for path in inside)


def _target(link: str) -> str:
    try:
        return os.readlink(link)
    except OSError:
        return ""


def _is_file(path: str, file: list[int]) -> bool:
    """Whether the file or folder with this device and inode is still at the path."""
    try:
        status = os.stat(path)
    except OSError:
        return False
    return [status.st_dev, status.st_ino] == file
