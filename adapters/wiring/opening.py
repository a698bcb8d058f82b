"""Opening a log: the actor in its events, its place, its lease, and whether this pipeline may go on with it.

In: a command or program; the place that the user names, or none; the new declaration and the losses that a person accepts. Out:
`user@host: command` (the `@` tells people from `engine`); the URL; the open log; the renames, or a `CallerError` where members
or open runs would be left behind and no option accepts it.
"""

from __future__ import annotations

import getpass
import os
import socket
import sys
from collections.abc import Iterable
from pathlib import Path

from datatask.adapters.log.locate import MEMORY, default_path, locate
from datatask.engine.api.declare import Declared
from datatask.engine.core.state import State
from datatask.engine.ports import EventLog
from datatask.schema import events as e
from datatask.schema.errors import NotPossibleError, OtherPipelineError, UnknownNameError
from datatask.schema.version import VERSION

Location = str | Path | EventLog | None


def actor(command: str) -> str:
    """Return who asks by this command: `user@host: command`."""
    try:
        user = getpass.getuser()
    except (OSError, KeyError):
        user = "unknown"
    return f"{user}@{socket.gethostname()}: {command}"


def this_program() -> str:
    """Return who asks by running this program: `user@host: main.py`."""
    name = Path(sys.argv[0]).name if sys.argv and sys.argv[0] not in ("", "-c", "-m") else ""
    return actor(name or "python")


def url_of(location: Location, default: Path | None) -> str:
    """Return the URL of a log; without a location it is `default`, or a file beside the running program."""
    if location is None:
        return locate(default or default_path(_program())).url
    return locate(location).url if isinstance(location, str | Path) else location.url


async def open_log(url: str, *, pipeline: str, durable: bool, now: int, brief: bool, waits: bool) -> EventLog:
    """Open the log with this URL, or make it, and take its lease."""
    if url == MEMORY:
        from datatask.adapters.log.memory import MemoryLog

        return MemoryLog(pipeline=pipeline, clock_now=now)
    from datatask.adapters.log.sqlite import SqliteLog

    return await SqliteLog.open(
        url,
        pipeline=pipeline,
        durability="full" if durable else "process",
        clock_now=now,
        version=VERSION,
        host=socket.gethostname(),
        pid=os.getpid(),
        brief=brief,
        waits=waits,
    )


def _program() -> Path:
    """Return the file of the running program, or the working directory in an interactive session."""
    file = getattr(sys.modules.get("__main__"), "__file__", None)
    return Path(file) if file is not None else Path.cwd()


def renamed(state: State, declared: Declared, at: int) -> list[e.Renamed]:
    """Return the renames that the log does not know yet."""
    known = {"task": state.tasks.keys(), "repository": state.leaves.keys()}
    return [
        e.Renamed(at=at, what=what, old=old, new=new)  # type: ignore[arg-type]
        for what, old, new in declared.renamed
        if old in known[what] and new not in known[what]
    ]


def check(name: str, declared: Declared, state: State, losses: Iterable[str], *, where: str) -> set[str]:
    """Return the ids of what may be lost, by names; `CallerError` for the log of another pipeline, or for members
    or open runs that the new definition would leave behind.
    """
    if state.pipeline != name:
        raise OtherPipelineError(
            f"the log belongs to the pipeline {state.pipeline!r}, not to {name!r}",
            where=where,
            remedy="give each pipeline a log of its own (log=), or the same name=",
        )
    accepted = {_id_of(name, state, declared) for name in losses}
    definition = declared.definition
    named = {old for _, old, _ in declared.renamed} | accepted
    kept = {repository.id for repository in definition.repositories} | named
    for repository in state.definition.repositories:
        leaf = state.leaves.get(repository.id)
        lasts = repository.medium != "derived" and not repository.ephemeral
        if repository.id not in kept and leaf is not None and leaf.count and lasts:
            raise NotPossibleError(
                f"the pipeline no longer has the repository {repository.id}, which has {leaf.count} members",
                where=where,
                remedy=f"say was={repository.id!r} on its successor, or accept it: --accept-loss {repository.id}",
            )
    tasks = {task.name for task in definition.tasks} | named
    for name, task in state.tasks.items():
        if task.open_runs and name not in tasks:
            raise NotPossibleError(
                f"the pipeline no longer has the task {name}, which has {task.open_runs} open runs",
                where=where,
                remedy=f"let them end first, say was={name!r} on its successor, or --accept-loss {name}",
            )
    new = [name for name in sorted(tasks - named) if name not in state.tasks]
    for before in state.definition.tasks if new else ():
        count = sum(position > 0 for position in state.tasks[before.name].last_run)
        if count and before.name not in tasks:
            raise NotPossibleError(
                f"the pipeline no longer has the task {before.name}, which has run {count} job{'s' * (count != 1)}; "
                f"new {'is' if len(new) == 1 else 'are'} {', '.join(new[:3])}",
                where=where,
                remedy=f"say was={before.name!r} on its successor, or that it has none: --accept-loss {before.name}",
            )
    return accepted


def _id_of(name: str, state: State, declared: Declared) -> str:
    """Return the id of a repository or task, here or of before; a link names its repository."""
    task, _, link = name.rpartition(".")
    linked = declared.links.get((task, link))
    found = next((id for id, repository in declared.repositories.items() if repository is linked), name)
    if found in declared.repositories or found in state.leaves or found in state.tasks:
        return found
    raise UnknownNameError(
        f"there is no repository {name} whose loss could be accepted",
        remedy="`datatask status` tells which repositories are held",
    )
