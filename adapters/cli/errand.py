"""What a command asks of an engine: its requests, the changes that they amount to, and what came of them.

In: a plan, which makes requests from a state. Out: `Done`, with the documented JSON and the exit code. `asking` says who
carries it out: an engine that runs, or the log opened here.
"""

from __future__ import annotations

import uuid
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from datatask.adapters.wiring.opening import actor
from datatask.engine.core.state import State
from datatask.engine.ports import Blobs
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
