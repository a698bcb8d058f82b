"""A log folded anew: `replay(place)`, and what `datatask replay` and `datatask verify` print of it.

In: where the log is, how far, and whether to verify or to hold it against another definition. Out: `Replayed`. A log
that is broken is folded as far as can be, and what does not hold is told.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from time import perf_counter as clock
from typing import Any

from datatask.adapters.history import shapes
from datatask.adapters.history.against import Declaring, Other, compare, other_of
from datatask.adapters.history.history import History, Moment
from datatask.adapters.history.states import beginning, collector_off, refold, uncut
from datatask.adapters.history.verifying import Verified, verified
from datatask.adapters.history.when import iso
from datatask.adapters.log.reader import LogReader
from datatask.engine.core.divergences import Divergence
from datatask.engine.core.fold import apply_all
from datatask.engine.core.state import State
from datatask.schema.definition import PipelineDef
from datatask.schema.errors import LogDamagedError

Progress = Callable[[int, int], None]
"""Called with (events done, events in all)."""

Against = Other | PipelineDef | Declaring | str | Path
"""Another definition: a value, a pipeline that declares one, a JSON file, another log."""

BROKEN = "restore the log from a backup; what stands before this position is as it was written"
ODD = "where the chain holds this is as it was written: please report it with the log"
_SHOWN = 20


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
    against: Against | None = None,
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
    against: Against | None = None,
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
        other = against if isinstance(against, Other) else other_of(against)
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
