"""What tests of the pod runner share: a task on a scripted server, its runner, and the facts that it told."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

from datatask import InProcessBlobRepository, InProcessMetadataRepository, KubeTask, PodManager
from datatask.schema.messages import Ended, Fact, RunSpec, Started
from tests.kube.scripted import Scripted, scripted

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


class Facts:
    """A sink that remembers, and can be waited on."""

    def __init__(self) -> None:
        self.all: list[Fact] = []
        self._more = asyncio.Event()

    def __call__(self, fact: Fact) -> None:
        self.all.append(fact)
        self._more.set()

    async def first(self, run: int, kind: type[Any]) -> Any:
        """Wait for a fact of this kind."""
        async with asyncio.timeout(20):
            while not (found := self.of(run, kind)):
                self._more.clear()
                await self._more.wait()
        return found[0]

    def of(self, run: int, kind: type[Any] = object) -> list[Any]:
        """Return the run's facts of a kind so far."""
        return [fact for fact in self.all if fact.run == run and isinstance(fact, kind)]

    async def end(self, run: int) -> Ended:
        """Wait for the end."""
        ended: Ended = await self.first(run, Ended)
        return ended


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


async def until(condition: Any, seconds: float = 10) -> None:
    """Wait until something holds."""
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.01)
