"""A log folded anew, at once (`replay`, and what the commands print of it) or event by event (`Stepper`).

In: where the log is, how far, and whether to verify or to compare it with another definition. Out: `Replayed`: a log that is broken
is folded as far as can be, and what does not hold is told; or the state behind any event, inside a batch too, and `Changed`:
memberships that flipped, queues, runs, counts, quotas. Single steps fold in place; long ways go by the nearest checkpoint.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from time import perf_counter as clock
from typing import Any

from datatask.adapters.history import shapes
from datatask.adapters.history.compare import Declaring, OtherDefinition, compare, other_definition
from datatask.adapters.history.history import History
from datatask.adapters.history.moments import Moment
from datatask.adapters.history.states import beginning, collector_off, fold, follow, refold, uncut
from datatask.adapters.history.verify.fold import Verified, verified
from datatask.adapters.log.reader import LogReader
from datatask.engine.core.fold import apply, apply_all
from datatask.engine.core.state import State
from datatask.schema import events as e
from datatask.schema.definition import PipelineDef
from datatask.schema.errors import InvalidValueError, LogDamagedError
from datatask.schema.troubles import Divergence
from datatask.schema.units import iso

Progress = Callable[[int, int], None]
"""Called with (events done, events in all)."""

AnyDefinition = OtherDefinition | PipelineDef | Declaring | str | Path
"""Another definition: a value, a pipeline that declares one, a JSON file, another log."""

BROKEN = "restore the log from a backup; what stands before this position is as it was written"
ODD = "where the chain holds this is as it was written: please report it with the log"
_SHOWN = 20


FLIPS_MAX = 20
Counts = dict[str, int]


@dataclass(frozen=True)
class Replayed:
    """A log folded from its beginning.

    `events` were folded, up to the boundary `head`; `broken_at` is the first position at which the chain does not hold,
    None where it holds or was not asked for (`verified`); `divergences` are in the order of positions; `differences`
    are those from the definition it was held against, in the shape of docs/cli.md, `skipped` the events that it has no
    place for, by kind.
    """

    url: str
    events: int
    head: int
    verified: bool
    broken_at: int | None
    divergences: tuple[Divergence, ...]
    differences: tuple[dict[str, Any], ...]
    seconds: float
    state: State
    skipped: dict[str, int] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        """Whether nothing was found wrong; differences from another definition are nothing wrong."""
        return not self.divergences

    @property
    def chain(self) -> str | dict[str, int]:
        """`ok`, or where it is broken, as in the JSON."""
        return "ok" if self.broken_at is None else {"broken_at": self.broken_at}

    def to_json(self) -> dict[str, Any]:
        """Return the documented shape of `replay --json`."""
        about = {"url": self.url, "head": self.head, "at": iso(self.state.at or None)}
        return {
            "events": self.events,
            "head": self.head,
            "chain": self.chain,
            "divergences": [one.to_json() for one in self.divergences],
            "differences": list(self.differences),
            "seconds": round(self.seconds, 6),
            "state": {"log": about, **self._status()},
        }

    def _status(self) -> dict[str, Any]:
        """Return the counts; none where a damaged definition names what it does not declare."""
        try:
            return shapes.status(self.state)
        except KeyError as error:
            if self.divergences:
                return {"tasks": {}, "quotas": {}}
            raise LogDamagedError(
                f"the definition names the repository {error}, and does not declare it",
                where=self.url,
                remedy="run `datatask verify` on the log",
            ) from error

    def summary(self) -> str:
        """Return it in one line."""
        rate = f" ({self.events / self.seconds:,.0f} a second)" if self.seconds > 0.001 else ""
        word = "does not hold everywhere" if self.divergences else "ok"
        return f"{self.events} events in {self.seconds:.2f} s{rate}, head {self.head}: {word}"

    def __repr__(self) -> str:
        """Return the summary and the first divergences, a line each."""
        more = len(self.divergences) - _SHOWN
        lines = [f"<Replayed {self.url}: {self.summary()}>", *map(str, self.divergences[:_SHOWN])]
        return "\n".join([*lines, f"and {more} more"] if more > 0 else lines)


def replay(
    place: str | Path,
    *,
    at: Moment = None,
    verify: bool = False,
    against: AnyDefinition | None = None,
    progress: Progress | None = None,
) -> Replayed:
    """Fold the log at a URL or path from its beginning, without any checkpoint, up to `at` (the head).

    `verify` checks the chain, every invariant at each batch, each decision, and each round again. `against` tells what
    another definition would have made of the same facts. `progress` is called now and then with (done, in all).
    Raises `CallerError` where there is no log, `LogDamagedError` where the file cannot be opened as one.
    """
    with History(place) as history:
        return replayed(
            history.reader, history.position(at), verify=verify, against=against, progress=progress
        )


def replayed(
    reader: LogReader,
    until: int,
    *,
    verify: bool = False,
    against: AnyDefinition | None = None,
    progress: Progress | None = None,
) -> Replayed:
    """`replay` for a log that is open, up to a batch boundary."""
    began = clock()

    def work() -> Verified:
        return verified(reader, until, progress=progress) if verify else _folded(reader, until, progress)

    found = uncut(reader, work, lambda found: not found.divergences)
    differences: list[dict[str, Any]] = []
    skipped: dict[str, int] = {}
    if against is not None and found.state.position == until:
        other = against if isinstance(against, OtherDefinition) else other_definition(against)
        _, differences, skipped = compare(reader, other, until, progress)
    told = replayed_of(reader, found, seconds=clock() - began, verified=verify)
    return replace(told, differences=tuple(differences), skipped=skipped)


def replayed_of(reader: LogReader, found: Verified, *, seconds: float, verified: bool = True) -> Replayed:
    """Return what was found with the remedies that it is told with."""
    chain = set(map(id, found.chain))
    told = [
        one if one.remedy else one._replace(remedy=BROKEN if id(one) in chain else ODD)
        for one in found.divergences
    ]
    return Replayed(
        reader.url,
        found.state.position - reader.header.base,
        found.state.position,
        verified,
        found.broken_at,
        tuple(told),
        (),
        seconds,
        found.state,
    )


def _folded(reader: LogReader, until: int, progress: Progress | None) -> Verified:
    """Fold without looking; where that fails, once more, as far as can be."""
    try:
        return Verified(refold(reader, until, progress), until)
    except LogDamagedError:
        pass
    found = Verified(beginning(reader), until)
    state, folded = beginning(reader), 0
    with collector_off():
        try:
            for batch in reader.batches(state.position, until):
                folded = batch.first - 1
                apply_all(state, batch.first, batch.events)
                folded = batch.last
                if progress is not None:
                    progress(batch.last, until)
        except LogDamagedError as error:
            why = Divergence(folded + 1, "the next event", "one that follows", error.what, error.remedy)
            found.divergences.append(why)
    found.state = refold(reader, folded)  # the event that did not fit may have been taken in by half
    return found


@dataclass(frozen=True)
class Changed:
    """What one event changed: (repository, job, whether it is in it now), lines about queues, counts before and after."""

    flips: tuple[tuple[str, str, bool], ...] = ()
    flipped: int = 0
    queues: tuple[str, ...] = ()
    counts: tuple[tuple[str, int, int], ...] = ()

    def lines(self) -> list[str]:
        """Return it in words, a line each."""
        told = [f"{job} {'enters' if present else 'leaves'} {leaf}" for leaf, job, present in self.flips]
        if self.flipped > len(self.flips):
            told.append(f"and {self.flipped - len(self.flips)} more memberships")
        told += self.queues[:FLIPS_MAX]
        if len(self.queues) > FLIPS_MAX:
            told.append(f"and {len(self.queues) - FLIPS_MAX} more places in queues")
        told += [f"{name}: {before} -> {after}" for name, before, after in self.counts]
        return told or ["nothing that is counted"]


@dataclass
class Stepper:
    """A walk through a log; `state` is the state after the event at `position`."""

    reader: LogReader
    state: State = field(default_factory=State)
    last: e.Recorded | None = None
    changed: Changed = field(default_factory=Changed)
    _coming: Iterator[e.Batch] | None = None
    _rest: list[e.Event] = field(default_factory=list)

    @property
    def position(self) -> int:
        """Where one stands; 0 in front of the first event."""
        return self.state.position

    @property
    def in_batch(self) -> int:
        """How many events of the batch at hand are still to come; 0 at a batch boundary."""
        return len(self._rest)

    def step(self) -> e.Recorded | None:
        """Fold one event and work out what it changed; None at the head."""
        event = self._next()
        if event is None:
            return None
        before = _Before(self.state, event)
        self._apply(event)
        self.changed = before.compared(self.state)
        return self.last

    def batch(self) -> list[e.Recorded]:
        """Fold the rest of the batch at hand, or the next one; what they changed together is `changed`."""
        event = self._next()
        if event is None:
            return []
        events = [event, *self._rest]
        before = _Before(self.state, *events)
        found = [self._apply(event)]
        for event in events[1:]:
            self._next()
            found.append(self._apply(event))
        self.changed = before.compared(self.state)
        return found

    def goto(self, position: int) -> None:
        """Stand behind the event at `position`, wherever that is from here."""
        head = self.reader.head
        if not self.reader.header.base <= position <= head:
            raise InvalidValueError(
                f"position {position} is not in the log",
                where=self.reader.url,
                remedy=f"use {self.reader.header.base} to {head}",
            )
        ((boundary,),) = self.reader.query(
            "SELECT max(position) FROM log WHERE position <= ? AND chain IS NOT NULL", (position,)
        ).rows
        boundary = max(boundary or 0, self.reader.header.base)
        if self._rest or not self.position <= boundary or boundary - self.position > 50_000:
            self.state = fold(self.reader, boundary)
        else:
            with collector_off():
                follow(self.reader, self.state, boundary)
        self._coming, self._rest, self.changed = None, [], Changed()
        self.last = None
        while self.position < position:
            self.step()

    def until(self, matches: Callable[[int, e.Event], bool]) -> e.Recorded | None:
        """Go on behind the next event that matches; None, and the head, when there is no more."""
        with collector_off():
            while (event := self._next()) is not None:
                if matches(self.position + 1, event):
                    before = _Before(self.state, event)
                    self._apply(event)
                    self.changed = before.compared(self.state)
                    return self.last
                self._apply(event)
        return None

    def _next(self) -> e.Event | None:
        """Take the next event out of its batch."""
        if not self._rest:
            if self._coming is None:
                self._coming = self.reader.batches(self.position)
            batch = next(self._coming, None)
            if batch is None:
                self._coming = None  # more may be appended meanwhile
                return None
            self._rest = list(batch.events)
        return self._rest.pop(0)

    def _apply(self, event: e.Event) -> e.Recorded:
        apply(self.state, self.state.position + 1, event)
        self.last = e.Recorded(self.state.position, event)
        return self.last


class _Before:
    """What is looked at before events, to be compared behind them."""

    def __init__(self, state: State, *events: e.Event) -> None:
        for leaf in state.leaves.values():
            leaf.members(state.masks)  # settles `changed`, which then lists the jobs that flip
        self._position = state.position
        self._counts = _counts(state)
        self._waiting = {
            (task.name, event.job): self._waits(state, task.name, event.job)
            for event in events
            if event.job is not None
            for task in state.tasks.values()
        }

    def compared(self, state: State) -> Changed:
        """Return what is otherwise now."""
        flips: list[tuple[str, str, bool]] = []
        flipped = 0
        for leaf in state.leaves.values():
            jobs = dict.fromkeys(leaf.changed)
            flipped += len(jobs)
            room = max(0, FLIPS_MAX - len(flips))
            flips += [
                (leaf.id, state.jobs[job], state.masks[job] & leaf.bit != 0) for job in list(jobs)[:room]
            ]
        after = _counts(state)
        counts = tuple(
            (name, self._counts.get(name, 0), after.get(name, 0))
            for name in dict.fromkeys([*self._counts, *after])
            if self._counts.get(name, 0) != after.get(name, 0)
        )
        return Changed(tuple(flips), flipped, tuple(self._queues(state)), counts)

    def _queues(self, state: State) -> Iterator[str]:
        for (task, job), waited in self._waiting.items():
            if task in state.tasks:
                waits = self._waits(state, task, job)
                if waits != waited:
                    yield f"{job} {'enters' if waits else 'leaves'} the queue of {task}"

    def _waits(self, state: State, name: str, job: str | None) -> bool:
        index, task = state.job_index.get(job or ""), state.tasks[name]
        return index is not None and (index in task.queue or index in task.awaiting)


def _counts(state: State) -> Counts:
    """Return the numbers that events change, by what they count."""
    found: Counts = {f"members of {leaf.id}": leaf.count for leaf in state.leaves.values()}
    for task in state.tasks.values():
        found[f"waiting for {task.name}"] = len(task.queue) + len(task.awaiting)
        found[f"open runs of {task.name}"] = task.open_runs
        found[f"episodes under way in {task.name}"] = len(task.episodes)
        found[f"{task.name} paused"] = int(bool(task.paused))
    for quota in state.quotas.values():
        for part in quota.limits:
            found[f"billionths of {quota.definition.name}.{part} in use"] = quota.used.get(part, 0)
    found["jobs known"] = len(state.jobs)
    found["evaluations due"] = len(state.pending)
    found["store writes under way"] = len(state.intents)
    return found
