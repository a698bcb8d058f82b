"""A person's request, carried out: by the engine that runs, through its inbox, or with the log opened here.

In: a function that makes requests from a state, so that names and members are those of the moment. Out: what
was done, as `Done`. With an engine running the state is folded from the log and no pipeline is loaded; else
the pipeline is loaded and opened, launches nothing but what is asked for, and closes again.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Awaitable, Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from datatask.adapters.cli.present import recorded_state
from datatask.adapters.cli.settings import Settings
from datatask.adapters.history.states import fold
from datatask.adapters.log.blobs import FileBlobs
from datatask.adapters.log.locate import blobs_path, locate
from datatask.adapters.wiring.actors import actor
from datatask.engine.core.state import State
from datatask.engine.ports import Blobs
from datatask.schema.errors import CallerError, DatataskError, LeaseHeldError, TemporaryError
from datatask.schema.requests import AnyRequest, Refusal, Reply

if TYPE_CHECKING:
    from datatask.adapters.wiring.pipeline import Pipeline

ANSWER_SECONDS = 120.0


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
    """What was done (or would be): `position` is the last one that it led to, None for nothing."""

    changes: list[Change]
    position: int | None
    engine: str


Plan = Callable[[State, Blobs | None], Iterable[Wish]]
Afterwards = Callable[["Pipeline"], Awaitable[None]]


def who(verb: str, reason: str) -> dict[str, str]:
    """Return the fields that every request has: a fresh id, the actor, the reason."""
    return {"id": str(uuid.uuid4()), "actor": actor(f"datatask {verb}"), "reason": reason}


def carry_out(
    settings: Settings, plan: Plan, *, dry_run: bool = False, afterwards: Afterwards | None = None
) -> Done:
    """Carry out what `plan` wishes; a dry run only asks it what that would be.

    `afterwards` is awaited with the open pipeline when the log was opened here.
    """
    path = locate(settings.log_url()).path
    if path is not None and path.exists() and _holder(path):
        try:
            return _through_inbox(path, plan, dry_run)
        except _EngineGone:
            pass  # it ended just now: open the log instead
    try:
        return asyncio.run(_opening(settings, plan, dry_run, afterwards))
    except LeaseHeldError:
        if path is None:
            raise
        return _through_inbox(path, plan, dry_run)  # one has started just now


class _EngineGone(Exception):
    pass


def _holder(path: Path) -> bool:
    from datatask.adapters.log.lease import probe

    return probe(path) is not None


def _folded(path: Path) -> State:
    from datatask.adapters.log.reader import LogReader

    with LogReader(path) as reader:
        return fold(reader, reader.head)


def _wished(wishes: Iterable[Wish], engine: str) -> Done:
    return Done([change for wish in wishes for change in wish.changes], None, engine)


def _through_inbox(path: Path, plan: Plan, dry_run: bool) -> Done:
    from datatask.adapters.log.inbox import ask

    state = _folded(path)
    if dry_run:
        return _wished(plan(state, None), "running")
    done = Done([], None, "running")
    for wish in plan(state, FileBlobs(blobs_path(path))):
        try:
            reply = ask(path, wish.request, timeout_seconds=ANSWER_SECONDS)
        except TemporaryError:
            if done.changes:
                raise
            raise _EngineGone from None
        done = _taken(done, wish, reply)
    return done


async def _opening(settings: Settings, plan: Plan, dry_run: bool, afterwards: Afterwards | None) -> Done:
    """Find out what is wished by the recorded state first: a wrong call leaves no trace in the log."""
    pipeline = settings.load_pipeline()
    wished = _wished(plan(recorded_state(pipeline)[0], None), "none")
    if dry_run:
        return wished
    async with pipeline:
        assert pipeline.log is not None
        done = Done([], None, "opened")
        for wish in plan(pipeline.state, pipeline.log.blobs):
            done = _taken(done, wish, await pipeline.request(wish.request))
        if afterwards is not None:
            await afterwards(pipeline)
    return done


def _taken(done: Done, wish: Wish, reply: Reply) -> Done:
    if reply.refusal is not None:
        raise refused(reply.refusal)
    changes = [*done.changes, *wish.changes]
    return Done(changes, reply.position if reply.position is not None else done.position, done.engine)


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
    }


def exit_code(done: Done, dry_run: bool, wanted: bool) -> int:
    """Return 3 for a dry run with --exit-code that found something to do, else 0."""
    return 3 if dry_run and wanted and done.changes else 0


def sliced(jobs: Sequence[str], most: int = 1000) -> Iterable[tuple[str, ...]]:
    """Yield jobs in portions that fit a request: one batch each."""
    for start in range(0, len(jobs), most):
        yield tuple(jobs[start : start + most])
