"""Doing what `why` proposes, to a copy of a state: `launches(state, task, job, changes)`.

Each proposed change becomes the event that it would become in a log; what user code and other tasks would have to
bring about is simply made so.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec

from datatask.engine.core.checkpoints import dump, load
from datatask.engine.core.decide import decide
from datatask.engine.core.fold import apply
from datatask.engine.core.retry import NextAttempt, NoRetry, after_ending
from datatask.engine.core.state import PendingKey, State
from datatask.engine.core.tasks import PriorityQueue
from datatask.engine.explain.explanations import Change
from datatask.schema import events as e
from datatask.schema.definition import view_id

LAST = ("raise_priority",)


class CopiedState:
    """A copy of a state in which proposed changes are made."""

    def __init__(self, state: State, now: int, unavailable: frozenset[str], *, engine_alive: bool) -> None:
        self.state = load(dump(state))
        self.now, self.unavailable, self.engine_alive = now, set(unavailable), engine_alive
        self.selection = self.state.selection if engine_alive else None
        self._pending = dict(self.state.pending)

    def make(self, change: Change) -> None:
        """Make one change."""
        getattr(self, f"_{change.op}")(change)

    def launches(self, task: str, job: str) -> bool:
        """Whether the next round launches the job."""
        if not self.engine_alive:
            return False
        found = decide(self.state, self.now, unavailable=self.unavailable, selection=self.selection)
        return any((each.task, each.job) == (task, job) for each in found.decisions)

    def settle(self, task: str, job: str) -> None:
        """Let the engine ask for the priority of an episode that the changes have opened, as it does by itself."""
        key = PendingKey("priority", task, self.state.intern(job))
        if key in self.state.pending and self.state.pending[key] != self._pending.get(key):
            self._ask_priority(task, job)

    def _run(self, change: Change) -> None:
        self.selection = None

    def _event(self, event: e.Event) -> None:
        apply(self.state, self.state.position + 1, event)

    def _put(self, change: Change) -> None:
        self._event(e.ValuePut(at=self.now, repository=change.repository, job=change.job))

    def _delete(self, change: Change) -> None:
        self._event(e.ValueDeleted(at=self.now, repository=change.repository, job=change.job))

    def _set_filter(self, change: Change) -> None:
        leaf, job = self.state.leaves[change.repository], self.state.intern(change.job)
        self.state.pending.pop(PendingKey("filter", leaf.id, job), None)
        assert leaf.derived is not None
        present = change.outcome == "true" and leaf.derived.base.test(self.state.masks[job])
        self.state.flip(leaf, job, present, self.state.position)

    def _set_translation(self, change: Change) -> None:
        leaf, job = self.state.leaves[change.repository], self.state.intern(change.job)
        self.state.pending.pop(PendingKey("translation", leaf.id, job), None)
        assert leaf.derived is not None
        assert leaf.derived.translator is not None
        holds = leaf.derived.translator.test(self.state.masks[job])
        self.state.flip(leaf, job, holds, self.state.position)

    def _wait_for(self, change: Change) -> None:
        if change.run is not None:
            self._let_end(change.run)
            return
        view = change.outcome.removeprefix("not ")
        leaf, job = self.state.leaves[view_id(change.task, view)], self.state.intern(change.job)  # type: ignore[arg-type]
        self.state.flip(leaf, job, not change.outcome.startswith("not "), self.state.position)

    def _let_end(self, number: int) -> None:
        run = self.state.open_runs[number]
        assert run.settling is not None
        job = self.state.jobs[run.job]
        for intent in sorted(run.intents.values(), key=lambda intent: intent.position):
            kind = e.ValuePut if intent.event.op == "put" else e.ValueDeleted
            self._event(
                kind(at=self.now, repository=intent.event.repository, job=intent.event.job, run=number)
            )
        task = self.state.tasks[run.task]
        stopped = run.stopping in ("cancelled", "deleted", "shutdown")
        outcome = run.settling.outcome
        again = after_ending(
            task.definition.retry, task.episodes[run.job], outcome, self.now, 0.999999999, stopped=stopped
        )
        about: dict[str, Any] = {"at": self.now, "task": run.task, "job": job, "run": number}
        self._event(e.RunEnded(**about, outcome=outcome, final=isinstance(again, NoRetry)))
        if isinstance(again, NextAttempt):
            self._event(
                e.RetryScheduled(
                    **about, not_before=again.not_before, attempt=again.attempt, budget=again.budget
                )
            )

    def _evaluate(self, change: Change) -> None:
        key = PendingKey("priority", change.task, self.state.intern(change.job))
        if key in self.state.pending:
            self._ask_priority(change.task, change.job)

    def _ask_priority(self, task: str, job: str) -> None:
        self._event(e.Evaluated(at=self.now, what="priority", task=task, job=job, value=msgspec.Raw(b"0")))

    def _end_run(self, change: Change) -> None:
        about: dict[str, Any] = {"at": self.now, "task": change.task, "job": change.job, "run": change.run}
        pids = self.state.tasks[change.task].definition.pids
        self._event(e.StopDecided(**about, reason="deleted"))
        if pids is not None and self.state.contains(pids, change.job):
            self._event(e.ValueDeleted(**about, repository=pids))
        self._event(e.RunEnded(**about, outcome="cancelled"))

    def _retry(self, change: Change) -> None:
        self._event(e.RetryRequested(at=self.now, task=change.task, job=change.job))

    def _resume(self, change: Change) -> None:
        self._event(e.TaskResumed(at=self.now, task=change.task))

    def _enable(self, change: Change) -> None:
        task = self.state.tasks[change.task]
        task.definition = msgspec.structs.replace(task.definition, disabled=False)

    def _recover(self, change: Change) -> None:
        self.unavailable.discard(change.task)

    def _observe(self, change: Change) -> None:
        self._event(
            e.RepositorySynced(at=self.now, repository=change.repository, listed_at=self.now, members=0)
        )

    _accept_loss = _observe

    def _start_engine(self, change: Change) -> None:
        self.engine_alive = True

    def _raise_concurrency(self, change: Change) -> None:
        task = self.state.tasks[change.task]
        task.definition = msgspec.structs.replace(task.definition, concurrency=change.concurrency)

    def _raise_quota(self, change: Change) -> None:
        self._event(
            e.QuotaChanged(at=self.now, quota=change.quota, limits=change.limits, launches=change.launches)
        )

    def _wait_until(self, change: Change) -> None:
        self.now = max(self.now, change.at or 0)

    def _raise_priority(self, change: Change) -> None:
        task, job = self.state.tasks[change.task], self.state.intern(change.job)
        episode = task.episodes.get(job)
        if episode is not None:
            episode.priority = 1e9
        queue = PriorityQueue()
        for order, position, other in task.queue.entries():
            queue.push(other, 1e9 if other == job else -order, position)
        task.queue = queue


def launches(what_if: CopiedState, changes: Iterable[Change], task: str, job: str) -> bool:
    """Make the changes and tell whether the next round launches the job."""
    changes = list(changes)
    for change in changes:
        if change.op not in LAST:
            what_if.make(change)
    what_if.settle(task, job)
    for change in changes:
        if change.op in LAST:
            what_if.make(change)
    return what_if.launches(task, job)
