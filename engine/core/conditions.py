"""Readiness conditions compiled to tests on a job's mask.

In: an `Expr` over leaves and each leaf's bit. Out: a `Condition`. The common case, in all of these and in none
of those, is two integers (`mask & care == want`, 30 ns); any other and/or/not becomes a compiled function.
`holds` is the slow twin that the compiled forms must equal.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Mapping
from typing import NamedTuple

from datatask.schema.definition import All, Any, AnyExpr, In, Not

Predicate = Callable[[int], bool]


class Condition(NamedTuple):
    """`predicate` decides when it is there, else `mask & care == want`."""

    care: int
    want: int
    predicate: Predicate | None = None

    def test(self, mask: int) -> bool:
        """Whether a job with this mask satisfies the condition."""
        return self.predicate(mask) if self.predicate is not None else mask & self.care == self.want


def compile_condition(expr: AnyExpr, bits: Mapping[str, int]) -> Condition:
    """Return the condition for `expr`; `bits` maps each leaf to its one-bit integer."""
    literals = _literals(expr, True)
    if literals is not None:
        present = _union(bits[leaf] for leaf, wanted in literals if wanted)
        absent = _union(bits[leaf] for leaf, wanted in literals if not wanted)
        if not present & absent:
            return Condition(present | absent, present)
    return Condition(0, 0, eval(f"lambda mask: {_source(expr, bits)}", {}))  # the source holds integers only


def holds(expr: AnyExpr, members: Container[str]) -> bool:
    """Whether the condition holds for a job that is in these leaves: by recursion, from the words alone."""
    match expr:
        case In(leaf=leaf):
            return leaf in members
        case Not(of=part):
            return not holds(part, members)
        case All(of=parts):
            return all(holds(part, members) for part in parts)
        case Any(of=parts):
            return any(holds(part, members) for part in parts)


def without(expr: AnyExpr, leaf: str) -> AnyExpr:
    """Return the condition with membership in `leaf` taken as false: a task's own open runs are no condition."""
    match expr:
        case In(leaf=name):
            return Any(of=()) if name == leaf else expr
        case Not(of=part):
            return Not(of=without(part, leaf))
        case All(of=parts):
            return All(of=tuple(without(part, leaf) for part in parts))
        case Any(of=parts):
            return Any(of=tuple(without(part, leaf) for part in parts))


def _union(bits: Iterable[int]) -> int:
    result = 0
    for bit in bits:
        result |= bit
    return result


def _literals(expr: AnyExpr, wanted: bool) -> list[tuple[str, bool]] | None:
    """Return (leaf, present) pairs whose conjunction is `expr` (or its negation), or None if there are none."""
    match expr:
        case In(leaf=leaf):
            return [(leaf, wanted)]
        case Not(of=part):
            return _literals(part, not wanted)
        case All(of=parts) if not wanted and len(parts) != 1:
            return None
        case Any(of=parts) if wanted and len(parts) != 1:
            return None
        case All(of=parts) | Any(of=parts):
            found = [_literals(part, wanted) for part in parts]
            return None if None in found else [pair for part in found if part for pair in part]


def _source(expr: AnyExpr, bits: Mapping[str, int]) -> str:
    match expr:
        case In(leaf=leaf):
            return f"mask & {bits[leaf]} != 0"
        case Not(of=part):
            return f"not ({_source(part, bits)})"
        case All(of=parts):
            return " and ".join(f"({_source(part, bits)})" for part in parts) or "True"
        case Any(of=parts):
            return " or ".join(f"({_source(part, bits)})" for part in parts) or "False"
