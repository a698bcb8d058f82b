"""The fewest changes of memberships that make a condition hold for a job.

In: an expression, a job, the state. Out: a set of `Atom`s with the value each must take, least first. Sets are built
over the tree as partial assignments and merged where parts belong together, at most `WAYS_MAX` of the cheapest at
each node: exact for conditions with fewer alternatives than that, which is all that people write, and a good
answer beyond. What cannot be brought about by hand (user code that must be asked first) is no way at all.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, NamedTuple

from datatask.engine.core.members import LeafState
from datatask.engine.core.state import State
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


class Atom(NamedTuple):
    """Something that can be so or not: a membership, a filter's answer, or how a task's run of the job ended."""

    kind: Literal["member", "filter", "outcome", "live"]
    leaf: str
    job: int


Way = dict[Atom, bool]


def is_so(state: State, atom: Atom) -> bool:
    """Whether the atom is so now."""
    return state.masks[atom.job] & state.leaves[atom.leaf].bit != 0


def changed(state: State, way: Way) -> list[tuple[Atom, bool]]:
    """Return what a way changes, in order of appearance."""
    return [(atom, wanted) for atom, wanted in way.items() if is_so(state, atom) is not wanted]


def smallest(state: State, expr: AnyExpr, job: int, *, wanted: bool = True) -> Way | None:
    """Return the way with the fewest changes that makes `expr` hold for the job (or not), or None."""
    found = _ways(state, expr, job, wanted)
    return found[0] if found else None


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
    rule = leaf.definition.derived
    if rule is None:
        return [{Atom("member", leaf.id, job): wanted}]
    if isinstance(rule, ViewDef):
        return _view_ways(state, leaf, rule, job, wanted)
    if isinstance(rule, FilteredDef):
        base, answer = _ways(state, rule.base, job, wanted), Atom("filter", leaf.id, job)
        if wanted:
            return _cheapest(state, _products(state, [base, [{answer: True}]]))
        return _cheapest(state, [*base, {answer: False}])
    return _translated_ways(state, leaf, rule, job, wanted)


def _translated_ways(state: State, leaf: LeafState, rule: TranslatedDef, job: int, wanted: bool) -> list[Way]:
    target = leaf.derived.forward.get(job) if leaf.derived is not None else None
    if target is None:
        return [] if wanted else [{}]
    base = _ways(state, rule.base, target, wanted)
    translator = _ways(state, rule.translator, job, wanted)
    return _cheapest(state, _products(state, [base, translator]) if wanted else [*base, *translator])


def _view_ways(state: State, leaf: LeafState, rule: ViewDef, job: int, wanted: bool) -> list[Way]:
    if rule.view == "live":
        atom = Atom("live", leaf.id, job)
        return [{atom: wanted}] if is_so(state, atom) or not wanted else []
    return [{Atom("outcome", leaf.id, job): wanted}]


def _products(state: State, each: Iterable[list[Way]]) -> list[Way]:
    found: list[Way] = [{}]
    for ways in each:
        merged = [{**first, **second} for first in found for second in ways if _agree(first, second)]
        found = _cheapest(state, merged)
    return found


def _agree(first: Way, second: Way) -> bool:
    return all(first.get(atom, wanted) is wanted for atom, wanted in second.items())


def _cheapest(state: State, ways: list[Way]) -> list[Way]:
    """Return the cheapest ways, each once; equal costs keep their order."""
    unique: dict[frozenset[tuple[Atom, bool]], Way] = {}
    for way in ways:
        unique.setdefault(frozenset(way.items()), way)
    return sorted(unique.values(), key=lambda way: len(changed(state, way)))[:WAYS_MAX]
