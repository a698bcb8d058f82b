"""A run at a Dask scheduler, and what its runner hears of it.

In: a run from the engine, what the scheduler and workers tell. Out: what `cluster` and `runner` know of it between them.
"""

from __future__ import annotations

import asyncio
from typing import Any, Protocol

from datatask.adapters.execute.base.runner import TrackedRun
from datatask.adapters.execute.functions.dask import worker
from datatask.schema.messages import RunSpec


class DaskRun(TrackedRun):
    """One run at the scheduler; `claimed`: nothing begins it any more, since it has begun or we have barred it."""

    def __init__(self, spec: RunSpec, hears: Hears, resources: dict[str, float] | None) -> None:
        super().__init__(spec)
        self.hears = hears
        self.resources = resources
        self.key = f"{spec.task}-{spec.identity}"
        self.parcel = b""
        self.scheduler = ""
        self.worker = self.address = ""
        self.future: Any = None
        self.watch: asyncio.Task[None] | None = None
        self.timer: asyncio.TimerHandle | None = None
        self.begun = self.claimed = self.barred = self.held = False


class Hears(Protocol):
    """What a runner hears of its runs."""

    def on_begun(self, run: DaskRun) -> None:
        """A worker has begun it."""

    def on_found(self, run: DaskRun) -> None:
        """It is at the scheduler, begun or not."""

    async def on_missing(self, run: DaskRun) -> None:
        """The scheduler does not know it."""

    def on_returned(self, run: DaskRun, reply: worker.Reply) -> None:
        """It is over."""

    async def on_failed(self, run: DaskRun, error: Exception) -> None:
        """Dask could not do it."""

    def on_silence(self, run: DaskRun, why: str) -> None:
        """The scheduler cannot be reached."""
