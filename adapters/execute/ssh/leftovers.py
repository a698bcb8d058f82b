"""What is left of runs on a target: seen and removed by `doctor`, whoever died when.

In: a host, a log's uuid, later the names of runs that are nobody's. Out: what is there, and what of it was removed. The
agent looks and removes; nothing outside the application's own folder, and no run of another log, is ever touched.
"""

from __future__ import annotations

import shlex

import asyncssh

from datatask.adapters.execute.ssh.connecting import SSHHost, mapped
from datatask.adapters.execute.ssh.link import SHELL, Ground, check_sessions, home_still, let_go, prepare
from datatask.adapters.execute.targets import Leftover

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
        done = await connection.run(f"exec {SHELL} {words}", encoding="utf-8", errors="replace")
    except (OSError, asyncssh.Error) as error:
        raise mapped(error, host.label) from error
    finally:
        await let_go(connection, ours=host.is_ours)
    return ground, str(done.stdout)
