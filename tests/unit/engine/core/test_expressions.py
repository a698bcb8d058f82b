"""What conditions come to equals what recursion over their words says."""

from __future__ import annotations

import ast
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st
from pyroaring import BitMap

from datatask.engine.core.expressions import (
    compile_condition,
    conjunction,
    conjuncts,
    evaluate,
    holds,
    jobs_where,
    leaves_of,
    literals,
    set_text,
    text,
    unmet,
    unnegated,
    without,
)
from datatask.schema.definition import All, Any, AnyExpr, In, Not
from tests.property.pipelines import expressions

LEAVES = ("a", "b", "c", "d")
BITS = {name: 1 << index for index, name in enumerate(LEAVES)}
A, B, C = In(leaf="a"), In(leaf="b"), In(leaf="c")


def truth(expr: AnyExpr, members: set[str]) -> bool:
    """The meaning of a condition, by recursion over its words."""
    match expr:
        case In(leaf=leaf):
            return leaf in members
        case Not(of=part):
            return not truth(part, members)
        case All(of=parts):
            return all(truth(part, members) for part in parts)
        case Any(of=parts):
            return any(truth(part, members) for part in parts)


def of(mask: int) -> set[str]:
    """The leaves that a mask stands for."""
    return {name for name, bit in BITS.items() if mask & bit}


@given(expressions(LEAVES))
def test_compiled_equals_words_for_every_mask(expr: AnyExpr) -> None:
    """For all sixteen memberships the compiled test, `holds` and the set algebra say what recursion says."""
    condition = compile_condition(expr, BITS)
    everyone = BitMap(range(16))
    members = {name: BitMap(mask for mask in range(16) if mask & bit) for name, bit in BITS.items()}
    found = jobs_where(expr, members.__getitem__, everyone)
    for mask in range(16):
        expected = truth(expr, of(mask))
        assert condition.test(mask) is expected
        assert holds(expr, of(mask)) is expected
        assert (mask in found) is expected


def test_common_case_is_two_integers() -> None:
    """In all of these and in none of those needs no compiled function, however it is nested."""
    nested = All(of=(A, Not(of=Any(of=(B, Not(of=C))))))
    condition = compile_condition(nested, BITS)
    assert condition.predicate is None
    assert (condition.care, condition.want) == (0b0111, 0b0101)


def test_contradiction_never_holds() -> None:
    """Present and absent at once holds for no job."""
    condition = compile_condition(All(of=(A, Not(of=A))), BITS)
    assert not any(condition.test(mask) for mask in range(16))


def test_empty_all_holds_and_empty_any_does_not() -> None:
    """Nothing required is satisfied; one of nothing is not."""
    assert compile_condition(All(of=()), BITS).test(0)
    assert not compile_condition(Any(of=()), BITS).test(15)


@given(expressions(LEAVES), st.sets(st.sampled_from(LEAVES)))
def test_without_takes_a_leaf_as_absent(expr: AnyExpr, members: set[str]) -> None:
    """A condition without a leaf holds exactly where it would hold for jobs that are not in it."""
    assert truth(without(expr, "a"), members) is truth(expr, members - {"a"})


@given(expressions(LEAVES), st.sets(st.sampled_from(LEAVES)), st.sets(st.sampled_from(LEAVES)))
def test_an_answer_is_the_one_that_every_completion_gives(
    expr: AnyExpr, members: set[str], unknown: set[str]
) -> None:
    """A certain answer is right whatever the unknown leaves turn out to be; with all known it is certain."""
    answer = evaluate(expr, lambda leaf: None if leaf in unknown else leaf in members)
    if answer is not None:
        assert all(truth(expr, members - unknown | (of(mask) & unknown)) is answer for mask in range(16))
    assert evaluate(expr, members.__contains__) is truth(expr, members)


@given(expressions(LEAVES), st.sets(st.sampled_from(LEAVES)))
def test_unmet_are_the_literals_that_fail(expr: AnyExpr, members: set[str]) -> None:
    """None exactly where the condition holds; else each one fails now."""
    found = unmet(expr, members)
    assert (found is None) is truth(expr, members)
    assert all((leaf in members) is not wanted for leaf, wanted in found or ())


@given(expressions(LEAVES), st.sets(st.sampled_from(LEAVES)))
def test_conjuncts_hold_together_exactly_where_the_condition_does(expr: AnyExpr, members: set[str]) -> None:
    """So do the literals of a condition that is their conjunction."""
    assert all(truth(part, members) for part in conjuncts(expr)) is truth(expr, members)
    found = conjunction(expr)
    if found is not None:
        assert all((leaf in members) is wanted for leaf, wanted in found) is truth(expr, members)


def test_parts_in_order_of_appearance() -> None:
    """Literals carry the sign of every negation above them; what is unnegated stands under none."""
    expr = All(of=(B, Not(of=All(of=(C, Not(of=A)))), B))
    assert literals(expr) == [("b", True), ("c", False), ("a", True), ("b", True)]
    assert leaves_of(expr, In(leaf="d")) == ["b", "c", "a", "d"]
    assert unnegated(expr) == ["b"]


def test_texts() -> None:
    """In words, and as set expressions that `ls` reads."""
    expr = All(of=(A, Not(of=Any(of=(B, C)))))
    assert text(expr) == "(a and not (b or c))"
    assert set_text(expr) == "a - (b | c)"
    assert (text(All(of=())), text(Any(of=()))) == ("everything", "nothing")
    assert (set_text(All(of=())), set_text(Any(of=()))) == ("everything", "nothing")
    assert set_text(Any(of=(All(of=(A,)), Not(of=B)))) == "a | (not b)"
    assert set_text(All(of=(Any(of=(Not(of=A),)), B))) == "((not a)) & b"


def test_no_other_module_walks_conditions() -> None:
    """A `match` over and, or, not stands in the algebra alone: others hand it their operations."""
    root = Path(__file__).parents[4]
    found = set()
    for room in ("schema", "engine", "adapters"):
        for path in sorted((root / room).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.MatchClass):
                    name = ast.unparse(node.cls).rpartition(".")[2]
                    if name in ("All", "Any", "Not"):
                        found.add(str(path.relative_to(root)))
    assert found == {"engine/core/expressions.py"}
