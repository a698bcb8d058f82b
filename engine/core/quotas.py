"""Quotas as views over open runs: what is in use, what still fits, when the next launch is allowed.

All amounts are billionths. A launch window holds the times of the launches that still count; those from before
there was a limit do not.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from datatask.schema.definition import QuotaDef


@dataclass(slots=True)
class QuotaState:
    """One quota; `used` equals the sum over open runs, always."""

    definition: QuotaDef
    limits: dict[str, int]
    launches: int | None
    used: dict[str, int] = field(default_factory=dict)
    recent: deque[int] = field(default_factory=deque)

    @classmethod
    def of(cls, definition: QuotaDef) -> QuotaState:
        return cls(definition, dict(definition.limits), definition.launches)

    def take(self, request: dict[str, int], at: int) -> None:
        """Account for a launch."""
        for name, amount in request.items():
            if amount:
                self.used[name] = self.used.get(name, 0) + amount
        if self.launches is not None:
            self.recent.append(at)
            while self.recent[0] <= at - self.definition.window:
                self.recent.popleft()

    def free(self, request: dict[str, int]) -> None:
        """Account for an ending."""
        used = self.used
        for name, amount in request.items():
            left = used.get(name, 0) - amount
            if left:
                used[name] = left
            else:
                used.pop(name, None)

    def change(self, limits: dict[str, int], launches: int | None) -> None:
        """Set new limits; running work is not touched."""
        self.limits = dict(limits)
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

    def infeasible(self, request: dict[str, int]) -> str | None:
        """Return the dimension in which the request is larger than the whole limit, or None."""
        for name, amount in request.items():
            if amount > self.limits.get(name, 0):
                return name
        return None
