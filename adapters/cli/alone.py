"""A request carried out with the log opened here: done in a bounded time, or left to the next engine.

In: the pipeline and an errand. Out: what was done, noted there, and what was left, in words. A pipeline that does not open
finds the requests in its inbox, next time; one that opened has them in the log, and what was to follow, a store that is
to be written or a run that is to end, goes on with the next engine. As long as stores are written one after the other,
that is waited for. A function that others launch is left to an engine that waits for functions: that of a launch.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from datatask.adapters.cli.errand import Afterwards, Errand, refused
from datatask.adapters.log.blobs import FileBlobs
from datatask.adapters.log.inbox_client import leave
from datatask.adapters.log.locate import blobs_path, locate
from datatask.engine.core.state import State
from datatask.engine.core.tasks import OpenRun
from datatask.engine.runtime.closing import call_off
from datatask.schema.errors import TimeLimitError
from datatask.schema.messages import Reply

if TYPE_CHECKING:
    from datatask.adapters.wiring.pipeline import Pipeline

PATIENCE_SECONDS = 5.0
"""How long after the command began opening, stores and runs that are to end are waited for; with closing, below 10 s."""
LEAST_SECONDS = 2.0
CLOSING_SECONDS = 2.0
LOOK_SECONDS = 0.05
NAMED_MAX = 3


async def carry_out_alone(
    pipeline: Pipeline, errand: Errand, state: State, *, began: float | None, afterwards: Afterwards | None
) -> None:
    """Open the log, carry out the wishes, close it again, in seconds from when the command began; None: without end."""

    def patience() -> float | None:
        return None if began is None else max(began + PATIENCE_SECONDS - time.monotonic(), LEAST_SECONDS)

    pipeline.grace_seconds = CLOSING_SECONDS
    pipeline.brief, pipeline.waits = True, False
    pipeline.serves_functions = afterwards is not None  # it is a launch, which waits for functions
    try:
        await pipeline.open(patience=patience)
    except TimeLimitError as error:
        _leave(errand, locate(pipeline.log_location()).path, state, error)
        return
    try:
        await _Asking(pipeline, patience()).ask(errand)
        if afterwards is not None:
            await afterwards(pipeline)
        left = patience()
        until = None if left is None else asyncio.get_running_loop().time() + left
        await _settled(pipeline, until)
        if pipeline.serves_functions:
            await _functions(pipeline)
        errand.leaves(*await _stopped(pipeline, until))
    finally:
        await pipeline.close()


def _leave(errand: Errand, path: Path | None, state: State, error: TimeLimitError) -> None:
    """Put the requests into the inbox of an engine to come."""
    if path is None or not path.exists():
        raise error
    left = 0
    for wish in errand.wishes(state, FileBlobs(blobs_path(path))):
        leave(path, wish.request)
        errand.taken(wish, Reply(id=wish.request.id), "none")
        left += 1
    if left:
        errand.leaves(f"{error.what}: what was asked waits in the inbox")


class _Asking:
    """Hands wishes to an open pipeline; one that does not come to its end does not hold up those behind it."""

    def __init__(self, pipeline: Pipeline, patience: float | None) -> None:
        self._pipeline = pipeline
        self._patience = patience

    async def ask(self, errand: Errand) -> None:
        """Ask for all of it; what is recorded and not done when patience is over is left."""
        pipeline, slow = self._pipeline, []
        assert pipeline.log is not None
        errand.done = errand.done._replace(engine="opened")
        for wish in errand.wishes(pipeline.state, pipeline.log.blobs):
            reply = asyncio.ensure_future(pipeline.request(wish.request))
            if not await self._ended(reply):
                slow.append(reply)
                self._patience = LOOK_SECONDS
            errand.taken(wish, reply.result() if reply.done() else Reply(id=wish.request.id), "opened")
        for late in [reply.result().refusal for reply in slow if reply.done()]:
            if late is not None:
                raise refused(late)
        if any(not reply.done() for reply in slow):
            errand.leaves(f"recorded, and not done yet: {', '.join(pipeline.runtime.under_way())}")
            await pipeline.runtime.flushed()
            await call_off(*slow)

    async def _ended(self, reply: asyncio.Task[Reply]) -> bool:
        """Wait as long as something is written now and then; whether the request is through."""
        runtime, clock = self._pipeline.runtime, asyncio.get_running_loop().time
        written, at = runtime.written_count, clock()
        while not reply.done() and (self._patience is None or clock() - at < self._patience):
            await asyncio.wait({reply}, timeout=LOOK_SECONDS)
            if runtime.written_count != written:
                written, at = runtime.written_count, clock()
        return reply.done()


async def _settled(pipeline: Pipeline, until: float | None) -> None:
    """Serve what others ask meanwhile; what is not done in time is asked of the next engine by those who wait for it."""
    clock = asyncio.get_running_loop().time
    while pipeline.is_serving and (until is None or clock() < until):
        await asyncio.sleep(LOOK_SECONDS / 10)


async def _functions(pipeline: Pipeline) -> None:
    """Wait for functions that others launched here meanwhile, as for our own: they would end with this engine."""
    while pipeline.is_ending:
        await asyncio.sleep(LOOK_SECONDS)


async def _stopped(pipeline: Pipeline, until: float | None) -> Iterator[str]:
    """Wait for runs that are to end, and tell of those that have not."""
    runtime, clock = pipeline.runtime, asyncio.get_running_loop().time
    while (runs := list(stopping(pipeline.state))) and (until is None or clock() < until):
        if runtime.failure is not None:
            break
        await asyncio.sleep(LOOK_SECONDS)
    return _named(pipeline.state, runs)


def stopping(state: State) -> Iterator[OpenRun]:
    """Yield the open runs that were asked to stop."""
    return (run for run in state.open_runs.values() if run.stopping is not None)


def _named(state: State, runs: list[OpenRun]) -> Iterator[str]:
    if runs:
        names = [f"{run.task} {state.jobs[run.job]}{_where(run)}" for run in runs[:NAMED_MAX]]
        more = f" and {len(runs) - NAMED_MAX} more" if len(runs) > NAMED_MAX else ""
        yield f"asked to stop, and not ended yet: {', '.join(names)}{more}"


def _where(run: OpenRun) -> str:
    place = f" on {run.where}" if run.where else ""
    return f"{place}, which does not answer" if run.unreachable else place
