"""A pipeline of one task over repositories, whose runner succeeds at everything."""

from __future__ import annotations

from pathlib import Path

from datatask import InProcessSyncTask, LogMetadataRepository, Pipeline, Session
from datatask.engine.api.repositories import Repository
from datatask.testing import MemoryLog, RecordingRunner, memory_log, recording


async def body(job: str) -> None:
    """Do nothing."""


def watched(*sources: Repository, log: MemoryLog | Path | None = None) -> tuple[Pipeline, RecordingRunner]:
    """Return the pipeline, with links `inp`, `inp1`, …, and its runner; the log is in memory where none is given."""
    task = InProcessSyncTask("task", LogMetadataRepository("done"), func=body)
    for number, source in enumerate(sources):
        task.link(f"inp{number or ''}", source, is_input=True)
    pipeline = Pipeline([task], Session(), log=log or memory_log())
    return pipeline, recording(pipeline, "succeeded")


def over(*sources: Repository) -> Pipeline:
    """Return the pipeline alone."""
    return watched(*sources)[0]
