"""Requested changes: values put and deleted by a program or a person.

In come `Write`s. Values that live in the log or in this process are recorded at once; for a foreign store an intent
is recorded first, the store follows, and `written` records that it has. A ticket stands for all of it, until
its last event is durable (`Finished`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

import msgspec

from datatask.engine.core.effects import (
    BATCH_MAX,
    Effect,
    Finished,
    Mirror,
    Outbox,
    WriteStore,
    change_event,
    intended_write,
    intent_event,
)
from datatask.engine.core.store_sync import StoreSync
from datatask.schema import events as e
from datatask.schema.errors import NotPossibleError
from datatask.schema.messages import Write

FAILURES_REPORTED_MAX = 3


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
    reported: list[str] = field(default_factory=list)

    def event(self, write: Write, now: int, cause: int | None = None) -> e.Event:
        """Return the event for a completed write, with its actor and its cause."""
        event = msgspec.structs.replace(
            change_event(write, now),
            actor=self.actor,
            origin=self.origin,
            reason=self.reason,
            request=self.request,
        )
        return _led_by(event, cause)

    def fail(self, write: Write, error: str) -> None:
        """Record a write that its store refused; the first few with their errors."""
        self.failures += 1
        if len(self.reported) < FAILURES_REPORTED_MAX:
            self.reported.append(f"{write.repository}[{write.job}]: {error}")

    @property
    def failed(self) -> str:
        """The failed writes and their errors, in one line."""
        rest = self.failures - len(self.reported)
        return "; ".join(self.reported) + (f"; and {rest} more" if rest else "")


class Tickets:
    """The changes under way, by number."""

    def __init__(self, outbox: Outbox, stores: StoreSync) -> None:
        self._outbox = outbox
        self._state = outbox.state
        self._stores = stores
        self._open: dict[int, Ticket] = {}
        self._next = 1

    def ask(self, events: Sequence[e.Event], effects: Iterable[Effect] = ()) -> int:
        """Append the events of a person's request; return the ticket that `Finished` will name."""
        position = self._outbox.emit_in_parts(events)
        return self.done(position, len(events), effects)

    def done(self, position: int, count: int, effects: Iterable[Effect] = ()) -> int:
        """Return a ticket for events already appended, the last at `position`, and add effects."""
        number = self._next
        self._next += 1
        self._outbox.attach([*effects, Finished(number, position, count)])
        return number

    def redo(self, now: int) -> None:
        """Complete the requested writes that an earlier engine left undone."""
        for _, intent in sorted(self._state.intents.values(), key=lambda intent: intent.position):
            if intent.run is None:
                origin: e.ValueOrigin = "written" if intent.request is None else "injected"
                number = self.open(origin, intent.actor, intent.reason, intent.request)
                self.send([intended_write(intent)], number, now)

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
        """Put and delete values on request; returns the ticket that `Finished` will name.

        `asked` are events that must stand in one batch with what follows from them; `causes` tells for a job which
        of them (counted from 0) led to its writes.
        """
        for write in writes:
            if self._state.medium(write.repository) in ("derived", "view"):
                raise NotPossibleError(
                    f"{write.repository} follows from others and cannot be written",
                    remedy="change the repositories that it is derived from",
                )
        number = self.open(origin, actor, reason, request)
        ticket = self._open[number]
        foreign = [write for write in writes if self._state.medium(write.repository) == "foreign"]
        first = self._state.position + 1
        led = {job: first + index for job, index in causes.items()}
        events: list[e.Event] = [*asked]
        effects: list[Effect] = []
        for write in writes:
            medium = self._state.medium(write.repository)
            if medium in ("native", "mirror") and self._changes(write):
                events.append(ticket.event(write, now, led.get(write.job)))
                if medium == "mirror":
                    effects.append(Mirror(write))
        ticket.count = len(events)
        if foreign:
            events += [
                _led_by(intent, led.get(intent.job or "")) for intent in self._intents(foreign, number, now)
            ]
            effects += [WriteStore(write, None, number) for write in foreign]
        for start in range(0, len(events), BATCH_MAX):
            ticket.position = self._outbox.emit(events[start : start + BATCH_MAX])
        if effects:
            self._outbox.attach(effects)
        if not foreign:
            self._finish(number)
        return number

    def open(
        self,
        origin: e.ValueOrigin = "written",
        actor: str = e.ENGINE,
        reason: str = "",
        request: str | None = None,
    ) -> int:
        """Return the number of a new ticket."""
        number = self._next
        self._next += 1
        self._open[number] = Ticket(origin=origin, actor=actor, reason=reason, request=request)
        return number

    def send(self, writes: Sequence[Write], number: int, now: int) -> None:
        """Intend changes of foreign stores, and have them made."""
        effects = [WriteStore(write, None, number) for write in writes]
        self._outbox.emit_in_parts(self._intents(writes, number, now), effects)

    def _changes(self, write: Write) -> bool:
        return write.op != "delete" or self._state.contains(write.repository, write.job)

    def _finish(self, number: int) -> None:
        ticket = self._open.pop(number)
        self._outbox.attach([Finished(number, ticket.position, ticket.count, ticket.failed)])

    def _intents(self, writes: Sequence[Write], number: int, now: int) -> list[e.StoreWriteIntended]:
        """Return the intents for changes of foreign stores; reports of these keys count as our echoes from now on."""
        ticket = self._open[number]
        ticket.outstanding.update((write.repository, write.job) for write in writes)
        self._stores.sent(ticket.outstanding)
        who = {"reason": ticket.reason, "request": ticket.request, "actor": ticket.actor}
        return [intent_event(write, now, **who) for write in writes]

    def written(self, number: int, write: Write, version: str | None, error: str, now: int) -> None:
        """A foreign store completed an intent of a ticket; with `error` it failed for good."""
        ticket = self._open[number]
        ticket.outstanding.discard((write.repository, write.job))
        self._stores.arrived((write.repository, write.job), version)
        if error:
            ticket.fail(write, error)
        intent = self._state.intents.get((write.repository, self._state.job_index[write.job]))
        led = intent.position if intent is not None and intent.event.run is None else None
        present = self._state.contains(write.repository, write.job)
        if not error and (write.op != "delete" or present):
            done = msgspec.structs.replace(write, version=version)
            ticket.position = self._outbox.emit([ticket.event(done, now, led)])
            ticket.count += 1
        elif intent is not None and not present:
            gone = msgspec.structs.replace(write, op="delete", version=None)
            ticket.position = self._outbox.emit([ticket.event(gone, now, led)])
        if not ticket.outstanding:
            self._finish(number)


def _led_by(event: e.Event, cause: int | None) -> e.Event:
    return event if cause is None else msgspec.structs.replace(event, cause=cause)
