"""Processes on this machine: the manager that users name, and its verbs.

In: an application's name and a folder. Out: a runner for each process task, what is left of runs that are over, and
files and processes by hand. What becomes of runs is in `runner`, who starts them in `launcher`.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any, Literal

from datatask.adapters.execute.base import proctable
from datatask.adapters.execute.base.machines import STDOUT, Recipe, _StderrIsStdout
from datatask.adapters.execute.base.targets import AbstractProcessManager, Leftover, RunPlace
from datatask.adapters.execute.local import cleanup, owners
from datatask.adapters.execute.local.cleanup import default_path, path_of_earlier_versions
from datatask.adapters.execute.local.client import LauncherClient
from datatask.adapters.execute.local.folders import LocalPlace
from datatask.adapters.execute.local.runner import WHERE, LocalRunner
from datatask.engine.ports import (
    Runner,
)
from datatask.schema.errors import PATH, TEXT, expect
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
            found += await asyncio.to_thread(cleanup.list_runs, place, where)
        return found

    async def remove_runs(self, runs: list[Leftover]) -> list[Leftover]:
        """Kill and remove these; return those that are gone now."""
        removed = []
        for where, place in self._places().items():
            names = [run.identity for run in runs if run.where == where]
            gone = await asyncio.to_thread(cleanup.remove_runs, place, names)
            removed += [run for run in runs if run.where == where and run.identity in gone]
        return removed

    def _places(self) -> dict[str, Path]:
        """Return the folders of the application, by what they are called in messages."""
        found = {WHERE: self.basedir}
        return found | {
            f"{WHERE} ({os.path.basename(place)})": Path(place)
            for place in owners.places(str(self.basedir))
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
        told, _ = await process.communicate()
        return told.decode().strip()

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
