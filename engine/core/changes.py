"""Writes as events: what the log says of a value that was put, deleted, or is about to be.

In come `Write`s, of runs, of people, found in stores; out come the events, and from an intent the write that it
was about. Small values stand in the event, larger ones are named by their digest.
"""

from __future__ import annotations

from typing import Any

import msgspec

from datatask.engine.core.tasks import OpenRun
from datatask.schema import events as e
from datatask.schema.messages import Write
from datatask.schema.values import INLINE_BYTES_MAX


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


def change_event(write: Write, now: int, *, run: OpenRun | None = None) -> e.Event:
    """Return what the log says of a write that has been done: put or deleted."""
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
