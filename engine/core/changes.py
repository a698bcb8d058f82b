"""Changes that somebody asked for: values put and deleted, by a program or a person.

In come `Write`s. What lives in the log or in this process is recorded at once; for a foreign store an intent
is recorded first, the store follows, and `written` records that it has. A ticket stands for all of it, until
its last event is durable (`Finished`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

import msgspec

from datatask.engine.core.effects import Effect, Finished, LookAgain, Mirror, WriteStore
from datatask.engine.core.outbox import BATCH_MAX, Outbox
from datatask.engine.core.records import Ticket, change_event, intent_event
from datatask.engine.core.state import State
from datatask.engine.ports import Write
from datatask.schema import events as e
from datatask.schema.errors import CallerError


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
