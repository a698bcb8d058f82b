"""Writes as events, effects on the world, and the steps that carry both in order.

In come events to append, which are folded at once, ahead of the disk, and `Write`s of runs, people and stores. Out go
`Step`s, each a batch and the effects that follow it; the caller appends the batch, and performs the effects when it is
durable. Small values are in the event, larger ones are named by digest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import msgspec

from datatask.engine.core.fold import apply_all
from datatask.engine.core.state import PendingKey, State
from datatask.engine.core.tasks import OpenRun
from datatask.schema import events as e
from datatask.schema.events import Event, StopReason
from datatask.schema.messages import RunSpec, Write
from datatask.schema.values import INLINE_BYTES_MAX


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
    """The run's end is durable: its runner may free the run's resources."""

    task: str
    run: int


class Mirror(NamedTuple):
    """Apply a logged write to an in-process store."""

    write: Write


class WriteStore(NamedTuple):
    """Change a foreign store, and report `written`; `ticket` belongs to the caller of `change`, else the run's."""

    write: Write
    run: int | None
    ticket: int | None


class LookAgain(NamedTuple):
    """Ask a foreign store for its version of a value, and report it as `observed`: the reported one may be outdated."""

    repository: str
    job: str


class Finished(NamedTuple):
    """All events of a ticket are durable; `position` is that of its last event (0: nothing to do), `changes` their number.

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


class LogStep(NamedTuple):
    """One batch and its effects."""

    first: int
    events: tuple[Event, ...]
    effects: tuple[Effect, ...]


BATCH_MAX = 5_000


class Outbox:
    """A state, and the steps since the last `take`."""

    def __init__(self, state: State) -> None:
        self.state = state
        self.steps: list[LogStep] = []
        self.recall: Callable[[int], Event | None] = lambda position: None
        """Events that the caller holds in memory: they serve messages only, never decisions."""
        self.torn: BaseException | None = None

    def take(self) -> list[LogStep]:
        """Return the steps since the last call, in order; raise the error of an incomplete fold."""
        if self.torn is not None:
            raise self.torn
        steps, self.steps = self.steps, []
        return steps

    def emit(self, events: Sequence[Event], effects: Iterable[Effect] = ()) -> int:
        """Fold a batch, queue it with its effects, and return the position of its last event."""
        first = self.state.position + 1
        try:
            apply_all(self.state, first, events)
            self.steps.append(LogStep(first, tuple(events), tuple(effects)))
        except BaseException as error:
            self.torn = error
            raise
        return self.state.position

    def emit_in_parts(self, events: Sequence[Event], effects: Sequence[Effect] = ()) -> int:
        """Emit events of any number, in as many batches as they need; return 0 for no events."""
        position = 0
        for start in range(0, len(events), BATCH_MAX):
            position = self.emit(events[start : start + BATCH_MAX], effects[start : start + BATCH_MAX])
        return position

    def join(self, since: int) -> None:
        """Merge the steps behind the first `since` into one."""
        steps = self.steps
        if len(steps) - since > 1 and sum(len(step.events) for step in steps[since:]) <= BATCH_MAX:
            events = tuple(event for step in steps[since:] for event in step.events)
            effects = tuple(effect for step in steps[since:] for effect in step.effects)
            steps[since:] = [LogStep(steps[since].first, events, effects)]

    def attach(self, effects: Sequence[Effect]) -> None:
        """Add effects to the last step, or to an empty one where there is none."""
        if self.steps:
            last = self.steps[-1]
            self.steps[-1] = last._replace(effects=(*last.effects, *effects))
        else:
            self.steps.append(LogStep(self.state.position + 1, (), tuple(effects)))

    def event_at(self, position: int) -> Event | None:
        """Return an event of a step not yet taken, or one that the caller holds; else None."""
        for step in reversed(self.steps):
            if step.events and step.first <= position < step.first + len(step.events):
                return step.events[position - step.first]
        return self.recall(position)


def inline(value: msgspec.Raw) -> msgspec.Raw:
    """Return the value if it is small enough to travel in an event; larger ones are named by digest, or not kept."""
    return value if len(bytes(value)) <= INLINE_BYTES_MAX else e.ABSENT


def put_event(
    write: Write, now: int, *, origin: e.ValueOrigin = "written", run: OpenRun | None = None
) -> e.ValuePut:
    """Return the event for a value that is in its repository now."""
    return e.ValuePut(
        at=now,
        repository=write.repository,
        job=write.job,
        value=inline(write.value),
        digest=write.digest,
        size=write.size,
        version=write.version,
        origin=origin,
        run=None if run is None else run.run,
        task=None if run is None else run.task,
    )


def change_event(write: Write, now: int, *, run: OpenRun | None = None) -> e.Event:
    """Return the event for a completed write: put or deleted."""
    if write.op != "delete":
        return put_event(write, now, run=run)
    return e.ValueDeleted(
        at=now,
        repository=write.repository,
        job=write.job,
        run=None if run is None else run.run,
        task=None if run is None else run.task,
    )


def intent_event(write: Write, now: int, **more: Any) -> e.StoreWriteIntended:
    """Return the intent that is logged before a foreign store changes."""
    return e.StoreWriteIntended(
        at=now,
        repository=write.repository,
        job=write.job,
        op="delete" if write.op == "delete" else "put",
        value=inline(write.value),
        digest=write.digest,
        size=write.size,
        **more,
    )


def intended_write(intent: e.StoreWriteIntended) -> Write:
    """Return the write of an intent, to be repeated."""
    return Write(
        repository=intent.repository or "",
        job=intent.job or "",
        op=intent.op,
        value=intent.value,
        digest=intent.digest,
        size=intent.size,
    )
