"""A condition as a tree for one job: what holds in it, since which position, and what its derived leaves rest on.

In: a state, a condition, a job. Out: `Node`s. Positions are those of the newest event about a membership: its last put
or deletion, the run that a view tells of, or what a filter or translation rests on.
"""

from __future__ import annotations

from datatask.engine.core.conditions import holds
from datatask.engine.core.explanations import Node
from datatask.engine.core.members import LeafState, get_at
from datatask.engine.core.state import PendingKey, State
from datatask.engine.core.wording import iso
from datatask.schema import definition as d


class Members:
    """The leaves that a job is in, for `holds`."""

    def __init__(self, state: State, job: int) -> None:
        self._state, self._mask = state, state.masks[job]

    def __contains__(self, leaf: object) -> bool:
        return self._mask & self._state.leaves[str(leaf)].bit != 0


def tree(state: State, expr: d.AnyExpr, job: int, *, about: str = "") -> Node:
    """Return the tree of a condition; `about` names the job where it is another one than was asked for."""
    match expr:
        case d.In(leaf=name):
            return _leaf(state, state.leaves[name], job, about)
        case d.Not(of=d.Not(of=part)):
            return tree(state, part, job, about=about)
        case d.Not(of=part):
            inner = tree(state, part, job, about=about)
            return Node(op="not", holds=not inner.holds, of=[inner])
        case d.All(of=parts) | d.Any(of=parts):
            nodes = [tree(state, part, job, about=about) for part in parts]
            op = "and" if isinstance(expr, d.All) else "or"
            return Node(op=op, holds=holds(expr, Members(state, job)), of=nodes)


def since(state: State, leaf: LeafState, job: int) -> int:
    """Return the position of the newest event that a membership rests on, 0 where there is none."""
    rule = leaf.definition.derived
    if rule is None:
        return abs(get_at(leaf.positions, job))
    if isinstance(rule, d.ViewDef):
        return _view_since(state, rule, job)
    target = job
    if isinstance(rule, d.TranslatedDef):
        own = max((since(state, state.leaves[name], job) for name in d.leaves_of(rule.translator)), default=0)
        found = None if leaf.derived is None else leaf.derived.forward.get(job)
        if found is None:
            return own
        target = found
    below = (since(state, state.leaves[name], target) for name in d.leaves_of(rule.base))
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
