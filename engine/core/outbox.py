"""The steps that a reactor has led to: batches that are folded already, and the effects that follow them.

In come events to append, folded at once, ahead of the disk; out go `Step`s in order. This is the bottom of
the reactor: `changes`, `observations` and `runs` build on it, `reactor` puts them together.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from datatask.engine.core.effects import Effect, Step
from datatask.engine.core.fold import apply_all
from datatask.engine.core.state import State
from datatask.engine.ports import Write
from datatask.schema import events as e

BATCH_MAX = 5_000


class Outbox:
    """A state, and the steps since last taken."""

    def __init__(self, state: State) -> None:
        self.state = state
        self.steps: list[Step] = []

    def take(self) -> list[Step]:
        """Return the steps since the last call, in order."""
        steps, self.steps = self.steps, []
        return steps

    def _emit(self, events: Sequence[e.Event], effects: Iterable[Effect] = ()) -> int:
        """Fold a batch, queue it with its effects, and return the position of its last event."""
        first = self.state.position + 1
        apply_all(self.state, first, events)
        self.steps.append(Step(first, tuple(events), tuple(effects)))
        return self.state.position

    def _emit_in_parts(self, events: Sequence[e.Event], effects: Sequence[Effect] = ()) -> int:
        position = 0
        for start in range(0, len(events), BATCH_MAX):
            position = self._emit(events[start : start + BATCH_MAX], effects[start : start + BATCH_MAX])
        return position

    def _join(self, since: int) -> None:
        """Make one step of those behind the first `since`: what they tell belongs together."""
        steps = self.steps
        if len(steps) - since > 1 and sum(len(step.events) for step in steps[since:]) <= BATCH_MAX:
            events = tuple(event for step in steps[since:] for event in step.events)
            effects = tuple(effect for step in steps[since:] for effect in step.effects)
            steps[since:] = [Step(steps[since].first, events, effects)]

    def _attach(self, effects: Sequence[Effect]) -> None:
        """Let effects follow the last step taken, or an empty one where there is none to follow."""
        if self.steps:
            last = self.steps[-1]
            self.steps[-1] = last._replace(effects=(*last.effects, *effects))
        else:
            self.steps.append(Step(self.state.position + 1, (), tuple(effects)))

    def _medium(self, write: Write) -> str:
        return self.state.leaves[write.repository].definition.medium
