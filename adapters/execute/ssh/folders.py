"""Runs' folders on a target: those that are left, seen and removed by `doctor`, and one that a person looks into.

In: a host; a log's uuid, the names of runs that are over; a run. Out: what is there, and what of it was removed; a run's output
so far, a shell in its folder. The agent looks and removes, nothing outside the application's own folder. Connections are made
for the occasion: nothing here has to do with the engine that watches the runs.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shlex
import signal
import sys
from collections.abc import Iterator

import asyncssh

from datatask.adapters.execute.base.targets import Leftover
from datatask.adapters.execute.ssh import sessions
from datatask.adapters.execute.ssh.connections import SSHHost, mapped
from datatask.adapters.execute.ssh.ground import Ground, home_still, prepare
from datatask.adapters.execute.ssh.sessions import check_sessions, let_go, open_sftp

REMOVED_AT_ONCE = 100
_STATES = {
    "running": "it runs",
    "ended": "it has ended",
    "absent": "it was never started",
    "unclaimed": "it was never started",
    "vanished": "it is gone",
}


async def list_runs(host: SSHHost, app: str, path: str) -> list[Leftover]:
    """Return the runs of every log that have a folder on the host; an error where it does not let us do what runs need."""
    ground, text = await _agent(host, app, path, "list", ())
    found = []
    for line in text.splitlines():
        log, _, rest = line.partition(" ")
        words = rest.split(" ")
        if len(words) >= 2 and words[0] in _STATES:
            home = home_still(ground.owner, log)
            found.append(Leftover(host.label, f"{log}.{words[1]}", _STATES[words[0]], home))
    return found


async def remove_runs(host: SSHHost, app: str, path: str, identities: list[str]) -> list[str]:
    """End what runs of these and remove their folders; return those that are gone now."""
    removed = []
    for first in range(0, len(identities), REMOVED_AT_ONCE):
        names = [identity.replace(".", "/", 1) for identity in identities[first : first + REMOVED_AT_ONCE]]
        _, text = await _agent(host, app, path, "clean", names)
        removed += [
            line.split(" ")[1].replace("/", ".", 1)
            for line in text.splitlines()
            if line.startswith("removed ")
        ]
    return removed


async def _agent(
    host: SSHHost, app: str, path: str, mode: str, names: list[str] | tuple[()]
) -> tuple[Ground, str]:
    connection = await host.connect()
    try:
        ground = await prepare(connection, path, app, host.label)
        if mode == "list":
            await check_sessions(connection, host.label)
        words = " ".join(map(shlex.quote, [ground.agent, mode, ground.folder, *names]))
        done = await connection.run(
            sessions.command(f"exec {sessions.SHELL} {words}"), encoding="utf-8", errors="replace"
        )
    except (OSError, asyncssh.Error) as error:
        raise mapped(error, host.label) from error
    finally:
        await let_go(connection, ours=host.is_ours)
    return ground, str(done.stdout)


CHUNK_BYTES = 1 << 20


class SSHPlace:
    """One run's folder on a host."""

    def __init__(self, host: SSHHost, app: str, path: str, identity: str) -> None:
        self._host, self._app, self._path = host, app, path
        self._log, _, self._name = identity.partition(".")
        self._connection: asyncssh.SSHClientConnection | None = None
        self._folder = ""
        self._sftp: asyncssh.SFTPClient | None = None

    async def _connected(self) -> asyncssh.SSHClientConnection:
        if self._connection is None:
            self._connection = await self._host.connect()
            ground = await prepare(self._connection, self._path, self._app, self._host.label)
            self._folder = f"{ground.folder}/{self._log}/{self._name}"
        return self._connection

    async def read(self, name: str, offset: int) -> bytes:
        """Return what `stdout` or `stderr` has from an offset on, at most 1 MiB; nothing where it is not there (yet)."""
        connection = await self._connected()
        try:
            self._sftp = self._sftp or await open_sftp(connection, self._host.label)
            async with self._sftp.open(f"{self._folder}/{name}", "rb") as file:
                data = await file.read(CHUNK_BYTES, offset)
        except asyncssh.SFTPNoSuchFile:
            return b""
        except (OSError, asyncssh.Error) as error:
            raise mapped(error, self._host.label) from error
        assert isinstance(data, bytes)
        return data

    async def enter(self) -> int:
        """Open a shell in the folder, on the terminal if there is one; return its exit code."""
        connection = await self._connected()
        inside = f"cd {shlex.quote(f'{self._folder}/cwd')} || exit 1; exec ${{SHELL:-/bin/sh}}"
        terminal = sys.stdin.isatty() and sys.stdout.isatty()
        size = os.get_terminal_size() if terminal else None
        try:
            with _raw(terminal):
                process = await connection.create_process(
                    sessions.command(inside),
                    stdin=os.dup(0),  # asyncssh closes what it is given
                    stdout=os.dup(1),
                    stderr=os.dup(2),
                    term_type=os.environ.get("TERM", "xterm") if terminal else None,
                    term_size=(size.columns, size.lines) if size else (0, 0),
                    encoding=None,
                )
                if terminal:
                    loop = asyncio.get_running_loop()
                    loop.add_signal_handler(signal.SIGWINCH, _resize, process)
                done = await process.wait()
        except (OSError, asyncssh.Error) as error:
            raise mapped(error, self._host.label) from error
        finally:
            for stream in (0, 1, 2):
                os.set_blocking(stream, True)  # it is shared with whoever called us
        return done.returncode if done.returncode is not None else 1

    async def close(self) -> None:
        """Let go."""
        if self._sftp is not None:
            self._sftp.exit()
        if self._connection is not None:
            await let_go(self._connection, ours=self._host.is_ours)


def _resize(process: asyncssh.SSHClientProcess[bytes]) -> None:
    size = os.get_terminal_size()
    process.change_terminal_size(size.columns, size.lines)


@contextlib.contextmanager
def _raw(terminal: bool) -> Iterator[None]:
    """Hand every key on as it is."""
    if not terminal:
        yield
        return
    import termios
    import tty

    before = termios.tcgetattr(sys.stdin)
    try:
        tty.setraw(sys.stdin, termios.TCSADRAIN)  # what is typed already is for the shell
        yield
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)
