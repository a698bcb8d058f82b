"""The values of a log, read only, for the repositories of a pipeline that is not open: `plan` evaluates filters with them.

In: a copy of the state, and the log's file, or None. Out: a `Binding` that answers from the two and refuses writes, so that
repositories with code of their own, filters, translations and priorities read what they would in a run.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from pathlib import Path

from datatask.adapters.log.blobs import FileBlobs
from datatask.adapters.log.locate import blobs_path
from datatask.engine.api.repositories import Repository
from datatask.engine.api.tasks import Task
from datatask.engine.core.cells import get_at
from datatask.engine.core.state import State
from datatask.engine.ports import Blobs
from datatask.engine.run_context import ValueRef
from datatask.schema.errors import NotPossibleError
from datatask.schema.events import ValuePut
from datatask.schema.messages import Write


class Foreseen:
    """The read side of an engine, over a state and a closed log."""

    def __init__(self, state: State, path: Path | None) -> None:
        self._state, self._path = state, path
        self._bound: list[Repository] = []

    def bind(self, objects: Iterable[tuple[Repository, str]], tasks: Iterable[Task]) -> None:
        """Let the repositories of a pipeline, which is not open, ask here."""
        views = [(view, view.id) for task in tasks for view in (task.succeeded, task.failed, task.live)]
        for leaf, id in (*objects, *views):
            if leaf.binding is None:
                leaf.bind(id, self)
                self._bound.append(leaf)

    def unbind(self) -> None:
        """Let go of them again."""
        while self._bound:
            self._bound.pop().unbind()

    async def put(self, repository_id: str, write: Write) -> None:
        """Refuse: nothing is written here."""
        raise _unchanged(repository_id)

    async def delete(self, repository_id: str, job: str) -> None:
        """Refuse: nothing is written here."""
        raise _unchanged(repository_id)

    def contains(self, repository_id: str, job: str) -> bool:
        """Whether the job is a member."""
        return self._state.contains(repository_id, job)

    def members(self, repository_id: str) -> list[str]:
        """Return the members."""
        return self._state.members(repository_id)

    def position(self, repository_id: str) -> int:
        """Return the position of the state."""
        return self._state.position

    async def value(self, repository_id: str, job: str) -> ValueRef | None:
        """Return the member's value as the log has it, or None."""
        index = self._state.job_index.get(job)
        if index is None or self._path is None or not self.contains(repository_id, job):
            return None
        position = get_at(self._state.leaves[repository_id].positions, index)
        put = await asyncio.to_thread(_put_at, self._path, position)
        return ValueRef(put.value, put.digest, put.size, position)

    @property
    def blobs(self) -> Blobs:
        """The blobs beside the log."""
        if self._path is None:
            raise NotPossibleError("a log in memory has no blobs", remedy="give the pipeline a log")
        return FileBlobs(blobs_path(self._path))


def _put_at(path: Path, position: int) -> ValuePut:
    from datatask.adapters.log.checkpoints import CheckedReader
    from datatask.adapters.log.reader import LogReader

    with LogReader(path) as reader:
        (event,) = CheckedReader(reader).fetch([position])
    assert isinstance(event, ValuePut)
    return event


def _unchanged(repository: str) -> NotPossibleError:
    return NotPossibleError(
        "code of the pipeline writes while a plan is made",
        where=repository,
        remedy="write in a task: listings, filters and priorities only read",
    )
