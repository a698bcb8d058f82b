"""A simulated history as an ordinary log: `simulate --write-log`.

In: a model, a world, and a place where no log is. Out: the log, with every event that an engine would have appended, and
the simulator that made it. The log's uuid and salts follow from the model, so the same seed writes the same events and
the same chain.
"""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from datatask import __version__
from datatask.adapters.log.locate import locate
from datatask.adapters.log.sqlite import SqliteLog
from datatask.adapters.log.tail import seeded_salts
from datatask.adapters.sim.logged import Logged
from datatask.adapters.sim.model import Model
from datatask.adapters.sim.opening import HOST
from datatask.adapters.sim.worlds import World
from datatask.engine.core.effects import Step
from datatask.schema.errors import CallerError

PENDING_MAX = 20_000
"""With more events under way to the disk than this, the simulation waits for it."""


def free_place(place: str | Path) -> Path:
    """Return the path of a log that is to be written; `CallerError` where something is already."""
    located = locate(place)
    if located.path is None:
        raise CallerError("a simulated log must be a file", where=located.url, remedy="name a file")
    if located.path.exists():
        raise CallerError(
            "there is a file already, and a simulated history is never added to one",
            where=str(located.path),
            remedy="name another file, or remove it",
        )
    return located.path


def written(place: Path, model: Model, world: World) -> Logged:
    """Simulate, write everything, and return the simulator."""
    with ThreadPoolExecutor(1) as pool:  # a notebook has an event loop of its own
        return pool.submit(lambda: asyncio.run(_written(place, model, world))).result()


async def _written(place: Path, model: Model, world: World) -> Logged:
    log = await SqliteLog.open(
        place,
        pipeline=model.definition.name,
        clock_now=model.begin,
        version=__version__,
        host=HOST,
        pid=1,
        durability="process",
        salts=seeded_salts(int(model.uuid, 16)),
        uuid=model.uuid,
    )
    try:
        steps: list[Step] = []
        simulator = Logged(model, world, steps.append)
        del steps[0]  # the log has its first event already
        for _ in simulator.instants():
            await _append(log, steps)
        simulator.close()
        await _append(log, steps)
    finally:
        await log.close()
    return simulator


async def _append(log: SqliteLog, steps: list[Step]) -> None:
    """Append batches; where many have gathered, wait for the disk."""
    for step in steps[:-1]:
        log.enqueue(step.events)
    if steps and log.pending > PENDING_MAX:
        await log.append(steps[-1].events)
    elif steps:
        log.enqueue(steps[-1].events)
    steps.clear()
