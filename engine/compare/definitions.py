"""Differences that another definition would have made: one log, folded into two states side by side.

In: the batches of a log, and a definition in place of every recorded one (`facts`). Out: per task the jobs that were ready
in one state only at a batch boundary, runs that the other definition would not have admitted, launches that only its
decisions at the recorded rounds name, and what exists in one only. Recorded launches are events in both, so no
consequences are simulated. Conditions have three values; one whose user code has not answered is `unknown`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import NamedTuple

from datatask.engine.compare.facts import Difference, EventMapper, Findings, NameMap, Renaming, Where
from datatask.engine.core.checkpoints import dump, load
from datatask.engine.core.decide import closed, constraint_on, decide
from datatask.engine.core.define import define, start_condition
from datatask.engine.core.expressions import conjunction, conjuncts, evaluate, leaves_of
from datatask.engine.core.fold import apply_all
from datatask.engine.core.retry import NextAttempt, verdict_of
from datatask.engine.core.state import State
from datatask.engine.core.tasks import TaskState
from datatask.schema import events as e
from datatask.schema.definition import AnyExpr, DerivedDef, FilteredDef, GatheredDef, PipelineDef

_IN_A_ROUND = "a recorded round of decisions would have launched it"
_CONSTRAINTS = {
    "paused": "the task is paused",
    "disabled": "the task is disabled",
    "observing": "the contents of {name} are not known",
    "concurrency": "the task has as many runs as it may have",
    "quota": "the quota {name} is used up",
    "rate": "the quota {name} allows no further launch yet",
    "infeasible": "it asks for more than the quota {name} has",
}
_UNANSWERED = "what its filter or translation would answer is not in the log"


class Pair(NamedTuple):
    """A task in both states, or in the other only; `stalled` says why none of its jobs can start, if so."""

    name: str
    here: TaskState | None
    there: TaskState
    stalled_here: str
    stalled_there: str


class Comparison:
    """Follows a log batch by batch; `differences` at the end."""

    def __init__(
        self,
        definition: PipelineDef,
        *,
        renames: Sequence[e.Recorded] = (),
        was: Iterable[Renaming] = (),
        base: State | None = None,
    ) -> None:
        """Take the other definition; `renames` are the log's `Renamed`, `base` a state to begin from (kept)."""
        self.here = State() if base is None else base
        self.there = State() if base is None else load(dump(base))
        self.definition = definition
        self._names = NameMap(definition, renames, was)
        self._mapper = EventMapper(definition, definition.digest(), self._names)
        self._pairs: list[Pair] = []
        self._leaves: dict[str, str] = {}
        self._derived = any(leaf.derived is not None for leaf in definition.repositories)
        self._findings = Findings()
        self._defined_at = 0
        if base is not None and base.defined_at:
            self._names.at(base.position)
            self._mapper.defined, self._defined_at = True, base.position
            define(self.there, definition, max(1, base.position))
            self._pair()
            self._compare(list(self.here.jobs), base.position)

    @property
    def skipped(self) -> dict[str, int]:
        """How many events were about what the other definition does not have, by kind."""
        return dict(self._mapper.skipped)

    def take(self, batch: e.Batch) -> None:
        """Fold a batch under both definitions and compare the jobs that it touched."""
        position = batch.first
        apply_all(self.here, position, batch.events)
        everything = False
        if isinstance(batch.events[0], e.DecisionRound):
            self._decide_again(position, batch.events[0], batch.events[1:])
        for event in batch.events:
            if isinstance(event, e.Renamed):
                self._names.at(position)
            mapped = self._mapper.of(self.there, event)
            if isinstance(mapped, e.LaunchDecided) and mapped.origin == "derived":
                self._admit(position, mapped)
            elif isinstance(mapped, e.RunEnded):
                self._end(position, mapped)
            apply_all(self.there, position, (mapped,))
            if isinstance(event, e.PipelineDefined | e.Renamed | e.RepositoryReset | e.QuotaChanged):
                everything = True
                self._defined_at = self._defined_at or position
            position += 1
        if everything:
            self._pair()
            self._compare(list(dict.fromkeys((*self.here.jobs, *self.there.jobs))), batch.last)
        elif self._pairs:
            self._compare(self._touched(batch.events), batch.last)

    def differences(self) -> list[Difference]:
        """Return what differs: what exists in one only, then by task in the order of the other definition."""
        return [*self._only(), *self._findings.ordered(task.name for task in self.definition.tasks)]

    # --- pairs -----------------------------------------------------------------------------------

    def _pair(self) -> None:
        """Pair the tasks and leaves that are the same in both."""
        names = self._names
        here = {
            there: self.here.tasks[task.name]
            for task in self.here.definition.tasks
            if (there := names.find("task", task.name)) is not None
        }
        self._pairs = [
            Pair(
                name,
                here.get(name),
                self.there.tasks[name],
                _stalled(self.here, here[name]) if name in here else "",
                _stalled(self.there, self.there.tasks[name]),
            )
            for name in (task.name for task in self.there.definition.tasks)
        ]
        leaves = ((names.find("repository", leaf.id), leaf.id) for leaf in self.here.definition.repositories)
        self._leaves = {there: here for there, here in leaves if there is not None}

    def _only(self) -> Iterator[Difference]:
        """Yield what the last recorded definition and the other one do not have in common."""
        for what, recorded, other in (
            ("task", [t.name for t in self.here.definition.tasks], [t.name for t in self.definition.tasks]),
            (
                "repository",
                [leaf.id for leaf in self.here.definition.repositories],
                [leaf.id for leaf in self.definition.repositories],
            ),
        ):
            known = {self._names.find(what, name): name for name in recorded}
            for name in recorded:
                if self._names.find(what, name) is None:
                    yield self._only_in(what, name, "here")
            for name in other:
                if name not in known:
                    yield self._only_in(what, name, "there")

    def _only_in(self, what: str, name: str, where: Where) -> Difference:
        place = "as recorded" if where == "here" else "in the other definition"
        explain = f"the {what} {name} exists only {place}"
        if what == "task":
            return Difference(name, "only_in", where, self._defined_at, explain)
        return Difference(None, "only_in", where, self._defined_at, explain, repository=name)

    # --- readiness at a batch boundary --------------------------------------------------------------

    def _touched(self, events: Sequence[e.Event]) -> list[str]:
        """Return the jobs whose readiness these events may have changed: theirs, and those that stand for them."""
        found = dict.fromkeys(event.job for event in events if event.job is not None)
        for state in (self.here, self.there):
            rules = [leaf.derived for leaf in state.leaves.values() if leaf.derived is not None]
            translated = [rule for rule in rules if rule.reverse or rule.gathering is not None]
            if not translated:
                continue
            line = list(found)
            for job in line:
                index = state.job_index.get(job, -1)
                for rule in translated:
                    fresh = [
                        state.jobs[key] for key in rule.standing_for(index) if state.jobs[key] not in found
                    ]
                    found.update(dict.fromkeys(fresh))
                    line += fresh
        return list(found)

    def _compare(self, jobs: list[str], position: int) -> None:
        here_index, there_index = self.here.job_index, self.there.job_index
        unanswered = self._derived and bool(self.there.pending)
        any_found = bool(self._findings)
        for pair in self._pairs:
            for job in jobs:
                i, j = here_index.get(job), there_index.get(job)
                here = (
                    i is not None and pair.here is not None and not pair.stalled_here and _waits(pair.here, i)
                )
                there = j is not None and not pair.stalled_there and _waits(pair.there, j)
                unknown = (
                    unanswered
                    and not there
                    and j is not None
                    and not self.there.masks[j] & pair.there.claim
                    and self._is_unknown(pair.there, j)
                )
                if here is there and not unknown and not any_found:
                    continue
                for what, holds in (
                    ("unknown", unknown),
                    ("ready", there and not here),
                    ("blocked", here and not there and not unknown),
                ):
                    why = partial(self._why, pair, what, job) if holds else None
                    self._findings.note(pair.name, what, job, position, why)  # type: ignore[arg-type]

    def _why(self, pair: Pair, what: str, job: str) -> str:
        if what == "unknown":
            return _UNANSWERED
        if what == "blocked":
            return pair.stalled_there or failing(self.there, pair.there, job)
        if pair.here is None:
            return "the task is not in the recorded definition"
        return "as recorded: " + (pair.stalled_here or failing(self.here, pair.here, job))

    def _is_unknown(self, task: TaskState, job: int) -> bool:
        return certain(self.there, start_condition(task.definition), job, self._unanswered) is None

    def _unanswered(self, what: str, leaf: str, job: int) -> bool:
        """Whether a leaf's answer for a job is wanted there, and is not just as much wanted as recorded."""
        if (what, leaf, job) not in self.there.pending:
            return False
        recorded = self.here.job_index.get(self.there.jobs[job])
        return (what, self._leaves.get(leaf), recorded) not in self.here.pending

    # --- decisions ----------------------------------------------------------------------------------

    def _admit(self, position: int, event: e.LaunchDecided) -> None:
        """Note a recorded launch that the other definition would not have allowed where it stands."""
        state, task = self.there, self.there.tasks[event.task]
        job = state.intern(event.job)
        condition = start_condition(task.definition)
        if task.condition.test(state.masks[job]):
            why = self._held(task, job, event.at)
        elif certain(state, condition, job, self._unanswered) is None:
            self._findings.add(task.name, "unknown", "there", event.job, position, lambda: _UNANSWERED)
            return
        else:
            why = failing(state, task, event.job)
        if why:
            self._findings.add(task.name, "launched", "here", event.job, position, lambda: why)

    def _held(self, task: TaskState, job: int, now: int) -> str:
        """Return what keeps a job whose condition holds from being launched now, or the empty string."""
        constraint = closed(task, frozenset()) or constraint_on(self.there, task, now)
        if constraint:
            return _CONSTRAINTS.get(constraint.kind, constraint.kind).format(name=constraint.about)
        episode = task.episodes.get(job)
        if episode is not None:
            return "" if episode.not_before is not None and episode.not_before <= now else "it is not due"
        if job in task.awaiting:
            return "its priority is not known"
        return "" if job in task.queue else "it does not wait"

    def _decide_again(self, position: int, event: e.DecisionRound, batch: Sequence[e.Event]) -> None:
        """Note the jobs that the other definition would have launched in a recorded round."""
        if not self._mapper.defined:
            return
        find = self._names.find
        away = {name for name in (find("task", task) for task in event.unavailable) if name is not None}
        recorded = {(find("task", one.task), one.job) for one in batch if isinstance(one, e.LaunchDecided)}
        selection = None if event.selection is None else self._names.selection(event.selection)
        round = decide(self.there, event.now, bound=event.bound, unavailable=away, selection=selection)
        for decision in round.decisions:
            if (decision.task, decision.job) not in recorded:
                self._findings.add(
                    decision.task, "launched", "there", decision.job, position, lambda: _IN_A_ROUND
                )

    def _end(self, position: int, event: e.RunEnded) -> None:
        """Note where the other definition's retry policy decides otherwise."""
        run = self.there.open_runs[event.run]
        task = self.there.tasks[run.task]
        verdict = verdict_of(task, run, event, self.there.engine, event.at, 0.5)
        again = isinstance(verdict, NextAttempt)
        if again and run.origin == "forced":
            return  # it is over where its condition did not hold when it ended, and the log does not say whether it did
        if again is event.final:
            where: Where = "there" if again else "here"
            why = f"its run {event.run} would {'' if again else 'not '}have been tried again"
            self._findings.add(task.name, "launched", where, event.job, position, lambda: why)


def _waits(task: TaskState, job: int) -> bool:
    return job in task.queue or job in task.awaiting


def _stalled(state: State, task: TaskState) -> str:
    """Return why no job of a task can ever start under its definition and quota, or the empty string."""
    if task.definition.disabled:
        return "the task is disabled"
    name = task.definition.quota
    if name is None:
        return ""
    found = state.quotas[name].infeasible(task.definition.resources)
    return f"the quota {name} is too small in {found.dimension}" if found is not None else ""


Missing = Callable[[str, str, int], bool]
"""(filter or translation, leaf, job) -> whether that answer is wanted and not there."""


def certain(state: State, expr: AnyExpr, job: int, missing: Missing) -> bool | None:
    """Return whether a condition holds for a job, None where that rests on a missing answer."""
    return evaluate(expr, lambda leaf: _in(state, leaf, job, missing))


def _in(state: State, name: str, job: int, missing: Missing) -> bool | None:
    leaf = state.leaves[name]
    rule, derived = leaf.definition.derived, leaf.derived
    present = state.masks[job] & leaf.bit != 0
    if derived is None or not isinstance(rule, DerivedDef):
        return present
    if isinstance(rule, GatheredDef):
        return present
    source = certain(state, rule.candidates, job, missing)
    if source is False:
        return False
    if source is None or missing(derived.what, name, job):
        return None
    if isinstance(rule, FilteredDef):
        return present
    target = derived.forward.get(job)
    return False if target is None else certain(state, rule.base, target, missing)


def failing(state: State, task: TaskState, name: str) -> str:
    """Return in words what keeps a job from being ready: the parts of the condition that do not hold."""
    job = state.job_index.get(name)
    expr = start_condition(task.definition)
    found = [_words(part) for part in conjuncts(expr) if job is None or not certain(state, part, job, _known)]
    if found:
        return ", ".join(dict.fromkeys(found))
    if job is not None and state.masks[job] & task.claim:
        return "its episode is under way or over"
    return "it does not wait"


def _known(what: str, leaf: str, job: int) -> bool:
    return False


def _words(part: AnyExpr) -> str:
    found = conjunction(part)
    if found is not None and len(found) == 1:
        leaf, wanted = found[0]
        return f"not in {leaf}" if wanted else f"in {leaf}"
    names = ", ".join(leaves_of(part))
    return f"a condition on {names} does not hold" if names else "its condition never holds"
