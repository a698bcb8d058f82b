"""Conditions with three answers: True, False, and None where user code has not answered; and what does not hold, in words.

In: a state, a condition, a job, and which answers are missing. Slow, by recursion: for questions about single jobs.
"""

from __future__ import annotations

from collections.abc import Callable

from datatask.engine.core.define import start_condition
from datatask.engine.core.expressions import conjunction, conjuncts, evaluate, leaves_of
from datatask.engine.core.state import State
from datatask.engine.core.tasks import TaskState
from datatask.schema.definition import AnyExpr, DerivedDef, FilteredDef

Missing = Callable[[str, str, int], bool]
"""(filter or translation, leaf, job) -> whether that answer is wanted and not there."""


def certain(state: State, expr: AnyExpr, job: int, missing: Missing) -> bool | None:
    """Return whether a condition holds for a job, None where that rests on a missing answer."""
    return evaluate(expr, lambda leaf: _in(state, leaf, job, missing))


def _in(state: State, name: str, job: int, missing: Missing) -> bool | None:
    leaf = state.leaves[name]
    rule, derived = leaf.definition.derived, leaf.derived
    present = state.masks[job] & leaf.bit != 0
    if derived is None or not isinstance(rule, DerivedDef):
        return present
    source = certain(state, rule.candidates, job, missing)
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
    found = [_words(part) for part in conjuncts(expr) if job is None or not certain(state, part, job, _known)]
    if found:
        return ", ".join(dict.fromkeys(found))
    if job is not None and state.masks[job] & task.claim:
        return "its episode is under way or over"
    return "it does not wait"


def _known(what: str, leaf: str, job: int) -> bool:
    return False


def _words(part: AnyExpr) -> str:
    found = conjunction(part)
    if found is not None and len(found) == 1:
        leaf, wanted = found[0]
        return f"not in {leaf}" if wanted else f"in {leaf}"
    names = ", ".join(leaves_of(part))
    return f"a condition on {names} does not hold" if names else "its condition never holds"
