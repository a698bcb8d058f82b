"""The algebra of conditions: what a condition comes to, given what each of its leaves stands for.

In: an `AnyExpr`, and a truth value, a set of jobs, a bit or a text for each leaf. Out: the condition's value. The two
folds are the only walks; all else is one of them with its own operations. A literal is a leaf with whether a job is to
be in it. `compile_condition` serves the hot path: in all of these and in none of those is two integers (30 ns).
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Mapping
from itertools import chain
from typing import NamedTuple, TypeVar

from pyroaring import BitMap

from datatask.schema.definition import All, Any, AnyExpr, In, Not

T = TypeVar("T")
Literal = tuple[str, bool]
"""(leaf, whether a job is to be in it)"""


# --- the two walks ----------------------------------------------------------------------------------


def fold(
    expr: AnyExpr,
    leaf: Callable[[str], T],
    negated: Callable[[T], T],
    every: Callable[[list[T]], T],
    some: Callable[[list[T]], T],
) -> T:
    """Return a condition's value from those of its parts, as it is written."""
    match expr:
        case In(leaf=name):
            return leaf(name)
        case Not(of=part):
            return negated(fold(part, leaf, negated, every, some))
        case All(of=parts) | Any(of=parts):
            values = [fold(part, leaf, negated, every, some) for part in parts]
            return every(values) if isinstance(expr, All) else some(values)


def fold_literals(
    expr: AnyExpr,
    literal: Callable[[str, bool], T],
    every: Callable[[list[T]], T],
    some: Callable[[list[T]], T],
    *,
    wanted: bool = True,
) -> T:
    """Return a condition's value, or with `wanted` False its negation's; negations are pushed down to the leaves."""
    match expr:
        case In(leaf=name):
            return literal(name, wanted)
        case Not(of=part):
            return fold_literals(part, literal, every, some, wanted=not wanted)
        case All(of=parts) | Any(of=parts):
            values = [fold_literals(part, literal, every, some, wanted=wanted) for part in parts]
            return every(values) if isinstance(expr, All) is wanted else some(values)


# --- truth ------------------------------------------------------------------------------------------


def evaluate(expr: AnyExpr, known: Callable[[str], bool | None]) -> bool | None:
    """Return whether a condition holds, None where that rests on a leaf of which nothing is known."""

    def literal(leaf: str, wanted: bool) -> bool | None:
        answer = known(leaf)
        return None if answer is None else answer is wanted

    return fold_literals(
        expr,
        literal,
        lambda parts: False if False in parts else None if None in parts else True,
        lambda parts: True if True in parts else None if None in parts else False,
    )


def holds(expr: AnyExpr, members: Container[str]) -> bool:
    """Whether the condition holds for a job that is in these leaves: the slow twin of `compile_condition`."""
    return evaluate(expr, members.__contains__) is True


def unmet(expr: AnyExpr, members: Container[str]) -> list[Literal] | None:
    """Return the literals that keep a condition from holding, in order of appearance; None where it holds."""

    def literal(leaf: str, wanted: bool) -> list[Literal] | None:
        return None if (leaf in members) is wanted else [(leaf, wanted)]

    def every(parts: list[list[Literal] | None]) -> list[Literal] | None:
        failing = [part for part in parts if part is not None]
        return _joined(failing) if failing else None

    def some(parts: list[list[Literal] | None]) -> list[Literal] | None:
        return None if None in parts else _joined(part for part in parts if part is not None)

    return fold_literals(expr, literal, every, some)


def jobs_where(expr: AnyExpr, members: Callable[[str], BitMap], everyone: BitMap) -> BitMap:
    """Return the jobs for which a condition holds (shared: do not change it), from the members of its leaves."""

    def literal(leaf: str, wanted: bool) -> BitMap:
        return members(leaf) if wanted else everyone - members(leaf)

    def every(sets: list[BitMap]) -> BitMap:
        return BitMap.intersection(*sets) if sets else everyone

    def some(sets: list[BitMap]) -> BitMap:
        return BitMap.union(BitMap(), *sets)

    return fold_literals(expr, literal, every, some)


# --- parts ------------------------------------------------------------------------------------------


def literals(expr: AnyExpr) -> list[Literal]:
    """Return what a condition is made of, in order of appearance."""
    return fold_literals(expr, lambda leaf, wanted: [(leaf, wanted)], _joined, _joined)


def leaves_of(*exprs: AnyExpr) -> list[str]:
    """Return the leaves that these conditions look at, each once, in order of appearance."""
    return list(dict.fromkeys(leaf for expr in exprs for leaf, _ in literals(expr)))


def unnegated(expr: AnyExpr) -> list[str]:
    """Return the leaves that stand under no negation, each once: what a deletion from a membership deletes from."""
    found: list[str] = fold(expr, lambda leaf: [leaf], lambda _: [], _joined, _joined)
    return list(dict.fromkeys(found))


def conjuncts(expr: AnyExpr) -> list[AnyExpr]:
    """Return the conditions that must all hold."""
    match expr:
        case All(of=parts):
            return [inner for part in parts for inner in conjuncts(part)]
        case Not(of=Any(of=parts)):
            return [inner for part in parts for inner in conjuncts(Not(of=part))]
        case Not(of=Not(of=part)):
            return conjuncts(part)
        case _:
            return [expr]


def conjunction(expr: AnyExpr) -> list[Literal] | None:
    """Return the literals whose conjunction a condition is, None if it is none."""

    def every(parts: list[list[Literal] | None]) -> list[Literal] | None:
        return None if None in parts else _joined(part for part in parts if part is not None)

    def some(parts: list[list[Literal] | None]) -> list[Literal] | None:
        return parts[0] if len(parts) == 1 else None

    return fold_literals(expr, lambda leaf, wanted: [(leaf, wanted)], every, some)


def without(expr: AnyExpr, leaf: str) -> AnyExpr:
    """Return the condition with membership in `leaf` taken as false: a task's own open runs are no condition."""
    return fold(
        expr,
        lambda name: Any(of=()) if name == leaf else In(leaf=name),
        lambda part: Not(of=part),
        lambda parts: All(of=tuple(parts)),
        lambda parts: Any(of=tuple(parts)),
    )


def _joined(parts: Iterable[list[T]]) -> list[T]:
    return list(chain.from_iterable(parts))


# --- as text ----------------------------------------------------------------------------------------


def text(expr: AnyExpr) -> str:
    """Return a condition in words: `a`, `not a`, `(a and b)`, `(a or b)`."""
    return fold(
        expr,
        lambda leaf: leaf,
        lambda part: f"not {part}",
        lambda parts: f"({' and '.join(parts)})" if parts else "everything",
        lambda parts: f"({' or '.join(parts)})" if parts else "nothing",
    )


def set_text(expr: AnyExpr) -> str:
    """Return a condition as a set expression that `ls` understands, where no negation stands alone."""
    match expr:
        case In(leaf=leaf):
            return leaf
        case Not(of=part):
            return f"not {_operand(part)}"
        case Any(of=parts):
            return " | ".join(map(_operand, parts)) or "nothing"
        case All(of=parts):
            wanted = [_operand(part) for part in parts if not isinstance(part, Not)]
            unwanted = [_operand(part.of) for part in parts if isinstance(part, Not)]
            return " - ".join([" & ".join(wanted) or "everything", *unwanted])


def _operand(expr: AnyExpr) -> str:
    if isinstance(expr, All | Any) and len(expr.of) == 1 and not isinstance(expr.of[0], Not):
        return _operand(expr.of[0])
    return set_text(expr) if isinstance(expr, In) else f"({set_text(expr)})"


# --- compiled ---------------------------------------------------------------------------------------


class MaskTest(NamedTuple):
    """A condition as a test on a job's mask: `predicate` where there is one, else `mask & care == want`."""

    care: int
    want: int
    predicate: Callable[[int], bool] | None = None

    def test(self, mask: int) -> bool:
        """Whether a job with this mask satisfies the condition."""
        return self.predicate(mask) if self.predicate is not None else mask & self.care == self.want


def compile_condition(expr: AnyExpr, bits: Mapping[str, int]) -> MaskTest:
    """Return the test for `expr`; `bits` maps each leaf to its one-bit integer."""
    found = conjunction(expr)
    if found is not None:
        care = want = absent = 0
        for leaf, wanted in found:
            care |= bits[leaf]
            want |= bits[leaf] if wanted else 0
            absent |= 0 if wanted else bits[leaf]
        if not want & absent:
            return MaskTest(care, want)
    source = fold_literals(
        expr,
        lambda leaf, wanted: f"mask & {bits[leaf]} {'!=' if wanted else '=='} 0",
        lambda parts: " and ".join(f"({part})" for part in parts) or "True",
        lambda parts: " or ".join(f"({part})" for part in parts) or "False",
    )
    return MaskTest(0, 0, eval(f"lambda mask: {source}", {}))  # the source holds integers only
