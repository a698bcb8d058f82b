"""What holds one (task, job) back, other than its place in line: data, its own past, its task, the surroundings.

Each obstacle is told with the position that made it so, and brings the one change that removes it. `Case` in `crowding`
builds on this for what others take.
"""

from __future__ import annotations

from collections.abc import Set

from datatask.engine.core import decide as deciding
from datatask.engine.core.conditions import holds
from datatask.engine.core.explanations import (
    Change,
    Condition,
    Hold,
    in_words,
    iso,
    link_of,
    needs,
    pending_in_words,
    subject,
)
from datatask.engine.core.members import LeafState, get_at
from datatask.engine.core.remedies import Atom, changed, smallest
from datatask.engine.core.state import PendingKey, State
from datatask.engine.core.tasks import TaskState
from datatask.engine.core.wiring import start_condition
from datatask.schema import definition as d


class Obstacles:
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

    def _hold(self, what: str, explain: str, *changes: Change) -> None:
        self.holds.append(Hold(what, explain))
        self.changes += changes

    # --- data -------------------------------------------------------------------------------------

    def _condition(self, part: d.AnyExpr) -> Condition:
        bare, satisfied = subject(part), holds(part, self.members)
        present = holds(bare, self.members)
        since = max((self._since(self.state.leaves[name]) for name in d.leaves_of(bare)), default=0)
        where = f"since position {since}" if since else "and has never been"
        told = self._in_detail(bare)
        return Condition(
            link=link_of(self.task.definition, part),
            repository=in_words(bare),
            needs=needs(part),
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

    def _live(self, satisfied: bool) -> None:
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
        repeats = run.stopping == "timeout" and self.task.definition.repeat
        stays = run.stopping in ("cancelled", "timeout") and not repeats
        if satisfied and stays:  # who cancels means it: the end of the run is no new occasion
            self.changes.append(Change(op="retry", task=task, job=job))

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
                self._hold("evaluation", pending_in_words(key, why), *([change] if needed else []))

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
