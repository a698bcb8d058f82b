"""What is to be done in the world once the events it rests on are durable.

The reactor returns `Step`s: events to append as one batch, and the effects that follow. The runtime performs
them in order, and nothing else.
"""

from __future__ import annotations

from typing import NamedTuple

from datatask.engine.core.state import PendingKey
from datatask.engine.ports import RunSpec, Write
from datatask.schema.events import Event, StopReason


class StartRun(NamedTuple):
    """Hand the run to its task's runner."""

    spec: RunSpec


class StopRun(NamedTuple):
    """Ask the run's runner to stop it."""

    task: str
    run: int
    reason: StopReason
    grace: int


class ForgetRun(NamedTuple):
    """The run's end is durable: its runner may let go of what it kept."""

    task: str
    run: int


class Mirror(NamedTuple):
    """Let an in-process store follow the log."""

    write: Write


class WriteStore(NamedTuple):
    """Change a foreign store, and report `written`; `ticket` belongs to the caller of `change`, else the run's."""

    write: Write
    run: int | None
    ticket: int | None


class LookAgain(NamedTuple):
    """Ask a foreign store for its version of a value, and report it as `observed`: what was told may be outdated."""

    repository: str
    job: str


class Finished(NamedTuple):
    """All that a ticket stands for is durable; `position` is that of its last event (0: nothing to do), `changes` their number.

    `failed` says which writes their stores did not take, and why; empty when they took all.
    """

    ticket: int
    position: int
    changes: int
    failed: str = ""


class Evaluation(NamedTuple):
    """User code to be evaluated for a decision: report `evaluated` with the same key and position."""

    key: PendingKey
    owner: str
    job: str
    position: int


Effect = StartRun | StopRun | ForgetRun | Mirror | WriteStore | LookAgain | Finished


class Step(NamedTuple):
    """One batch and what follows from it."""

    first: int
    events: tuple[Event, ...]
    effects: tuple[Effect, ...]
