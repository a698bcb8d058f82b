"""The ways in which a condition comes to hold for a job, those with the fewest changes first.

In: an expression, a job, the state. Out: sets of `Atom`s with the value each must take. Sets are built over the tree
as partial assignments and merged where parts belong together, at most `WAYS_MAX` of the cheapest at each node: exact
for conditions with fewer alternatives than that, which is all that people write, and a good answer beyond. Among ways
with as many changes those come first that people can go by hand (`EFFORT`). Foreseen is what the condition says; what
a change leads to elsewhere is found out by trying it (`proposals`).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, NamedTuple

from datatask.engine.core.members import LeafState
from datatask.engine.core.state import State
from datatask.engine.core.tasks import OpenRun
from datatask.schema.definition import (
    All,
    Any,
    AnyExpr,
    FilteredDef,
    In,
    Not,
    TranslatedDef,
    ViewDef,
)

WAYS_MAX = 256


Kind = Literal["member", "live", "entry", "filter", "translation", "outcome"]
"""What makes something so: a membership; the end of an open run, for `live` and for the entry that the engine keeps while a
process lives; a filter's or a translator's answer; what becomes of a task's run of the job.
"""


class Atom(NamedTuple):
    """Something that can be so or not: whether a job is in a leaf."""

    leaf: str
    job: int


class Step(NamedTuple):
    """Whether it is to be so, and what makes it."""

    wanted: bool
    kind: Kind


EFFORT = {"member": 1, "entry": 1, "live": 2, "filter": 3, "translation": 4, "outcome": 5}
"""What comes first among ways with as many changes: less effort in all."""

Way = dict[Atom, Step]


def is_so(state: State, atom: Atom) -> bool:
    """Whether the atom is so now."""
    return state.masks[atom.job] & state.leaves[atom.leaf].bit != 0


def changed(state: State, way: Way) -> list[tuple[Atom, Step]]:
    """Return what a way changes, in order of appearance."""
    return [(atom, step) for atom, step in way.items() if is_so(state, atom) is not step.wanted]


def ways(state: State, expr: AnyExpr, job: int) -> list[Way]:
    """Return ways in which `expr` comes to hold for the job, the fewest changes first; none if it cannot."""
    return _cheapest(state, _ways(state, expr, job, True))


def smallest(state: State, expr: AnyExpr, job: int) -> Way | None:
    """Return a way with the fewest changes in which `expr` comes to hold for the job, or None."""
    return next(iter(ways(state, expr, job)), None)


def _ways(state: State, expr: AnyExpr, job: int, wanted: bool) -> list[Way]:
    match expr:
        case In(leaf=name):
            return _leaf_ways(state, state.leaves[name], job, wanted)
        case Not(of=part):
            return _ways(state, part, job, not wanted)
        case All(of=parts) | Any(of=parts):
            each = [_ways(state, part, job, wanted) for part in parts]
            together = isinstance(expr, All) is wanted
            return _cheapest(
                state, _products(state, each) if together else [way for ways in each for way in ways]
            )


def _leaf_ways(state: State, leaf: LeafState, job: int, wanted: bool) -> list[Way]:
    rule, atom = leaf.definition.derived, Atom(leaf.id, job)
    if rule is None:
        kept = not wanted and writer_of(state, leaf.id, job) is not None
        kinds: list[Kind] = ["entry", "member"] if kept else ["member"]
        return [{atom: Step(wanted, kind)} for kind in kinds]
    if isinstance(rule, ViewDef):
        return _view_ways(state, rule, atom, wanted)
    if isinstance(rule, FilteredDef):
        base, answer = _ways(state, rule.base, job, wanted), Step(wanted, "filter")
        if wanted:
            return _cheapest(state, _products(state, [base, [{atom: answer}]]))
        return _cheapest(state, [*base, {atom: answer}])
    return _translated_ways(state, leaf, rule, job, wanted)


def _translated_ways(state: State, leaf: LeafState, rule: TranslatedDef, job: int, wanted: bool) -> list[Way]:
    target = leaf.derived.forward.get(job) if leaf.derived is not None else None
    translator = _ways(state, rule.translator, job, wanted)
    if target is None:
        answer: Way = {Atom(leaf.id, job): Step(True, "translation")}
        return _cheapest(state, _products(state, [translator, [answer]])) if wanted else [{}]
    base = _ways(state, rule.base, target, wanted)
    return _cheapest(state, _products(state, [base, translator]) if wanted else [*base, *translator])


def _view_ways(state: State, rule: ViewDef, atom: Atom, wanted: bool) -> list[Way]:
    task = state.tasks.get(rule.task)
    episode = task.episodes.get(atom.job) if task is not None and rule.view == "live" else None
    ends = episode is not None and episode.run != 0 and not wanted
    kinds: list[Kind] = ["live", "outcome"] if ends else ["outcome"]
    return [{atom: Step(wanted, kind)} for kind in kinds]


def writer_of(state: State, leaf: str, job: int) -> OpenRun | None:
    """Return the open run whose process the engine keeps an entry of in this leaf, if it does for this job."""
    for task in state.tasks.values():
        episode = task.episodes.get(job) if task.definition.pids == leaf else None
        if episode is not None and episode.run:
            return state.open_runs[episode.run]
    return None


def _products(state: State, each: Iterable[list[Way]]) -> list[Way]:
    found: list[Way] = [{}]
    for ways in each:
        merged = [{**first, **second} for first in found for second in ways if _agree(first, second)]
        found = _cheapest(state, merged)
    return found


def _agree(first: Way, second: Way) -> bool:
    return all(first.get(atom, step).wanted is step.wanted for atom, step in second.items())


def _cheapest(state: State, ways: list[Way]) -> list[Way]:
    """Return the cheapest ways, each once; equal costs keep their order."""
    unique: dict[frozenset[tuple[Atom, Step]], Way] = {}
    for way in ways:
        unique.setdefault(frozenset(way.items()), way)
    return sorted(unique.values(), key=lambda way: _cost(state, way))[:WAYS_MAX]


def _cost(state: State, way: Way) -> tuple[int, int]:
    done = changed(state, way)
    return len(done), sum(EFFORT[step.kind] for _, step in done)
