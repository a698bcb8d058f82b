"""A document as a tree whose every value knows where it stands, so that what is wrong is named with its place.

In: what YAML or JSON made of a text. Out: values of the kind that was asked for, or one line that says which value is
wrong, where, and how it is written.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn

from datatask.adapters.history.moments import parse_span
from datatask.schema.errors import CallerError, InvalidValueError, one_of


def seconds_of(told: Any, place: str) -> float:
    """Return seconds: a number, or a text such as `90`, `5m` or `1h30m`; `CallerError` for any other."""
    if isinstance(told, bool) or not isinstance(told, int | float | str):
        seconds = None
    elif isinstance(told, str):
        if told.strip().startswith("-") and parse_span(told.strip()[1:]) is not None:
            raise InvalidValueError(f"the duration {told} is negative", where=place, remedy="give 0 or more")
        seconds = parse_span(told)
    else:
        seconds = float(told)
    if seconds is None or not abs(seconds) < float("inf"):
        raise InvalidValueError(
            f"{told!r:.60} is no duration", where=place, remedy="write seconds, or such as 90s, 5m, 2h"
        )
    if seconds < 0:
        raise InvalidValueError(f"the duration {told} is negative", where=place, remedy="give 0 or more")
    return seconds


class At:
    """A value of a tree, and the place where it stands."""

    def __init__(self, value: Any, where: str, folder: Path, path: str = "") -> None:
        """`where` names the document, `path` the value in it; files are looked for from `folder`."""
        self.value, self.where, self.folder, self.path = value, where, folder, path

    @property
    def place(self) -> str:
        """Document and place in it, as messages name them."""
        return f"{self.where}: {self.path}" if self.path else self.where

    def fail(self, what: str, remedy: str) -> NoReturn:
        """Refuse this value."""
        raise InvalidValueError(what, where=self.place, remedy=remedy)

    def at(self, key: str) -> At:
        """Return what is below a key."""
        return At(self.value[key], self.where, self.folder, f"{self.path}.{key}" if self.path else key)

    def fields(self, known: Mapping[str, Callable[[At], Any]]) -> dict[str, Any]:
        """Return what is below each of these names, read by its function; what nobody reads is refused."""
        for key in self.mapping():
            if key not in known:
                self.fail(f"{key} is not known here", one_of(known, key))
        return {key: self.at(key)._read(known[key]) for key, value in self.value.items() if value is not None}

    def _read(self, read: Callable[[At], Any]) -> Any:
        try:
            return read(self)
        except CallerError as error:
            if error.where:
                raise
            raise InvalidValueError(error.what, where=self.place, remedy=error.remedy) from None

    def mapping(self) -> Mapping[str, Any]:
        """Return the names and what is below each."""
        if not isinstance(self.value, Mapping) or not all(isinstance(key, str) for key in self.value):
            self.fail(f"{self.value!r:.60} is no mapping of names", "write `name: value` lines")
        return self.value

    def is_list(self) -> bool:
        """Whether several values stand here."""
        return isinstance(self.value, list | tuple)

    def items(self) -> list[At]:
        """Return the values of a list."""
        if not self.is_list():
            self.fail(f"{self.value!r:.60} is no list", "write [a, b, …]")
        return [
            At(one, self.where, self.folder, f"{self.path}[{index}]") for index, one in enumerate(self.value)
        ]

    def names(self) -> list[str]:
        """Return a list of texts."""
        return [one.text() for one in self.items()]

    def text(self) -> str:
        """Return a text."""
        if not isinstance(self.value, str):
            self.fail(f"{self.value!r:.60} is no text", "put it in quotes")
        return self.value

    def whole(self) -> int:
        """Return a whole number."""
        if isinstance(self.value, bool) or not isinstance(self.value, int):
            self.fail(f"{self.value!r:.60} is no whole number", "write one without quotes")
        return self.value

    def number(self) -> float:
        """Return a number."""
        if isinstance(self.value, bool) or not isinstance(self.value, int | float):
            self.fail(f"{self.value!r:.60} is no number", "write one without quotes")
        return float(self.value)

    def truth(self) -> bool:
        """Return true or false."""
        if not isinstance(self.value, bool):
            self.fail(f"{self.value!r:.60} is neither true nor false", "write true or false")
        return self.value

    def seconds(self) -> float:
        """Return a duration in seconds."""
        return seconds_of(self.value, self.place)

    def amounts(self) -> dict[str, Any]:
        """Return amounts of resources as they are written, by name."""
        for key, amount in self.mapping().items():
            if isinstance(amount, bool) or not isinstance(amount, int | float | str):
                self.at(key).fail(f"{amount!r:.60} is no amount", "write such as 16, 500m or 4Gi")
        return dict(self.mapping())
