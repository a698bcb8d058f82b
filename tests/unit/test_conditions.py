"""Compiled conditions equal the words they were compiled from."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from datatask.engine.core.leaves import compile_condition, holds, without
from datatask.schema.definition import All, Any, AnyExpr, In, Not
from tests.property.pipelines import expressions

LEAVES = ("a", "b", "c", "d")
BITS = {name: 1 << index for index, name in enumerate(LEAVES)}


@given(expressions(LEAVES))
def test_compiled_equals_words_for_every_mask(expr: AnyExpr) -> None:
    """For all sixteen memberships the compiled test says what recursion over the words says."""
    condition = compile_condition(expr, BITS)
    for mask in range(16):
        members = {name for name, bit in BITS.items() if mask & bit}
        assert condition.test(mask) is holds(expr, members)


def test_common_case_is_two_integers() -> None:
    """In all of these and in none of those needs no compiled function, however it is nested."""
    nested = All(of=(In(leaf="a"), Not(of=Any(of=(In(leaf="b"), Not(of=In(leaf="c")))))))
    condition = compile_condition(nested, BITS)
    assert condition.predicate is None
    assert (condition.care, condition.want) == (0b0111, 0b0101)


def test_contradiction_never_holds() -> None:
    """Present and absent at once holds for no job."""
    condition = compile_condition(All(of=(In(leaf="a"), Not(of=In(leaf="a")))), BITS)
    assert not any(condition.test(mask) for mask in range(16))


def test_empty_all_holds_and_empty_any_does_not() -> None:
    """Nothing required is satisfied; one of nothing is not."""
    assert compile_condition(All(of=()), BITS).test(0)
    assert not compile_condition(Any(of=()), BITS).test(15)


@given(expressions(LEAVES), st.sets(st.sampled_from(LEAVES)))
def test_without_takes_a_leaf_as_absent(expr: AnyExpr, members: set[str]) -> None:
    """A condition without a leaf holds exactly where it would hold for jobs that are not in it."""
    assert holds(without(expr, "a"), members) is holds(expr, members - {"a"})
