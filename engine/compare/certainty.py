"""Conditions with three answers: yes, no, and not known because user code has not answered.

In: a state, a condition, a job, and which answers are missing. Out: True, False or None. Also, in words, which part of a
condition does not hold. Slow and by recursion: for questions about single jobs, never for deciding.
"""

from __future__ import annotations

from collections.abc import Callable

from datatask.engine.core.define import start_condition
from datatask.engine.core.state import State
from datatask.engine.core.tasks import TaskState
from datatask.schema.definition import All, Any, AnyExpr, FilteredDef, In, Not, TranslatedDef, leaves_of

Missing = Callable[[str, str, int], bool]
"""(filter or translation, leaf, job) -> whether that answer is wanted and not there."""


def certain(state: State, expr: AnyExpr, job: int, missing: Missing) -> bool | None:
    """Return whether a condition holds for a job, None where that rests on a missing answer."""
    match expr:
        case In(leaf=leaf):
            return _in(state, leaf, job, missing)
        case Not(of=part):
            inner = certain(state, part, job, missing)
            return None if inner is None else not inner
        case All(of=parts):
            return _all([certain(state, part, job, missing) for part in parts])
        case Any(of=parts):
            inner = _all([_not(certain(state, part, job, missing)) for part in parts])
            return _not(inner)


def _not(answer: bool | None) -> bool | None:
    return None if answer is None else not answer


def _all(answers: list[bool | None]) -> bool | None:
    return False if False in answers else None if None in answers else True


def _in(state: State, name: str, job: int, missing: Missing) -> bool | None:
    leaf = state.leaves[name]
    rule, derived = leaf.definition.derived, leaf.derived
    present = state.masks[job] & leaf.bit != 0
    if derived is None or not isinstance(rule, FilteredDef | TranslatedDef):
        return present
    source = certain(state, rule.base if isinstance(rule, FilteredDef) else rule.translator, job, missing)
    if source is False:
        return False
    if source is None or missing(derived.what, name, job):
        return None
    if isinstance(rule, FilteredDef):
        return present
    target = derived.forward.get(job)
    return False if target is None else certain(state, rule.base, target, missing)


def failing(state: State, task: TaskState, name: str) -> str:
    """Return in words what keeps a job from being ready: the parts of the condition that do not hold."""
    job = state.job_index.get(name)
    expr = start_condition(task.definition)
    found = [
        _words(part) for part in _conjuncts(expr) if job is None or not certain(state, part, job, _known)
    ]
    if found:
        return ", ".join(dict.fromkeys(found))
    if job is not None and state.masks[job] & task.claim:
        return "its episode is under way or over"
    return "it does not wait"


def _conjuncts(expr: AnyExpr) -> list[AnyExpr]:
    """Return the parts that must all hold."""
    match expr:
        case All(of=parts):
            return [inner for part in parts for inner in _conjuncts(part)]
        case Not(of=Any(of=parts)):
            return [inner for part in parts for inner in _conjuncts(Not(of=part))]
        case Not(of=Not(of=part)):
            return _conjuncts(part)
        case Any(of=(part,)):
            return _conjuncts(part)
    return [expr]


def _known(what: str, leaf: str, job: int) -> bool:
    return False


def _words(expr: AnyExpr) -> str:
    match expr:
        case In(leaf=leaf):
            return f"not in {leaf}"
        case Not(of=In(leaf=leaf)):
            return f"in {leaf}"
        case _:
            names = ", ".join(leaves_of(expr))
            return f"a condition on {names} does not hold" if names else "its condition never holds"
