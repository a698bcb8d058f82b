"""`replay` and `verify`: a log folded from its beginning, its chain and the engine's promises checked.

In: a log, nothing else; no checkpoint is used. Out: how many events, how far, whether the chain holds, what
does not hold in the states in between, and the state that follows. Exit code 3 tells of a difference.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import click

from datatask.adapters.cli.against import other_definition
from datatask.adapters.cli.counts import lines
from datatask.adapters.cli.options import WHEN, command
from datatask.adapters.cli.output import Output, shown
from datatask.adapters.cli.recorded import Recorded, opened
from datatask.adapters.cli.settings import Settings
from datatask.adapters.history import shapes
from datatask.adapters.history.against import compare, texts
from datatask.adapters.history.when import When, position_of
from datatask.adapters.log.reader import LogReader
from datatask.adapters.log.verify import verify_chain
from datatask.engine.core import invariants
from datatask.engine.core.fold import apply_all
from datatask.engine.core.state import State
from datatask.schema import events as e
from datatask.schema.errors import CallerError

DIFFERENT = 3
TOLD_MAX = 1000


class Replayed(NamedTuple):
    """A log folded from its beginning: the state, what was found wrong on the way, and how long it took."""

    state: State
    divergences: list[dict[str, Any]]
    seconds: float


@command(
    "replay",
    example="datatask replay --at -1h\ndatatask replay .datatask/log.db --verify --json\n"
    "datatask replay --against changed.py",
)
@click.argument("place", required=False, metavar="[LOG]")
@click.option(
    "--verify", "checks", is_flag=True, help="Also check the chain, and each decision where it stands."
)
@click.option(
    "--at", type=WHEN, metavar="WHEN", help="Only up to a position, an ISO time or an age such as -2h."
)
@click.option(
    "--against",
    metavar="PIPELINE",
    help="Also tell what would have been different under this definition: FILE[:NAME], MODULE[:NAME], a definition"
    " in JSON, or another log.",
)
def replay(settings: Settings, place: str | None, at: When | None, checks: bool, against: str | None) -> int:
    """Fold a log from its beginning, without any checkpoint, and show the state that follows.

    With --json: {"events", "head", "chain", "divergences", "differences", "seconds", "state"}.
    """
    output = Output(settings)
    other = other_definition(against) if against is not None else None
    with _reading(settings, place) as reader:
        until = position_of(reader, at)
        broken = verify_chain(reader, until=until) if checks else None
        replayed = _replay(reader, until, checks=checks) if broken is None else Replayed(State(), [], 0.0)
        shape = _shape(reader, replayed, broken)
        compared = compare(reader, other, until) if other is not None and broken is None else None
    if compared is not None:
        shape["differences"] = compared.differences
    _tell(output, shape, quiet=False)
    if compared is not None and not output.json:
        for line in texts(compared.differences, compared.skipped):
            output.line(shown(line))
    return DIFFERENT if broken is not None or replayed.divergences or shape["differences"] else 0


@command("verify", example="datatask verify\ndatatask verify --log .datatask/log.db --json")
def verify(settings: Settings) -> int:
    """Check a log: its chain, and that every event could follow on what came before.

    Exit code 3 when the chain is broken or a promise of the engine does not hold; the position is told.
    """
    output = Output(settings)
    with opened(settings) as reader:
        until = reader.head
        broken = verify_chain(reader, until=until)
        replayed = _replay(reader, until, checks=True) if broken is None else Replayed(State(), [], 0.0)
        shape = _shape(reader, replayed, broken)
    _tell(output, shape, quiet=True)
    return DIFFERENT if broken is not None or replayed.divergences else 0


@contextmanager
def _reading(settings: Settings, place: str | None) -> Iterator[LogReader]:
    if place is not None:
        if settings.log is not None:
            raise CallerError("two logs are named", remedy="leave out --log or the argument")
        settings.log = place
    with opened(settings) as reader:
        yield reader


def _replay(reader: LogReader, until: int, *, checks: bool) -> Replayed:
    began = time.perf_counter()
    state, divergences = State(), []
    checker = invariants.Checker()
    for batch in reader.batches(0, until):
        wrong = checker.before(state, batch.events) if checks else []
        if checks:
            wrong += _derived_again(state, batch)
        apply_all(state, batch.first, batch.events)
        if checks:
            wrong += checker.after(state)
        divergences += [one.to_json() for one in wrong]
        if len(divergences) >= TOLD_MAX:
            break
    if checks:
        divergences += [one.to_json() for one in invariants.check(state)]
    return Replayed(state, divergences, time.perf_counter() - began)


def _derived_again(state: State, batch: e.Batch) -> list[invariants.Divergence]:
    """Return how a recorded round differs from what the same decider decides from the same state."""
    first = batch.events[0]
    if not isinstance(first, e.DecisionRound) or first.decider not in invariants.SHIPPED:
        return []
    decisions = [event for event in batch.events if isinstance(event, e.LaunchDecided)]
    return invariants.rederive(state, first, decisions)


def _shape(reader: LogReader, replayed: Replayed, broken: int | None) -> dict[str, Any]:
    state = replayed.state
    return {
        "events": state.position,
        "head": state.position,
        "chain": "ok" if broken is None else {"broken_at": broken},
        "divergences": replayed.divergences,
        "differences": [],
        "seconds": round(replayed.seconds, 6),
        "state": {"log": Recorded(reader, state).about(), **shapes.status(state)},
    }


def _tell(output: Output, shape: dict[str, Any], *, quiet: bool) -> None:
    if output.json:
        output.document(shape)
        return
    chain = shape["chain"]
    if chain != "ok":
        output.line(f"the chain is broken at position {chain['broken_at']}; restore the log from a backup")
    for found in shape["divergences"]:
        output.line(shown(f"position {found['position']}: {found['what']}"))
    if chain == "ok":
        word = "does not hold everywhere" if shape["divergences"] else "ok"
        output.line(f"{shape['events']} events in {shape['seconds']:.2f} s, head {shape['head']}: {word}")
    if not quiet and chain == "ok":
        output.line()
        for line in lines(shape["state"]):
            output.line(line)
