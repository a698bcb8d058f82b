"""Set expressions: what parses, to which set, and what is told of what does not."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from datatask.adapters.wiring.sets import Name, Operation, Tree, evaluate, names, parse
from datatask.schema.errors import CallerError, UnknownNameError, unknown

SETS = {
    "a.in": {"1", "2", "3"},
    "a.done": {"2"},
    "a-b.in": {"3", "4"},
    "a": {"9"},
    "live(a)": {"1"},
    "File:/x/*.png": {"5"},
}


def value(text: str) -> set[str]:
    return evaluate(parse(text, SETS), SETS.__getitem__)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a.in", {"1", "2", "3"}),
        ("a.in - a.done", {"1", "3"}),
        ("a.in-a.done", {"1", "3"}),
        ("a-b.in - a.in", {"4"}),
        ("a-b.in-a.in", {"4"}),
        ("a-a", set()),
        ("a.in & a-b.in", {"3"}),
        ("a.in ^ a-b.in", {"1", "2", "4"}),
        ("a.done | a-b.in", {"2", "3", "4"}),
        ("a.done | a.in & a-b.in", {"2", "3"}),
        ("(a.done | a.in) & a-b.in", {"3"}),
        ("a.in - a.done - a-b.in", {"1"}),
        ("a.in - (a.done - a-b.in)", {"1", "3"}),
        ("a.in - live(a)", {"2", "3"}),
        ("'File:/x/*.png' | a", {"5", "9"}),
        ("File:/x/*.png|a", {"5", "9"}),
        ("  ((a)) ", {"9"}),
    ],
)
def test_an_expression_is_the_set_that_python_would_make_of_it(text: str, expected: set[str]) -> None:
    """Precedence and association are those of Python's set operators; known names win over operators."""
    assert value(text) == expected


@pytest.mark.parametrize(
    ("text", "column"),
    [
        ("", 1),
        ("a.in -", 7),
        ("(a.in", 1),
        ("a.in)", 5),
        ("a.in a.done", 6),
        ("& a", 1),
        ("'a", 1),
        ("a.in & & a", 8),
    ],
)
def test_what_does_not_parse_is_told_by_column(text: str, column: int) -> None:
    """The error names the column at which it goes wrong, and nothing is executed."""
    with pytest.raises(CallerError) as caught:
        parse(text, SETS)
    assert caught.value.where.endswith(f"column {column}")


def test_an_unknown_name_is_told_with_its_neighbours() -> None:
    """A name that is none parses, so that whoever looks it up can say what there is."""
    assert names(parse("a.inn - nope", SETS)) == ["a.inn", "nope"]
    error = unknown("set", "a.inn", SETS)
    assert isinstance(error, UnknownNameError)
    assert "a.in" in error.remedy


@pytest.mark.parametrize("text", ["(" * 900 + "a", "a" * 200_001, "a - " * 5000 + "a"])
def test_bounds_hold(text: str) -> None:
    """Depth and length are limited: no recursion error, no endless work."""
    with pytest.raises(CallerError):
        parse(text, SETS)


def trees() -> st.SearchStrategy[Tree]:
    return st.recursive(
        st.sampled_from(sorted(SETS)).map(Name),
        lambda inner: st.builds(Operation, st.sampled_from("|^&-"), inner, inner),
        max_leaves=12,
    )


def text_of(tree: Tree) -> str:
    if isinstance(tree, Name):
        return f"'{tree.name}'"
    return f"({text_of(tree.left)} {tree.symbol} {text_of(tree.right)})"


@given(trees())
def test_what_is_written_out_is_read_back(tree: Tree) -> None:
    """Any tree, written with parentheses, parses to a tree of the same value, which is Python's own."""
    text = text_of(tree)
    assert parse(text, SETS) == tree
    quoted = {f"n{i}": members for i, members in enumerate(SETS.values())}
    for i, name in enumerate(SETS):
        text = text.replace(f"'{name}'", f"n{i}")
    assert evaluate(tree, SETS.__getitem__) == eval(text, {}, quoted)
