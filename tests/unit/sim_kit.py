"""A small pipeline to be simulated."""

from __future__ import annotations

from datatask import InProcessSyncTask, LogMetadataRepository, Pipeline, ResourceManager, Resources, Session


def chain(concurrency: int | None = None) -> Pipeline:
    """Two tasks, one after the other."""
    inp, mid, out = (LogMetadataRepository(name) for name in ("inp", "mid", "out"))
    made = []
    for name, source, target in (("fetch", inp, mid), ("crunch", mid, out)):
        task = InProcessSyncTask(name, LogMetadataRepository(f"{name}_done"), concurrency=concurrency)
        task.link("source", source, is_input=True)
        task.link("target", target, is_output=True)
        made.append(task)
    return Pipeline(made, Session(), [ResourceManager(Resources.parse(4, "1Gi"))])
