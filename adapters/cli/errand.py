"""What a command asks of an engine, and how it is carried out with the log opened here.

In: a plan, which makes requests from a state. Out: `Done`, with the documented JSON and the exit code. Without an engine the work
takes a bounded time, and the rest is left to the next engine: in its inbox where the pipeline did not open, else in the log.
Stores that are written one after the other are waited for; a function that others launch is left to an engine that waits for it.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from datatask.adapters.log.blobs import FileBlobs
from datatask.adapters.log.inbox_client import leave
from datatask.adapters.log.locate import blobs_path, locate
from datatask.adapters.wiring.opening import actor
from datatask.engine.core.state import State
from datatask.engine.core.tasks import OpenRun
from datatask.engine.ports import Blobs
from datatask.engine.runtime.closing import call_off
from datatask.schema.errors import CallerError, DatataskError, TimeLimitError
from datatask.schema.messages import AnyRequest, Refusal, Reply

if TYPE_CHECKING:
    from datatask.adapters.wiring.pipeline import Pipeline


class Change(NamedTuple):
    """One thing that a request does, for people: a verb and what it is about, in words where no name says it."""

    op: str
    task: str | None = None
    repository: str | None = None
    job: str | None = None
    about: str | None = None

    def shape(self) -> dict[str, str | None]:
        """Return the documented JSON shape."""
        found = self._asdict()
        return found if self.about is not None else {name: found[name] for name in found if name != "about"}


class Wish(NamedTuple):
    """A request, and the changes that it amounts to."""

    request: AnyRequest
    changes: tuple[Change, ...]


class Done(NamedTuple):
    """What was done (or would be): `position` is the last one that it led to, None for nothing; `left` is what the
    next engine will do, in words.
    """

    changes: list[Change]
    position: int | None
    engine: str
    left: tuple[str, ...] = ()


Plan = Callable[[State, Blobs | None], Iterable[Wish]]


Afterwards = Callable[["Pipeline"], Awaitable[None]]


class Errand:
    """The wishes of one command, asked one after the other; one that was not carried out is asked again as it is.

    Within `with` it may stay in the inbox, for whichever engine is the next one.
    """

    def __init__(self, plan: Plan, path: Path | None) -> None:
        self._plan = plan
        self._path = path
        self._left: Iterator[Wish] | None = None
        self._asked: Wish | None = None
        self._in_inbox = False
        self.done = Done([], None, "none")

    def __enter__(self) -> None:
        """Begin."""

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Withdraw what was not carried out, unless it goes on without us: its time is over, or we are interrupted."""
        if kind is not None and issubclass(kind, DatataskError) and not issubclass(kind, TimeLimitError):
            self.withdraw()

    def withdraw(self) -> None:
        """Take what stays in the inbox out: it is done here, or not at all."""
        if self._asked is not None and self._path is not None and self._in_inbox:
            from datatask.adapters.log.inbox_client import withdraw

            self._in_inbox = False
            withdraw(self._path, self._asked.request)

    def asks(self) -> None:
        """The present wish goes into the inbox."""
        self._in_inbox = True

    def foreseen(self, state: State, engine: str) -> Done:
        """Return what would be done by this state."""
        return Done([change for wish in self._plan(state, None) for change in wish.changes], None, engine)

    @property
    def begun(self) -> bool:
        """Whether a wish was asked, so that no other plan can be made."""
        return self._left is not None

    def wishes(self, state: State, blobs: Blobs) -> Iterator[Wish]:
        """Yield what is left to do; by this state, unless it was begun by another one."""
        if self._left is None:
            self._left = iter(self._plan(state, blobs))
        while True:
            self._asked = self._asked or next(self._left, None)
            if self._asked is None:
                return
            yield self._asked
            self._asked, self._in_inbox = None, False

    def taken(self, wish: Wish, reply: Reply, engine: str) -> None:
        """Record the result of a wish; raise the error of a refusal."""
        if reply.refusal is not None:
            raise refused(reply.refusal)
        position = self.done.position if reply.position is None else reply.position
        self.done = self.done._replace(
            changes=[*self.done.changes, *wish.changes], position=position, engine=engine
        )

    def leaves(self, *left: str) -> None:
        """Note what is left to the next engine, in words."""
        self.done = self.done._replace(left=(*self.done.left, *left))


def refused(refusal: Refusal) -> DatataskError:
    """Return the error that a refusal tells of."""
    from datatask.schema import errors

    for kind in vars(errors).values():
        if isinstance(kind, type) and issubclass(kind, DatataskError) and kind.code == refusal.code:
            return kind(refusal.what, where=refusal.where, remedy=refusal.remedy)
    return CallerError(refusal.what, where=refusal.where, remedy=refusal.remedy)


def shape(done: Done, verb: str, dry_run: bool) -> dict[str, Any]:
    """Return the documented JSON shape of a change."""
    return {
        "command": verb,
        "dry_run": dry_run,
        "engine": done.engine,
        "position": done.position,
        "count": len(done.changes),
        "changes": [change.shape() for change in done.changes],
    } | ({"left": list(done.left)} if done.left else {})


def exit_code(done: Done, dry_run: bool, wanted: bool) -> int:
    """Return 3 for a dry run with --exit-code that found something to do, else 0."""
    return 3 if dry_run and wanted and done.changes else 0


def sliced(jobs: Sequence[str], most: int = 1000) -> Iterable[tuple[str, ...]]:
    """Yield jobs in portions that fit a request: one batch each."""
    for start in range(0, len(jobs), most):
        yield tuple(jobs[start : start + most])


def who(verb: str, reason: str) -> dict[str, str]:
    """Return the fields that every request has: a fresh id, the actor, the reason."""
    return {"id": str(uuid.uuid4()), "actor": actor(f"datatask {verb}"), "reason": reason}


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
