"""Writes as events: what the log says of a value that was put, deleted, or is about to be."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import msgspec

from datatask.engine.core.tasks import OpenRun
from datatask.engine.ports import Write
from datatask.schema import events as e


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


def put_event(
    write: Write, now: int, *, origin: e.ValueOrigin = "written", run: OpenRun | None = None
) -> e.ValuePut:
    return e.ValuePut(
        at=now,
        repository=write.repository,
        job=write.job,
        value=write.value,
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
    return e.StoreWriteIntended(
        at=now,
        repository=write.repository,
        job=write.job,
        op="delete" if write.op == "delete" else "put",
        value=write.value,
        digest=write.digest,
        size=write.size,
        **more,
    )


def intended_write(intent: e.StoreWriteIntended) -> Write:
    return Write(
        repository=intent.repository or "",
        job=intent.job or "",
        op=intent.op,
        value=intent.value,
        digest=intent.digest,
        size=intent.size,
    )
