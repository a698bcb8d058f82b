"""Why is this job not running? All that holds a (task, job) back at once, and the least that would let it run.

In: the state, a task, a job, the time, and what only the caller knows (does an engine live, which runners are
unavailable). Out: an `Explanation`: the data conditions link by link, everything else that holds the job, each
with the position that made it so, and `changes`: one for each independent obstacle, data by the smallest set
(`remedies`), one raised quota for all that it lacks, one wait for all that time heals. Nothing here is stored.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator, Set
from typing import Any

import msgspec

from datatask.engine.core import decide as deciding
from datatask.engine.core.conditions import holds
from datatask.engine.core.members import LeafState, get_at
from datatask.engine.core.quotas import QuotaState
from datatask.engine.core.remedies import Atom, changed, smallest
from datatask.engine.core.state import Pending, PendingKey, State
from datatask.engine.core.tasks import OpenRun, TaskState
from datatask.engine.core.wiring import start_condition
from datatask.schema import definition as d
from datatask.schema.errors import UnknownNameError

AHEAD_MAX = 1000
SHOWN_MAX = 5
NANO = 1_000_000_000


class Condition(msgspec.Struct, frozen=True, kw_only=True):
    """One condition on data: a link's, or a part of a custom `ready=` (then `link` is `ready`)."""

    link: str
    repository: str
    needs: str
    is_: str = msgspec.field(name="is")
    since: int | None
    satisfied: bool
    explain: str


class Hold(msgspec.Struct, frozen=True):
    """One thing other than data that holds the job back."""

    what: str
    explain: str


class Change(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One thing to do; which fields are there depends on `op`. Amounts are billionths, times ISO-8601 UTC."""

    op: str
    repository: str = ""
    task: str = ""
    job: str = ""
    quota: str = ""
    limits: dict[str, int] = {}
    launches: int | None = None
    concurrency: int | None = None
    run: int | None = None
    until: str = ""
    at: int | None = None
    outcome: str = ""
    explain: str = ""


class Explanation(msgspec.Struct, frozen=True, kw_only=True):
    """`ready`: the data conditions hold and no run is open. An empty `held_by` then means: with the next round."""

    task: str
    job: str
    ready: bool
    at_position: int
    conditions: list[Condition]
    held_by: list[Hold]
    changes: list[Change]

    def to_json(self) -> dict[str, Any]:
        """Return the documented JSON object as plain data."""
        plain: dict[str, Any] = msgspec.to_builtins(self)
        for change in plain["changes"]:
            change.pop("at", None)
        return plain


class Group(msgspec.Struct, frozen=True, kw_only=True):
    """Waiting jobs of a task that wait for the same: how many, and a few of them."""

    what: str
    explain: str
    count: int
    sample: list[str]


def explain(
    state: State,
    task: str,
    job: str,
    now: int,
    *,
    engine_alive: bool,
    unavailable: Set[str] = frozenset(),
) -> Explanation:
    """Explain one job; a job that the log has never seen is explained as one that is nowhere."""
    found = state.tasks.get(task)
    if found is None:
        raise UnknownNameError(
            f"there is no task {task}", remedy="use one of: " + ", ".join(sorted(state.tasks))
        )
    index = state.job_index.get(job)
    if index is None:
        return _unseen(state, found, job, engine_alive)
    return _Case(state, found, index, now, engine_alive, unavailable).explanation()


def _unseen(state: State, task: TaskState, job: str, engine_alive: bool) -> Explanation:
    parts = list(_parts(start_condition(task.definition)))
    conditions = [
        Condition(
            link=_link_of(task.definition, part),
            repository=in_words(_bare(part)),
            needs=_needs(part),
            is_="absent",
            since=None,
            satisfied=holds(part, ()),
            explain=f"{job} has never been in any repository",
        )
        for part in parts
    ]
    changes = [Change(op="put", repository=part.leaf, job=job) for part in parts if isinstance(part, d.In)]
    hold = [] if engine_alive else [Hold("engine", "no engine is running")]
    return Explanation(
        task=task.name, job=job, ready=False, at_position=state.position, conditions=conditions, held_by=hold,
        changes=changes if engine_alive else [*changes, Change(op="start_engine")],
    )  # fmt: skip


class _Case:
    """One (task, job) under examination."""

    def __init__(
        self, state: State, task: TaskState, job: int, now: int, engine_alive: bool, unavailable: Set[str]
    ) -> None:
        self.state, self.task, self.job, self.now = state, task, job, now
        self.engine_alive, self.unavailable = engine_alive, unavailable
        self.name = state.jobs[job]
        self.expr = start_condition(task.definition)
        self.members = {leaf.id for leaf in state.leaves.values() if state.masks[job] & leaf.bit}
        self.episode = task.episodes.get(job)
        self.run = state.open_runs.get(self.episode.run) if self.episode is not None else None
        self.horizon = now
        self.holds: list[Hold] = []
        self.changes: list[Change] = []

    def explanation(self) -> Explanation:
        conditions = [self._condition(part) for part in _parts(self.expr)]
        satisfied = all(condition.satisfied for condition in conditions)
        self._live()
        self._data(satisfied)
        self._claimed(satisfied)
        self._evaluation()
        self._task()
        self._capacity()
        self._order(satisfied)
        return Explanation(
            task=self.task.name,
            job=self.name,
            ready=satisfied and self.run is None,
            at_position=self.state.position,
            conditions=conditions,
            held_by=self.holds,
            changes=self.changes,
        )

    def _hold(self, what: str, explain: str, *changes: Change) -> None:
        self.holds.append(Hold(what, explain))
        self.changes += changes

    # --- data -------------------------------------------------------------------------------------

    def _condition(self, part: d.AnyExpr) -> Condition:
        bare, satisfied = _bare(part), holds(part, self.members)
        present = holds(bare, self.members)
        since = max((self._since(self.state.leaves[name]) for name in d.leaves_of(bare)), default=0)
        where = f"since position {since}" if since else "and has never been"
        told = self._in_detail(bare)
        return Condition(
            link=_link_of(self.task.definition, part),
            repository=in_words(bare),
            needs=_needs(part),
            is_="present" if present else "absent",
            since=since or None,
            satisfied=satisfied,
            explain=f"{self.name} is {'in' if present else 'not in'} {in_words(bare)} {where}{told}",
        )

    def _since(self, leaf: LeafState) -> int:
        rule = leaf.definition.derived
        if isinstance(rule, d.ViewDef):
            other = self.state.tasks.get(rule.task)
            return get_at(other.last_run, self.job) if other is not None else 0
        if rule is None:
            return abs(get_at(leaf.positions, self.job))
        return deciding.value_position(leaf, self.job)

    def _in_detail(self, expr: d.AnyExpr) -> str:
        """Tell the parts of a condition that is more than one leaf, and what a derived leaf stands on."""
        names = d.leaves_of(expr)
        if isinstance(expr, d.In):
            leaf = self.state.leaves[expr.leaf]
            if leaf.derived is not None and leaf.derived.translator is not None:
                target = leaf.derived.forward.get(self.job)
                return (
                    f"; it stands for {self.state.jobs[target]}"
                    if target is not None
                    else "; it stands for nothing"
                )
            return ""
        return "; " + ", ".join(
            f"{name}: {'present' if name in self.members else 'absent'}" for name in names
        )

    def _data(self, satisfied: bool) -> None:
        if satisfied:
            return
        way = smallest(self.state, self.expr, self.job)
        if way is None:
            self.changes.append(
                Change(op="evaluate", task=self.task.name, job=self.name, explain="depends on user code")
            )
            return
        self.changes += [self._change(atom, wanted) for atom, wanted in changed(self.state, way)]

    def _change(self, atom: Atom, wanted: bool) -> Change:
        job = self.state.jobs[atom.job]
        if atom.kind == "member":
            return Change(op="put" if wanted else "delete", repository=atom.leaf, job=job)
        if atom.kind == "filter":
            return Change(op="set_filter", repository=atom.leaf, job=job, outcome=str(wanted).lower())
        rule = self.state.leaves[atom.leaf].definition.derived
        assert isinstance(rule, d.ViewDef)
        if atom.kind == "live":
            episode = self.state.tasks[rule.task].episodes[atom.job]
            return Change(op="end_run", run=episode.run, task=rule.task, job=job)
        outcome = rule.view if wanted else f"not {rule.view}"
        return Change(op="wait_for", task=rule.task, job=job, outcome=outcome)

    # --- the job's own past -----------------------------------------------------------------------

    def _live(self) -> None:
        run, task, job = self.run, self.task.name, self.name
        if run is None:
            return
        if run.settling is not None:
            told = (
                f"run {run.run} (position {run.run}) has {run.settling.outcome}, its outputs are being stored"
            )
            self._hold("live", told, Change(op="wait_for", run=run.run, task=task, job=job))
            return
        state = "decided, not yet started" if run.started_at is None else "running"
        state = "out of reach" if run.unreachable else "stopping" if run.stopping else state
        where = f" on {run.where}" if run.where else ""
        self._hold(
            "live",
            f"run {run.run} (attempt {run.attempt}, position {run.run}) is {state}{where}",
            Change(op="end_run", run=run.run, task=task, job=job),
        )

    def _claimed(self, satisfied: bool) -> None:
        claimed = self.state.masks[self.job] & self.task.claim != 0
        if satisfied and claimed and self.episode is None:
            last = get_at(self.task.last_run, self.job)
            past = (
                f"its last run was {last} (position {last})" if last else "it was cancelled while it waited"
            )
            self._hold(
                "claimed",
                f"{past}, and its conditions have held ever since: that is the same occasion, not a new one",
                Change(op="retry", task=self.task.name, job=self.name),
            )
        if self.episode is not None and self.run is None and self.episode.not_before is not None:
            if self.episode.not_before > self.now:
                last = get_at(self.task.last_run, self.job)
                text = f"attempt {self.episode.attempt + 1} follows run {last}, not before {iso(self.episode.not_before)}"
                self._hold("retry", text)
                self._wait(self.episode.not_before)

    def _wait(self, until: int) -> None:
        """One wait serves all that time heals."""
        for index, change in enumerate(self.changes):
            if change.op == "wait_until":
                until = max(until, change.at or 0)
                del self.changes[index]
                break
        self.changes.append(Change(op="wait_until", until=iso(until), at=until))
        self.horizon = max(self.horizon, until)

    def _evaluation(self) -> None:
        keys = [PendingKey("priority", self.task.name, self.job)]
        for leaf in self.task.reads:
            if leaf.derived is not None:
                keys.append(PendingKey(leaf.derived.what, leaf.id, self.job))
        for key in keys:
            why = self.state.pending.get(key)
            if why is not None:
                change = Change(op="evaluate", task=self.task.name, repository=key.owner, job=self.name)
                needed = key.what == "priority"
                self._hold("evaluation", _pending_in_words(key, why), *([change] if needed else []))

    # --- the task and its surroundings ------------------------------------------------------------

    def _task(self) -> None:
        task = self.task
        if not self.engine_alive:
            self._hold("engine", "no engine is running", Change(op="start_engine"))
        if task.paused:
            self._hold(
                "paused",
                f"{task.name} was paused (position {task.paused})",
                Change(op="resume", task=task.name),
            )
        if task.definition.disabled:
            self._hold("disabled", f"{task.name} is disabled (position {self.state.defined_at})",
                       Change(op="enable", task=task.name))  # fmt: skip
        if task.name in self.unavailable:
            self._hold(
                "adapter",
                f"the runner of {task.name} takes nothing now",
                Change(op="recover", task=task.name),
            )
        for leaf in task.reads:
            if not leaf.synced:
                why = leaf.held or "it has not been listed since the engine opened"
                op = "accept_loss" if leaf.held else "observe"
                self._hold("observing", f"{leaf.id} is not known: {why}", Change(op=op, repository=leaf.id))

    # --- capacity ---------------------------------------------------------------------------------

    def _capacity(self) -> None:
        own = 0 if self.run is None else 1
        limit, task = self.task.definition.concurrency, self.task
        if limit is not None and task.open_runs - own >= limit:
            ahead = self._ahead(lambda other: other is task)
            self._hold(
                "concurrency",
                f"{task.name} runs {task.open_runs} of at most {limit} at once: {self._runs_of(task.name, None)}",
                Change(op="raise_concurrency", task=task.name, concurrency=task.open_runs - own + ahead + 1),
            )
        if task.definition.quota is not None:
            self._quota(task.definition.quota, self.state.quotas[task.definition.quota])

    def _quota(self, name: str, quota: QuotaState) -> None:
        request = self.task.definition.resources
        freed = self.run.resources if self.run is not None and self.run.quota == name else {}
        demand = self._demand(name)
        raised: dict[str, int] = {}
        for part, amount in request.items():
            limit, used = quota.limits.get(part, 0), quota.used.get(part, 0) - freed.get(part, 0)
            if not amount or used + amount <= limit:
                continue
            raised[part] = used + demand.get(part, 0) + amount
            if amount > limit:
                self._hold(
                    "infeasible",
                    f"{amount / NANO:g} {part} is asked for, {name} grants {limit / NANO:g} in all",
                )
            else:
                users = self._runs_of(None, name)
                self._hold(
                    "quota",
                    f"{name} has {used / NANO:g} of {limit / NANO:g} {part} in use, {amount / NANO:g} is needed: {users}",
                )
        launches = self._rate(name, quota, raising=bool(raised))
        if raised or launches is not None:
            for (
                part
            ) in request:  # one quota is raised once, by all that it lacks for those who come first too
                raised.setdefault(
                    part,
                    max(
                        quota.limits.get(part, 0),
                        quota.used.get(part, 0) + demand.get(part, 0) + request[part],
                    ),
                )
            limits = {**quota.limits, **raised}
            self.changes.append(
                Change(
                    op="raise_quota",
                    quota=name,
                    limits=limits,
                    launches=launches if launches is not None else quota.launches,
                )
            )

    def _rate(self, name: str, quota: QuotaState, *, raising: bool) -> int | None:
        """Tell of a full launch window; return the launches it would need where waiting does not help."""
        if quota.launches is None:
            return None
        recent = [at for at in quota.recent if at > self.now - quota.definition.window]
        free_at = (
            recent[-quota.launches] + quota.definition.window if 0 < quota.launches <= len(recent) else 0
        )
        horizon, self.horizon = self.horizon, max(self.horizon, free_at)
        ahead = self._ahead(lambda other: other.definition.quota == name)
        needed = len(recent) + ahead + 1
        if quota.launches <= 0:
            self._hold("infeasible", f"{name} allows no launches at all")
            return needed
        if len(recent) < quota.launches:
            return needed if raising and needed > quota.launches else None
        seconds = quota.definition.window / NANO
        self._hold(
            "rate", f"{name} allows {quota.launches} launches in {seconds:g} s, the next at {iso(free_at)}"
        )
        if raising or ahead:
            self.horizon = horizon
            return needed
        self._wait(free_at)
        return None

    def _runs_of(self, task: str | None, quota: str | None) -> str:
        runs = [
            run for run in self.state.open_runs.values() if run.task == task or (run.quota == quota and quota)
        ]
        shown = ", ".join(_run_in_words(self.state, run) for run in runs[:SHOWN_MAX])
        return (
            shown + (f" and {len(runs) - SHOWN_MAX} more" if len(runs) > SHOWN_MAX else "") or "nothing runs"
        )

    # --- the order --------------------------------------------------------------------------------

    def _before(self, task: TaskState) -> Iterator[int]:
        """Yield the jobs of a task that come before this one, at most `AHEAD_MAX`."""
        if task is not self.task and deciding.closed(task, self.unavailable):
            return
        mine = self._entry()
        for number, entry in enumerate(deciding.entries(task, self.horizon, AHEAD_MAX)):
            if number >= AHEAD_MAX or (entry, task.index) >= (mine, self.task.index):
                return
            yield entry[2]

    def _entry(self) -> tuple[float, int, int]:
        task, job = self.task, self.job
        if self.episode is not None and self.run is None:
            return (-self.episode.priority, self.episode.position, job)
        if job in task.queue:
            return (-task.queue.priority(job), task.queue.position(job), job)
        return (0.0, self.state.position + 1, job)

    def _ahead(self, among: Any) -> int:
        return sum(1 for task in self.state.tasks.values() if among(task) for _ in self._before(task))

    def _demand(self, quota: str) -> dict[str, int]:
        """Return what the jobs that come before this one ask of a quota."""
        demand: dict[str, int] = {}
        for task in self.state.tasks.values():
            if task.definition.quota == quota:
                count = sum(1 for _ in self._before(task))
                for part, amount in task.definition.resources.items():
                    demand[part] = demand.get(part, 0) + amount * count
        return demand

    def _order(self, satisfied: bool) -> None:
        """What is free goes to those who come first."""
        if not self._beaten(satisfied):
            return
        same, ahead = sum(1 for _ in self._before(self.task)), self._ahead(lambda other: True)
        self._hold(
            "priority",
            f"{ahead} waiting jobs come first, {same} of them in {self.task.name}",
            Change(op="raise_priority", task=self.task.name, job=self.name),
        )

    def _beaten(self, satisfied: bool) -> bool:
        """Whether the next round passes by this job for others, all else being as it should."""
        if satisfied and not self.holds:
            found = deciding.decide(self.state, self.now, unavailable=self.unavailable)
            return all((each.task, each.job) != (self.task.name, self.name) for each in found.decisions)
        raised = {change.op for change in self.changes}
        own, task = 0 if self.run is None else 1, self.task
        limit = task.definition.concurrency
        if limit is not None and "raise_concurrency" not in raised:
            if task.open_runs - own + self._ahead(lambda other: other is task) >= limit:
                return True
        if self._ahead(lambda other: True) >= deciding.BOUND:
            return True
        return (
            task.definition.quota is not None
            and "raise_quota" not in raised
            and self._outbid(task.definition.quota)
        )

    def _outbid(self, name: str) -> bool:
        """Whether those who come first leave too little of the quota."""
        quota, demand = self.state.quotas[name], self._demand(name)
        freed = self.run.resources if self.run is not None and self.run.quota == name else {}
        for part, amount in self.task.definition.resources.items():
            used = quota.used.get(part, 0) - freed.get(part, 0) + demand.get(part, 0)
            if amount and used + amount > quota.limits.get(part, 0):
                return True
        if quota.launches is None:
            return False
        waits = max(
            (change.at or 0 for change in self.changes if change.op == "wait_until"), default=self.now
        )
        recent = sum(1 for at in quota.recent if at > waits - quota.definition.window)
        return recent + self._ahead(lambda other: other.definition.quota == name) >= quota.launches


# --- words ------------------------------------------------------------------------------------------


def iso(at: int) -> str:
    """Return engine time as ISO-8601 UTC, rounded up to the microsecond."""
    moment = dt.datetime(1970, 1, 1, tzinfo=dt.UTC) + dt.timedelta(microseconds=-(-at // 1000))
    return moment.isoformat().replace("+00:00", "Z")


def in_words(expr: d.AnyExpr) -> str:
    """Return a condition as a person would say it."""
    match expr:
        case d.In(leaf=leaf):
            return leaf
        case d.Not(of=part):
            return f"not {in_words(part)}"
        case d.All(of=parts):
            return "(" + " and ".join(map(in_words, parts)) + ")" if parts else "everything"
        case d.Any(of=parts):
            return "(" + " or ".join(map(in_words, parts)) + ")" if parts else "nothing"


def _parts(expr: d.AnyExpr) -> Iterator[d.AnyExpr]:
    """Yield the conditions that must all hold."""
    if isinstance(expr, d.All):
        for part in expr.of:
            yield from _parts(part)
    elif isinstance(expr, d.Not) and isinstance(expr.of, d.Any):
        for part in expr.of.of:
            yield from _parts(d.Not(of=part))
    elif isinstance(expr, d.Not) and isinstance(expr.of, d.Not):
        yield from _parts(expr.of.of)
    else:
        yield expr


def _bare(part: d.AnyExpr) -> d.AnyExpr:
    return part.of if isinstance(part, d.Not) else part


def _needs(part: d.AnyExpr) -> str:
    return "absent" if isinstance(part, d.Not) else "present"


def _link_of(task: d.TaskDef, part: d.AnyExpr) -> str:
    bare, absent = _bare(part), isinstance(part, d.Not)
    for link in task.links:
        if link.expr == bare and (link.inhibits_start if absent else link.required_for_start):
            return link.name
    return next((link.name for link in task.links if link.expr == bare), "ready")


def _pending_in_words(key: PendingKey, why: Pending) -> str:
    text = f"the {key.what} of {key.owner} is to be evaluated (since position {why.position})"
    return f"{text}: {why.error}; again at {iso(why.retry_at)}" if why.error else text


def _run_in_words(state: State, run: OpenRun) -> str:
    amounts = ", ".join(f"{amount / NANO:g} {part}" for part, amount in run.resources.items())
    return f"run {run.run} ({run.task} {state.jobs[run.job]}{': ' + amounts if amounts else ''})"


# --- a whole task -----------------------------------------------------------------------------------


def explain_all(
    state: State, task: str, now: int, *, engine_alive: bool, unavailable: Set[str] = frozenset()
) -> list[Group]:
    """Group the waiting jobs of a task by what they wait for, largest first; costs O(jobs / 64) and little more.

    A job waits when it is queued, between two attempts, or in some but not all of what the task requires. One
    that is kept out only by the task's own status entries has been done, and does not wait.
    """
    found = state.tasks.get(task)
    if found is None:
        raise UnknownNameError(
            f"there is no task {task}", remedy="use one of: " + ", ".join(sorted(state.tasks))
        )
    groups: list[Group] = []
    head = next(deciding.entries(found, now, 1), None)
    if head is not None:
        case = explain(
            state, task, state.jobs[head[2]], now, engine_alive=engine_alive, unavailable=unavailable
        )
        hold = case.held_by[0] if case.held_by else Hold("next", "the next round launches it")
        jobs = [entry[2] for _, entry in zip(range(SHOWN_MAX), found.queue.entries(), strict=False)]
        if len(found.queue):
            groups.append(_group(state, hold, len(found.queue), jobs))
    if found.awaiting:
        hold = Hold("evaluation", f"the priority of {task} is to be evaluated")
        groups.append(_group(state, hold, len(found.awaiting), list(found.awaiting)[:SHOWN_MAX]))
    retrying = [job for job, episode in found.episodes.items() if not episode.run]
    if retrying:
        groups.append(
            _group(state, Hold("retry", "between two attempts"), len(retrying), retrying[:SHOWN_MAX])
        )
    groups += _lacking(state, found)
    return sorted(groups, key=lambda group: -group.count)


def _group(state: State, hold: Hold, count: int, jobs: list[int]) -> Group:
    return Group(what=hold.what, explain=hold.explain, count=count, sample=[state.jobs[job] for job in jobs])


def _lacking(state: State, task: TaskState) -> list[Group]:
    """Group the jobs that are in some required leaf by the first condition that does not hold."""
    parts = list(_parts(start_condition(task.definition)))
    required = [part.leaf for part in parts if isinstance(part, d.In)]
    own = {link.expr for link in task.definition.links if link.is_status and link.inhibits_start}
    if not required:
        return []
    waiting = state.leaves[required[0]].members(state.masks).copy()
    for name in required[1:]:
        waiting |= state.leaves[name].members(state.masks)
    for part in parts:
        if isinstance(part, d.Not) and isinstance(part.of, d.In) and part.of in own:
            waiting -= state.leaves[part.of.leaf].members(state.masks)
    groups = []
    for part in parts:
        bare = _bare(part)
        if not isinstance(bare, d.In):
            continue
        members = state.leaves[bare.leaf].members(state.masks)
        lacking = waiting & members if isinstance(part, d.Not) else waiting - members
        if lacking:
            told = f"in {bare.leaf}, which inhibits" if isinstance(part, d.Not) else f"not yet in {bare.leaf}"
            what = "inhibitor" if isinstance(part, d.Not) else "upstream"
            sample = [job for job, _ in zip(lacking, range(SHOWN_MAX), strict=False)]
            groups.append(_group(state, Hold(what, told), len(lacking), sample))
            waiting -= lacking
    return groups
