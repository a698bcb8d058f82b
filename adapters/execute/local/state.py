"""Where the runs of this user are by default: below the user's own state folder, and where earlier versions had them.

In: XDG_STATE_HOME, HOME and the user database. Out: paths; nothing is made here. It is not the runtime folder (XDG_RUNTIME_DIR):
that one is in memory, small, and goes when the user logs out, while runs go on and write what they have to say. It is not
the temporary one, which others may write, and cleaners empty. Why, at more length: docs/decisions/0015.
"""

from __future__ import annotations

import os
import pwd
import socket
import tempfile
from pathlib import Path

from datatask.schema.errors import CallerError

MACHINE_ID = Path("/etc/machine-id")


def default_path() -> Path:
    """Return the folder for this user's runs on this machine; `CallerError` for a user without a home."""
    return _state_folder() / "datatask" / "runs" / _machine()


def path_of_earlier_versions() -> Path:
    """Return where runs were up to version 1.0."""
    return Path(tempfile.gettempdir()) / f"datatask-{os.getuid()}"


def _state_folder() -> Path:
    given = os.environ.get("XDG_STATE_HOME", "")
    if given.startswith("/"):
        return Path(given)  # a relative one is to be ignored, says its specification
    home = os.environ.get("HOME", "") or _home_by_user()
    if not home.startswith("/"):
        raise CallerError(
            f"this user (uid {os.getuid()}) has no home folder, so there is no place for the runs of processes",
            where="LocalLinuxManager",
            remedy="pass local_path=, or set XDG_STATE_HOME to a folder of this user's own",
        )
    return Path(home) / ".local" / "state"


def _home_by_user() -> str:
    try:
        return pwd.getpwuid(os.getuid()).pw_dir
    except KeyError:
        return ""


def _machine() -> str:
    """Return a name for this machine: a home folder may be shared by several, and processes are one's own."""
    try:
        known = MACHINE_ID.read_text(encoding="ascii").strip()
    except (OSError, UnicodeError):
        known = ""
    return known[:12] if known.isalnum() else socket.gethostname()
