"""What tests of the pod runner share: a task on a scripted server, its runner, and the facts that it told."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import Any

from datatask import InProcessBlobRepository, InProcessMetadataRepository, KubeTask, PodManager
from datatask.schema.messages import Ended, RunSpec, Started
from tests.kube.scripted import Scripted, scripted
from tests.run_kit import Facts

SECOND = 1_000_000_000
LOG = "0123456789abcdef0123456789abcdef"
TEMPLATE = """
kind: Pod
spec:
  containers:
    - name: main
      image: "busybox:{{ job | lower }}"
      resources: {requests: {cpu: 100m, memory: 64Mi}}
"""


def spec(run: int, job: str = "", *, epoch: int = 1, log: str = LOG, **more: Any) -> RunSpec:
    """Return a run of task t."""
    return RunSpec(run, f"{log}.{epoch}.{run}", "t", job or f"j{run}", 1, 1, {}, **more)


def make_task(
    api: Scripted, template: str = TEMPLATE, *, logs: bool = True, app: str = "app", **more: Any
) -> KubeTask:
    """Return a task on the server."""
    repository = InProcessBlobRepository()
    repository._id = "logs"
    config = api.config(more.pop("token", "admin"))
    manager = PodManager(app, "space", config, finalizer=more.pop("finalizer", True))
    task = KubeTask("t", manager, None, template, repository if logs else None, None, **more)
    task.link("inp", InProcessMetadataRepository(), is_input=True)
    return task


@contextlib.asynccontextmanager
async def opened(task: KubeTask) -> AsyncIterator[tuple[Any, Facts]]:
    """Open a task's runner over remembered facts."""
    facts = Facts()
    await task.runner.open(facts)
    try:
        yield task.runner, facts
    finally:
        await task.runner.close()


@contextlib.asynccontextmanager
async def ready(template: str = TEMPLATE, **more: Any) -> AsyncIterator[tuple[Scripted, Any, Facts]]:
    """Serve, and open a task's runner there."""
    async with scripted() as api, opened(make_task(api, template, **more)) as (runner, facts):
        yield api, runner, facts


def text(ended: Ended) -> bytes | None:
    """Return the logs that a run brought."""
    for write in ended.writes:
        if write.repository == "logs":
            return write.data if write.source is None else write.source.read_bytes()
    return None


async def running(api: Scripted, runner: Any, facts: Facts, run: int, **more: Any) -> str:
    """Start a run and let its pod run; return the pod's name."""
    runner.start(spec(run, **more))
    name: str = (await api.pod(f"j{run}"))["metadata"]["name"]
    api.run(name)
    await facts.first(run, Started)
    return name


async def log_of(repository: Any, job: str) -> str:
    """Return a job's log."""
    async with repository.open(job, "r") as stream:
        return str(await stream.read())
