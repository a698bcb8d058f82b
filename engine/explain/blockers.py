"""A condition as a tree for one job: what holds in it, since which position, and what its derived leaves rest on.

In: a state, a condition, a job. Out: `Node`s. Positions are those of the newest event about a membership: its last put
or deletion, the run that a view tells of, or what a filter or translation rests on.

What holds one (task, job) back, other than limits: data, its own past, its task, the surroundings.

Each obstacle is told as it is now, all at once, with the position that made it so. `Case` in `crowding` builds on this
for what others take; what would help is found out by trying (`proposals`).
"""

from __future__ import annotations

from collections.abc import Set
from typing import Any

from datatask.engine.core.define import start_condition
from datatask.engine.core.expressions import conjuncts, fold, leaves_of, text
from datatask.engine.core.leaves import LeafState, get_at
from datatask.engine.core.state import PendingKey, State
from datatask.engine.core.tasks import TaskState, contenders
from datatask.engine.explain.explanations import (
    Condition,
    Hold,
    Node,
    iso,
    link_of,
    needs,
    pending_in_words,
    subject,
)
from datatask.schema import definition as d


def tree(state: State, expr: d.AnyExpr, job: int, *, about: str = "") -> Node:
    """Return the tree of a condition; `about` names the job where it is another one than was asked for."""
    return fold(
        expr,
        lambda leaf: _leaf(state, state.leaves[leaf], job, about),
        lambda part: part.of[0] if part.op == "not" else Node(op="not", holds=not part.holds, of=[part]),
        lambda parts: Node(op="and", holds=all(part.holds for part in parts), of=parts),
        lambda parts: Node(op="or", holds=any(part.holds for part in parts), of=parts),
    )


def since(state: State, leaf: LeafState, job: int) -> int:
    """Return the position of the newest event that a membership rests on, 0 where there is none."""
    rule = leaf.definition.derived
    if rule is None:
        return abs(get_at(leaf.positions, job))
    if isinstance(rule, d.ViewDef):
        return _view_since(state, rule, job)
    target = job
    if isinstance(rule, d.TranslatedDef):
        own = max((since(state, state.leaves[name], job) for name in leaves_of(rule.translator)), default=0)
        found = None if leaf.derived is None else leaf.derived.forward.get(job)
        if found is None:
            return own
        target = found
    below = (since(state, state.leaves[name], target) for name in leaves_of(rule.base))
    return max(below, default=0)


def _view_since(state: State, rule: d.ViewDef, job: int) -> int:
    """Return the last run, or the position at which the job became ready anew, which clears what that led to."""
    task = state.tasks.get(rule.task)
    if task is None:
        return 0
    last = get_at(task.last_run, job)
    if job in task.queue:
        return max(last, task.queue.position(job))
    return max(last, task.awaiting.get(job, 0))


def _leaf(state: State, leaf: LeafState, job: int, about: str) -> Node:
    rule = leaf.definition.derived
    present = state.masks[job] & leaf.bit != 0
    node = {"op": "in", "holds": present, "repository": leaf.id, "job": about,
            "since": since(state, leaf, job) or None}  # fmt: skip
    match rule:
        case None:
            return Node(**node)  # type: ignore[arg-type]
        case d.ViewDef():
            return Node(**node, by="view", task=rule.task)  # type: ignore[arg-type]
        case d.FilteredDef():
            below = tree(state, rule.base, job, about=about)
            answer, told = _filtered(state, leaf, job, below.holds, present)
            return Node(**node, by="filter", answer=answer, of=[below], explain=told)  # type: ignore[arg-type]
        case d.TranslatedDef():
            answer, told, target = _translated(state, leaf, job)
            of = [tree(state, rule.translator, job, about=about)]
            if target is not None:
                of.append(tree(state, rule.base, target, about=state.jobs[target]))
            name = "" if target is None else state.jobs[target]
            return Node(**node, by="translation", answer=answer, of=of, target=name, explain=told)  # type: ignore[arg-type]


def _filtered(state: State, leaf: LeafState, job: int, below: bool, present: bool) -> tuple[str, str]:
    if present:
        return "yes", "its filter wants it"
    if not below:
        return "", "its filter is asked when it is in what is filtered"
    waits = _pending(state, "filter", leaf, job)
    return waits or ("no", "its filter does not want it")


def _translated(state: State, leaf: LeafState, job: int) -> tuple[str, str, int | None]:
    derived = leaf.derived
    target = None if derived is None else derived.forward.get(job)
    waits = _pending(state, "translation", leaf, job)
    if waits is not None:
        return (*waits, target)
    if target is not None:
        return "yes", f"it stands for {state.jobs[target]}", target
    if derived is not None and derived.translator is not None and derived.translator.test(state.masks[job]):
        return "none", "it stands for nothing: its translation is missing", None
    return "", "it stands for nothing: what its translation is read from has no entry of it", None


def _pending(state: State, what: str, leaf: LeafState, job: int) -> tuple[str, str] | None:
    why = state.pending.get(PendingKey(what, leaf.id, job))
    if why is None:
        return None
    if why.error:
        return "error", f"its {what} failed: {why.error}; again at {iso(why.retry_at)}"
    return "pending", f"its {what} has not been asked yet"


class Obstacles:
    """One (task, job) under examination."""

    def __init__(
        self, state: State, task: TaskState, job: int, now: int, engine_alive: bool, unavailable: Set[str]
    ) -> None:
        self.state, self.task, self.job, self.now = state, task, job, now
        self.engine_alive, self.unavailable = engine_alive, unavailable
        self.name = state.jobs[job]
        parts = tuple(conjuncts(start_condition(task.definition)))
        self.tree = tree(state, d.All(of=parts), job)
        self.conditions = [self._condition(part) for part in parts]
        self.satisfied = self.tree.holds
        self.episode = task.episodes.get(job)
        self.run = state.open_runs.get(self.episode.run) if self.episode is not None else None
        self.holds: list[Hold] = []

    def _hold(self, what: str, explain: str, since: int | None = None, **more: Any) -> None:
        self.holds.append(Hold(what, explain, since or None, **more))

    def look(self) -> None:
        """Tell all of it."""
        self._live()
        self._past()
        self._evaluation()
        self._surroundings()

    # --- data -------------------------------------------------------------------------------------

    def _condition(self, part: d.AnyExpr) -> Condition:
        bare = subject(part)
        node = tree(self.state, bare, self.job)
        names = leaves_of(bare)
        newest = max((since(self.state, self.state.leaves[name], self.job) for name in names), default=0)
        where = f"since position {newest}" if newest else "and has never been"
        told = f"; {node.explain}" if node.explain else ""
        if not isinstance(bare, d.In):
            there = {name: self.state.masks[self.job] & self.state.leaves[name].bit for name in names}
            told = "; " + ", ".join(
                f"{name}: {'present' if bit else 'absent'}" for name, bit in there.items()
            )
        return Condition(
            link=link_of(self.task.definition, part),
            repository=text(bare),
            needs=needs(part),
            is_="present" if node.holds else "absent",
            since=newest or None,
            satisfied=node.holds is not isinstance(part, d.Not),
            explain=f"{self.name} is {'in' if node.holds else 'not in'} {text(bare)} {where}{told}",
        )

    # --- the job's own past -----------------------------------------------------------------------

    def _live(self) -> None:
        run = self.run
        if run is None:
            return
        if run.settling is not None:
            outcome = run.settling.outcome
            told = f"run {run.run} (position {run.run}) has {outcome}, its outputs are being stored"
            self._hold("live", told, run.run)
            return
        state = "decided, not yet started" if run.started_at is None else "running"
        state = "out of reach" if run.unreachable else "stopping" if run.stopping else state
        where = f" on {run.where}" if run.where else ""
        told = f"run {run.run} (attempt {run.attempt}, position {run.run}) is {state}{where}"
        self._hold("live", told, run.run)

    def _spent(self) -> str:
        """Return what the job's attempts have been paid from, but for the user's."""
        episode, retry = self.episode, self.task.definition.retry
        assert episode is not None, "asked between two attempts only"
        told = []
        if episode.lost_in_a_row:
            told.append(
                f"{episode.lost_in_a_row} of {retry.infrastructure_attempts} lost runs in a row are run again"
            )
        if count := episode.forgiven:
            told.append(
                f"{count} lost before that count no more: the machine, the node or the service was being stopped, or a later run made progress"
            )
        if episode.conflicts:
            told.append(
                f"{episode.conflicts} runs were in conflict, which uses up none of the {retry.attempts} attempts"
            )
        return f" ({'; '.join(told)})" if told else ""

    def _past(self) -> None:
        """Tell of an occasion that has been, of none that ever was, and of a wait between two attempts."""
        if not self.satisfied or self.run is not None:
            return
        task, job, last = self.task, self.job, get_at(self.task.last_run, self.job)
        if self.episode is not None:
            until = self.episode.not_before
            if until is None:
                self._hold("retry", f"run {last} has ended, another attempt is to be scheduled", last)
            elif until > self.now:
                told = f"attempt {self.episode.attempt + 1} follows run {last}, not before {iso(until)}"
                self._hold("retry", told + self._spent(), last, until=iso(until))
            elif task.contends(self.episode):
                runs = contenders(self.state.open_runs.values(), task)
                told = f"attempt {self.episode.attempt + 1} waits for run {runs[0]}, which was in conflict as often"
                self._hold("retry", told + self._spent(), last)
            return
        if job in task.queue or job in task.awaiting:
            return
        mask = self.state.masks[job]
        if not mask & task.claim:
            told = "its conditions hold without having begun to: nothing that they look at has happened to it"
            self._hold("occasion", told)
        elif mask & task.outcomes or (last and task.definition.opaque):
            told = "and its conditions have held ever since: that is the same occasion, not a new one"
            self._hold("claimed", f"its last run was {last} (position {last}), {told}", last)
        else:
            told = (
                f"it was cancelled; its last run was {last} (position {last})"
                if last
                else "it was cancelled while it waited"
            )
            ever = "its conditions have held ever since: that is the same occasion, not a new one"
            self._hold("cancelled", f"{told}, and {ever}", last)

    def _evaluation(self) -> None:
        """Tell what user code has not said: the priority, and answers in the parts of the condition that do not hold."""
        keys = [PendingKey("priority", self.task.name, self.job)]
        lacking = [(node, self.job) for node in self.tree.of if not node.holds]
        while lacking:
            node, job = lacking.pop(0)
            job = self.state.job_index.get(node.job, job) if node.job else job
            if node.answer in ("pending", "error"):
                keys.append(PendingKey(node.by, node.repository, job))
            lacking += [(part, job) for part in node.of]
        for key in dict.fromkeys(keys):
            why = self.state.pending.get(key)
            if why is not None:
                until = iso(why.retry_at) if why.error else ""
                owner = "" if key.what == "priority" else key.owner
                told = pending_in_words(key, why)
                self._hold("evaluation", told, why.position, until=until, repository=owner)

    # --- the task and its surroundings ------------------------------------------------------------

    def _surroundings(self) -> None:
        task, state = self.task, self.state
        if not self.engine_alive:
            self._hold("engine", _engine_in_words(state), state.position)
        if task.paused:
            self._hold("paused", f"{task.name} was paused (position {task.paused})", task.paused)
        if task.definition.disabled:
            told = f"{task.name} is disabled (position {state.defined_at})"
            self._hold("disabled", told, state.defined_at)
        if task.name in self.unavailable:
            self._hold("adapter", f"the runner of {task.name} takes nothing now")
        for leaf in task.reads:
            if not leaf.synced:
                why = leaf.held or leaf.trouble or "it has not been listed since the engine opened"
                self._hold("observing", f"{leaf.id} is not known: {why}", repository=leaf.id)


def _engine_in_words(state: State) -> str:
    if state.engine is None:
        return "no engine is running: none ever was"
    last = state.engine
    ended = "has ended" if state.closed else "is gone without a word"
    who = f"the last one (pid {last.pid} on {last.host}, since {iso(last.at)}) {ended}"
    return f"no engine is running: {who}, its last sign is position {state.position} at {iso(state.at)}"
