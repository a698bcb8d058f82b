"""Answers of `why` with the events that they cite: read from the log where the state knows only positions.

In: a reader, a state, an `Explanation`. Out: the same with `events`, one for each position that it names (kind, time,
actor, run, reason), and with positions that only the log has: the end of a view's run, the answer of a filter or
translator, the request that cancelled. A few reads by job, each over an index.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import msgspec

from datatask.adapters.clock import SystemClock
from datatask.adapters.history.shapes import Table
from datatask.adapters.log.lease import probe
from datatask.adapters.log.reader import LogReader
from datatask.engine.core.state import State
from datatask.engine.explain.explanations import Blocker, CitedEvent, Explanation, Group, Node
from datatask.engine.ports import Filters
from datatask.schema.errors import UnknownNameError
from datatask.schema.events import Event, Recorded, RunEnded, RunObserved, RunUnreachable, UnknownEvent
from datatask.schema.units import iso

_OF_A_RUN = ("RunObserved", "RunUnreachable", "RunReachable", "RunStarted", "RunAdopted")
GROUP_COLUMNS = ("what", "count", "explain", "sample", "until")


class Surroundings(NamedTuple):
    """Facts from outside a state: is an engine alive, the time, the tasks whose runners are unavailable."""

    engine_alive: bool
    now: int
    unavailable: frozenset[str]


def surroundings(reader: LogReader, state: State, *, past: bool) -> Surroundings:
    """Return the present ones, or, for a state of the `past`, those of then, as far as the log tells."""
    if past:
        alive, now = state.engine is not None and not state.closed, state.at
    else:
        alive, now = probe(reader.path) is not None, max(SystemClock().now(), state.at)
    # From the last recorded round; without an engine no runner is there, which is a blocker of its own.
    away = {task.name for task in state.tasks.values() if alive and task.constraint == "adapter"}
    return Surroundings(alive, now, frozenset(away))


def table_of(groups: Iterable[Group]) -> Table:
    """Return groups as rows."""
    rows = ([getattr(group, name) for name in GROUP_COLUMNS] for group in groups)
    return Table(GROUP_COLUMNS, rows)


def with_events(reader: LogReader, state: State, found: Explanation) -> Explanation:
    """Return the answer with every event that it cites."""
    sources = CitedEvents(reader, state, found.job)
    tree = sources.of(found.tree, found.job)
    conditions = [
        msgspec.structs.replace(condition, since=sources.since(condition.since, before, after))
        for condition, before, after in zip(found.conditions, found.tree.of, tree.of, strict=True)
    ]
    blockers = [sources.of_blocker(blocker, found.task) for blocker in found.held_by]
    answer = msgspec.structs.replace(found, tree=tree, conditions=conditions, held_by=blockers)
    return msgspec.structs.replace(answer, events=cited(reader, answer.positions()))


def cited(reader: LogReader, positions: list[int]) -> list[CitedEvent]:
    """Return the events at these positions, without those that are archived."""
    events: list[Recorded] = []
    try:
        fetched = reader.fetch(positions) if positions else []
        events = [Recorded(*pair) for pair in zip(positions, fetched, strict=True)]
    except UnknownNameError:
        for position in positions:
            events += reader.read(position - 1, position)
    return [_cited(position, event) for position, event in events]


def _cited(position: int, event: Event) -> CitedEvent:
    kind = event.name if isinstance(event, UnknownEvent) else type(event).__name__
    run = position if kind == "LaunchDecided" else event.run
    if isinstance(event, RunEnded):
        kind = f"{kind}: {event.outcome}"
    reason = str(getattr(event, "reason", ""))
    about = {"position": position, "kind": kind, "at": iso(event.at) or "", "actor": event.actor}
    return CitedEvent(**about, run=run, reason=reason)  # type: ignore[arg-type]


class CitedEvents:
    """Finds the events behind the facts of one job in a state; archived ones are left out."""

    def __init__(self, reader: LogReader, state: State, job: str) -> None:
        self._reader, self._state, self._job = reader, state, job
        self._base = reader.header.base

    def since(self, state_since: int | None, before: Node, after: Node) -> int | None:
        """Return the newest position in a tree; None where it may be one that was archived."""
        known = max(_positions(after), default=0)
        if len(_positions(after)) == len(_positions(before)):
            return max(known, state_since or 0) or None
        return known if known > self._base else None

    def of(self, node: Node, job: str) -> Node:
        """Return a node with the position of the event that made it so, and all below."""
        job = node.job or job
        below = [self.of(part, job) for part in node.of]
        since = node.since
        if node.by == "view" and since is not None:
            since = self._ended(job, since) or (None if self._is_archived(since) else since)
        elif node.by in ("filter", "translation") and node.answer:
            last = self._last(job, "Evaluated", repository=node.repository)
            since = max(since or 0, 0 if last is None else last.position) or None
            if last is None and since is not None and since <= self._base:
                since = None
        if not below and since == node.since:
            return node
        return msgspec.structs.replace(node, of=below, since=since)

    def of_blocker(self, blocker: Blocker, task: str) -> Blocker:
        """Return a blocker with the event that made it so, where only the log has that."""
        found: Recorded | None = None
        if blocker.what == "live" and blocker.since is not None:
            return self._with_message(blocker, blocker.since)
        if blocker.what == "cancelled":
            found = self._last(self._job, "CancelRequested", task=task)
        elif blocker.what == "claimed" and blocker.since is not None:
            ended = self._ended(self._job, blocker.since)
            if ended is None and not self._is_archived(blocker.since):
                return blocker
            return msgspec.structs.replace(blocker, since=ended)
        elif blocker.what == "observing" and self._state.leaves[blocker.repository].held:
            found = self._last(None, "ObservationHeld", repository=blocker.repository)
        elif blocker.what == "observing" and self._state.leaves[blocker.repository].trouble:
            found = self._last(None, "RepositoryUnreachable", repository=blocker.repository)
        elif blocker.what == "evaluation" and blocker.until:
            where = {"repository": blocker.repository} if blocker.repository else {"task": task}
            found = self._last(self._job, "Evaluated", **where)
        return blocker if found is None else msgspec.structs.replace(blocker, since=found.position)

    def _with_message(self, blocker: Blocker, run: int) -> Blocker:
        """Add the runner's last message about an open run: a pod that no node takes, a server that refuses it."""
        filters = Filters(kinds=_OF_A_RUN, jobs=(self._job,), runs=(run,))
        last = next(self._reader.read_back(run, self._state.position, filters, page_rows=1), None)
        event = None if last is None else last.event
        if last is None or not isinstance(event, RunObserved | RunUnreachable) or not event.message:
            return blocker
        reason = f"{event.reason}: " if isinstance(event, RunObserved) and event.reason else ""
        text = f"{blocker.explain}; {reason}{event.message} (position {last.position})"
        return msgspec.structs.replace(blocker, explain=text)

    def _is_archived(self, run: int) -> bool:
        return run <= self._base and run not in self._state.open_runs

    def _ended(self, job: str, run: int) -> int | None:
        """Return where a run of the job ended, None where it has not, or where this is no run."""
        filters = Filters(kinds=("RunEnded",), jobs=(job,), runs=(run,))
        found = next(self._reader.read_back(run, self._state.position, filters, page_rows=1), None)
        return None if found is None else found.position

    def _last(self, job: str | None, kind: str, *, task: str = "", repository: str = "") -> Recorded | None:
        filters = Filters(
            kinds=(kind,),
            jobs=() if job is None else (job,),
            tasks=(task,) if task else (),
            repositories=(repository,) if repository else (),
        )
        return next(self._reader.read_back(0, self._state.position, filters, page_rows=1), None)


def _positions(node: Node) -> list[int]:
    found = [node.since] if node.since else []
    return found + [position for part in node.of for position in _positions(part)]
