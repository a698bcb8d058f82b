"""The smallest set of changes after which the next round launches a job, found by trying them.

In: a `WhatIf` over a state, a task, a job. Out: a `Proposal`: the changes in the order in which they are to be made,
or none where no set was found. What counts as one change is in docs/decisions/0010-why-tries-what-it-proposes.md.
What must be so whatever else is (the engine, a pause, an unknown store, the job's own run) is changed first. Then each
`Plan` by which the condition comes to hold is tried, with what is then still in the way: no new occasion, a backoff,
limits, the jobs that come first. What else the same changes let launch is part of the trial.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import combinations
from typing import Literal, NamedTuple

from datatask.engine.core.define import start_condition
from datatask.engine.core.expressions import fold_literals
from datatask.engine.core.leaves import LeafState
from datatask.engine.core.state import PendingKey, State
from datatask.engine.core.tasks import OpenRun, TaskState, contenders
from datatask.engine.explain.blockers import left_out
from datatask.engine.explain.capacity import CapacitySearch
from datatask.engine.explain.explanations import Change, iso_up
from datatask.engine.explain.what_if import WhatIf, end_of_run
from datatask.schema import definition as d

PLANS_MAX = 256
"""How many of the cheapest plans are kept at each node: exact for conditions with fewer alternatives."""
PLANS_TRIED = 24
"""How many plans with as few changes as any are tried to the end."""
ROUNDS_MAX = 3
"""How often what a change led to elsewhere is mended by more changes of data."""


# --- the search -------------------------------------------------------------------------------------


@dataclass(slots=True)
class Proposal:
    """`changes` is None where no set was found; `prefix` is the part of it that queues the job.

    `beaten` says that, with the prefix made, no limit is in the way by itself, and yet other jobs come first.
    """

    changes: list[Change] | None = None
    prefix: list[Change] = field(default_factory=list)
    beaten: bool = False


def propose(what_if: WhatIf, task: TaskState, job: int) -> Proposal:
    """Return the smallest set; `what_if` is left with the proposal's prefix made."""
    return FixSearch(what_if, task.name, job).run()


class FixSearch:
    """The search for one (task, job)."""

    def __init__(self, what_if: WhatIf, name: str, job: int) -> None:
        self.what_if, self.name, self.job = what_if, name, job
        self.job_name = what_if.state.jobs[job]
        self.best: list[Change] | None = None
        self.prefix: list[Change] = []
        self.beaten = False

    @property
    def task(self) -> TaskState:
        """The task, with the changes made so far."""
        return self.what_if.state.tasks[self.name]

    def run(self) -> Proposal:
        """Search, and return the smallest set."""
        # What else has to change may have the job chosen: the run that chooses all comes last, and may be left out.
        chosen = [*self._choice()]
        first = [*self._surroundings(), *self._own_run(), *chosen]
        self.what_if.reset(*first)
        for plan in self._plans():
            if self.best is not None and len(first) + len(plan) >= len(self.best):
                break
            self._try(first, plan, ROUNDS_MAX)
        if self.best is None:
            self.what_if.reset(*first)
            return Proposal(None, first)
        self._prune(len(first) - len(chosen))
        self.what_if.reset(*self.prefix)
        self.what_if.answer_priority(self.name, self.job)
        return Proposal(self.best, self.prefix, self.beaten)

    # --- what must be so ----------------------------------------------------------------------------

    def _surroundings(self) -> Iterator[Change]:
        what_if, task = self.what_if, self.task
        if not what_if.engine_alive:
            yield Change(op="start_engine")
        if task.paused:
            yield Change(op="resume", task=self.name)
        if task.definition.disabled:
            yield Change(op="enable", task=self.name)
        if self.name in what_if.unavailable:
            yield Change(op="recover", task=self.name)
        for leaf in task.reads:
            if not leaf.synced:
                yield Change(op="accept_loss" if leaf.held else "observe", repository=leaf.id)

    def _choice(self) -> Iterator[Change]:
        if left_out(self.what_if.state, self.what_if.selection, self.task, self.job):
            yield Change(op="run", task=self.name)

    def _own_run(self) -> Iterator[Change]:
        episode = self.task.episodes.get(self.job)
        if episode is not None and episode.run:
            yield end_of_run(self.what_if.state, episode.run)

    # --- data -----------------------------------------------------------------------------------------

    def _plans(self) -> list[list[Change]]:
        """Return what makes the condition hold as things are now, the fewest changes first."""
        state = self.what_if.state
        if self.task.condition.test(state.masks[self.job]):
            return [[]]
        found: list[list[Change]] = []
        for plan in plans_for(state, start_condition(self.task.definition), self.job):
            changes = _changes(state, plan)
            if changes not in found:
                found.append(changes)
        return sorted(found, key=len)[:PLANS_TRIED]

    def _try(self, first: list[Change], plan: list[Change], rounds: int) -> None:
        """Make a plan's changes, and find what is still in the way."""
        done = _made_after(first, plan)
        self.what_if.reset(*done)
        if not self.task.condition.test(self.what_if.state.masks[self.job]):
            for more in self._plans() if rounds else ():  # what they led to elsewhere undid it
                if self.best is not None and len(_made_after(done, more)) >= len(self.best):
                    continue
                self._try(done, more, rounds - 1)
            return
        for queueing in self._queueing():
            self._add_capacity([*done, *queueing])

    def _queueing(self) -> list[list[Change]]:
        """Return what queues the job, whose condition holds: the alternatives."""
        what_if, task, job = self.what_if, self.task, self.job
        what_if.answer_priority(self.name, job)
        if PendingKey("priority", self.name, job) in what_if.state.pending:
            return [[Change(op="evaluate", task=self.name, job=self.job_name)]]
        if what_if.is_queued(task, job):
            return [[]]
        again = Change(op="retry", task=self.name, job=self.job_name)
        episode = task.episodes.get(job)
        if episode is not None and not episode.run and episode.not_before is not None:
            if task.contends(episode):
                runs = contenders(what_if.state.open_runs.values(), task)
                return [[end_of_run(what_if.state, run)] for run in runs] + [[again]]
            return [[wait(episode.not_before)], [again]]
        return [[again]]

    # --- capacity -------------------------------------------------------------------------------------

    def _add_capacity(self, prefix: list[Change]) -> None:
        """Add what is needed for the limits and the jobs that come first, if that makes the smallest set so far."""
        search = CapacitySearch(self.what_if, self.name, self.job, prefix)
        found = search.run(None if self.best is None else len(self.best) - len(prefix) - 1)
        if found is not None:
            self.best, self.prefix, self.beaten = found, prefix, search.beaten

    def _prune(self, kept: int) -> None:
        """Leave out what is not needed after all, whichever change made it so."""
        assert self.best is not None
        for size in range(len(self.best) - kept - 1, 0, -1):
            for spared in combinations(self.best[kept:], size):
                if not any(change in self.prefix for change in spared):
                    continue
                fewer = [change for change in self.best if change not in spared]
                self.what_if.reset(*fewer)
                if self.what_if.launches(self.name, self.job):
                    self.best = fewer
                    self.prefix = [change for change in self.prefix if change not in spared]
                    return


def _made_after(done: list[Change], more: list[Change]) -> list[Change]:
    """Return both; a change that is to be made again, since another one undid it, is made once, at the later place."""
    return [*(change for change in done if change not in more), *more]


# --- plans: how a condition comes to hold -----------------------------------------------------------

Cause = Literal["member", "live", "entry", "filter", "translation", "outcome"]
"""What makes an assignment so: a put or a deletion; the end of an open run, for `live` and for the entry that the engine
keeps while a process lives; a filter's or a translator's answer; the outcome of a task's run of the job.
"""

EFFORT = {"member": 1, "entry": 1, "live": 2, "filter": 3, "translation": 4, "outcome": 5}
"""Among plans with as many changes the one with the least effort for people comes first."""


class Membership(NamedTuple):
    """Whether a job is in a leaf."""

    leaf: str
    job: int


class Assignment(NamedTuple):
    """Whether the job is to be there, and what makes it so."""

    wanted: bool
    cause: Cause


Plan = dict[Membership, Assignment]
"""A partial assignment under which a condition holds; what its changes lead to elsewhere is found out by trying."""


def plans_for(state: State, expr: d.AnyExpr, job: int) -> list[Plan]:
    """Return plans under which `expr` holds for the job, the fewest changes first; none if it cannot."""
    return _cheapest(state, _plans(state, expr, job, True))


def changed_by(state: State, plan: Plan) -> list[tuple[Membership, Assignment]]:
    """Return what a plan changes, in order of appearance."""
    return [
        (membership, to)
        for membership, to in plan.items()
        if (state.masks[membership.job] & state.leaves[membership.leaf].bit != 0) is not to.wanted
    ]


def _plans(state: State, expr: d.AnyExpr, job: int, wanted: bool) -> list[Plan]:
    return fold_literals(
        expr,
        lambda leaf, wanted: _leaf_plans(state, state.leaves[leaf], job, wanted),
        lambda each: _cheapest(state, _products(state, each)),
        lambda each: _cheapest(state, [plan for plans in each for plan in plans]),
        wanted=wanted,
    )


GATHERED_MAX = 3
"""For more jobs than this nothing is proposed: the group waits."""


def _leaf_plans(state: State, leaf: LeafState, job: int, wanted: bool) -> list[Plan]:
    rule, membership = leaf.definition.derived, Membership(leaf.id, job)
    if rule is None:
        is_kept = not wanted and writer_of(state, leaf.id, job) is not None
        causes: list[Cause] = ["entry", "member"] if is_kept else ["member"]
        return [{membership: Assignment(wanted, cause)} for cause in causes]
    if isinstance(rule, d.ViewDef):
        return _view_plans(state, rule, membership, wanted)
    if isinstance(rule, d.FilteredDef):
        base, answer = _plans(state, rule.base, job, wanted), {membership: Assignment(wanted, "filter")}
        return _cheapest(state, _products(state, [base, [answer]]) if wanted else [*base, answer])
    if isinstance(rule, d.GatheredDef):
        return _gathered_plans(state, leaf, rule, job, wanted)
    return _translated_plans(state, leaf, rule, job, wanted)


def _gathered_plans(state: State, leaf: LeafState, rule: d.GatheredDef, job: int, wanted: bool) -> list[Plan]:
    """Plan that the jobs are through for which a group waits, where these are few."""
    gathering = None if leaf.derived is None else leaf.derived.gathering
    group = None if gathering is None else gathering.of_job(job)
    if gathering is None or group is None or group.complete is wanted:
        return [{}] if not wanted or (group is not None and group.complete) else []
    missing, needed = list(group.missing), gathering.lacking(group)
    if not wanted or not 0 < needed <= min(len(missing), GATHERED_MAX):
        return []
    plans = (_plans(state, rule.base, other, True) for other in missing[:needed])
    return _cheapest(state, _products(state, plans))


def _translated_plans(
    state: State, leaf: LeafState, rule: d.TranslatedDef, job: int, wanted: bool
) -> list[Plan]:
    target = leaf.derived.forward.get(job) if leaf.derived is not None else None
    translator = _plans(state, rule.translator, job, wanted)
    if target is None:
        answer: Plan = {Membership(leaf.id, job): Assignment(True, "translation")}
        return _cheapest(state, _products(state, [translator, [answer]])) if wanted else [{}]
    base = _plans(state, rule.base, target, wanted)
    return _cheapest(state, _products(state, [base, translator]) if wanted else [*base, *translator])


def _view_plans(state: State, rule: d.ViewDef, membership: Membership, wanted: bool) -> list[Plan]:
    task = state.tasks.get(rule.task)
    episode = task.episodes.get(membership.job) if task is not None and rule.view == "live" else None
    ends = episode is not None and episode.run != 0 and not wanted
    causes: list[Cause] = ["live", "outcome"] if ends else ["outcome"]
    return [{membership: Assignment(wanted, cause)} for cause in causes]


def writer_of(state: State, leaf: str, job: int) -> OpenRun | None:
    """Return the open run whose process the engine keeps an entry of in this leaf, if it does for this job."""
    for task in state.tasks.values():
        episode = task.episodes.get(job) if task.definition.pids == leaf else None
        if episode is not None and episode.run:
            return state.open_runs[episode.run]
    return None


def _products(state: State, each: Iterable[list[Plan]]) -> list[Plan]:
    found: list[Plan] = [{}]
    for plans in each:
        merged = [{**first, **second} for first in found for second in plans if _agree(first, second)]
        found = _cheapest(state, merged)
    return found


def _agree(first: Plan, second: Plan) -> bool:
    return all(first.get(membership, to).wanted is to.wanted for membership, to in second.items())


def _cheapest(state: State, plans: list[Plan]) -> list[Plan]:
    """Return the cheapest plans, each once; equal costs keep their order."""
    unique: dict[frozenset[tuple[Membership, Assignment]], Plan] = {}
    for plan in plans:
        unique.setdefault(frozenset(plan.items()), plan)
    return sorted(unique.values(), key=lambda plan: _cost(state, plan))[:PLANS_MAX]


def _cost(state: State, plan: Plan) -> tuple[int, int]:
    changes = changed_by(state, plan)
    return len(changes), sum(EFFORT[to.cause] for _, to in changes)


# --- changes ----------------------------------------------------------------------------------------


def wait(until: int) -> Change:
    """Return the wait until then."""
    return Change(op="wait_until", until=iso_up(until), at=until)


def _changes(state: State, plan: Plan) -> list[Change]:
    """Return what a plan asks for, each change once: the end of one run may make two things so."""
    found: list[Change] = []
    for membership, to in changed_by(state, plan):
        change = _change(state, membership, to)
        if change not in found:
            found.append(change)
    return found


def _change(state: State, membership: Membership, to: Assignment) -> Change:
    leaf, job, outcome = membership.leaf, state.jobs[membership.job], str(to.wanted).lower()
    match to.cause:
        case "member":
            return Change(op="put" if to.wanted else "delete", repository=leaf, job=job)
        case "filter":
            return Change(op="set_filter", repository=leaf, job=job, outcome=outcome)
        case "translation":
            outcome = "a job that it is to stand for"
            return Change(op="set_translation", repository=leaf, job=job, outcome=outcome)
        case "entry":
            run = writer_of(state, leaf, membership.job)
            assert run is not None, "an entry is that of an open run"
            return end_of_run(state, run.run)
    rule = state.leaves[leaf].definition.derived
    assert isinstance(rule, d.ViewDef), "only views depend on runs"
    if to.cause == "live":
        return end_of_run(state, state.tasks[rule.task].episodes[membership.job].run)
    outcome = rule.view if to.wanted else f"not {rule.view}"
    return Change(op="wait_for", task=rule.task, job=job, outcome=outcome)
