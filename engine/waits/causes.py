"""Why a task's condition does not hold for a job at a batch boundary: a missing leaf, an inhibiting one, an evaluation.

In: a state, a task, a job. Out: `Blame`, and whether the job has reason to wait for the task at all. What concerns a
whole task or the engine (pause, quotas, observing) is in `phases`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from datatask.engine.core.define import start_condition
from datatask.engine.core.expressions import literals, unmet
from datatask.engine.core.leaves import LeafState, Memberships
from datatask.engine.core.state import PendingKey, State
from datatask.engine.core.tasks import TaskState
from datatask.schema import definition as d


class Blame(NamedTuple):
    """The leaves that keep a condition from holding for a job: absent, present, or being evaluated."""

    missing: list[str]
    inhibiting: list[str]
    evaluating: list[str]

    @property
    def cause(self) -> str:
        """The first cause that holds; `upstream` for a condition that nothing can meet."""
        if self.missing or not (self.inhibiting or self.evaluating):
            return "upstream"
        return "inhibitor" if self.inhibiting else "evaluation"


class Reading:
    """What a task reads, compiled: in which leaves a job appears for it, and which entries mark it as done.

    `arrivals` are the bits of the leaves in which a job can appear: those that the condition wants or that are
    inputs, and what they are derived from. `own` are those of the task's own status entries.
    """

    __slots__ = ("arrivals", "care", "current", "derived", "expr", "own", "plain", "tracked", "want")

    def __init__(self, state: State, task: TaskState) -> None:
        definition = task.definition
        self.current = current = any(known.name == definition.name for known in state.definition.tasks)
        self.expr: d.AnyExpr = start_condition(definition) if current else d.Any(of=())
        links = definition.links if current else ()
        wanted = [name for name, want in literals(self.expr) if want]
        wanted += [name for link in links if link.is_input for name, want in literals(link.expr) if want]
        own = {d.view_id(definition.name, view) for view in d.VIEW_NAMES}
        leaves = [state.leaves[name] for name in dict.fromkeys(wanted) if name not in own]
        self.derived = tuple(leaf for leaf in leaves if leaf.derived is not None)
        self.plain = _bits(leaf for leaf in leaves if leaf.derived is None)
        self.arrivals = _bits(below for leaf in leaves for below in _sources(state, leaf))
        self.own = _bits(state.leaves[name] for name in _own_status(definition) if current)
        care, want, predicate = task.condition
        simple = current and predicate is None and not any(want & leaf.bit for leaf in self.derived)
        self.care, self.want = (care, want) if simple else (0, 0)
        under = (*task.reads, *(below for leaf in leaves for below in _sources(state, leaf)))
        status = (state.leaves[name] for name in _own_status(definition) if current)
        self.tracked = {leaf.index: leaf for leaf in (*under, *status)}

    def waits(self, state: State, job: int, mask: int) -> bool:
        """Whether a job that is not ready has reason to wait: it is in an input, or may be, and is not marked as done."""
        if mask & self.own:
            return False
        return mask & self.plain != 0 or any(likely(state, leaf, job) for leaf in self.derived)

    def cause(self, state: State, job: int, mask: int) -> str:
        """Return why the condition does not hold: `upstream`, `inhibitor` or `evaluation`."""
        if self.care:
            if self.want & ~mask:
                return "upstream"
            if self.care & mask != self.want:
                return "inhibitor"
        return blame(state, self.expr, job).cause

    def renewed(self, state: State, job: int, position: int) -> bool:
        """Whether an evaluation that the job may appear by has come due after `position`."""
        return any(_due(state, leaf, job) > position for leaf in self.derived)


def blame(state: State, expr: d.AnyExpr, job: int) -> Blame:
    """Return what keeps a condition that does not hold from holding."""
    found = Blame([], [], [])
    _lacking(state, expr, job, found)
    return Blame(*(list(dict.fromkeys(names)) for names in found))


def _lacking(state: State, expr: d.AnyExpr, job: int, found: Blame) -> None:
    for name, wanted in unmet(expr, Memberships(state.leaves, state.masks[job])) or ():
        if wanted:
            _absent(state, state.leaves[name], job, found)
        else:
            found.inhibiting.append(name)


def _absent(state: State, leaf: LeafState, job: int, found: Blame) -> None:
    """Blame a leaf that the job is not in, an evaluation that is due, or the leaves that a derived one rests on."""
    rule, derived = leaf.definition.derived, leaf.derived
    if isinstance(rule, d.DerivedDef) and derived is not None:
        if _due(state, leaf, job):
            found.evaluating.append(leaf.id)
            return
        if job not in derived.forward and not derived.candidates.test(state.masks[job]):
            _lacking(state, rule.candidates, job, found)
            return
    found.missing.append(leaf.id)


def likely(state: State, leaf: LeafState, job: int) -> bool:
    """Whether a job is in a leaf, or may come to be in it without appearing anywhere anew."""
    mask = state.masks[job]
    if mask & leaf.bit:
        return True
    rule, derived = leaf.definition.derived, leaf.derived
    if derived is None or not isinstance(rule, d.DerivedDef):
        return False
    if _due(state, leaf, job) or job in derived.forward:
        return True
    if derived.candidates.test(mask):
        return False  # user code has said no
    return any(want and likely(state, state.leaves[name], job) for name, want in literals(rule.candidates))


def _due(state: State, leaf: LeafState, job: int) -> int:
    """Return the position that made an evaluation due, 0 if none is."""
    if leaf.derived is None:
        return 0
    pending = state.pending.get(PendingKey(leaf.derived.what, leaf.id, job))
    return pending.position if pending is not None else 0


def _sources(state: State, leaf: LeafState) -> Iterator[LeafState]:
    """Yield a leaf and those below it in which the same job appears for it."""
    yield leaf
    rule = leaf.definition.derived
    if isinstance(rule, d.DerivedDef):
        for name, want in literals(rule.candidates):
            if want:
                yield from _sources(state, state.leaves[name])


def _own_status(task: d.TaskDef) -> list[str]:
    names = [
        link.expr.leaf
        for link in task.links
        if link.is_status and link.inhibits_start and isinstance(link.expr, d.In)
    ]
    return [*names, *([task.done] if task.done is not None else [])]


def _bits(leaves: Iterator[LeafState] | tuple[LeafState, ...]) -> int:
    bits = 0
    for leaf in leaves:
        bits |= leaf.bit
    return bits
