"""Steps by key: for an event's kind and owner and a job's situation, what is to be written and what follows.

In: a situation, a key and its `Meaning`. Out: a tuple whose first item says which branch of `bulk` it is for; None
where the fold itself has to do the event. Each is worked out once and kept in the situation; how many may be worked
out grows with the events they serve, so that pipelines with very many situations lose little.
"""

from __future__ import annotations

from typing import Any, get_args

from datatask.engine.core.columns import COLUMNAR, Meaning
from datatask.engine.core.queues import FifoQueue
from datatask.engine.core.quotas import QuotaState
from datatask.engine.core.situations import POP, RUNNING, Situation, Situations
from datatask.engine.core.state import State
from datatask.engine.core.tasks import TaskState
from datatask.schema import events as e

STEPS_FREE, EVENTS_A_STEP = 4000, 100
"""Steps are worked out while there are few, and then at most one for so many events: each costs that of 20 events."""

PUT, DELETED, LAUNCH, STARTED, ENDED, ROUND, SILENT, PLAIN = range(8)
"""What is to be done for an event; the kinds of `COLUMNAR` in order, and whatever is left to the fold."""

CODES = dict(zip(COLUMNAR, range(PLAIN), strict=True))

OUTCOMES: tuple[e.Outcome, ...] = get_args(e.Outcome)

AnyStep = tuple[Any, ...]


class Steps:
    """The steps under one definition."""

    def __init__(self, state: State) -> None:
        self.situations = Situations(state)
        self._state = state
        self._index = {name: index for index, name in enumerate(state.tasks)}
        self._tried = 0

    def work_out(
        self, situation: Situation, key: int, code: int, meaning: Meaning, seen: int
    ) -> AnyStep | None:
        """Return the step for such events in this situation, after `seen` events; None where there is none."""
        if situation.odd or self._tried > STEPS_FREE + seen // EVENTS_A_STEP:
            return None
        self._tried += 1
        task = self._state.tasks.get(meaning.task or "")
        step: AnyStep | None = None
        if code in (PUT, DELETED):
            step = self._put(situation, code, meaning.repository or "")
        elif code == STARTED:
            step = (STARTED,)
        elif task is not None:
            step = self._launch(situation, task) if code == LAUNCH else self._end(situation, task)
        if step is not None:
            situation[key] = step
        return step

    def _put(self, situation: Situation, code: int, leaf: str) -> AnyStep | None:
        kind = e.ValuePut if code == PUT else e.ValueDeleted
        step = self.situations.step(situation, kind(at=0, repository=leaf, job="j"))
        if step is None or step.cells is None:
            return None
        return code, step.following, step.following.mask, step.cells, step.ops, step.versions, leaf

    def _launch(self, situation: Situation, task: TaskState) -> AnyStep | None:
        event = e.LaunchDecided(at=0, task=task.name, job="j", episode=1, attempt=1)
        step = self.situations.step(situation, event)
        if step is None or step.cells is None:
            return None
        waiting = task.queue.waiting if isinstance(task.queue, FifoQueue) else None
        leaves = any(op == POP and where is waiting for op, where in step.ops)
        ops = tuple((op, where) for op, where in step.ops if op != POP or where is not waiting)
        queue = waiting if leaves else None
        return LAUNCH, step.following, step.following.mask, step.cells, ops, task, queue, self._quota(task)

    def _end(self, situation: Situation, task: TaskState) -> AnyStep | None:
        """Return the step of an end: what follows on each outcome."""
        if situation.marks[self._index[task.name]] != RUNNING:
            return None
        endings = {}
        for outcome in OUTCOMES:
            self._tried += 1
            event = e.RunEnded(at=0, task=task.name, job="j", run=0, outcome=outcome)
            step = self.situations.step(situation, event)
            if step is not None and step.cells is None:
                endings[outcome] = (step.following, step.following.mask, step.ops)
        return ENDED, endings, task, self._quota(task)

    def _quota(self, task: TaskState) -> QuotaState | None:
        quota = task.definition.quota
        return None if quota is None else self._state.quotas[quota]
