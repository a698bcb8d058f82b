"""Readiness conditions compiled to tests on a job's mask.

In: an `Expr` over leaves and each leaf's bit. Out: a `Condition`. The common case, in all of these and in none
of those, is two integers (`mask & care == want`, 30 ns); any other and/or/not becomes a compiled function.
`holds` is the slow twin that the compiled forms must equal.

What the state keeps for a leaf: its bit, its count, and per member the position of its value.

Jobs are dense integers. Payloads stay in the log; a position is 8 bytes, negative where it is that of the
deletion. Foreign stores also keep 8 bytes of their version's hash, so that a listing can be compared without
reading the log.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Callable, Container, Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from pyroaring import BitMap

from datatask.schema.definition import All, Any, AnyExpr, In, Not, RepositoryDef

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


CHANGED_MAX = 8192
"""A leaf's bitmap follows when asked, or when so many bits have changed."""


def version_hash(version: str | None) -> int:
    """Return 64 bits of a store version's hash; 0 stands for no version."""
    if version is None:
        return 0
    return int.from_bytes(hashlib.blake2b(version.encode(), digest_size=8).digest(), "big") or 1


def put_at(cells: array[int], index: int, value: int) -> None:
    """Set a cell, growing the array by doubling."""
    try:
        cells[index] = value
    except IndexError:
        grown = max(index + 1, 2 * len(cells), 64) - len(cells)
        cells.frombytes(bytes(grown * cells.itemsize))
        cells[index] = value


def get_at(cells: array[int], index: int) -> int:
    """Return a cell; 0 where the array has not grown to."""
    return cells[index] if index < len(cells) else 0


@dataclass(slots=True, eq=False)
class LeafState:
    """One leaf; `feeds` and `translates` are the derived leaves that stand on it."""

    definition: RepositoryDef
    index: int
    bit: int
    count: int = 0
    synced: bool = False
    incarnation: int = 0
    held: str = ""
    root: str = ""
    trouble: str = ""
    missed: int = 0
    """Changes since the engine opened that the store had not told and a comparison found."""
    positions: array[int] = field(default_factory=lambda: array("q"))
    versions: array[int] = field(default_factory=lambda: array("Q"))
    feeds: list[DerivedState] = field(default_factory=list)
    translates: list[DerivedState] = field(default_factory=list)
    derived: DerivedState | None = None
    changed: list[int] = field(default_factory=list)
    _members: BitMap = field(default_factory=BitMap)

    @property
    def id(self) -> str:
        return self.definition.id

    @property
    def versioned(self) -> bool:
        return self.definition.medium == "foreign"

    def members(self, masks: list[int]) -> BitMap:
        """Return the members as a bitmap (shared: do not change it)."""
        if self.changed:
            bit = self.bit
            changed = set(self.changed)
            self.changed.clear()
            present = [job for job in changed if masks[job] & bit]
            self._members |= BitMap(present)
            if len(present) != len(changed):
                self._members -= BitMap(changed.difference(present))
        return self._members

    def load(self, members: BitMap) -> None:
        """Take the members of a checkpoint."""
        self._members = members
        self.changed.clear()
        self.count = len(members)


@dataclass(slots=True, eq=False)
class DerivedState:
    """A leaf that follows from others: filtered (same job) or translated (another job's memberships)."""

    leaf: LeafState
    base: Condition
    base_leaf: LeafState | None
    translator: Condition | None = None
    forward: dict[int, int] = field(default_factory=dict)
    reverse: dict[int, set[int]] = field(default_factory=dict)

    def bind(self, job: int, target: int | None) -> None:
        """Let `job` stand for `target`, or for nothing."""
        old = self.forward.pop(job, None)
        if old is not None:
            keys = self.reverse[old]
            keys.discard(job)
            if not keys:
                del self.reverse[old]
        if target is not None:
            self.forward[job] = target
            self.reverse.setdefault(target, set()).add(job)

    @property
    def what(self) -> str:
        """The `what` of the evaluation that it rests on."""
        return "filter" if self.translator is None else "translation"
