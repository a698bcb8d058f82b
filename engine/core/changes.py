"""Writes as events: what the log says of a value that was put, deleted, or is about to be.

Changes that somebody asked for: values put and deleted, by a program or a person.

In come `Write`s. What lives in the log or in this process is recorded at once; for a foreign store an intent
is recorded first, the store follows, and `written` records that it has. A ticket stands for all of it, until
its last event is durable (`Finished`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import msgspec

from datatask.engine.core.effects import BATCH_MAX, Effect, Finished, LookAgain, Mirror, Outbox, WriteStore
from datatask.engine.core.state import State
from datatask.engine.core.tasks import OpenRun
from datatask.schema import events as e
from datatask.schema.errors import CallerError
from datatask.schema.messages import Write
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


class Changes(Outbox):
    """Keeps the tickets of changes that are under way."""

    def __init__(self, state: State) -> None:
        super().__init__(state)
        self._tickets: dict[int, Ticket] = {}
        self._next_ticket = 1
        self._under_way: Counter[tuple[str, str]] = Counter()
        self._unheard: dict[tuple[str, str], str | None] = {}
        self._promised: dict[tuple[str, str], int] = {}
        self.recall: Callable[[int], e.Event | None] = _nothing

    def change(
        self,
        writes: Sequence[Write],
        now: int,
        *,
        origin: e.ValueOrigin = "written",
        actor: str = e.ENGINE,
        reason: str = "",
        request: str | None = None,
        asked: Sequence[e.Event] = (),
        causes: Mapping[str, int] = MappingProxyType({}),
    ) -> int:
        """Put and delete values on somebody's word; returns the ticket that `Finished` will name.

        `asked` are events that must stand in one batch with what follows from them; `causes` tells for a job which
        of them (counted from 0) led to its writes.
        """
        for write in writes:
            if self._medium(write) in ("derived", "view"):
                raise CallerError(
                    f"{write.repository} follows from others and cannot be written",
                    remedy="change the repositories that it is derived from",
                )
        number = self._ticket(origin, actor, reason, request)
        ticket = self._tickets[number]
        foreign = [write for write in writes if self._medium(write) == "foreign"]
        first = self.state.position + 1
        led = {job: first + index for job, index in causes.items()}
        events: list[e.Event] = [*asked]
        effects: list[Effect] = []
        for write in writes:
            medium = self._medium(write)
            if medium in ("native", "mirror") and self._changes(write):
                events.append(_led_by(change_event(write, now, ticket=ticket), led.get(write.job)))
                if medium == "mirror":
                    effects.append(Mirror(write))
        ticket.count = len(events)
        if foreign:
            events += [
                _led_by(intent, led.get(intent.job or "")) for intent in self._intents(foreign, number, now)
            ]
            effects += [WriteStore(write, None, number) for write in foreign]
        for start in range(0, len(events), BATCH_MAX):
            ticket.position = self._emit(events[start : start + BATCH_MAX])
        if effects:
            self._attach(effects)
        if not foreign:
            self._finish(number)
        return number

    def _changes(self, write: Write) -> bool:
        return write.op != "delete" or self.state.contains(write.repository, write.job)

    def _ticket(self, origin: e.ValueOrigin, actor: str, reason: str, request: str | None) -> int:
        number = self._next_ticket
        self._next_ticket += 1
        self._tickets[number] = Ticket(origin=origin, actor=actor, reason=reason, request=request)
        return number

    def _finish(self, number: int) -> None:
        ticket = self._tickets.pop(number)
        self._attach([Finished(number, ticket.position, ticket.count, ticket.failed)])

    def _foreign(self, writes: Sequence[Write], number: int, now: int) -> None:
        effects = [WriteStore(write, None, number) for write in writes]
        self._emit_in_parts(self._intents(writes, number, now), effects)

    def _intents(self, writes: Sequence[Write], number: int, now: int) -> list[e.StoreWriteIntended]:
        """Return what is said before foreign stores are changed; from here on their echoes are ours."""
        ticket = self._tickets[number]
        ticket.outstanding.update((write.repository, write.job) for write in writes)
        self._under_way.update(ticket.outstanding)
        who = {"reason": ticket.reason, "request": ticket.request, "actor": ticket.actor}
        return [intent_event(write, now, **who) for write in writes]

    def _arrived(self, key: tuple[str, str], version: str | None) -> None:
        """A write of ours is no longer under way to its store, which has this version of it now."""
        self._under_way[key] -= 1
        if self._under_way[key] <= 0:
            del self._under_way[key]
            if key in self._unheard:
                heard = self._unheard.pop(key)
                if heard is None or heard != version:  # else the last that was heard of it is our own echo
                    self._attach([LookAgain(*key)])

    def _ticket_written(self, number: int, write: Write, version: str | None, error: str, now: int) -> None:
        ticket = self._tickets[number]
        ticket.outstanding.discard((write.repository, write.job))
        self._arrived((write.repository, write.job), version)
        if error:
            ticket.fail(write, error)
        intent = self.state.intents.get((write.repository, self.state.job_index[write.job]))
        led = intent.position if intent is not None and intent.event.run is None else None
        present = self.state.contains(write.repository, write.job)
        if not error and (write.op != "delete" or present):
            done = msgspec.structs.replace(write, version=version)
            ticket.position = self._emit([_led_by(change_event(done, now, ticket=ticket), led)])
            ticket.count += 1
        elif intent is not None and not present:
            gone = msgspec.structs.replace(write, op="delete", version=None)
            ticket.position = self._emit([_led_by(change_event(gone, now, ticket=ticket), led)])
        if not ticket.outstanding:
            self._finish(number)


def _nothing(position: int) -> e.Event | None:
    """Stand in for what the engine remembers of the log, which makes what is told better and decides nothing."""
    return None


def _led_by(event: e.Event, cause: int | None) -> e.Event:
    return event if cause is None else msgspec.structs.replace(event, cause=cause)
