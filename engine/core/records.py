"""Writes as events: what the log says of a value that was put, deleted, or is about to be."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import msgspec

from datatask.engine.core.tasks import OpenRun
from datatask.engine.ports import Write
from datatask.schema import events as e
from datatask.schema.values import INLINE_BYTES_MAX

FAILURES_TOLD_MAX = 3


@dataclass(slots=True)
class Ticket:
    """A change asked for from outside, until its last event is durable."""

    outstanding: set[tuple[str, str]] = field(default_factory=set)
    position: int = 0
    count: int = 0
    origin: e.ValueOrigin = "written"
    actor: str = e.ENGINE
    reason: str = ""
    request: str | None = None
    failures: int = 0
    told: list[str] = field(default_factory=list)

    def fail(self, write: Write, error: str) -> None:
        """Remember a write that its store did not take; the first few in words."""
        self.failures += 1
        if len(self.told) < FAILURES_TOLD_MAX:
            self.told.append(f"{write.repository}[{write.job}]: {error}")

    @property
    def failed(self) -> str:
        """What was not written and why, in one line."""
        rest = self.failures - len(self.told)
        return "; ".join(self.told) + (f"; and {rest} more" if rest else "")


def inline(value: msgspec.Raw) -> msgspec.Raw:
    """Return the value if it is small enough to travel in an event; larger ones are named by digest, or not kept."""
    return value if len(bytes(value)) <= INLINE_BYTES_MAX else e.ABSENT


def put_event(
    write: Write, now: int, *, origin: e.ValueOrigin = "written", run: OpenRun | None = None
) -> e.ValuePut:
    """Return what the log says of a value that is in its repository now."""
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


def change_event(
    write: Write, now: int, *, run: OpenRun | None = None, ticket: Ticket | None = None
) -> e.Event:
    """Return what the log says of a write that has been done: put or deleted, by a run or on somebody's word."""
    event: e.Event
    if write.op == "delete":
        event = e.ValueDeleted(
            at=now,
            repository=write.repository,
            job=write.job,
            run=None if run is None else run.run,
            task=None if run is None else run.task,
        )
    else:
        event = put_event(write, now, run=run)
    if ticket is None:
        return event
    return msgspec.structs.replace(
        event, actor=ticket.actor, origin=ticket.origin, reason=ticket.reason, request=ticket.request
    )


def intent_event(write: Write, now: int, **more: Any) -> e.StoreWriteIntended:
    """Return what the log says before a foreign store is changed."""
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
    """Return the write that an intent was about, to be done again."""
    return Write(
        repository=intent.repository or "",
        job=intent.job or "",
        op=intent.op,
        value=intent.value,
        digest=intent.digest,
        size=intent.size,
    )
