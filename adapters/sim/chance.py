"""Chance by seed: a stream for each (seed, replication, task, purpose), the same on every machine.

Nothing but `random()` of Python's Mersenne Twister is used, whose numbers do not change between versions; what is drawn
for one purpose moves no other, so that two scenarios differ by what differs in them.
"""

from __future__ import annotations

from collections.abc import Callable
from hashlib import blake2b
from random import Random

Chance = Callable[[], float]
"""Returns a number in [0, 1)."""


def stream(seed: int, replication: int, owner: str, purpose: str) -> Chance:
    """Return the stream for a purpose of a task (or of a machine, or of nobody)."""
    named = f"{seed}\0{replication}\0{owner}\0{purpose}".encode()
    return Random(int.from_bytes(blake2b(named, digest_size=16).digest(), "big")).random
