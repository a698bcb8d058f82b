"""Runs by hand, whatever the runner: what to start, the facts that it reports, and what is done to outputs meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, TypeVar

from datatask.engine.ports import Runner
from datatask.schema.messages import Ended, Fact, RunSpec, Write

LOG = "0123456789abcdef"
Kind = TypeVar("Kind", bound=Fact)


async def until(condition: Callable[..., object], seconds: float = 60.0) -> None:
    """Wait for something to come true."""
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.01)


class Facts:
    """A sink that remembers, and can be waited on."""

    def __init__(self) -> None:
        self.all: list[Fact] = []
        self._more = asyncio.Event()

    def __call__(self, fact: Fact) -> None:
        self.all.append(fact)
        self._more.set()

    async def end_of(self, run: int) -> Ended:
        """Wait for the run's end."""
        return await self.first(run, Ended)

    async def first(self, run: int, *kinds: type[Kind]) -> Kind:
        """Wait for the run's first fact of these kinds."""
        async with asyncio.timeout(100):
            while True:
                for fact in self.of(run):
                    if isinstance(fact, kinds):
                        return fact
                self._more.clear()
                await self._more.wait()

    def of(self, run: int, kind: type[Any] = object) -> list[Any]:
        """Return the run's facts of a kind so far."""
        return [fact for fact in self.all if fact.run == run and isinstance(fact, kind)]


def spec(run: int, job: str = "good", *, epoch: int = 1, log: str = LOG, **more: Any) -> RunSpec:
    """Return a run of task t."""
    return RunSpec(run, f"{log}.{epoch}.{run}", "t", job, 1, 1, {}, **more)


def contents(write: Write) -> bytes | None:
    """Return what a run brought, wherever it is."""
    return write.data if write.source is None else write.source.read_bytes()


@contextlib.asynccontextmanager
async def opened(runner: Runner) -> AsyncIterator[Facts]:
    """Open a runner over remembered facts."""
    facts = Facts()
    await runner.open(facts)
    try:
        yield facts
    finally:
        await runner.close()


# --- what is done to an output while its process writes it --------------------------------------------

WAITS = "while [ ! -e {go} ]; do sleep 0.02; done"


def removed(folder: Path) -> None:
    (folder / "stdout").unlink()


def exchanged(folder: Path) -> None:
    (folder / "new").write_text("somebody else's\n")
    os.replace(folder / "new", folder / "stdout")


def linked(folder: Path) -> None:
    removed(folder)
    (folder / "other").write_text("somebody else's\n" * 9)
    (folder / "stdout").symlink_to(folder / "other")


def made_a_folder(folder: Path) -> None:
    removed(folder)
    (folder / "stdout").mkdir()


def cut(folder: Path) -> None:
    os.truncate(folder / "stdout", 0)
