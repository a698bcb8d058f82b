"""What follows from an ending: is the job tried again, when, and is the episode over?

Pure. `chance` is a number in [0, 1) drawn outside; the resulting `not_before` is recorded, so replay needs no
chance. Trouble of the infrastructure (`lost`) has a budget of its own and does not use up the user's.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

from datatask.engine.core.tasks import Episode
from datatask.schema.definition import SECOND, RetryDef

INFRASTRUCTURE_FIRST = SECOND // 10
INFRASTRUCTURE_LONGEST = 300 * SECOND
THROTTLED = "throttled"


class Again(NamedTuple):
    """Try again, not before this engine time, as this attempt, out of this budget."""

    not_before: int
    attempt: int
    budget: Literal["user", "infrastructure"]


class Over(NamedTuple):
    """The episode is over; `exhausted` names the budget that ran out, if one did."""

    exhausted: Literal["", "user", "infrastructure"] = ""
    attempts: int = 0


def after_ending(
    retry: RetryDef, episode: Episode, outcome: str, now: int, chance: float, *, stopped: bool = False
) -> Again | Over:
    """Return what follows when the episode's current run ended with `outcome`."""
    attempt = episode.attempt
    if outcome == "lost":
        if stopped or episode.infrastructure >= retry.infrastructure_attempts:
            return Over("" if stopped else "infrastructure", attempt)
        wait = backoff(INFRASTRUCTURE_FIRST, 3.0, INFRASTRUCTURE_LONGEST, episode.infrastructure, 0.1, chance)
        return Again(now + wait, attempt + 1, "infrastructure")
    if outcome not in retry.on:
        return Over()
    spent = attempt - episode.infrastructure
    if spent >= retry.attempts:
        return Over("user" if retry.attempts > 1 else "", attempt)
    wait = backoff(retry.first, retry.factor, retry.longest, spent - 1, retry.jitter, chance)
    return Again(now + wait, attempt + 1, "user")


def backoff(first: int, factor: float, longest: int, failures: int, jitter: float, chance: float) -> int:
    """Return the wait in nanoseconds after `failures` earlier ones, spread by +-jitter."""
    exponent = min(failures, 64)
    plain = min(float(longest), first * factor**exponent)
    return max(0, int(plain * (1 + jitter * (2 * chance - 1))))
