"""The smallest set of changes after which the next round launches a job, found by trying them.

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

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import combinations

from datatask.engine.core.explanations import Change
from datatask.engine.core.remedies import Atom, Step, Way, changed, ways, writer_of
from datatask.engine.core.room import Room
from datatask.engine.core.state import PendingKey, State
from datatask.engine.core.tasks import TaskState, contenders
from datatask.engine.core.trials import Trial, run_over
from datatask.engine.core.wiring import start_condition
from datatask.engine.core.wording import iso
from datatask.schema import definition as d

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
