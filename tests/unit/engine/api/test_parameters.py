"""Parameters: their kinds, their checks, where their values come from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from datatask import InProcessSyncTask, LogMetadataRepository, Parameter, Pipeline, Session
from datatask.schema.definition import ParameterDef
from datatask.schema.errors import CallerError, InvalidValueError, NotPossibleError


@pytest.mark.parametrize(
    ("default", "text", "value"),
    [(0.5, "0.7", 0.7), (0.5, "2", 2.0), (3, "-12", -12), ("a", "0.7", "0.7"), (False, "True", True), (True, "false", False)],
)  # fmt: skip
def test_a_value_is_of_the_kind_of_the_default(default: Any, text: str, value: Any) -> None:
    parameter = Parameter("p", default)
    parameter.give(text)
    assert parameter.value == value
    assert type(parameter.value) is type(default)
    again = Parameter("p", default)
    again.give(parameter.text)
    assert again.value == parameter.value


@pytest.mark.parametrize(
    ("made", "text", "words"),
    [
        ({"default": 0.5}, "x", "p=x is not a number"),
        ({"default": 0.5}, "nan", "p=nan is not a number"),
        ({"default": 3}, "1.5", "p=1.5 is not a whole number"),
        ({"default": 3}, "", "p= is not a whole number"),
        ({"default": True}, "yes", "p=yes is not true or false"),
        ({"default": "a", "choices": ("a", "b")}, "c", "none of its choices"),
        ({"default": 1, "least": 0}, "-1", "p=-1 is less than 0"),
        ({"default": 1.0, "most": 2}, "2.5", "p=2.5 is more than 2"),
    ],
)
def test_what_does_not_fit_is_refused(made: dict[str, Any], text: str, words: str) -> None:
    parameter = Parameter("p", help="what it is for", **made)
    with pytest.raises(InvalidValueError, match=words):
        parameter.give(text)
    assert parameter.value == made["default"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("a-b", 1), "cannot name a parameter"),
        (("job", 1), "cannot name a parameter"),
        (("p", [1]), "the default of parameter p"),
        (("p",), "the default of parameter p"),
    ],
)
def test_a_wrong_declaration_is_refused(arguments: Any, words: str) -> None:
    with pytest.raises(InvalidValueError, match=words):
        Parameter(*arguments)


def test_a_default_has_to_fit_too() -> None:
    with pytest.raises(InvalidValueError, match="p=5 is more than 3"):
        Parameter("p", 5, most=3)
    with pytest.raises(InvalidValueError, match="type="):
        Parameter("p", None, type=list)
    assert Parameter("p", type=int).value is None
    assert Parameter("p", 1, type=float).value == 1.0


def test_the_environment_sets_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATATASK_SET_THRESHOLD", "0.25")
    assert Parameter("threshold", 0.5).value == 0.25
    monkeypatch.setenv("DATATASK_SET_THRESHOLD", "much")
    with pytest.raises(InvalidValueError, match="DATATASK_SET_THRESHOLD: threshold=much is not a number"):
        Parameter("threshold", 0.5)


def test_a_value_that_was_used_is_not_changed_behind_its_back() -> None:
    parameter = Parameter("p", 1)
    assert parameter.value == 1
    parameter.give("1")
    with pytest.raises(NotPossibleError, match="has used the parameter p before it was set"):
        parameter.give("2")


def test_the_definition_has_them(tmp_path: Path) -> None:
    task = InProcessSyncTask("t", LogMetadataRepository("done"))
    task.link("given", LogMetadataRepository("given"), is_input=True)
    low, high = Parameter("low", 1, help="the least"), Parameter("high", "x")
    definition = Pipeline([task], Session(), parameters=[low, high]).declare().definition
    assert definition.parameters == (
        ParameterDef(name="low", kind="integer", value=1, default=1, help="the least"),
        ParameterDef(name="high", kind="text", value="x", default="x"),
    )
    for wrong in ([Parameter("a", 1), Parameter("A", 2)], [Parameter("given", 1)]):
        with pytest.raises(CallerError, match="parameter"):
            Pipeline([task], Session(), parameters=wrong).declare()
    with pytest.raises(CallerError, match=r"parameters\[0\]"):
        Pipeline([task], Session(), parameters=["low"])  # type: ignore[list-item]
