"""Where runs of this machine are by default, and what is left of them: seen and removed by `doctor`.

In: XDG_STATE_HOME, HOME and the user database; an application's folder. Out: the user's own state folder, and that of earlier
versions (why it is no runtime or temporary folder: docs/decisions/0015); the runs that have a folder there, and those without
one that have a process, known by `DATATASK_RUN` in its environment, or control groups. Blocking.
"""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import tempfile
import time
from pathlib import Path

from datatask.adapters.execute.base import proctable
from datatask.adapters.execute.base.targets import Leftover
from datatask.adapters.execute.local import cgroups
from datatask.adapters.execute.local.owners import Owners
from datatask.adapters.execute.local.process_tree import MARK, ROUNDS_MAX, family, kill_all
from datatask.schema.errors import InvalidValueError

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
        raise InvalidValueError(
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


def list_runs(basedir: Path, where: str) -> list[Leftover]:
    """Return what is left of runs of every log that this application has run here."""
    alive = {
        os.path.basename(folder): pids
        for folder, pids in proctable.marked(MARK).items()
        if os.path.dirname(os.path.dirname(folder)) == str(basedir)
    }
    logs = [path for path in _folders(basedir) if not path.is_symlink()]
    names = {path.name for log in logs for path in _folders(log) if path.name.startswith(f"{log.name}.")}
    names |= alive.keys()
    ours = {log.name for log in logs}
    names |= {name for name in cgroups.left() if name.partition(".")[0] in ours}
    homes = {log: Owners(str(basedir)).home(log) for log in {name.partition(".")[0] for name in names}}
    return [
        Leftover(where, name, _state(alive.get(name, [])), homes[name.partition(".")[0]])
        for name in sorted(names, key=_order)
    ]


def remove_runs(basedir: Path, identities: list[str]) -> list[str]:
    """Kill what runs of these and remove their folders; return those that are gone now."""
    return [identity for identity in identities if _removed(basedir, identity)]


def _removed(basedir: Path, identity: str) -> bool:
    folder = basedir / identity.partition(".")[0] / identity
    for _ in range(ROUNDS_MAX):
        alive = family(-1, str(folder))
        kill_all(alive)
        if not alive:
            break
    shutil.rmtree(folder, ignore_errors=True)
    groups = cgroups.left().get(identity, [])
    for _ in range(ROUNDS_MAX):
        if cgroups.remove(groups):
            break
        time.sleep(0.05)
    return not folder.exists() and not family(-1, str(folder))


def _folders(path: Path) -> list[Path]:
    try:
        return [entry for entry in path.iterdir() if entry.is_dir()]
    except OSError:
        return []


def _state(pids: list[int]) -> str:
    return f"it runs (pid {', '.join(map(str, pids))})" if pids else "it is over"


def _order(identity: str) -> tuple[str, list[int]]:
    log, *numbers = identity.split(".")
    return log, [int(number) if number.isdigit() else 0 for number in numbers]
