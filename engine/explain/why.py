"""The waiting jobs of a whole task by what they wait for: `explain_all`.

In: the state, a task, the time and the surroundings. Out: `Group`s, the largest first, no job in two. Who is in line is
told apart by one round of the decider, who is not by set algebra on bitmaps: the cost is that of a round and of
O(jobs / 64), plus what is between attempts or waits for user code, one by one.

Why is this job not running? All that holds a (task, job) back at once, and the least that would let it run.

In: the state, a task, a job, the time, and what only the caller knows (does an engine live, which runners are
unavailable). Out: an `Explanation`: the data conditions link by link and as a tree, everything else that holds the job
(`obstacles`, `crowding`), each with the position that made it so, and `changes`, the smallest set after which the next
round launches it, found by trying (`proposals`, `room`, on a layer over the state: `trials`). `explain_all` does the same
for a whole task, by groups (`groups`). Nothing here is stored, and the state is not touched.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Set

from pyroaring import BitMap

from datatask.engine.core import decide as deciding
from datatask.engine.core.define import start_condition
from datatask.engine.core.expressions import conjuncts, jobs_where, literals, text
from datatask.engine.core.leaves import LeafState
from datatask.engine.core.queues import Entry
from datatask.engine.core.state import PendingKey, State
from datatask.engine.core.tasks import TaskState
from datatask.engine.explain.capacity import SHOWN_MAX, Case, reserving
from datatask.engine.explain.explanations import (
    Change,
    Condition,
    Explanation,
    Group,
    Hold,
    Node,
    User,
    iso,
)
from datatask.engine.explain.overlay import Layer
from datatask.schema import definition as d
from datatask.schema.errors import UnknownNameError

__all__ = ["Change", "Condition", "Explanation", "Group", "Hold", "Node", "User", "explain", "explain_all"]


def explain_all(
    state: State, task: str, now: int, *, engine_alive: bool, unavailable: Set[str] = frozenset()
) -> list[Group]:
    """Group the waiting jobs of a task by what they wait for, largest first.

    A job waits when it is in line, between two attempts, or in some but not all of what the task requires (or of what that
    is filtered or translated from), and when it was cancelled while its conditions hold. One that is kept out only by the task's own status entries has been
    done, and does not wait; one that runs does not wait either.
    """
    found = state.tasks.get(task)
    if found is None:
        raise UnknownNameError(
            f"there is no task {task}", remedy="use one of: " + ", ".join(sorted(state.tasks))
        )
    groups = Groups(state, found, now, engine_alive, unavailable)
    told = [*groups.in_line(), *groups.awaiting(), *groups.retrying(), *groups.lacking()]
    return sorted(told, key=lambda group: -group.count)


class Groups:
    """One task under examination."""

    def __init__(
        self, state: State, task: TaskState, now: int, engine_alive: bool, unavailable: Set[str]
    ) -> None:
        self.state, self.task, self.now = state, task, now
        self.engine_alive, self.unavailable = engine_alive, unavailable
        between = [(job, own.not_before) for job, own in task.episodes.items() if not own.run]
        self.due = [job for job, at in between if at is not None and at <= now]
        self.later = [(at or 0, job) for job, at in between if at is None or at > now]

    def _group(self, hold: Hold, count: int, jobs: Iterable[int]) -> list[Group]:
        if not count:
            return []
        sample = [self.state.jobs[job] for _, job in zip(range(SHOWN_MAX), jobs, strict=False)]
        return [Group(what=hold.what, explain=hold.explain, count=count, sample=sample, until=hold.until)]

    # --- who is in line -----------------------------------------------------------------------------

    def in_line(self) -> Iterator[Group]:
        """Group those that could be launched by their data: the same limits hold all of them."""
        count = len(self.task.queue) + len(self.due)
        if not count:
            return
        line = deciding.entries(self.task, self.now, deciding.BOUND)
        first = [entry for _, entry in zip(range(deciding.BOUND + SHOWN_MAX), line, strict=False)]
        case = Case(self.state, self.task, first[0][2], self.now, self.engine_alive, self.unavailable)
        holds = case.shared()
        # An engine that does not run is the last reason to tell: the others hold when it does.
        holds.sort(key=lambda hold: hold.what == "engine")
        if holds and holds[0].what != "engine":
            told = Hold(
                holds[0].what,
                "; ".join(hold.explain for hold in holds),
                until=_last(hold.until for hold in holds),
            )
            yield from self._group(told, count, (entry[2] for entry in first))
            return
        yield from self._by_order(count, first, holds)

    def _by_order(self, count: int, first: list[Entry], holds: list[Hold]) -> Iterator[Group]:
        """There is room: who takes it, and who comes after."""
        decided = deciding.decide(self.state, self.now, unavailable=self.unavailable)
        mine = {self.state.job_index[each.job] for each in decided.decisions if each.task == self.task.name}
        launched = [entry[2] for entry in first if entry[2] in mine]
        left = [entry for entry in first if entry[2] not in mine]
        yield from self._group(
            holds[0] if holds else Hold("next", "the next round launches them"), len(launched), launched
        )
        if not left:
            return
        keeper = reserving(self.state, self.task, self.now, left[0], self.unavailable)
        if keeper is not None:
            other, job, position = keeper
            what, told = (
                "reserved",
                (
                    f"{self.task.definition.quota} keeps what becomes free for {other.name} {self.state.jobs[job]}, "
                    f"which has waited longest (since position {position})"
                ),
            )
        else:
            limit = decided.constraints.get(self.task.name, "")
            full = f", then {limit}" if limit else ""
            what = "priority"
            told = f"others come first: the next round launches {len(decided.decisions)}, {len(mine)} of them in {self.task.name}{full}"
        told = "; ".join([told, *(hold.explain for hold in holds)])
        yield from self._group(Hold(what, told), count - len(launched), (entry[2] for entry in left))

    def awaiting(self) -> Iterator[Group]:
        """Group those whose priority is not known: not asked yet, or by what user code failed with."""
        fresh: list[int] = []
        failed: dict[str, list[int]] = {}
        for job in self.task.awaiting:
            why = self.state.pending.get(PendingKey("priority", self.task.name, job))
            if why is None or not why.error:
                fresh.append(job)
            else:
                failed.setdefault(why.error, []).append(job)
        told = f"the priority of {self.task.name} is to be evaluated"
        yield from self._group(Hold("evaluation", told), len(fresh), fresh)
        for error, jobs in failed.items():
            yield from self._group(Hold("evaluation", f"{told}: {error}"), len(jobs), jobs)

    def retrying(self) -> Iterator[Group]:
        """Tell those that wait between two attempts, and when the first of them is due."""
        if self.later:
            self.later.sort()
            until = iso(self.later[0][0])
            told = Hold("retry", f"between two attempts, the next at {until}", until=until)
            yield from self._group(told, len(self.later), (job for _, job in self.later))

    # --- who is not ---------------------------------------------------------------------------------

    def lacking(self) -> Iterator[Group]:
        """Group those with some of what the task wants by the first part of its condition that does not hold."""
        state, task = self.state, self.task
        expr = start_condition(task.definition)
        waiting = BitMap()
        for name in _wanted(state, expr):
            waiting |= state.leaves[name].members(state.masks)
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
            told = f"in {text(part.of)}, which inhibits"
            yield from self._group(Hold("inhibitor", told), len(jobs), jobs)
            return
        if isinstance(part, d.In):
            leaf = self.state.leaves[part.leaf]
            if leaf.derived is not None:
                jobs = yield from self._underived(leaf, jobs)
            yield from self._group(Hold("upstream", f"not yet in {part.leaf}"), len(jobs), jobs)
            return
        yield from self._group(Hold("condition", f"not {text(part)}"), len(jobs), jobs)

    def _underived(self, leaf: LeafState, jobs: BitMap) -> Generator[Group, None, BitMap]:
        """Group those that a derived leaf has not by what its rule says of them; return the others."""
        assert leaf.derived is not None
        what = leaf.derived.what
        fresh, failed = BitMap(), dict[str, BitMap]()
        for key, why in self.state.pending.items():
            if key.owner == leaf.id and key.what == what and key.job in jobs:
                (failed.setdefault(why.error, BitMap()) if why.error else fresh).add(key.job)
        told = f"the {what} of {leaf.id} is to be evaluated"
        yield from self._group(Hold("evaluation", told), len(fresh), fresh)
        jobs = jobs - fresh
        for error, some in failed.items():
            yield from self._group(Hold("evaluation", f"{told}: {error}"), len(some), some)
            jobs -= some
        rule = leaf.definition.derived
        if isinstance(rule, d.FilteredDef):
            refused = self._within(rule.base, jobs)
            told = f"the filter of {leaf.id} does not want them"
            yield from self._group(Hold("filter", told), len(refused), refused)
            return jobs - refused
        assert isinstance(rule, d.TranslatedDef)
        lost = self._within(rule.translator, jobs) - BitMap(leaf.derived.forward)
        told = f"they stand for nothing in {leaf.id}: their translation is missing"
        yield from self._group(Hold("translation", told), len(lost), lost)
        return jobs - lost

    def _past(self, holding: BitMap) -> Iterator[Group]:
        """Tell those whose conditions hold, and who are neither in line nor done: cancelled, or never noticed."""
        state, task = self.state, self.task
        for view in (task.succeeded, task.failed):
            holding = holding - view.members(state.masks)
        known = len(task.queue) + len(task.awaiting) + len(self.due) + len(self.later)
        if len(holding) == known:
            return
        in_line = BitMap(entry[2] for entry in task.queue.entries())
        rest = holding - in_line - BitMap(task.awaiting) - BitMap(task.episodes)
        claimed = BitMap(job for job in rest if state.masks[job] & task.claim)
        fresh = rest - claimed
        what = "claimed" if task.definition.opaque else "cancelled"
        told = "cancelled or handed over" if task.definition.opaque else "cancelled"
        yield from self._group(Hold(what, f"{told}, and no new occasion since"), len(claimed), claimed)
        yield from self._group(Hold("occasion", "its conditions never began to hold"), len(fresh), fresh)


def _wanted(state: State, expr: d.AnyExpr) -> Iterator[str]:
    """Yield the leaves whose presence helps a condition, and those from which such leaves get their jobs."""
    for name, wanted in literals(expr):
        if wanted:
            yield name
            rule = state.leaves[name].definition.derived
            if isinstance(rule, d.DerivedDef):
                yield from _wanted(state, rule.candidates)


def _last(times: Iterable[str]) -> str:
    return max(times, default="")


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
    if task not in state.tasks:
        raise UnknownNameError(
            f"there is no task {task}", remedy="use one of: " + ", ".join(sorted(state.tasks))
        )
    if job not in state.job_index:
        state = Layer(state).state
        state.intern(job)
    case = Case(state, state.tasks[task], state.job_index[job], now, engine_alive, unavailable)
    return case.explanation()
