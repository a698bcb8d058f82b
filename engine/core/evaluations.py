"""User code that decisions rest on: filters, translations, priorities and resources, evaluated outside.

In come the state's pending evaluations, and later their outcomes; out go those that are due, and `Evaluated` events.
One that raised is tried again after `EVALUATION_RETRY`.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence

import msgspec

from datatask.engine.core.effects import Evaluation, Outbox
from datatask.engine.core.state import PendingKey
from datatask.schema import events as e
from datatask.schema.units import SECOND
from datatask.schema.values import encode_value

EVALUATION_RETRY = 5 * SECOND


class Evaluations:
    """Knows what is being evaluated, and when failed evaluations are tried again."""

    def __init__(self, outbox: Outbox) -> None:
        self._outbox = outbox
        self._state = outbox.state
        self._evaluating: set[PendingKey] = set()
        self._retry_times: list[int] = []

    def index(self) -> None:
        """Work out from the state when evaluations are tried again."""
        self._retry_times = sorted(why.retry_at for why in self._state.pending.values() if why.retry_at)

    def due(self, now: int, most: int) -> list[Evaluation]:
        """Return user code that is due to be evaluated and not under way, at most so many."""
        while self._retry_times and self._retry_times[0] <= now:
            heapq.heappop(self._retry_times)
        found: list[Evaluation] = []
        if len(self._evaluating) >= most:
            return found
        for key, pending in self._state.pending.items():
            if key in self._evaluating or pending.retry_at > now:
                continue
            found.append(Evaluation(key, key.owner, self._state.jobs[key.job], pending.position))
            if len(found) + len(self._evaluating) >= most:
                break
        self._evaluating.update(evaluation.key for evaluation in found)
        return found

    def retry_at(self) -> int | None:
        """Return when the next evaluation that failed is tried again, or None."""
        return self._retry_times[0] if self._retry_times else None

    def evaluated(self, results: Sequence[tuple[Evaluation, object, str | None]], now: int) -> None:
        """Record outcomes: (evaluation, value, error text or None)."""
        events: list[e.Event] = []
        for evaluation, value, error in results:
            key = evaluation.key
            self._evaluating.discard(key)
            if error is not None:
                heapq.heappush(self._retry_times, now + EVALUATION_RETRY)
            on_leaf = key.what in ("filter", "translation")
            events.append(
                e.Evaluated(
                    at=now,
                    what=key.what,  # type: ignore[arg-type]
                    task=None if on_leaf else key.owner,
                    repository=key.owner if on_leaf else None,
                    job=evaluation.job,
                    inputs=(evaluation.position,),
                    value=msgspec.Raw(encode_value(value)) if error is None else e.ABSENT,
                    error=error,
                    retry_at=now + EVALUATION_RETRY if error is not None else None,
                )
            )
        self._outbox.emit_in_parts(events)
