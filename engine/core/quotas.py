"""Quotas as views over open runs: what is in use, what still fits, when the next launch is allowed; and constraints.

All amounts are billionths. A launch window holds the times of the launches that still count; those from before
there was a limit do not.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from itertools import islice
from typing import Literal, NamedTuple

from datatask.schema.definition import QuotaDef
from datatask.schema.units import NANO

Identities = dict[str, tuple[str, ...]]
"""By resource, those of a run."""

Kind = Literal[
    "paused",
    "disabled",
    "observing",
    "adapter",
    "concurrency",
    "infeasible",
    "rate",
    "quota",
    "bound",
    "unselected",
    "limit",
]


class Constraint(NamedTuple):
    """What keeps a task from launching: its kind, with the repository or the quota and its dimension."""

    kind: Kind
    name: str = ""
    dimension: str = ""

    @property
    def about(self) -> str:
        """The repository, the quota, or `quota.dimension`; the empty string for what concerns the task alone."""
        return f"{self.name}.{self.dimension}" if self.dimension else self.name

    @property
    def text(self) -> str:
        """The constraint as rounds record it."""
        return f"{self.kind}: {self.about}" if self.name else self.kind

    @classmethod
    def recorded(cls, text: str) -> Constraint | None:
        """Return the constraint that a round has recorded, `name` with its dimension; None for none."""
        kind, _, name = text.partition(": ")
        return cls(kind, name) if kind else None  # type: ignore[arg-type]


@dataclass(slots=True)
class QuotaState:
    """One quota; `used` equals the sum over open runs, always."""

    definition: QuotaDef
    limits: dict[str, int]
    launches: int | None
    used: dict[str, int] = field(default_factory=dict)
    recent: deque[int] = field(default_factory=deque)
    held: dict[str, set[str]] = field(default_factory=dict)
    """The identities that open runs have, by resource."""

    @property
    def name(self) -> str:
        """The quota's name."""
        return self.definition.name

    @classmethod
    def of(cls, definition: QuotaDef) -> QuotaState:
        return cls(definition, dict(definition.limits), definition.launches)

    def take(self, request: dict[str, int], at: int) -> None:
        """Account for a launch."""
        self.use(request)
        if self.launches is not None:
            self.recent.append(at)
            while self.recent[0] <= at - self.definition.window:
                self.recent.popleft()

    def use(self, request: dict[str, int]) -> None:
        """Count amounts as in use."""
        used = self.used
        for name, amount in request.items():
            if amount:
                used[name] = used.get(name, 0) + amount

    def free(self, request: dict[str, int]) -> None:
        """Account for an ending."""
        used = self.used
        for name, amount in request.items():
            left = used.get(name, 0) - amount
            if left:
                used[name] = left
            else:
                used.pop(name, None)

    def assign(self, request: dict[str, int]) -> Identities:
        """Return the identities that a run with this request gets: the first free ones, fewer where a person went over the limit."""
        found: Identities = {}
        for name, known in self.definition.identities.items():
            if wanted := request.get(name, 0) // NANO:
                held = self.held.get(name, ())
                found[name] = tuple(islice((one for one in known if one not in held), wanted))
        return found

    def hold(self, identities: Identities) -> None:
        """Count identities as a run's own."""
        for name, own in identities.items():
            self.held.setdefault(name, set()).update(own)

    def release(self, identities: Identities) -> None:
        """Let a run's identities be given to others."""
        for name, own in identities.items():
            left = self.held.get(name, set()).difference(own)
            if left:
                self.held[name] = left
            else:
                self.held.pop(name, None)

    def change(self, limits: dict[str, int], launches: int | None) -> None:
        """Set new limits, of identities no more than there are; running work is not touched."""
        most = {name: len(known) * NANO for name, known in self.definition.identities.items()}
        self.limits = {name: min(amount, most.get(name, amount)) for name, amount in limits.items()}
        self.launches = launches

    def shortfall(self, request: dict[str, int], reserved: dict[str, int] | None = None) -> str | None:
        """Return the first dimension in which the request does not fit beside what is in use and reserved, or None."""
        used, limits = self.used, self.limits
        for name, amount in request.items():
            if amount:
                free = limits.get(name, 0) - used.get(name, 0)
                if amount > (free - reserved.get(name, 0) if reserved else free):
                    return name
        return None

    def lacking(self, request: dict[str, int]) -> dict[str, int]:
        """Return the part of the request that does not fit beside what is in use."""
        used, limits = self.used, self.limits
        return {
            name: amount
            for name, amount in request.items()
            if used.get(name, 0) + amount > limits.get(name, 0)
        }

    def infeasible(self, request: dict[str, int]) -> Constraint | None:
        """Return the constraint of a request that is larger than a whole limit, or of a quota that allows no launch."""
        for name, amount in request.items():
            if amount > self.limits.get(name, 0):
                return Constraint("infeasible", self.definition.name, name)
        if self.launches is not None and self.launches <= 0:
            return Constraint("infeasible", self.definition.name, "launches")
        return None

    def next_launch(self, now: int, launched: int = 0) -> int | None:
        """Return when the window has room for a launch after `launched` more now; None where it allows none at all."""
        if self.launches is None:
            return now
        if self.launches <= 0:
            return None
        free, recent = self.launches - launched, self.recent
        if free <= 0:
            return now + self.definition.window
        return max(now, recent[-free] + self.definition.window) if len(recent) >= free else now

    def copy(self) -> QuotaState:
        """Return a copy whose amounts in use can be changed; the times of launches are shared."""
        held = {name: own.copy() for name, own in self.held.items()} if self.held else {}
        return QuotaState(self.definition, self.limits, self.launches, self.used.copy(), self.recent, held)
