"""What constructors expect: a wrong or swapped argument is refused where it is given, by name, not at its first use."""

from __future__ import annotations

from typing import Any

from datatask.schema.errors import CallerError

TEXT = "a text"
FLAG = "True or False"
FUNCTION = "a function"
PATH = "a path"
_CHECKS: dict[str, Any] = {
    TEXT: lambda value: isinstance(value, str),
    FLAG: lambda value: isinstance(value, bool | int),
    FUNCTION: callable,
    PATH: lambda value: isinstance(value, str) or hasattr(type(value), "__fspath__"),
}


def expect(
    owner: object, wanted: str | type, remedy: str = "", *, optional: bool = False, **values: object
) -> None:
    """Raise `CallerError` for the first of `values` that is not as wanted: one of the kinds above, or a class.

    `optional` lets None pass; `owner` is whose constructor it is.
    """
    for name, value in values.items():
        if not (optional and value is None):
            expect_one(owner, wanted, name, value, remedy)


def expect_one(owner: object, wanted: str | type, name: str, value: object, remedy: str = "") -> None:
    """Raise `CallerError` when the value that was given as `name` is not as wanted."""
    if isinstance(value, wanted) if isinstance(wanted, type) else _CHECKS[wanted](value):
        return
    what = f"a {wanted.__name__}" if isinstance(wanted, type) else wanted
    try:
        given = f"{value!r:.80}"
    except Exception:
        given = "what has no text"
    raise CallerError(
        f"{name} is {given} (of type {type(value).__name__}), not {what}",
        where=type(owner).__name__,
        remedy=remedy or f"pass {what} as {name}; are arguments swapped?",
    )
