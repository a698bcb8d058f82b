"""Why is this job not running? All that holds a (task, job) back at once, and the least that would let it run.

In: the state, a task, a job, the time, and what only the caller knows (does an engine live, which runners are
unavailable). Out: an `Explanation`: the data conditions link by link and as a tree, everything else that holds the job
(`obstacles`, `crowding`), each with the position that made it so, and `changes`, the smallest set after which the next
round launches it, found by trying (`proposals`, `room`, on a layer over the state: `trials`). `explain_all` does the same
for a whole task, by groups (`groups`). Nothing here is stored, and the state is not touched.
"""

from __future__ import annotations

from collections.abc import Set

from datatask.engine.core.crowding import Case
from datatask.engine.core.explanations import Change, Condition, Explanation, Group, Hold, Node, User
from datatask.engine.core.groups import explain_all
from datatask.engine.core.layers import Layer
from datatask.engine.core.state import State
from datatask.schema.errors import UnknownNameError

__all__ = [
    "Change",
    "Condition",
    "Explanation",
    "Group",
    "Hold",
    "Node",
    "User",
    "explain",
    "explain_all",
]


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
