"""The ground of a target: the application's folder there, prepared, and the log that works in it.

In: a connection, the application's name, whose runs these are. Out: the `Ground`: boot, folder, agent, owner; or one line that
says what keeps it from being used. `setup.sh` prepares it and brings the agent, `agent.sh`, along. A folder that is another log's is
left to it: the next one beside is taken.
"""

from __future__ import annotations

import asyncio
import functools
import hashlib
import os
import re
import secrets
import shlex
import socket
import time
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote

import asyncssh

from datatask.adapters.execute.base import proctable
from datatask.adapters.execute.ssh import sessions
from datatask.adapters.execute.ssh.connections import mapped
from datatask.schema.errors import CallerError, DatataskError, TemporaryError
from datatask.schema.units import SECOND

LIVE_SECONDS = 60
PLACES_MAX = 100

_FAILURES = {
    "folder": ("{} cannot be made", "pass another remote_path"),
    "foreign": ("{} does not belong to this user", "pass another remote_path"),
    "proc": ("there is no /proc as Linux has it", "use a Linux host"),
    "setsid": ("it has none of setsid, perl and python3", "install util-linux or busybox there"),
    "tools": ("it lacks these programs: {}", "install coreutils, sed and mkfifo, or all of busybox, there"),
    "full": ("nothing can be written to {}: the disk is full", "free some space"),
}


class Owner(NamedTuple):
    """Who works, or last worked, on a target."""

    log: str
    epoch: int
    token: str
    live: bool
    home: list[str]


class Ground(NamedTuple):
    """A target that has been prepared."""

    boot: str
    booted_at: int
    folder: str
    agent: str
    owner: Owner | None
    beside: bool = False
    has_runs: bool = False


class Identity(NamedTuple):
    """Whose runs these are: the log, its epoch and home, and which manager of the engine."""

    log: str
    epoch: int
    token: str
    home: list[str]


class OccupiedError(CallerError):
    """Another engine works on this target, or has runs there."""


class OthersFolderError(OccupiedError):
    """It is another log's folder: there is room beside it."""


class OriginalsFolderError(OthersFolderError):
    """It is the folder of the log of which ours is a copy."""


class LaterStateError(OccupiedError):
    """A later state of this log has runs there: ours was put back to an earlier one, and waits."""


def joined(script: Path) -> str:
    """Return a script with those in its folder that it names in the place of their names."""
    named = re.compile("^# joined here: (.+)$", re.MULTILINE)
    return named.sub(
        lambda line: (script.parent / line[1]).read_text(encoding="utf-8"), script.read_text(encoding="utf-8")
    )


@functools.cache
def _scripts() -> tuple[str, str]:
    folder = Path(__file__).parent
    agent = joined(folder / "agent.sh")
    digest = hashlib.sha256(agent.encode()).hexdigest()[:12]
    setup = (folder / "setup.sh").read_text(encoding="utf-8")
    return setup.replace("\nAGENT\n", f"\n{agent.rstrip()}\n"), digest


async def prepare(
    connection: asyncssh.SSHClientConnection, path: str, app: str, label: str, log: str = ""
) -> Ground:
    """Prepare the target and return what it is, and whether it has runs of a log."""
    setup, digest = _scripts()
    words = (path, app, label, digest, *([log] if log else []))
    reading = f"exec {sessions.SHELL} -s -- {' '.join(map(shlex.quote, words))}"
    asked_at = time.time_ns()  # noqa: TID251 - the runner's clock
    try:
        async with asyncio.timeout(sessions.SETUP_SECONDS):
            done = await _asked(connection, sessions.command(reading), setup)
    except (OSError, asyncssh.Error, TimeoutError) as error:
        raise mapped(error, label) from error
    if done.exit_status is None or done.exit_signal is not None:  # what it said may be half of it
        raise TemporaryError("the connection was lost, or the shell killed, that prepared it", where=label)
    _, found, text = str(done.stdout).partition("datatask\n")
    lines = [line.split(" ") for line in text.splitlines()]
    if not found or not lines or lines[0][0] not in ("ready", "failed"):
        told = " ".join((str(done.stderr) or str(done.stdout)).split())[-300:]
        raise CallerError(
            f"no POSIX shell answers there: {told or 'nothing'}",
            where=label,
            remedy=f"give the account a login shell that can run: {sessions.command('true')}",
        )
    if lines[0][0] == "failed":
        what, remedy = _FAILURES[lines[0][1]]
        error_type: type[DatataskError] = TemporaryError if lines[0][1] == "full" else CallerError
        raise error_type(what.format(" ".join(lines[0][2:])), where=label, remedy=remedy)
    _, boot, uptime, *paths = lines[0]
    folder = " ".join(paths)
    agent = f"{os.path.dirname(folder)}/agent-{digest}.sh"
    said = {line[0]: line for line in lines[1:]}
    owner = _owner([said["owner"]] if "owner" in said else [])
    return Ground(boot, _booted_at(asked_at, uptime), folder, agent, owner, "beside" in said, "runs" in said)


async def _asked(
    connection: asyncssh.SSHClientConnection, command: str, script: str
) -> asyncssh.SSHCompletedProcess:
    """Run a command that reads a script from its stdin."""
    run = functools.partial(connection.run, command, encoding="utf-8", errors="replace")
    try:
        return await run(input=script)
    except (
        BrokenPipeError
    ):  # raised by asyncssh where the login shell ends before all is written: it says why without input, too
        done = await run(stdin=asyncssh.DEVNULL)
        if done.exit_status == 0:
            raise
        return done


async def find_ground(
    connection: asyncssh.SSHClientConnection, path: str, app: str, label: str, mine: Identity
) -> Ground:
    """Prepare the target for the runs of a log: in the folder that has them already, else in the first that no other log has.

    Raises `OccupiedError` where another engine of this log, or a later state of it, has it.
    """
    free: Ground | None = None
    for number in range(1, PLACES_MAX):
        name = app if number == 1 else f"{app}~{number}"
        ground = await prepare(connection, path, name, label, mine.log)
        if is_ours(ground.owner, mine):
            return ground
        try:
            check_owner(ground.owner, mine, label)
            free = free or ground
        except OriginalsFolderError:
            pass
        except OthersFolderError:
            if ground.has_runs:
                raise  # what is ours there is seen to when the other is gone
        if free is not None and (ground.owner is None or not ground.beside):
            break
    if free is None:
        raise OccupiedError("too many logs have folders there", where=label, remedy="use another app name")
    return free


def _booted_at(asked_at: int, uptime: str) -> int:
    """Return when the target booted, by our clock: its own may be wrong."""
    answered_at = time.time_ns()  # noqa: TID251 - the runner's clock
    return (asked_at + answered_at) // 2 - int(float(uptime) * SECOND)


def _owner(lines: list[list[str]]) -> Owner | None:
    if not lines or lines[0][0] != "owner" or len(lines[0]) < 7:
        return None
    _, log, epoch, token, live, seconds, home = lines[0]
    recent = live == "yes" and int(seconds) < LIVE_SECONDS
    return Owner(log, int(epoch), token, recent, unquote(home).split("\0"))


def home_of(url: str) -> list[str]:
    """Return where a log is: host, path, and the device and inode of its file."""
    path = url.partition("://")[2].removeprefix("/")
    try:
        status = os.stat(path)
    except OSError:
        return [socket.gethostname(), path, "0", "0"]
    return [socket.gethostname(), path, str(status.st_dev), str(status.st_ino)]


def home_still(owner: Owner | None, log: str) -> str:
    """Return the file of a log that works, or last worked, on a target, where that is on this machine and still there."""
    if (
        owner is None
        or owner.log != log
        or owner.home[0] != socket.gethostname()
        or not _is_there(owner.home)
    ):
        return ""
    return owner.home[1]


def new_token() -> str:
    """Return what a manager is known by on its targets, and this process."""
    pid = os.getpid()
    return f"{pid}-{proctable.start_time(pid)}-{secrets.token_hex(6)}"


def _process(token: str) -> str:
    return token.rpartition("-")[0]


def is_ours(owner: Owner | None, mine: Identity) -> bool:
    """Whether a folder has been this log's, however the log is called by now: by its host and file."""
    if owner is None or owner.log != mine.log or owner.home[0] != mine.home[0]:
        return False
    same_file = owner.home[2:] == mine.home[2:] != ["0", "0"]
    return same_file or owner.home[1] == mine.home[1]


def check_owner(owner: Owner | None, mine: Identity, where: str) -> None:
    """Raise `OccupiedError` where runs of another log would get in the way."""
    if owner is None or owner.token.partition(".")[0] == mine.token:
        return
    whose = ""
    error: type[OccupiedError] = OccupiedError
    if owner.log != mine.log:
        whose, error = f"another pipeline's log ({owner.log})" if owner.live else "", OthersFolderError
    elif owner.epoch == mine.epoch and owner.live and _process(owner.token) == _process(mine.token):
        whose = "another manager of this pipeline"  # of an engine that is gone the agent may still be there
    elif not is_ours(owner, mine) and owner.home[0] == mine.home[0] and _is_there(owner.home):
        whose, error = f"the log {owner.home[1]}, of which this is a copy", OriginalsFolderError
    elif owner.epoch > mine.epoch:
        whose, error = "a later state of this log", LaterStateError
    if whose:
        raise error(f"it is in use by {whose}", where=where, remedy="give the manager another app name")


def _is_there(home: list[str]) -> bool:
    try:
        status = os.stat(home[1])
    except OSError:
        return False
    return [str(status.st_dev), str(status.st_ino)] == home[2:]
