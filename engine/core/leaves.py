"""What the state keeps for a leaf: its bit, its count, and per member the position of its value.

Jobs are dense integers. Payloads stay in the log; a position is 8 bytes, negative where it is that of the
deletion. Foreign stores also keep 8 bytes of their version's hash, so that a listing can be compared without
reading the log.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pyroaring import BitMap

from datatask.engine.core.expressions import MaskTest
from datatask.schema.definition import RepositoryDef

if TYPE_CHECKING:
    from datatask.engine.core.gathering import Gathering

CHANGED_MAX = 8192
"""A leaf's bitmap is updated on request, or when this number of bits has changed."""


def version_hash(version: str | None) -> int:
    """Return 64 bits of a store version's hash; 0 stands for no version."""
    if version is None:
        return 0
    return int.from_bytes(hashlib.blake2b(version.encode(), digest_size=8).digest(), "big") or 1


@dataclass(slots=True, eq=False)
class LeafState:
    """One leaf; `feeds`, `translates` and `gathers` are the leaves derived from it."""

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
    """The number of changes, since the engine opened, that a comparison found and the store had not reported."""
    positions: array[int] = field(default_factory=lambda: array("q"))
    versions: array[int] = field(default_factory=lambda: array("Q"))
    feeds: list[DerivedState] = field(default_factory=list)
    translates: list[DerivedState] = field(default_factory=list)
    gathers: list[DerivedState] = field(default_factory=list)
    derived: DerivedState | None = None
    changed: list[int] = field(default_factory=list)
    _members: BitMap = field(default_factory=BitMap)

    @property
    def id(self) -> str:
        return self.definition.id

    @property
    def followed(self) -> bool:
        """Whether leaves are derived from it."""
        return bool(self.feeds or self.translates or self.gathers)

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
        """Set the members from a checkpoint."""
        self._members = members
        self.changed.clear()
        self.count = len(members)


class Memberships:
    """The leaves of a job, by its mask."""

    __slots__ = ("_leaves", "_mask")

    def __init__(self, leaves: Mapping[str, LeafState], mask: int) -> None:
        self._leaves, self._mask = leaves, mask

    def __contains__(self, leaf: object) -> bool:
        return self._mask & self._leaves[str(leaf)].bit != 0


@dataclass(slots=True, eq=False)
class DerivedState:
    """A leaf derived from others: filtered (same job), translated (another job's), or gathered (many jobs')."""

    leaf: LeafState
    base: MaskTest
    base_leaf: LeafState | None
    translator: MaskTest | None = None
    forward: dict[int, int] = field(default_factory=dict)
    reverse: dict[int, set[int]] = field(default_factory=dict)
    gathering: Gathering | None = None

    def bind(self, job: int, target: int | None) -> None:
        """Map `job` to `target`, or to nothing."""
        old = self.forward.pop(job, None)
        if old is not None:
            keys = self.reverse[old]
            keys.discard(job)
            if not keys:
                del self.reverse[old]
        if target is not None:
            self.forward[job] = target
            self.reverse.setdefault(target, set()).add(job)

    def standing_for(self, job: int) -> Iterable[int]:
        """Return the jobs that map to this one."""
        return self.reverse.get(job, ()) if self.gathering is None else self.gathering.standing_for(job)

    @property
    def candidates(self) -> MaskTest:
        """The condition on jobs for which user code is evaluated."""
        return self.translator or self.base

    @property
    def what(self) -> str:
        """The `what` of the evaluation that derives it."""
        return "filter" if self.translator is None else "translation"
