"""The state again, slowly: memberships as Python sets, readiness recomputed from the words for every job.

In: the same (position, event) pairs as `fold`. Out: a state that `twin_difference.py` holds against the incremental one.
Nothing is shared with the code under test but `holds`, itself a recursion over the declared expression.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TypeVar

import msgspec

from datatask.engine.core.expressions import holds
from datatask.schema import events as e
from datatask.schema.definition import (
    VIEW_NAMES,
    AnyExpr,
    FilteredDef,
    PipelineDef,
    TaskDef,
    TranslatedDef,
    ViewName,
    view_id,
)

INSIDE = ("native", "derived", "view")
VIEW_OF: dict[str, ViewName] = {
    "succeeded": "succeeded",
    "failed": "failed",
    "timed_out": "failed",
    "lost": "failed",
    "refused": "failed",
}
Key = tuple[str, str]
Rule = TypeVar("Rule", FilteredDef, TranslatedDef)


@dataclass
class Waiting:
    """A job in a task's queue; `priority` is None until it is known."""

    position: int
    priority: float | None


@dataclass
class Started:
    """An episode that has had a launch."""

    position: int
    run: int
    attempt: int
    infrastructure: int = 0
    in_a_row: int = 0
    not_before: int | None = None


class Twin:
    """One slow state. `jobs` is in the order of first sight, which decides among equals."""

    def __init__(self) -> None:
        self.definition = PipelineDef()
        self.jobs: list[str] = []
        self.medium: dict[str, str] = {}
        self.synced: dict[str, bool] = {}
        self.members: dict[str, set[str]] = {}
        self.answers: dict[Key, bool] = {}
        self.targets: dict[Key, str] = {}
        self.pending: dict[tuple[str, str, str], int] = {}
        self.tasks: dict[str, TaskDef] = {}
        self.retired: set[str] = set()
        self.claims: set[Key] = set()
        self.waiting: dict[Key, Waiting] = {}
        self.episodes: dict[Key, Started] = {}
        self.count: defaultdict[Key, int] = defaultdict(int)
        self.open: dict[int, tuple[e.LaunchDecided, str | None]] = {}
        self.stopping: dict[int, str] = {}
        self.settling: set[int] = set()
        self.paused: set[str] = set()
        self.intents: dict[Key, tuple[int, int | None]] = {}

    # --- readiness, from the words ----------------------------------------------------------------

    def of(self, job: str) -> set[str]:
        """Return the leaves that a job is in."""
        return {leaf for leaf, members in self.members.items() if job in members}

    def is_ready(self, task: str, job: str) -> bool:
        """Whether the task's condition holds, its own open runs left aside."""
        if task in self.retired:
            return False
        return holds(self.tasks[task].ready, self.of(job) - {view_id(task, "live")})

    def _ready(self) -> dict[str, set[str]]:
        return {task: {job for job in self.jobs if self.is_ready(task, job)} for task in self.tasks}

    def rules(self, kind: type[Rule]) -> list[tuple[str, Rule]]:
        """Return the derived repositories of a kind, by name."""
        return [(r.id, r.derived) for r in self.definition.repositories if isinstance(r.derived, kind)]

    def where(self, expr: AnyExpr) -> set[str]:
        """Return the jobs for which an expression holds."""
        return {job for job in self.jobs if holds(expr, self.of(job))}

    # --- one change, and what follows -------------------------------------------------------------

    def change(self, leaf: str, job: str, present: bool, position: int) -> bool:
        """Change a membership; edges of readiness and of rules are differences of two full evaluations."""
        first = None
        line = [(leaf, job, present)]
        for leaf, job, present in line:
            changed = (job in self.members[leaf]) is not present
            first = changed if first is None else first
            if changed:
                line += self._one_change(leaf, job, present, position)
        return bool(first)

    def _one_change(self, leaf: str, job: str, present: bool, position: int) -> list[tuple[str, str, bool]]:
        rules: list[tuple[str, FilteredDef | TranslatedDef]] = [
            *self.rules(FilteredDef),
            *self.rules(TranslatedDef),
        ]
        was_ready = self._ready()
        was_base = {name: self.where(rule.base) for name, rule in rules}
        was_source = {name: self.where(rule.translator) for name, rule in self.rules(TranslatedDef)}
        (self.members[leaf].add if present else self.members[leaf].discard)(job)
        now_ready = self._ready()
        follow: list[tuple[str, str, bool]] = []
        for task in self.tasks:
            for risen in self._ordered(now_ready[task] - was_ready[task]):
                if (task, risen) not in self.claims:
                    self._enter(task, risen, position)
                    follow += [(view_id(task, view), risen, False) for view in ("succeeded", "failed")]
            for fallen in self._ordered(was_ready[task] - now_ready[task]):
                self._ceased(task, fallen)
        for repository in self.definition.repositories:
            rule = repository.derived
            if not isinstance(rule, FilteredDef | TranslatedDef):
                continue
            base, name = self.where(rule.base), repository.id
            for other in self._ordered(base ^ was_base[name]):
                if isinstance(rule, TranslatedDef):
                    keys = {
                        key
                        for (owner, key), target in self.targets.items()
                        if (owner, target) == (name, other)
                    }
                    follow += [(name, key, other in base) for key in self._ordered(keys)]
                elif other in base:
                    self.pending["filter", name, other] = position
                else:
                    self.pending.pop(("filter", name, other), None)
                    self.answers.pop((name, other), None)
                    follow.append((name, other, False))
        for name, rule in self.rules(TranslatedDef):
            source = self.where(rule.translator)
            for key in self._ordered(source - was_source[name]):
                self.pending["translation", name, key] = position
            for key in self._ordered(was_source[name] - source):
                self.pending.pop(("translation", name, key), None)
                self.targets.pop((name, key), None)
                follow.append((name, key, False))
        return follow

    def _ordered(self, jobs: set[str]) -> list[str]:
        return sorted(jobs, key=self.jobs.index)

    def _enter(self, task: str, job: str, position: int) -> None:
        self.count[task, job] += 1
        self._enqueue(task, job, position)

    def _enqueue(self, task: str, job: str, position: int) -> None:
        waits_for_priority = self.tasks[task].priority
        self.waiting[task, job] = Waiting(position, None if waits_for_priority else 0.0)
        if waits_for_priority:
            self.pending["priority", task, job] = position

    def _open_episode(self, task: str, job: str, position: int) -> None:
        self._enter(task, job, position)
        self._clear(task, job, position)

    def _clear(self, task: str, job: str, position: int) -> None:
        for view in ("succeeded", "failed"):
            self.change(view_id(task, view), job, False, position)

    def _dequeue(self, task: str, job: str) -> Waiting | None:
        self.pending.pop(("priority", task, job), None)
        return self.waiting.pop((task, job), None)

    def _ceased(self, task: str, job: str) -> None:
        if (task, job) not in self.claims:
            self._dequeue(task, job)
            return
        episode = self.episodes.get((task, job))
        if episode is None or not episode.run:
            self.episodes.pop((task, job), None)
            self.claims.discard((task, job))

    # --- events -----------------------------------------------------------------------------------

    def apply(self, position: int, event: e.Event) -> None:
        """Take one event; kinds without a method of their own change nothing here."""
        if event.job is not None and not isinstance(event, e.RunEnded | e.RunStarted | e.RunAdopted):
            self._see(event.job)
        handler = getattr(self, f"_on_{type(event).__name__}", None)
        if handler is not None:
            handler(position, event)

    def _see(self, job: str) -> None:
        if job not in self.jobs:
            self.jobs.append(job)

    def _on_EngineOpened(self, position: int, event: e.EngineOpened) -> None:
        self.synced = {leaf: self.medium[leaf] in INSIDE for leaf in self.members}

    def _on_RepositorySynced(self, position: int, event: e.RepositorySynced) -> None:
        self.synced[event.repository] = True

    def _on_ObservationHeld(self, position: int, event: e.ObservationHeld) -> None:
        self.synced[event.repository] = False

    def _on_RepositoryUnreachable(self, position: int, event: e.RepositoryUnreachable) -> None:
        """Nothing follows from it."""

    def _on_RepositoryReset(self, position: int, event: e.RepositoryReset) -> None:
        for job in self._ordered(self.members[event.repository]):
            self.change(event.repository, job, False, position)

    def _on_ValuePut(self, position: int, event: e.ValuePut) -> None:
        self._intent_done(event)
        if self.change(event.repository, event.job, True, position):
            return
        for name, rule in self.rules(FilteredDef):
            if event.repository in _leaves(rule.base) and event.job in self.where(rule.base):
                self.pending["filter", name, event.job] = position
        for name, translation in self.rules(TranslatedDef):
            source = translation.translator
            if event.repository in _leaves(source) and event.job in self.where(source):
                self.pending["translation", name, event.job] = position

    def _on_ValueDeleted(self, position: int, event: e.ValueDeleted) -> None:
        self._intent_done(event)
        self.change(event.repository, event.job, False, position)

    def _on_StoreWriteIntended(self, position: int, event: e.StoreWriteIntended) -> None:
        self.intents[event.repository, event.job] = (position, event.run)
        if event.settles is not None:
            assert event.run is not None
            self.settling.add(event.run)

    def _intent_done(self, event: e.Event) -> None:
        key = (event.repository, event.job)
        if key in self.intents and self.intents[key][1] == event.run:
            del self.intents[key]

    def _on_Evaluated(self, position: int, event: e.Evaluated) -> None:
        owner = event.repository if event.what in ("filter", "translation") else event.task
        assert owner is not None
        key = (event.what, owner, event.job)
        since = self.pending.get(key)
        if since is None or (event.inputs and event.inputs[0] < since) or event.error is not None:
            return
        del self.pending[key]
        value = msgspec.json.decode(event.value)
        if event.what == "priority":
            self.waiting[owner, event.job].priority = value
        elif event.what == "filter":
            self.answers[owner, event.job] = bool(value)
            self.change(owner, event.job, bool(value), position)
        else:
            self.targets.pop((owner, event.job), None)
            if isinstance(value, str):
                self._see(value)
                self.targets[owner, event.job] = value
            rule = dict(self.rules(TranslatedDef))[owner]
            self.change(owner, event.job, value in self.where(rule.base), position)

    def _on_LaunchDecided(self, position: int, event: e.LaunchDecided) -> None:
        key = (event.task, event.job)
        waited = self._dequeue(*key)
        self.claims.add(key)
        if key not in self.episodes:
            if waited is None:
                self.count[key] += 1
            known = waited is not None and waited.priority is not None
            self.episodes[key] = Started(waited.position if known and waited else position, position, 0)
            self._clear(*key, position)
        episode = self.episodes[key]
        episode.run, episode.attempt, episode.not_before = position, event.attempt, None
        self.open[position] = (event, self.tasks[event.task].quota)
        self.change(view_id(event.task, "live"), event.job, True, position)

    def _on_StopDecided(self, position: int, event: e.StopDecided) -> None:
        if event.run not in self.settling:
            self.stopping.setdefault(event.run, event.reason)

    def _on_RunEnded(self, position: int, event: e.RunEnded) -> None:
        del self.open[event.run]
        self.intents = {key: whose for key, whose in self.intents.items() if whose[1] != event.run}
        task, job = key = (event.task, event.job)
        self.episodes[key].run = 0
        self.change(view_id(task, "live"), job, False, position)
        if not event.final:
            return
        self.episodes.pop(key, None)
        stopped = self.stopping.get(event.run) in ("deleted", "shutdown") and event.outcome == "cancelled"
        repeats = self.tasks[task].repeat and event.outcome != "cancelled"
        anew, ready = stopped or repeats, self.is_ready(task, job)
        if anew or not ready:
            self.claims.discard(key)
        if anew and ready:
            self._open_episode(task, job, position)
        if event.outcome in VIEW_OF:
            self.change(view_id(task, VIEW_OF[event.outcome]), job, True, position)

    def _on_RetryScheduled(self, position: int, event: e.RetryScheduled) -> None:
        episode = self.episodes.get((event.task, event.job))
        if episode is None:
            return
        episode.not_before = event.not_before
        if event.budget in ("infrastructure", "machine"):
            episode.infrastructure += 1
            episode.in_a_row = event.spent
        if not self.is_ready(event.task, event.job):
            self._ceased(event.task, event.job)

    def _on_CancelRequested(self, position: int, event: e.CancelRequested) -> None:
        key = (event.task, event.job)
        if key in self.episodes:
            if not self.episodes[key].run:
                del self.episodes[key]
        elif key in self.waiting:
            self._dequeue(*key)
            self.claims.add(key)

    def _on_RetryRequested(self, position: int, event: e.RetryRequested) -> None:
        key = (event.task, event.job)
        running = key in self.episodes and self.episodes[key].run
        if running or key in self.waiting:
            return
        self.episodes.pop(key, None)
        self.claims.discard(key)
        if self.is_ready(*key):
            self._open_episode(*key, position)

    def _on_ResultAccepted(self, position: int, event: e.ResultAccepted) -> None:
        """It changes what is stale alone, which the twin does not tell."""

    def _on_TaskPaused(self, position: int, event: e.TaskPaused) -> None:
        self.paused.add(event.task)

    def _on_TaskResumed(self, position: int, event: e.TaskResumed) -> None:
        self.paused.discard(event.task)

    # --- the definition ---------------------------------------------------------------------------

    def _on_PipelineDefined(self, position: int, event: e.PipelineDefined) -> None:
        old, rules = dict(self.tasks), {r.id: r.derived for r in self.definition.repositories}
        self.definition = event.definition
        for repository in event.definition.repositories:
            self._declare(repository.id, repository.medium)
        for task in event.definition.tasks:
            for view in VIEW_NAMES:
                self._declare(view_id(task.name, view), "view")
        self._define_tasks(event.definition, old)
        self._prune()
        for repository in event.definition.repositories:
            known = repository.id in rules and rules[repository.id] == repository.derived
            if not known and isinstance(repository.derived, FilteredDef | TranslatedDef):
                self._rederive(repository.id, repository.derived, position)
        for name, task in self.tasks.items():
            if name not in self.retired and old.get(name) != task:
                self._requeue(name, position)

    def _declare(self, leaf: str, medium: str) -> None:
        self.members.setdefault(leaf, set())
        self.synced[leaf] = medium in INSIDE or (
            self.synced.get(leaf, False) and self.medium.get(leaf) == medium
        )
        self.medium[leaf] = medium

    def _define_tasks(self, definition: PipelineDef, old: dict[str, TaskDef]) -> None:
        self.tasks = {task.name: task for task in definition.tasks}
        running = {decided.task for decided, _ in self.open.values()}
        self.retired = {name for name in old if name not in self.tasks and name in running}
        for name in old:
            if name in self.retired:
                self.tasks[name] = old[name]
            if name not in definition_names(definition):
                self._forget(name, keep_running=name in self.retired)
        for name, task in self.tasks.items():
            if name in old and old[name].priority is not task.priority:
                for (owner, job), waited in sorted(self.waiting.items(), key=lambda item: item[1].position):
                    if owner == name:
                        self._enqueue(name, job, waited.position)

    def _forget(self, name: str, *, keep_running: bool) -> None:
        for key in [key for key in self.waiting if key[0] == name]:
            del self.waiting[key]
        for key in [key for key in self.episodes if key[0] == name]:
            if not (keep_running and self.episodes[key].run):
                del self.episodes[key]
        if not keep_running:
            self.claims = {key for key in self.claims if key[0] != name}
            self.paused.discard(name)
            for key in [key for key in self.count if key[0] == name]:
                del self.count[key]

    def _prune(self) -> None:
        asked = {("priority", t.name) for t in self.definition.tasks if t.priority}
        asked |= {("filter", name) for name, _ in self.rules(FilteredDef)}
        asked |= {("translation", name) for name, _ in self.rules(TranslatedDef)}
        self.pending = {key: since for key, since in self.pending.items() if key[:2] in asked}

    def _rederive(self, name: str, rule: FilteredDef | TranslatedDef, position: int) -> None:
        for job in list(self.jobs):
            key = ("translation" if isinstance(rule, TranslatedDef) else "filter", name, job)
            if job in self.where(rule.translator if isinstance(rule, TranslatedDef) else rule.base):
                self.pending[key] = position
                target = self.targets.get((name, job))
                if target is not None:
                    self.change(name, job, target in self.where(rule.base), position)
            else:
                self.pending.pop(key, None)
                self.answers.pop((name, job), None)
                self.targets.pop((name, job), None)
                self.change(name, job, False, position)

    def _requeue(self, task: str, position: int) -> None:
        for job in list(self.jobs):
            key = (task, job)
            if self.is_ready(*key):
                if key not in self.claims and key not in self.waiting:
                    self._open_episode(task, job, position)
            else:
                self._ceased(task, job)

    # --- comparison -------------------------------------------------------------------------------


def definition_names(definition: PipelineDef) -> set[str]:
    """Return the names of a pipeline's tasks."""
    return {task.name for task in definition.tasks}


def _leaves(expr: AnyExpr) -> set[str]:
    found = set()
    stack = [expr]
    while stack:
        part = stack.pop()
        if hasattr(part, "leaf"):
            found.add(part.leaf)
        elif isinstance(part.of, tuple):
            stack += part.of
        else:
            stack.append(part.of)
    return found
