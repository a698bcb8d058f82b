"""What if: changes are made to an overlay of a state, and the next round is asked for its launches.

In: a state, the time, which runners are unavailable, whether an engine is alive; then `Change`s, in their order. Each
becomes the events that it would become in a log. What user code and other tasks have to bring about is simply made so,
and an ending that is being stored succeeds. Out: whether the next round launches a job. The state itself is not touched.
"""

from __future__ import annotations

from collections.abc import Callable, Set
from itertools import islice
from typing import Any

import msgspec

from datatask.engine.core import decide as deciding
from datatask.engine.core.fold import apply
from datatask.engine.core.leaves import LeafState
from datatask.engine.core.retry import NextAttempt, verdict_of
from datatask.engine.core.state import PendingKey, State
from datatask.engine.core.tasks import OpenRun, TaskState
from datatask.engine.explain.explanations import Change
from datatask.engine.explain.overlay import Overlay
from datatask.schema import events as e
from datatask.schema.definition import view_id

FIRST = 1e15
"""A priority before all others."""
LATEST = 1 - 2**-53
"""The chance with which a backoff is longest."""


class WhatIf:
    """A state in which changes can be made and taken back."""

    def __init__(
        self, state: State, now: int, *, engine_alive: bool = True, unavailable: Set[str] = frozenset()
    ) -> None:
        self._overlay = Overlay(state)
        self.below, self.state = state, self._overlay.state
        self._start = (now, engine_alive, unavailable)
        self.selection = state.selection if engine_alive else None
        self.now, self.engine_alive, self.unavailable = now, engine_alive, set(unavailable)

    def reset(self, *changes: Change) -> None:
        """Take back all changes, and make these."""
        self._overlay.reset()
        self.now, self.engine_alive, unavailable = self._start
        self.selection = self.below.selection if self.engine_alive else None
        self.unavailable = set(unavailable)
        for change in changes:
            self.make(change)

    def make(self, change: Change) -> None:
        """Make one change."""
        _MAKE[change.op](self, change)

    def is_queued(self, task: TaskState, job: int) -> bool:
        """Whether the job could be launched now, limits aside."""
        if job in task.queue:
            return True
        episode = task.episodes.get(job)
        if episode is None or episode.run or task.contends(episode):
            return False
        return (episode.not_before or self.now + 1) <= self.now

    def answer_priority(self, name: str, job: int) -> None:
        """Let the priority of an episode that the changes have opened be 0, as if the engine had asked for it."""
        key = PendingKey("priority", name, job)
        if key in self.state.pending and self.state.pending[key].position > self.below.position:
            self._ask_priority(name, job)

    def round(self, name: str, job: int, *, bound: int = deciding.BOUND) -> deciding.Round | None:
        """Return the next round, None where it cannot launch this job; a `bound` of 1 will do for a job that comes first."""
        task = self.state.tasks[name]
        if not self.engine_alive or deciding.closed(task, self.unavailable, self.selection):
            return None
        self.answer_priority(name, job)
        if not self.is_queued(task, job):
            return None
        line = islice(deciding.entries(task, self.now, bound), bound)
        if not any(entry[2] == job for entry in line):
            return None  # a whole round of its own task comes before it
        return deciding.decide(
            self.state,
            self.now,
            bound=bound,
            unavailable=self.unavailable,
            selection=self.selection,
            members=False,
        )

    def launches(self, name: str, job: int) -> bool:
        """Whether the next round launches the job."""
        found = self.round(name, job)
        return found is not None and index_of(found, name, self.state.jobs[job]) is not None

    # --- the changes ------------------------------------------------------------------------------

    def _fold(self, *events: e.Event) -> None:
        for event in events:
            apply(self.state, self.state.position + 1, event)

    def _flip(self, leaf: LeafState, job: int, present: bool) -> None:
        self.state.position += 1
        self.state.flip(leaf, job, present, self.state.position)

    def _job(self, change: Change) -> int:
        return self.state.intern(change.job)

    def _put(self, change: Change) -> None:
        self._fold(e.ValuePut(at=self.now, repository=change.repository, job=change.job))

    def _delete(self, change: Change) -> None:
        self._fold(e.ValueDeleted(at=self.now, repository=change.repository, job=change.job))

    def _set_filter(self, change: Change) -> None:
        leaf, job = self.state.leaves[change.repository], self._job(change)
        self.state.pending.pop(PendingKey("filter", leaf.id, job), None)
        assert leaf.derived is not None, "only filtered repositories have a filter"
        holds = change.outcome == "true" and leaf.derived.base.test(self.state.masks[job])
        self._flip(leaf, job, holds)

    def _set_translation(self, change: Change) -> None:
        leaf, job = self.state.leaves[change.repository], self._job(change)
        self.state.pending.pop(PendingKey("translation", leaf.id, job), None)
        translator = leaf.derived.translator if leaf.derived is not None else None
        assert translator is not None, "only translated repositories have a translator"
        holds = translator.test(self.state.masks[job])
        self._flip(leaf, job, holds)

    def _wait_for(self, change: Change) -> None:
        if change.run is not None:
            self._let_end(self.state.open_runs[change.run])
            return
        wanted = not change.outcome.startswith("not ")
        view = view_id(change.task, change.outcome.removeprefix("not "))  # type: ignore[arg-type]
        self._flip(self.state.leaves[view], self._job(change), wanted)

    def _envelope(self, run: OpenRun) -> dict[str, Any]:
        return {"at": self.now, "task": run.task, "job": self.state.jobs[run.job], "run": run.run}

    def _let_end(self, run: OpenRun) -> None:
        """Let its outputs be stored, and the run end as its target said."""
        ending, task = run.settling, self.state.tasks[run.task]
        assert ending is not None, "only an ending that is being stored is waited for"
        envelope = self._envelope(run)
        for _, intent in list(run.intents.values()):
            where = {**envelope, "repository": intent.repository, "job": intent.job}
            self._fold(e.ValueDeleted(**where) if intent.op == "delete" else e.ValuePut(**where))
        again = verdict_of(task, run, ending, self.state.engine, self.now, LATEST)
        self._fold(e.RunEnded(**envelope, outcome=ending.outcome, final=not isinstance(again, NextAttempt)))
        if isinstance(again, NextAttempt):
            self._fold(e.RetryScheduled(**envelope, **again._asdict()))

    def _end_run(self, change: Change) -> None:
        run = self.state.open_runs[change.run or 0]
        envelope = self._envelope(run)
        self._fold(e.StopDecided(**envelope, reason="deleted"))
        pids = self.state.tasks[run.task].definition.pids
        if pids is not None and self.state.contains(pids, envelope["job"]):
            self._fold(e.ValueDeleted(**envelope, repository=pids))
        self._fold(e.RunEnded(**envelope, outcome="cancelled"))

    def _retry(self, change: Change) -> None:
        self._fold(e.RetryRequested(at=self.now, task=change.task, job=change.job))

    def _evaluate(self, change: Change) -> None:
        self._ask_priority(change.task, self._job(change))

    def _ask_priority(self, name: str, job: int) -> None:
        if PendingKey("priority", name, job) in self.state.pending:
            value, job_name = msgspec.Raw(b"0"), self.state.jobs[job]
            self._fold(e.Evaluated(at=self.now, what="priority", task=name, job=job_name, value=value))

    def _resume(self, change: Change) -> None:
        self._fold(e.TaskResumed(at=self.now, task=change.task))

    def _enable(self, change: Change) -> None:
        self._redefine(change.task, disabled=False)

    def _raise_concurrency(self, change: Change) -> None:
        self._redefine(change.task, concurrency=change.concurrency)

    def _redefine(self, name: str, **fields: object) -> None:
        task = self.state.tasks[name]
        task.definition = msgspec.structs.replace(task.definition, **fields)

    def _raise_quota(self, change: Change) -> None:
        self._fold(
            e.QuotaChanged(at=self.now, quota=change.quota, limits=change.limits, launches=change.launches)
        )

    def _raise_priority(self, change: Change) -> None:
        task, job = self.state.tasks[change.task], self._job(change)
        self.answer_priority(task.name, job)
        episode = task.episodes.get(job)
        if episode is not None:
            episode.priority = FIRST
        if job in task.queue:
            position = task.queue.position(job)
            task.queue.discard(job)
            task.queue.push(job, FIRST, position)

    def _recover(self, change: Change) -> None:
        self.unavailable.discard(change.task)

    def _observe(self, change: Change) -> None:
        synced = e.RepositorySynced(at=self.now, repository=change.repository, listed_at=self.now, members=0)
        self._fold(synced)

    def _start_engine(self, change: Change) -> None:
        self.engine_alive = True

    def _run_it(self, change: Change) -> None:
        self.selection = None

    def _wait_until(self, change: Change) -> None:
        self.now = max(self.now, change.at or 0)


_MAKE: dict[str, Callable[[WhatIf, Change], None]] = {
    "put": WhatIf._put,
    "delete": WhatIf._delete,
    "set_filter": WhatIf._set_filter,
    "set_translation": WhatIf._set_translation,
    "wait_for": WhatIf._wait_for,
    "end_run": WhatIf._end_run,
    "retry": WhatIf._retry,
    "evaluate": WhatIf._evaluate,
    "resume": WhatIf._resume,
    "enable": WhatIf._enable,
    "raise_concurrency": WhatIf._raise_concurrency,
    "raise_quota": WhatIf._raise_quota,
    "raise_priority": WhatIf._raise_priority,
    "recover": WhatIf._recover,
    "observe": WhatIf._observe,
    "accept_loss": WhatIf._observe,
    "start_engine": WhatIf._start_engine,
    "run": WhatIf._run_it,
    "wait_until": WhatIf._wait_until,
}


def index_of(found: deciding.Round, name: str, job: str) -> int | None:
    """Return the index of the launch of a job among those of a round, or None."""
    return next(
        (index for index, each in enumerate(found.decisions) if each.job == job and each.task == name), None
    )


def end_of_run(state: State, run: int) -> Change:
    """Return the change that ends a run: a person's, or, where its outputs are being stored, a wait."""
    open_run = state.open_runs[run]
    op = "end_run" if open_run.settling is None else "wait_for"
    return Change(op=op, run=run, task=open_run.task, job=state.jobs[open_run.job])
