"""Repositories of a few jobs, for tests of what is made of repositories."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from datatask.adapters.store.inprocess import InProcessMetadataRepository
from datatask.engine.api.repositories import Repository


class Listing(Repository):
    """The least that a user writes: jobs that are listed, one of them with a name that is no job id."""

    def __init__(self, *jobs: str) -> None:
        self.jobs = list(jobs)

    def __repr__(self) -> str:
        return f"Listing({self.jobs})"

    async def unfiltered_iter(self) -> AsyncIterator[str]:
        for job in self.jobs:
            yield job

    async def info(self, job: str) -> Any:
        return job.upper()

    async def delete(self, job: str) -> None:
        if job in self.jobs:
            self.jobs.remove(job)


def documents(**data: Any) -> InProcessMetadataRepository:
    return InProcessMetadataRepository(data)


async def members(repository: Repository) -> list[str]:
    return [job async for job in repository]


async def in_order(repository: Repository) -> list[str]:
    """Return the jobs sorted: folders have no order of their own."""
    return sorted(await members(repository))
