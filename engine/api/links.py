"""A repository's roles in a task (`Link`), and the repositories that a task's runs make up (`ViewRepository`)."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any, Protocol

from datatask.engine.api.repositories import (
    Repository,
)
from datatask.schema.definition import (
    Medium,
    ViewName,
    view_id,
)
from datatask.schema.errors import (
    FLAG,
    NotPossibleError,
    expect,
)
from datatask.schema.values import check_job


class _Named(Protocol):
    @property
    def name(self) -> str: ...


@dataclass
class Link:
    """A repository's role in a task; made by `Task.link`."""

    repo: Repository
    is_input: bool = False
    is_output: bool = False
    is_status: bool = False
    inhibits_start: bool = False
    required_for_start: bool = False
    inhibits_output: bool = False
    required_for_output: bool = False

    def __post_init__(self) -> None:
        expect(self, Repository, repo=self.repo)
        roles = {name: value for name, value in vars(self).items() if name != "repo"}
        expect(self, FLAG, **roles)


class ViewRepository(Repository):
    """The jobs of a task that are `live`, or whose current episode's last run has `succeeded` or `failed`.

    Kept by the engine; empty while no pipeline is open. Deleting a job from `live` stops its run, and the job
    becomes ready anew; the other two cannot be changed by hand.
    """

    medium: Medium = "view"

    def __init__(self, task: _Named, view: ViewName) -> None:
        super().__init__()
        self.task = task
        self.view = view

    def __repr__(self) -> str:
        return f"<{self.view} of {self.task.name}>"

    def __getstate__(self) -> dict[str, Any]:
        """A view that is sent to a worker leaves its task here."""
        return {"_id": self.id, "view": self.view}

    @property
    def id(self) -> str:
        """`live(TASK)` and so on."""
        return self._id or view_id(self.task.name, self.view)

    async def contains(self, item: str) -> bool:
        """Whether the engine counts the job here now."""
        check_job(item, where=self)
        return self._binding is not None and self._binding.contains(self.id, item)

    async def unfiltered_iter(self) -> AsyncIterator[str]:
        """Yield the members of this moment."""
        for job in self._binding.members(self.id) if self._binding is not None else ():
            yield job

    async def info(self, job: str) -> None:
        """A view has members and no values."""
        check_job(job, where=self)

    async def delete(self, job: str) -> None:
        """Stop the job's run, if it has one; only `live` can be deleted from."""
        check_job(job, where=self)
        if self.view != "live":
            raise NotPossibleError(
                f"{self!r} follows from what happened",
                where=job,
                remedy="delete the done entry, or use retry",
            )
        if self._binding is not None:
            await self._binding.delete(self.id, job)
