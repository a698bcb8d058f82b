"""The ways in which a condition comes to hold for a job, those with the fewest changes first.

In: an expression, a job, the state. Out: sets of `Atom`s with the value each must take. Sets are built over the tree
as partial assignments and merged where parts belong together, at most `WAYS_MAX` of the cheapest at each node: exact
for conditions with fewer alternatives than that, which is all that people write, and a good answer beyond. Among ways
with as many changes those come first that people can go by hand (`EFFORT`). Foreseen is what the condition says; what
a change leads to elsewhere is found out by trying it (`proposals`).

The smallest set of changes after which the next round launches a job, found by trying them.

In: a state, a (task, job), the time and the surroundings. Out: `Proposal`: the changes in the order in which they are
to be made, or none where no set was found.

**One change** is one thing that somebody does, or that happens: a value put into or deleted from one repository for one
job, one run ended, one quota changed (all its limits at once), a task's concurrency, a job's place in line, one
task resumed or enabled, one runner recovered, one store observed, one answer of user code, one request to retry, one
outcome of another task's run, the engine started, and *one* wait, however much it heals. A launch by hand is no change:
it would always be the smallest. Among sets of one size that comes first which people can bring about themselves.

What must be so whatever else is (the engine, a pause, an unknown store, the job's own run) is changed first. Then each
way in which the condition comes to hold (`remedies`) is tried, with what is then still in the way: no new occasion, a
backoff, limits, those who come first. Who else the same changes let launch is part of the trial.
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
from datatask.engine.explain.capacity_fixes import Room
from datatask.engine.explain.explanations import Change, iso
from datatask.engine.explain.what_if import Trial, run_over
from datatask.schema import definition as d
from datatask.schema.definition import AnyExpr, FilteredDef, TranslatedDef, ViewDef

WAYS_MAX = 256


Kind = Literal["member", "live", "entry", "filter", "translation", "outcome"]
"""What makes something so: a membership; the end of an open run, for `live` and for the entry that the engine keeps while a
process lives; a filter's or a translator's answer; what becomes of a task's run of the job.
"""


class Atom(NamedTuple):
    """Something that can be so or not: whether a job is in a leaf."""

    leaf: str
    job: int


class Step(NamedTuple):
    """Whether it is to be so, and what makes it."""

    wanted: bool
    kind: Kind


EFFORT = {"member": 1, "entry": 1, "live": 2, "filter": 3, "translation": 4, "outcome": 5}
"""What comes first among ways with as many changes: less effort in all."""

Way = dict[Atom, Step]


def is_so(state: State, atom: Atom) -> bool:
    """Whether the atom is so now."""
    return state.masks[atom.job] & state.leaves[atom.leaf].bit != 0


def changed(state: State, way: Way) -> list[tuple[Atom, Step]]:
    """Return what a way changes, in order of appearance."""
    return [(atom, step) for atom, step in way.items() if is_so(state, atom) is not step.wanted]


def ways(state: State, expr: AnyExpr, job: int) -> list[Way]:
    """Return ways in which `expr` comes to hold for the job, the fewest changes first; none if it cannot."""
    return _cheapest(state, _ways(state, expr, job, True))


def smallest(state: State, expr: AnyExpr, job: int) -> Way | None:
    """Return a way with the fewest changes in which `expr` comes to hold for the job, or None."""
    return next(iter(ways(state, expr, job)), None)


def _ways(state: State, expr: AnyExpr, job: int, wanted: bool) -> list[Way]:
    return fold_literals(
        expr,
        lambda leaf, wanted: _leaf_ways(state, state.leaves[leaf], job, wanted),
        lambda each: _cheapest(state, _products(state, each)),
        lambda each: _cheapest(state, [way for ways in each for way in ways]),
        wanted=wanted,
    )


def _leaf_ways(state: State, leaf: LeafState, job: int, wanted: bool) -> list[Way]:
    rule, atom = leaf.definition.derived, Atom(leaf.id, job)
    if rule is None:
        kept = not wanted and writer_of(state, leaf.id, job) is not None
        kinds: list[Kind] = ["entry", "member"] if kept else ["member"]
        return [{atom: Step(wanted, kind)} for kind in kinds]
    if isinstance(rule, ViewDef):
        return _view_ways(state, rule, atom, wanted)
    if isinstance(rule, FilteredDef):
        base, answer = _ways(state, rule.base, job, wanted), Step(wanted, "filter")
        if wanted:
            return _cheapest(state, _products(state, [base, [{atom: answer}]]))
        return _cheapest(state, [*base, {atom: answer}])
    return _translated_ways(state, leaf, rule, job, wanted)


def _translated_ways(state: State, leaf: LeafState, rule: TranslatedDef, job: int, wanted: bool) -> list[Way]:
    target = leaf.derived.forward.get(job) if leaf.derived is not None else None
    translator = _ways(state, rule.translator, job, wanted)
    if target is None:
        answer: Way = {Atom(leaf.id, job): Step(True, "translation")}
        return _cheapest(state, _products(state, [translator, [answer]])) if wanted else [{}]
    base = _ways(state, rule.base, target, wanted)
    return _cheapest(state, _products(state, [base, translator]) if wanted else [*base, *translator])


def _view_ways(state: State, rule: ViewDef, atom: Atom, wanted: bool) -> list[Way]:
    task = state.tasks.get(rule.task)
    episode = task.episodes.get(atom.job) if task is not None and rule.view == "live" else None
    ends = episode is not None and episode.run != 0 and not wanted
    kinds: list[Kind] = ["live", "outcome"] if ends else ["outcome"]
    return [{atom: Step(wanted, kind)} for kind in kinds]


def writer_of(state: State, leaf: str, job: int) -> OpenRun | None:
    """Return the open run whose process the engine keeps an entry of in this leaf, if it does for this job."""
    for task in state.tasks.values():
        episode = task.episodes.get(job) if task.definition.pids == leaf else None
        if episode is not None and episode.run:
            return state.open_runs[episode.run]
    return None


def _products(state: State, each: Iterable[list[Way]]) -> list[Way]:
    found: list[Way] = [{}]
    for ways in each:
        merged = [{**first, **second} for first in found for second in ways if _agree(first, second)]
        found = _cheapest(state, merged)
    return found


def _agree(first: Way, second: Way) -> bool:
    return all(first.get(atom, step).wanted is step.wanted for atom, step in second.items())


def _cheapest(state: State, ways: list[Way]) -> list[Way]:
    """Return the cheapest ways, each once; equal costs keep their order."""
    unique: dict[frozenset[tuple[Atom, Step]], Way] = {}
    for way in ways:
        unique.setdefault(frozenset(way.items()), way)
    return sorted(unique.values(), key=lambda way: _cost(state, way))[:WAYS_MAX]


def _cost(state: State, way: Way) -> tuple[int, int]:
    done = changed(state, way)
    return len(done), sum(EFFORT[step.kind] for _, step in done)


WAYS_TRIED = 24
"""How many ways with as few changes as any are tried to the end."""
ROUNDS_MAX = 3
"""How often what a change led to elsewhere is mended by more changes of data."""


@dataclass(slots=True)
class Proposal:
    """`changes` is None where no set was found; `prefix` is what of it makes the job wait in line.

    `beaten` says that, with the prefix made, no limit is in the way by itself, and yet others come first.
    """

    changes: list[Change] | None = None
    prefix: list[Change] = field(default_factory=list)
    beaten: bool = False


def propose(trial: Trial, task: TaskState, job: int) -> Proposal:
    """Return the smallest set; `trial` is left with the proposal's prefix made."""
    return Search(trial, task.name, job).found()


class Search:
    """One (task, job) under trial."""

    def __init__(self, trial: Trial, name: str, job: int) -> None:
        self.trial, self.name, self.job = trial, name, job
        self.job_name = trial.state.jobs[job]
        self.best: list[Change] | None = None
        self.prefix: list[Change] = []
        self.beaten = False

    @property
    def task(self) -> TaskState:
        """The task, with what has been changed so far."""
        return self.trial.state.tasks[self.name]

    def found(self) -> Proposal:
        """Search, and return the smallest set."""
        first = [*self._surroundings(), *self._own_run()]
        self.trial.reset(*first)
        for way in self._ways():
            if self.best is not None and len(first) + len(way) >= len(self.best):
                break
            self._try(first, way, ROUNDS_MAX)
        if self.best is None:
            self.trial.reset(*first)
            return Proposal(None, first)
        self._prune(len(first))
        self.trial.reset(*self.prefix)
        self.trial.settle(self.name, self.job)
        return Proposal(self.best, self.prefix, self.beaten)

    # --- what must be so ----------------------------------------------------------------------------

    def _surroundings(self) -> Iterator[Change]:
        trial, task = self.trial, self.task
        if not trial.engine_alive:
            yield Change(op="start_engine")
        if task.paused:
            yield Change(op="resume", task=self.name)
        if task.definition.disabled:
            yield Change(op="enable", task=self.name)
        if self.name in trial.unavailable:
            yield Change(op="recover", task=self.name)
        for leaf in task.reads:
            if not leaf.synced:
                yield Change(op="accept_loss" if leaf.held else "observe", repository=leaf.id)

    def _own_run(self) -> Iterator[Change]:
        episode = self.task.episodes.get(self.job)
        if episode is not None and episode.run:
            yield run_over(self.trial.state, episode.run)

    # --- data -----------------------------------------------------------------------------------------

    def _ways(self) -> list[list[Change]]:
        """Return what makes the condition hold in the trial as it is, the fewest changes first."""
        state = self.trial.state
        if self.task.condition.test(state.masks[self.job]):
            return [[]]
        found = ways(state, start_condition(self.task.definition), self.job)
        each: list[list[Change]] = []
        for way in found:
            changes = _changes(state, way)
            if changes not in each:
                each.append(changes)
        return sorted(each, key=len)[:WAYS_TRIED]

    def _try(self, first: list[Change], way: list[Change], rounds: int) -> None:
        """Make a way's changes, and find what is still in the way."""
        done = [*first, *way]
        self.trial.reset(*done)
        if not self.task.condition.test(self.trial.state.masks[self.job]):
            for more in self._ways() if rounds else ():  # what they led to elsewhere undid it
                if self.best is not None and len(done) + len(more) >= len(self.best):
                    return
                self._try(done, more, rounds - 1)
            return
        for place in self._places():
            self._make_room([*done, *place])

    def _places(self) -> list[list[Change]]:
        """Return what brings the job, whose condition holds, into the line: the alternatives."""
        trial, task, job = self.trial, self.task, self.job
        trial.settle(self.name, job)
        if PendingKey("priority", self.name, job) in trial.state.pending:
            return [[Change(op="evaluate", task=self.name, job=self.job_name)]]
        if trial.in_line(task, job):
            return [[]]
        again = Change(op="retry", task=self.name, job=self.job_name)
        episode = task.episodes.get(job)
        if episode is not None and not episode.run and episode.not_before is not None:
            if task.contends(episode):
                return [
                    [run_over(trial.state, run)] for run in contenders(trial.state.open_runs.values(), task)
                ] + [[again]]
            return [[wait(episode.not_before)], [again]]
        return [[again]]

    # --- room -----------------------------------------------------------------------------------------

    def _make_room(self, prefix: list[Change]) -> None:
        """Add what is needed for the limits and those who come first, if that makes the smallest set so far."""
        room = Room(self.trial, self.name, self.job, prefix)
        most = None if self.best is None else len(self.best) - len(prefix) - 1
        found = room.made(most)
        if found is not None:
            self.best, self.prefix, self.beaten = found, prefix, room.beaten

    def _prune(self, kept: int) -> None:
        """Leave out what is not needed after all, whichever change made it so."""
        assert self.best is not None
        for size in range(len(self.best) - kept - 1, 0, -1):
            for left_out in combinations(self.best[kept:], size):
                if not any(change in self.prefix for change in left_out):
                    continue
                fewer = [change for change in self.best if change not in left_out]
                self.trial.reset(*fewer)
                if self.trial.launches(self.name, self.job):
                    self.best = fewer
                    self.prefix = [change for change in self.prefix if change not in left_out]
                    return


def wait(until: int) -> Change:
    """Return the wait until then."""
    return Change(op="wait_until", until=iso(until), at=until)


def _changes(state: State, way: Way) -> list[Change]:
    """Return what a way asks for, each change once: the end of one run may make two things so."""
    found: list[Change] = []
    for atom, step in changed(state, way):
        change = _change(state, atom, step)
        if change not in found:
            found.append(change)
    return found


def _change(state: State, atom: Atom, step: Step) -> Change:
    job, outcome = state.jobs[atom.job], str(step.wanted).lower()
    match step.kind:
        case "member":
            return Change(op="put" if step.wanted else "delete", repository=atom.leaf, job=job)
        case "filter":
            return Change(op="set_filter", repository=atom.leaf, job=job, outcome=outcome)
        case "translation":
            outcome = "a job that it is to stand for"
            return Change(op="set_translation", repository=atom.leaf, job=job, outcome=outcome)
        case "entry":
            run = writer_of(state, atom.leaf, atom.job)
            assert run is not None, "an entry is that of an open run"
            return run_over(state, run.run)
    rule = state.leaves[atom.leaf].definition.derived
    assert isinstance(rule, d.ViewDef), "only views tell of runs"
    if step.kind == "live":
        return run_over(state, state.tasks[rule.task].episodes[atom.job].run)
    outcome = rule.view if step.wanted else f"not {rule.view}"
    return Change(op="wait_for", task=rule.task, job=job, outcome=outcome)
