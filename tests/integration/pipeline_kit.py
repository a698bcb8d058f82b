"""Pipelines of functions, and what is in their repositories."""

from __future__ import annotations

from typing import Any

from datatask import (
    InProcessSyncTask,
    LogMetadataRepository,
    Pipeline,
    Repository,
    Session,
    Task,
)
from datatask.schema import events as e

SECONDS = 100


def task(
    name: str, source: Repository, target: Repository | None = None, **options: Any
) -> InProcessSyncTask:
    """A task that reads `inp` and writes `out`; a copy, unless a function is set."""
    made = InProcessSyncTask(name, LogMetadataRepository(f"{name}.done"), **options)
    made.link("inp", source, is_input=True)
    if target is not None:
        made.link("out", target, is_output=True)

        async def copy(job: str, inp: Any, out: Any) -> None:
            await out.dump(job, await inp.info(job))

        made.func = made.func or copy
    return made


def pipeline(*tasks: Task, log: str = "memory:", **options: Any) -> Pipeline:
    return Pipeline(tasks, Session(), [], log=log, durability="process", **options)


def documents(name: str) -> LogMetadataRepository:
    return LogMetadataRepository(name)


async def content(repository: Any) -> dict[str, Any]:
    return dict(await repository.info_all())


async def jobs(repository: Repository) -> set[str]:
    return {job async for job in repository}


class Recorder:
    """All events from the moment it is made."""

    def __init__(self, pipe: Pipeline) -> None:
        self.batches: list[e.Batch] = []
        self.stop = pipe.subscribe(self.batches.append)

    def of(self, kind: type[e.Event], **fields: Any) -> list[Any]:
        found = [event for batch in self.batches for event in batch.events if isinstance(event, kind)]
        return [event for event in found if all(getattr(event, k) == v for k, v in fields.items())]
