"""How durations are spread, in bounded memory: few are kept as they are, many by their leading digits.

In: nanoseconds, one at a time. Out: count, sum, largest (exact), and percentiles by nearest rank: exact up to
`EXACT_MAX` values, within half a percent beyond.
"""

from __future__ import annotations

EXACT_MAX = 4096
DIGITS = 8
"""The leading binary digits that are kept: 256 steps for each doubling."""


class Spread:
    """Adds up durations and tells how they are spread."""

    __slots__ = ("_buckets", "_values", "count", "largest", "total")

    def __init__(self) -> None:
        self.count = self.total = self.largest = 0
        self._values: list[int] = []
        self._buckets: dict[int, int] = {}

    def add(self, value: int) -> None:
        """Take one duration."""
        self.count += 1
        self.total += value
        self.largest = max(self.largest, value)
        if self._buckets:
            self._put(value)
            return
        self._values.append(value)
        if len(self._values) > EXACT_MAX:
            for kept in self._values:
                self._put(kept)
            self._values = []

    def _put(self, value: int) -> None:
        shift = max(0, value.bit_length() - DIGITS)
        middle = (value >> shift << shift) + (1 << shift >> 1)
        self._buckets[middle] = self._buckets.get(middle, 0) + 1

    def quantile(self, share: float) -> int:
        """Return the smallest value that at least this share of all are not above; 0 when there are none."""
        rank = max(1, -(-self.count * int(share * 1000) // 1000))
        if not self._buckets:
            return sorted(self._values)[rank - 1] if self._values else 0
        for middle in sorted(self._buckets):
            rank -= self._buckets[middle]
            if rank <= 0:
                return min(middle, self.largest)
        return self.largest
