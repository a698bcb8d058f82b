"""Changes that somebody asked for: values put and deleted, by a program or a person.

In come `Write`s. What lives in the log or in this process is recorded at once; for a foreign store an intent
is recorded first, the store follows, and `written` records that it has. A ticket stands for all of it, until
its last event is durable (`Finished`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import msgspec

from datatask.engine.core.effects import Effect, Finished, Mirror, WriteStore
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

    def change(
        self,
        writes: Sequence[Write],
        now: int,
        *,
        origin: e.ValueOrigin = "written",
        actor: str = e.ENGINE,
        reason: str = "",
        request: str | None = None,
    ) -> int:
        """Put and delete values on somebody's word; returns the ticket that `Finished` will name."""
        for write in writes:
            if self._medium(write) in ("derived", "view"):
                raise CallerError(
                    f"{write.repository} follows from others and cannot be written",
                    remedy="change the repositories that it is derived from",
                )
        number = self._ticket(origin, actor, reason, request)
        ticket = self._tickets[number]
        foreign = [write for write in writes if self._medium(write) == "foreign"]
        events: list[e.Event] = []
        effects: list[Effect] = []
        for write in writes:
            medium = self._medium(write)
            if medium in ("native", "mirror") and self._changes(write):
                events.append(change_event(write, now, ticket=ticket))
                if medium == "mirror":
                    effects.append(Mirror(write))
        ticket.count = len(events)
        for start in range(0, len(events), BATCH_MAX):
            ticket.position = self._emit(events[start : start + BATCH_MAX])
        if effects:
            self._attach(effects)
        if foreign:
            self._foreign(foreign, number, now)
        else:
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
        self._attach([Finished(number, ticket.position, ticket.count)])

    def _foreign(self, writes: Sequence[Write], number: int, now: int) -> None:
        ticket = self._tickets[number]
        ticket.outstanding.update((write.repository, write.job) for write in writes)
        intents = [
            msgspec.structs.replace(
                intent_event(write, now, reason=ticket.reason, request=ticket.request), actor=ticket.actor
            )
            for write in writes
        ]
        effects = [WriteStore(write, None, number) for write in writes]
        self._under_way.update(ticket.outstanding)
        self._emit_in_parts(intents, effects)

    def _arrived(self, key: tuple[str, str]) -> None:
        """A write of ours is no longer under way to its store."""
        self._under_way[key] -= 1
        if self._under_way[key] <= 0:
            del self._under_way[key]

    def _ticket_written(self, number: int, write: Write, version: str | None, error: str, now: int) -> None:
        ticket = self._tickets[number]
        ticket.outstanding.discard((write.repository, write.job))
        self._arrived((write.repository, write.job))
        if not error and (write.op != "delete" or self.state.contains(write.repository, write.job)):
            done = msgspec.structs.replace(write, version=version)
            ticket.position = self._emit([change_event(done, now, ticket=ticket)])
            ticket.count += 1
        elif (write.repository, self.state.job_index[write.job]) in self.state.intents:
            gone = e.ValueDeleted(at=now, actor=ticket.actor, repository=write.repository, job=write.job)
            present = self.state.contains(write.repository, write.job)
            if not present:
                ticket.position = self._emit([gone])
        if not ticket.outstanding:
            self._finish(number)
