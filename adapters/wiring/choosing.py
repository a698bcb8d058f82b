"""What of a pipeline a `run` is asked for: tasks, jobs, up to which task, how many launches.

In: a `Choice` in the user's words, and the state under the pipeline's definition. Out: the `Selection` that rounds record, or
an `InvalidValueError` or `UnknownNameError`. Each part narrows what the others leave. Words of the jobs' expression that name
no repository are names of jobs.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from datatask.adapters.history.shapes import set_names
from datatask.adapters.wiring.sets import Name, Tree, parse
from datatask.engine.core.define import start_condition
from datatask.engine.core.expressions import leaves_of, literals
from datatask.engine.core.selection import is_name, pattern_of
from datatask.engine.core.state import State
from datatask.schema.definition import (
    All,
    Any,
    AnyExpr,
    DerivedDef,
    In,
    Not,
    Selection,
    TaskDef,
    ViewDef,
    job_leaf,
)
from datatask.schema.errors import InvalidValueError, unknown
from datatask.schema.values import is_job

_PATTERN = re.compile(r"[A-Za-z0-9._*?-]+")


@dataclass(frozen=True)
class Choice:
    """What a run is asked for: these tasks (none: all), jobs of this set expression, the tasks up to these, so many launches."""

    tasks: Sequence[str] = ()
    jobs: str | None = None
    until: Sequence[str] = ()
    limit: int | None = None

    def __bool__(self) -> bool:
        return bool(self.tasks or self.until) or self.jobs is not None or self.limit is not None

    def selection(self, state: State) -> Selection | None:
        """Return it in the definition's names; None where it leaves out nothing."""
        if not self:
            return None
        if self.limit is not None and self.limit < 1:
            raise InvalidValueError(f"a limit of {self.limit} launches", remedy="give a limit of at least 1")
        known = [task.name for task in state.definition.tasks]
        for name in (*self.tasks, *self.until):
            if name not in known:
                raise unknown("task", name, known)
        chosen = list(dict.fromkeys(self.tasks or known))
        if self.until:
            before = upstream(state, self.until)
            chosen = [name for name in chosen if name in before]
            if not chosen:
                raise InvalidValueError(
                    f"{', '.join(self.tasks)}: not before {', '.join(self.until)}",
                    remedy="name tasks that it needs, or leave one of the two out",
                )
        return Selection(
            tasks=() if len(chosen) == len(known) else tuple(chosen),
            jobs=None if self.jobs is None else jobs_of(state, self.jobs),
            left=self.limit,
        )


def jobs_of(state: State, text: str) -> AnyExpr:
    """Return the condition that a set expression over repositories and names of jobs stands for."""
    known = set_names(state)
    return _condition(state, parse(text, known), known)


def _condition(state: State, tree: Tree, known: dict[str, AnyExpr | str]) -> AnyExpr:
    if isinstance(tree, Name):
        meaning = known.get(tree.name)
        if meaning is None:
            return In(leaf=job_leaf(_checked(tree.name, known)))
        return start_condition(state.tasks[meaning].definition) if isinstance(meaning, str) else meaning
    left, right = (_condition(state, side, known) for side in (tree.left, tree.right))
    match tree.symbol:
        case "&":
            return All(of=(left, right))
        case "|":
            return Any(of=(left, right))
        case "-":
            return All(of=(left, Not(of=right)))
        case _:
            return Any(of=(All(of=(left, Not(of=right))), All(of=(right, Not(of=left)))))


def _checked(name: str, known: Iterable[str]) -> str:
    """Return a word that can be the name of a job, or a pattern of names."""
    if is_job(name) or (not is_name(name) and _PATTERN.fullmatch(name)):
        return name
    raise unknown("repository or job", name, known)


def check_names(state: State, selection: Selection) -> None:
    """Raise `UnknownNameError` for a job that is named and is nowhere."""
    for leaf in leaves_of(*([] if selection.jobs is None else [selection.jobs])):
        pattern = None if leaf in state.leaves else pattern_of(leaf)
        if pattern is not None and is_name(pattern) and pattern not in state.job_index:
            raise unknown("repository or job", pattern, dict.fromkeys((*set_names(state), *state.job_index)))


def upstream(state: State, names: Iterable[str]) -> set[str]:
    """Return these tasks and all that fill what they need."""
    tasks = {task.name: task for task in state.definition.tasks}
    writers: dict[str, list[str]] = {}
    for task in tasks.values():
        for leaf in _written(task):
            writers.setdefault(leaf, []).append(task.name)
    found: set[str] = set()
    waiting = list(names)
    while waiting:
        name = waiting.pop()
        if name in found or name not in tasks:
            continue
        found.add(name)
        for leaf in _sources(state, _needed(tasks[name])):
            rule = state.leaves[leaf].definition.derived
            waiting += writers.get(leaf, []) if not isinstance(rule, ViewDef) else [rule.task]
    return found


def _written(task: TaskDef) -> Iterator[str]:
    for link in task.links:
        into = link.is_input or link.required_for_start or link.inhibits_start
        if not into or link.is_output or link.is_status:
            yield from leaves_of(link.expr)


def _needed(task: TaskDef) -> list[str]:
    """Return the leaves that a job has to be in, or that are read."""
    read = (link.expr for link in task.links if link.is_input or link.required_for_start)
    return [leaf for expr in (start_condition(task), *read) for leaf, wanted in literals(expr) if wanted]


def _sources(state: State, leaves: Iterable[str]) -> set[str]:
    """Return leaves with all that they are derived from."""
    found: set[str] = set()
    waiting = list(leaves)
    while waiting:
        leaf = waiting.pop()
        if leaf not in found:
            found.add(leaf)
            rule = state.leaves[leaf].definition.derived
            if isinstance(rule, DerivedDef):
                waiting += leaves_of(*rule.conditions)
    return found
