"""Why is this job not running? All that holds a (task, job) back at once, and the least that would let it run.

In: the state, a task, a job, the time, and what only the caller knows (does an engine live, which runners are
unavailable). Out: an `Explanation`: the data conditions link by link, everything else that holds the job
(`obstacles`, `crowding`), each with the position that made it so, and `changes`: one for each independent obstacle,
data by the smallest set (`remedies`), one raised quota for all that it lacks, one wait for all that time
heals. `explain_all` does the same for a whole task, by groups. Nothing here is stored.
"""

from __future__ import annotations

from collections.abc import Set

from datatask.engine.core import decide as deciding
from datatask.engine.core.conditions import holds
from datatask.engine.core.crowding import SHOWN_MAX, Case
from datatask.engine.core.explanations import (
    Change,
    Condition,
    Explanation,
    Group,
    Hold,
    in_words,
    link_of,
    needs,
    parts_of,
    subject,
)
from datatask.engine.core.state import State
from datatask.engine.core.tasks import TaskState
from datatask.engine.core.wiring import start_condition
from datatask.schema import definition as d
from datatask.schema.errors import UnknownNameError

__all__ = ["Change", "Condition", "Explanation", "Group", "Hold", "explain", "explain_all"]


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
    return Case(state, found, index, now, engine_alive, unavailable).explanation()


def _unseen(state: State, task: TaskState, job: str, engine_alive: bool) -> Explanation:
    parts = list(parts_of(start_condition(task.definition)))
    conditions = [
        Condition(
            link=link_of(task.definition, part),
            repository=in_words(subject(part)),
            needs=needs(part),
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
        # An engine that does not run is the last reason to tell: the others hold when it does.
        holds = sorted(case.held_by, key=lambda hold: hold.what == "engine")
        hold = Hold("next", "the next round launches it")
        if holds:
            hold = Hold(holds[0].what, "; ".join(hold.explain for hold in holds))
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
    parts = list(parts_of(start_condition(task.definition)))
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
        bare = subject(part)
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
