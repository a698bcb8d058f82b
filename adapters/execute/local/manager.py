"""Processes on this machine: the manager that users name, its verbs, and what `doctor` finds and removes of past runs.

In: an application's name and a folder, by default in the user's state folder (docs/decisions/0015). Out: a runner for each
process task; files and processes; runs that are left over: those with a folder, and those without one that have a process,
known by `DATATASK_RUN` in its environment, or a control group. Listing and removing block.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import pwd
import shutil
import signal
import socket
import tempfile
import time
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any, Literal

from datatask.adapters.execute.base import proctable
from datatask.adapters.execute.base.machines import STDOUT, Recipe, _StderrIsStdout
from datatask.adapters.execute.base.targets import AbstractProcessManager, Leftover, RunPlace
from datatask.adapters.execute.local import cgroups, folders
from datatask.adapters.execute.local.client import LauncherClient
from datatask.adapters.execute.local.folders import LocalPlace, Owners
from datatask.adapters.execute.local.process_tree import MARK, ROUNDS_MAX, family, kill_all
from datatask.adapters.execute.local.runner import WHERE, LocalRunner
from datatask.engine.ports import (
    Runner,
)
from datatask.schema.errors import PATH, TEXT, InvalidValueError, expect
from datatask.schema.values import check_name


class LocalLinuxManager(AbstractProcessManager):
    """Runs processes here. `app` tells applications apart that share `local_path`: one pipeline at a time each.

    `local_path` is by default below the user's state folder: $XDG_STATE_HOME, else ~/.local/state.
    """

    def __init__(self, app: str, local_path: str | os.PathLike[str] | None = None) -> None:
        expect(self, TEXT, app=app)
        expect(self, PATH, optional=True, local_path=local_path)
        self.app = check_name(app, "app")
        self.local_path = default_path() if local_path is None else Path(local_path).absolute()
        earlier = path_of_earlier_versions() / self.app if local_path is None else None
        self._client = LauncherClient(self.basedir, earlier)

    def __repr__(self) -> str:
        return f"LocalLinuxManager({self.app!r}, {str(self.local_path)!r})"

    @property
    def basedir(self) -> Path:
        """`{local_path}/{app}`."""
        return self.local_path / self.app

    def runner(self, recipe: Recipe) -> Runner:
        """Return a runner over this manager's launcher."""
        return LocalRunner(self._client, recipe)

    def place(self, identity: str, where: str) -> RunPlace:
        """Return the folder of a run."""
        return LocalPlace(self._client.directory.find(identity))

    async def list_runs(self) -> list[Leftover]:
        """Return what is left of runs of every log below `basedir`, and of copies beside it."""
        found = []
        for where, place in self._places().items():
            found += await asyncio.to_thread(list_runs, place, where)
        return found

    async def remove_runs(self, runs: list[Leftover]) -> list[Leftover]:
        """Kill and remove these; return those that are gone now."""
        removed = []
        for where, place in self._places().items():
            names = [run.identity for run in runs if run.where == where]
            gone = await asyncio.to_thread(remove_runs, place, names)
            removed += [run for run in runs if run.where == where and run.identity in gone]
        return removed

    def _places(self) -> dict[str, Path]:
        """Return the folders of the application, by what they are called in messages."""
        found = {WHERE: self.basedir}
        return found | {
            f"{WHERE} ({os.path.basename(place)})": Path(place)
            for place in folders.places(str(self.basedir))
            if place != str(self.basedir)
        }

    async def get_live_pids(self, hint: set[str]) -> set[str]:
        """Return the pids of `hint` that are alive."""
        return {pid for pid in hint if (fields := proctable.stat_fields(int(pid))) and fields[0] not in "ZX"}

    async def spawn(
        self,
        args: list[str],
        environ: dict[str, str] | None,
        cwd: str,
        return_code: str,
        stdin: str | None,
        stdout: str | None,
        stderr: str | _StderrIsStdout | None,
    ) -> str:
        """Start a process by hand, under a shell that writes its exit code to `return_code`; returns the pid."""
        given = (stdin, stdout, stderr if isinstance(stderr, str) else None)
        places = [os.path.abspath(place or os.devnull) for place in given]
        for place, mode in zip(places, ("rb", "wb", "wb"), strict=True):
            open(place, mode).close()
        # The shell that is waited for leaves at once; the one behind it belongs to nobody and is init's to reap. What a shell
        # starts with & reads from /dev/null unless it is told otherwise right there.
        errors = "2>&1" if stderr is STDOUT else '2>"$err"'
        script = (
            'code=$1 in=$2 out=$3 err=$4; shift 4; { "$@" <"$in" & wait $!; echo $? > "$code.new" && mv "$code.new" "$code"; }'
            f' </dev/null >"$out" {errors} & echo $!'
        )
        process = await asyncio.create_subprocess_exec(
            *("/bin/sh", "-c", script, "sh", return_code, *places, *args),
            stdout=asyncio.subprocess.PIPE,
            cwd=cwd,
            env=environ,
            start_new_session=True,
        )
        output, _ = await process.communicate()
        return output.decode().strip()

    async def kill(self, pid: str) -> None:
        """Kill the process with its session, or alone where that session is ours."""
        with contextlib.suppress(ProcessLookupError):
            session = os.getsid(int(pid))
            if session == os.getsid(0):
                os.kill(int(pid), signal.SIGKILL)
            else:
                proctable.kill_session(session)

    def open(self, path: Path, mode: Literal["r", "rb", "w", "wb"]) -> AbstractAsyncContextManager[Any]:
        """Open a local file."""
        return _File(path, mode)

    async def mkdir(self, path: Path) -> None:
        """Make a folder and those above it."""
        Path(path).mkdir(parents=True, exist_ok=True)

    async def rmtree(self, path: Path) -> None:
        """Remove a folder with all that is in it."""
        await asyncio.to_thread(shutil.rmtree, path, ignore_errors=True)


class _File:
    def __init__(self, path: Path, mode: str) -> None:
        self._file: Any = open(path, mode)  # noqa: SIM115 - closed by close()

    async def read(self, n: int | None = None) -> Any:
        return self._file.read(-1 if n is None else n)

    async def write(self, data: Any) -> int:
        return int(self._file.write(data))

    async def close(self) -> None:
        self._file.close()

    async def __aenter__(self) -> _File:
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.close()


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
