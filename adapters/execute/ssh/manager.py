"""Processes on other machines, over SSH: the manager that users name, and its verbs.

In: an application's name and one host or several. Out: a runner for each process task, and files and processes by
hand. A run is the program `exe` in its own folder `{remote_path}/{app}/{host}/{log}/{epoch}.{position}/` with `cwd/`, `stdin`,
`stdout`, `stderr`; it has a session of its own and outlives connections and engines. How it is made to be so is in
`agent.sh`, how facts come of it in `runner`, how contact is kept in `target`.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import weakref
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any, Literal

import asyncssh

from datatask.adapters.execute.base.machines import STDOUT, Recipe, _StderrIsStdout
from datatask.adapters.execute.base.targets import AbstractProcessManager, Leftover, RunPlace
from datatask.adapters.execute.ssh.connections import Connect, SSHHost, mapped
from datatask.adapters.execute.ssh.folders import SSHPlace, list_runs, remove_runs
from datatask.adapters.execute.ssh.placement import Hosts
from datatask.adapters.execute.ssh.runner import SSHRunner
from datatask.adapters.execute.ssh.sessions import command, let_go, open_sftp
from datatask.adapters.execute.ssh.target import Target
from datatask.engine.ports import Runner
from datatask.schema.errors import CallerError, InvalidValueError
from datatask.schema.resources import Resources
from datatask.schema.values import check_name

DEFAULT_PATH = ".datatask"
_hosts: weakref.WeakValueDictionary[tuple[object, ...], Hosts] = weakref.WeakValueDictionary()


class SSHLinuxManager(AbstractProcessManager):
    """Runs processes on one host (`ssh`), or spreads them over several (`hosts`) by what each has free.

    A host is `[user@]host[:port]` or a name of ~/.ssh/config, an `SSHHost` with its quota and options, or a function
    that returns an asyncssh connection (of which a new one is asked for when it is lost). `app` tells applications apart
    that share `remote_path`, which is relative to the home folder there: one pipeline at a time each.
    """

    def __init__(
        self,
        app: str,
        ssh: str | SSHHost | Connect | None = None,
        remote_path: str | os.PathLike[str] = DEFAULT_PATH,
        *,
        hosts: Sequence[str | SSHHost | Connect] | None = None,
    ) -> None:
        self.app = check_name(app, "app")
        given = list(hosts or ()) + ([] if ssh is None else [ssh])
        if (ssh is None) == (hosts is None) or not given:
            raise CallerError("a manager needs one host (ssh) or several (hosts=[…])", where=app)
        self.hosts = tuple(host if isinstance(host, SSHHost) else SSHHost(host) for host in given)
        labels = [host.label for host in self.hosts]
        if len(set(labels)) < len(labels):
            raise CallerError(
                f"two hosts have the same name: {', '.join(labels)}",
                where=app,
                remedy="pass SSHHost(…, name=…)",
            )
        self.remote_path = os.fspath(remote_path)
        if not self.remote_path or set(self.remote_path) & set("\n\r\0"):
            raise InvalidValueError(f"{self.remote_path!r} is no remote_path", where=app)
        key = (app, self.remote_path, *((host.address, host.label) for host in self.hosts))
        shared = _hosts.get(key)
        if shared is None or shared.hosts != self.hosts:
            shared = Hosts([Target(host, app, self.remote_path) for host in self.hosts])
        self._shared = _hosts[key] = shared  # two managers that say the same are one to their targets

    def __repr__(self) -> str:
        return f"SSHLinuxManager({self.app!r}, {', '.join(host.label for host in self.hosts)}, {self.remote_path!r})"

    @property
    def basedir(self) -> Path:
        """`{remote_path}/{app}`, the application's own folder on each host."""
        return Path(self.remote_path) / self.app

    @property
    def quota(self) -> Resources | None:
        """What all hosts allow together, for a `ResourceManager`; None where one has no limit."""
        total: Resources | None = None
        for host in self.hosts:
            if host.quota is None:
                return None
            total = host.quota if total is None else total + host.quota
        return total

    def runner(self, recipe: Recipe) -> Runner:
        """Return a runner over this manager's hosts."""
        return SSHRunner(self._shared, recipe)

    def place(self, identity: str, where: str) -> RunPlace:
        """Return the folder of a run on one of the hosts."""
        found = [host for host in self.hosts if host.label == where]
        if not found:
            raise CallerError(
                f"it is on {where}, which is none of the hosts" if where else "it has not been started yet",
                where=self.app,
                remedy="wait for its start" if not where else "see hosts=",
            )
        return SSHPlace(found[0], self.app, self.remote_path, identity)

    async def list_runs(self) -> list[Leftover]:
        """Return the runs of every log that have a folder on one of the hosts."""
        return [run for host in self.hosts for run in await list_runs(host, self.app, self.remote_path)]

    async def remove_runs(self, runs: list[Leftover]) -> list[Leftover]:
        """End and remove these; return those that are gone now."""
        gone: list[Leftover] = []
        for host in self.hosts:
            mine = {run.identity: run for run in runs if run.where == host.label}
            if mine:
                removed = await remove_runs(host, self.app, self.remote_path, list(mine))
                gone += [mine[identity] for identity in removed if identity in mine]
        return gone

    # --- by hand, on the first host ---------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def connected(self, label: str | None = None) -> AsyncIterator[asyncssh.SSHClientConnection]:
        """Lend a connection to a host, by its name; the first one by default."""
        found = [host for host in self.hosts if label in (None, host.label)]
        if not found:
            raise CallerError(f"{label} is none of the hosts", where=self.app, remedy="see hosts=")
        connection = await found[0].connect()
        try:
            yield connection
        except (OSError, asyncssh.Error) as error:
            if isinstance(error, FileNotFoundError):
                raise
            raise mapped(error, found[0].label) from error
        finally:
            await let_go(connection, ours=found[0].is_ours)

    async def _run(self, script: str, *arguments: str, environ: dict[str, str] | None = None) -> str:
        reading = " ".join(["exec /bin/sh -s -- sh", *map(shlex.quote, arguments)])
        setting = "" if environ is None else _exports(environ)
        async with self.connected() as connection:
            done = await connection.run(command(reading), input=f"shift\n{setting}{script}\n")
        return str(done.stdout)

    async def get_live_pids(self, hint: set[str]) -> set[str]:
        """Return the pids of `hint` that are alive."""
        listed = await self._run('for pid; do [ -d "/proc/$pid" ] && echo "$pid"; done', *hint)
        return set(listed.split()) & hint

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
        streams = [
            stdin or "/dev/null",
            stdout or "/dev/null",
            stderr if isinstance(stderr, str) else "/dev/null",
        ]
        script = _SPAWN.replace("ERRORS", "&1" if stderr is STDOUT else '"$err"')
        return (await self._run(script, cwd, return_code, *streams, *args, environ=environ)).strip()

    async def kill(self, pid: str) -> None:
        """Kill the process with its group, or alone where it leads none."""
        await self._run('kill -KILL "-$1" 2>/dev/null || kill -KILL "$1" 2>/dev/null', str(int(pid)))

    def open(self, path: Path, mode: Literal["r", "rb", "w", "wb"]) -> AbstractAsyncContextManager[Any]:
        """Open a file there."""
        return self._opened(path, mode)

    @contextlib.asynccontextmanager
    async def _opened(self, path: Path, mode: str) -> AsyncIterator[Any]:
        async with self.connected() as connection, await open_sftp(connection, self.hosts[0].label) as sftp:
            try:
                file = await sftp.open(os.fspath(path), mode)
            except asyncssh.SFTPNoSuchFile as error:
                raise FileNotFoundError(f"{self.hosts[0].label}:{path}") from error
            async with file:
                yield file

    async def mkdir(self, path: Path) -> None:
        """Make a folder there and those above it."""
        await self._run('mkdir -p "$1"', os.fspath(path))

    async def rmtree(self, path: Path) -> None:
        """Remove a folder there with all that is in it."""
        await self._run('rm -rf "$1"', os.fspath(path))


_SPAWN = """
cd "$1" || exit
code=$2 in=$3 out=$4 err=$5
shift 5
started=$( (
    setsid "$@" <"$in" >"$out" 2>ERRORS &
    echo $!
    exec >/dev/null
    wait $!
    echo $? >"$code.new" && mv "$code.new" "$code"
) </dev/null 2>/dev/null & )
echo "$started"
"""
"""The pid is printed before the shell ends: dropbear takes nothing more afterwards."""


def _exports(environ: dict[str, str]) -> str:
    names = "unset $(env | sed -n 's/^\\([A-Za-z_][A-Za-z0-9_]*\\)=.*/\\1/p'); PATH=/usr/bin:/bin; "
    return names + "".join(f"export {name}={shlex.quote(value)}; " for name, value in environ.items())
