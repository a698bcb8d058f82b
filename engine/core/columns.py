"""Events as columns: what `bulk` folds and adapters/log/columns.py reads.

A page has a column of integers each for what most events need, and the own fields of the frequent kinds, decoded as
ever but not made into events.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from datatask.schema.events import Event

COLUMNAR = (
    "ValuePut",
    "ValueDeleted",
    "LaunchDecided",
    "RunStarted",
    "RunEnded",
    "DecisionRound",
    "RunObserved",
)
"""The kinds whose own fields come as columns; all others are made into events one by one."""


class Meaning(NamedTuple):
    """What the key of an event stands for: its kind, of the present version, and what it is about."""

    kind: str
    task: str | None
    repository: str | None


@dataclass(slots=True)
class Page:
    """Consecutive events from `first` on; 0 stands for no job and no run, jobs are numbers of names.

    `own` has, for each columnar kind, the own fields of its events in order, without
    their values.
    """

    first: int
    keys: list[int]
    jobs: list[int]
    runs: list[int]
    times: list[int]
    own: dict[str, list[Any]]


class Source(Protocol):
    """Where pages come from: what their numbers mean, and whatever is not in them."""

    def meaning(self, key: int) -> Meaning | None:
        """Return what a key stands for, None where the own fields are no column."""

    def texts(self, numbers: Sequence[int]) -> Mapping[int, str]:
        """Return the names with these numbers, which are in order; raises where one is missing."""

    def event(self, position: int) -> Event:
        """Return an event of the page, made as ever."""
