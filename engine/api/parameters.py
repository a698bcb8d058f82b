"""Parameters of a pipeline: values that a run may be given, each with a name, a default, and what it has to be.

In: `Parameter("threshold", 0.5, help="…")` in a pipeline file, listed in `Pipeline(parameters=[…])`; from outside `--set threshold=0.7`, or
the variable `DATATASK_SET_THRESHOLD`, which `--set` also sets, so that processes which load the file again agree. Out: `value`,
checked; and its place in the definition, so that the log says with which values a run worked.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Collection
from typing import get_args

from datatask.schema.definition import ParameterDef, ParameterKind, Setting
from datatask.schema.errors import FUNCTION, TEXT, InvalidValueError, NotPossibleError, expect

_KINDS: dict[type, ParameterKind] = {bool: "flag", int: "integer", float: "number", str: "text"}
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")
_TAKEN = ("job", "task", "env", "argv0")
_WORDS = {"text": "text", "integer": "a whole number", "number": "a number", "flag": "true or false"}


def variable_of(name: str) -> str:
    """Return the environment variable that sets a parameter."""
    return f"DATATASK_SET_{name.upper()}"


class Parameter:
    """A value of the kind of its `default` (text, whole number, number, or True and False), unless `type` says another.

    `choices` are the values that it may have, `least` and `most` the bounds of a number; the default has to fit, too, unless it is
    None. `value` is what was given, else the default. `InvalidValueError` names what does not fit.
    """

    def __init__(
        self,
        name: str,
        default: Setting = None,
        *,
        help: str = "",
        type: type | None = None,
        choices: Collection[Setting] | None = None,
        least: float | None = None,
        most: float | None = None,
    ) -> None:
        expect(self, TEXT, name=name, help=help)
        if _NAME.fullmatch(name) is None or name in _TAKEN:
            raise InvalidValueError(
                f"{name!r:.80} cannot name a parameter",
                remedy=f"use letters, digits and '_', and none of {', '.join(_TAKEN)}",
            )
        expect(self, FUNCTION, "pass bool, int, float or str", optional=True, type=type)
        if type is not None and type not in _KINDS:
            raise InvalidValueError(
                f"type={type!r} of parameter {name}", remedy="pass bool, int, float or str"
            )
        kind = _KINDS.get(type or default.__class__)
        if kind is None:
            raise InvalidValueError(
                f"the default of parameter {name} is {default!r:.60}",
                remedy="give text, a number, True or False; or None with type=",
            )
        self.name, self.help, self.kind = name, help, kind
        self.choices = None if choices is None else tuple(choices)
        self.least, self.most = least, most
        self.default = default if default is None else self._checked(default, f"parameter {name}")
        self._value = self.default
        self._read = False
        given = os.environ.get(variable_of(name))
        if given is not None:
            self._value = self._parsed(given, f"${variable_of(name)}")

    def __repr__(self) -> str:
        return f"Parameter({self.name!r}, {self._value!r})"

    @property
    def value(self) -> Setting:
        """What was given, else the default."""
        self._read = True
        return self._value

    @property
    def variable(self) -> str:
        """The environment variable that sets it."""
        return variable_of(self.name)

    @property
    def text(self) -> str:
        """The value as `--set` takes it; empty for None."""
        if self._value is None:
            return ""
        return str(self._value).lower() if isinstance(self._value, bool) else str(self._value)

    def give(self, text: str, where: str = "--set") -> None:
        """Take a value as text, before the value has been used."""
        value = self._parsed(text, where)
        if self._read and value != self._value:
            raise NotPossibleError(
                f"the program has used the parameter {self.name} before it was set",
                where=where,
                remedy=f"set {self.variable}={text!r} in the environment, or run the file with `datatask -p`",
            )
        self._value = value

    def to_def(self) -> ParameterDef:
        """Return what the definition says of it."""
        return ParameterDef(
            name=self.name, kind=self.kind, value=self._value, default=self.default, help=self.help
        )

    def _parsed(self, text: str, where: str) -> Setting:
        value: Setting = text
        if self.kind == "flag":
            value = {"true": True, "false": False}.get(text.strip().lower(), text)
        elif self.kind == "integer":
            value = int(text) if re.fullmatch(r"\s*[-+]?[0-9]{1,300}\s*", text) else text
        elif self.kind == "number":
            try:
                value = float(text)
            except ValueError:
                value = text
        return self._checked(value, where)

    def _checked(self, value: Setting, where: str) -> Setting:
        """Return a value that fits; a whole number where a number is asked for as a number."""
        wanted = next(kind for kind, name in _KINDS.items() if name == self.kind)
        if wanted is float and value.__class__ is int:
            value = float(value)
        remedy = f"give {_WORDS[self.kind]}" + (f": {self.help}" if self.help else "")
        if value.__class__ is not wanted or (isinstance(value, float) and not math.isfinite(value)):
            raise InvalidValueError(
                f"{self.name}={value!s:.80} is not {_WORDS[self.kind]}", where=where, remedy=remedy
            )
        if self.choices is not None and value not in self.choices:
            listed = ", ".join(map(str, self.choices))
            raise InvalidValueError(
                f"{self.name}={value!s:.80} is none of its choices",
                where=where,
                remedy=f"give one of: {listed}",
            )
        if isinstance(value, int | float):
            for bound, beyond, word in ((self.least, -1, "less than"), (self.most, 1, "more than")):
                if bound is not None and (value - bound) * beyond > 0:
                    raise InvalidValueError(
                        f"{self.name}={value} is {word} {bound:g}", where=where, remedy=remedy
                    )
        return value


assert set(get_args(ParameterKind)) == set(_KINDS.values())
