"""What becomes of a log's repositories and tasks when the pipeline on it has changed.

In: the state that earlier definitions have led to, the new declaration, the losses that a person accepts. Out: the renames,
or a `CallerError` where members or open runs would be left behind and no option accepts it.
"""

from __future__ import annotations

from collections.abc import Iterable

from datatask.engine.api.declare import Declared
from datatask.engine.core.state import State
from datatask.schema import events as e
from datatask.schema.errors import NotPossibleError, OtherPipelineError, UnknownNameError


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
