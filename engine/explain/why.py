"""Why is this job not running? All that holds it back at once, and the least that would let it run.

In: the state, a task, a job, the time, and what only the caller knows (is an engine alive, which runners are
unavailable). Out: `explain` returns an `Explanation` of one job; `explain_all` the waiting jobs of the task in `Group`s by
what they wait for, the largest first, no job in two. Queued jobs are told apart by one round of the decider, the others
by set algebra: a group costs a round and O(jobs / 64). Nothing is stored, and the state is not touched.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Mapping, Set
from itertools import islice

from pyroaring import BitMap

from datatask.engine.core import decide as deciding
from datatask.engine.core.define import start_condition
from datatask.engine.core.expressions import conjuncts, jobs_where, literals, text
from datatask.engine.core.leaves import LeafState
from datatask.engine.core.state import Pending, PendingKey, State
from datatask.engine.core.tasks import Entry, TaskState
from datatask.engine.explain.blockers import Case, blockers, conditions, left_out_of, surroundings, waits_for
from datatask.engine.explain.capacity import SHOWN_MAX, chosen, limits, order, reservation
from datatask.engine.explain.explanations import Blocker, Explanation, Group, iso_up
from datatask.engine.explain.fixes import propose
from datatask.engine.explain.overlay import Overlay
from datatask.engine.explain.what_if import WhatIf
from datatask.schema import definition as d
from datatask.schema.errors import unknown

GROUPS_MAX = 5
"""The number of incomplete groups that are told one by one."""


def explain(
    state: State,
    task: str,
    job: str,
    now: int,
    *,
    engine_alive: bool,
    unavailable: Set[str] = frozenset(),
) -> Explanation:
    """Explain one job; a job that the log has never seen is explained as one that is nowhere.

    `now` is engine time in nanoseconds. `UnknownNameError` for a task that is not there.
    """
    _known(state, task)
    if job not in state.job_index:
        state = Overlay(state).state
        state.intern(job)
    case = Case(state, state.tasks[task], state.job_index[job], now, engine_alive, unavailable)
    what_if = WhatIf(state, now, engine_alive=engine_alive, unavailable=unavailable)
    held_by = [*blockers(case), *limits(case)]
    proposal = propose(what_if, case.task, case.job)
    if proposal.beaten:
        held_by.append(order(case, what_if))
    if proposal.changes is None:
        held_by.append(_unreachable(case.task))
    return Explanation(
        task=task,
        job=job,
        ready=case.tree.holds and case.run is None,
        at_position=state.position,
        conditions=conditions(case),
        held_by=held_by,
        changes=proposal.changes or [],
        launching=proposal.changes == [],
        tree=case.tree,
    )


def _unreachable(task: TaskState) -> Blocker:
    reason = "no set of changes was found that lets it run"
    own = {view.id for view in (task.succeeded, task.failed)}
    if own & {leaf.id for leaf in task.reads}:
        reason += ": its condition looks at the outcome of its own runs, which a new occasion clears"
    return Blocker("unreachable", f"{reason}; `launch --force` does")


def _known(state: State, task: str) -> TaskState:
    found = state.tasks.get(task)
    if found is None:
        raise unknown("task", task, state.tasks)
    return found


# --- by groups --------------------------------------------------------------------------------------


def explain_all(
    state: State, task: str, now: int, *, engine_alive: bool, unavailable: Set[str] = frozenset()
) -> list[Group]:
    """Group the waiting jobs of a task by what they wait for, largest first.

    A job waits when it is queued, between two attempts, or in some but not all of what the task requires (or of what
    that is filtered or translated from), and when it was cancelled while its conditions hold. One that is kept out only
    by the task's own status entries has been done, and does not wait; one that runs does not wait either.
    """
    groups = _Groups(state, _known(state, task), now, engine_alive, unavailable)
    found = [*groups.queued(), *groups.unevaluated(), *groups.retrying(), *groups.lacking()]
    return sorted(found, key=lambda group: -group.count)


class _Groups:
    """One task under examination."""

    def __init__(
        self, state: State, task: TaskState, now: int, engine_alive: bool, unavailable: Set[str]
    ) -> None:
        self.state, self.task, self.now = state, task, now
        self.engine_alive, self.unavailable = engine_alive, unavailable
        self.selection = state.selection if engine_alive else None
        between = [(job, own.not_before) for job, own in task.episodes.items() if not own.run]
        self.due = [job for job, at in between if at is not None and at <= now]
        self.later = sorted((at or 0, job) for job, at in between if at is None or at > now)

    def _group(
        self, what: str, explain: str, jobs: Iterable[int], count: int, until: str = ""
    ) -> Iterator[Group]:
        if count:
            sample = [self.state.jobs[job] for job in islice(jobs, SHOWN_MAX)]
            yield Group(what=what, explain=explain, count=count, sample=sample, until=until)

    # --- queued -------------------------------------------------------------------------------------

    def queued(self) -> Iterator[Group]:
        """Group the jobs that could be launched by their data: the same limits hold for all of them."""
        count = len(self.task.queue) + len(self.due)
        if not count:
            return
        state, selection = self.state, self.selection
        waiting = [job for _, _, job in deciding.entries(self.task, self.now, count)] if selection else []
        explain, others = left_out_of(state, selection, self.task, waiting)
        yield from self._group("unselected", explain, others, len(others))
        count -= len(others)
        if not count:
            return
        line = deciding.entries(self.task, self.now, deciding.BOUND, chosen(state, selection))
        first = list(islice(line, deciding.BOUND + SHOWN_MAX))
        case = Case(self.state, self.task, first[0][2], self.now, self.engine_alive, self.unavailable)
        shared = [*surroundings(case), *limits(case)]
        # No running engine is the last reason given: the others hold while one runs, too.
        shared.sort(key=lambda blocker: blocker.what == "engine")
        if shared and shared[0].what != "engine":
            explain = "; ".join(blocker.explain for blocker in shared)
            until = max(blocker.until for blocker in shared)
            yield from self._group(shared[0].what, explain, (job for _, _, job in first), count, until)
        else:
            yield from self._by_order(count, first, shared)

    def _by_order(self, count: int, first: list[Entry], engine: list[Blocker]) -> Iterator[Group]:
        """Group the jobs that the next round launches, and those that come later; no limit holds the first one."""
        state, task = self.state, self.task
        decided = deciding.decide(state, self.now, unavailable=self.unavailable, selection=self.selection)
        mine = {state.job_index[each.job] for each in decided.decisions if each.task == task.name}
        launched = [job for _, _, job in first if job in mine]
        left = [entry for entry in first if entry[2] not in mine]
        what, explain = ("engine", engine[0].explain) if engine else ("next", "the next round launches them")
        yield from self._group(what, explain, launched, len(launched))
        if not left:
            return
        reserved = reservation(state, task, self.now, left[0], self.unavailable, self.selection)
        if reserved is not None:
            what, explain = reserved.what, reserved.explain
        else:
            limit = decided.constraints.get(task.name)
            full = f", then {limit.text}" if limit is not None else ""
            what = "priority"
            explain = f"others come first: the next round launches {len(decided.decisions)}, {len(mine)} of them in {task.name}{full}"
        explain = "; ".join([explain, *(blocker.explain for blocker in engine)])
        yield from self._group(what, explain, (job for _, _, job in left), count - len(launched))

    def unevaluated(self) -> Iterator[Group]:
        """Group the jobs whose priority is not known: not asked yet, or by the error of user code."""
        pending = self.state.pending
        waits = {job: pending.get(PendingKey("priority", self.task.name, job)) for job in self.task.awaiting}
        explain = f"the priority of {self.task.name} is to be evaluated"
        yield from self._evaluations(explain, waits)

    def _evaluations(self, explain: str, waits: Mapping[int, Pending | None]) -> Iterator[Group]:
        by_error: dict[str, list[int]] = {"": []}
        for job, why in waits.items():
            by_error.setdefault(why.error if why is not None else "", []).append(job)
        for error, jobs in by_error.items():
            detail = f"{explain}: {error}" if error else explain
            yield from self._group("evaluation", detail, jobs, len(jobs))

    def retrying(self) -> Iterator[Group]:
        """Group the jobs between two attempts, with the time of the first that is due."""
        if self.later:
            until = iso_up(self.later[0][0])
            explain = f"between two attempts, the next at {until}"
            yield from self._group("retry", explain, (job for _, job in self.later), len(self.later), until)

    # --- not queued ---------------------------------------------------------------------------------

    def lacking(self) -> Iterator[Group]:
        """Group the jobs with some of what the task wants by the first part of its condition that does not hold."""
        state, task = self.state, self.task
        expr = start_condition(task.definition)
        waiting = BitMap()
        for name in _wanted(state, expr):
            leaf = state.leaves[name]
            waiting |= leaf.members(state.masks)
            if leaf.derived is not None and leaf.derived.gathering is not None:
                waiting |= BitMap(group.job for group in leaf.derived.gathering.waiting())
        own = {link.expr for link in task.definition.links if link.is_status and link.inhibits_start}
        parts = conjuncts(expr)
        for part in parts:
            if isinstance(part, d.Not) and part.of in own:
                waiting -= self._within(part.of, waiting)
        waiting -= task.live.members(state.masks)
        for part in parts:
            without = waiting - self._within(part, waiting)
            if without:
                waiting -= without
                yield from self._lack(part, without)
        yield from self._past(waiting)

    def _within(self, expr: d.AnyExpr, among: BitMap) -> BitMap:
        """Return which of these jobs a condition holds for."""
        state = self.state
        return among & jobs_where(expr, lambda leaf: state.leaves[leaf].members(state.masks), among)

    def _lack(self, part: d.AnyExpr, jobs: BitMap) -> Iterator[Group]:
        if isinstance(part, d.Not):
            yield from self._group("inhibitor", f"in {text(part.of)}, which inhibits", jobs, len(jobs))
        elif isinstance(part, d.In):
            leaf = self.state.leaves[part.leaf]
            if leaf.derived is not None:
                jobs = yield from self._underived(leaf, jobs)
            yield from self._group("upstream", f"not yet in {part.leaf}", jobs, len(jobs))
        else:
            yield from self._group("condition", f"not {text(part)}", jobs, len(jobs))

    def _underived(self, leaf: LeafState, jobs: BitMap) -> Generator[Group, None, BitMap]:
        """Group the jobs that are not in a derived leaf by what its rule says of them; return the others."""
        rule, derived = leaf.definition.derived, leaf.derived
        assert derived is not None
        if derived.gathering is not None:
            keyless = {
                key.job: why
                for key, why in self.state.pending.items()
                if key.owner == leaf.id and key.what == "translation"
            }
            yield from self._evaluations(f"the keys of {leaf.id} are to be evaluated", keyless)
            groups = jobs & BitMap(group.job for group in derived.gathering.waiting())
            for job in islice(groups, GROUPS_MAX):
                yield from self._group("gathering", waits_for(self.state, leaf, job), [job], 1)
            rest = BitMap(islice(groups, GROUPS_MAX, None))
            yield from self._group(
                "gathering", f"their groups in {leaf.id} are not complete", rest, len(rest)
            )
            return jobs - groups
        waits = {
            key.job: why
            for key, why in self.state.pending.items()
            if key.owner == leaf.id and key.what == derived.what and key.job in jobs
        }
        yield from self._evaluations(f"the {derived.what} of {leaf.id} is to be evaluated", waits)
        jobs = jobs - BitMap(waits)
        if isinstance(rule, d.FilteredDef):
            what, explain = "filter", f"the filter of {leaf.id} does not want them"
            negative = self._within(rule.base, jobs)
        else:
            assert isinstance(rule, d.TranslatedDef)
            what = "translation"
            explain = f"they stand for nothing in {leaf.id}: their translation is missing"
            negative = self._within(rule.translator, jobs) - BitMap(derived.forward)
        yield from self._group(what, explain, negative, len(negative))
        return jobs - negative

    def _past(self, holding: BitMap) -> Iterator[Group]:
        """Group the jobs whose conditions hold, and that are neither queued nor done: cancelled, or never noticed."""
        state, task = self.state, self.task
        for view in (task.succeeded, task.failed):
            holding = holding - view.members(state.masks)
        known = len(task.queue) + len(task.awaiting) + len(self.due) + len(self.later)
        if len(holding) == known:
            return
        queued = BitMap(job for _, _, job in task.queue.entries())
        rest = holding - queued - BitMap(task.awaiting) - BitMap(task.episodes)
        claimed = BitMap(job for job in rest if state.masks[job] & task.claim)
        what, past = ("claimed", "cancelled or handed over") if task.definition.opaque else ("cancelled",) * 2
        yield from self._group(what, f"{past}, and no new occasion since", claimed, len(claimed))
        fresh = rest - claimed
        yield from self._group("occasion", "its conditions never began to hold", fresh, len(fresh))


def _wanted(state: State, expr: d.AnyExpr) -> Iterator[str]:
    """Yield the leaves whose presence helps a condition, and those from which such leaves get their jobs."""
    for name, wanted in literals(expr):
        if wanted:
            yield name
            rule = state.leaves[name].definition.derived
            if isinstance(rule, d.DerivedDef):
                yield from _wanted(state, rule.candidates)
