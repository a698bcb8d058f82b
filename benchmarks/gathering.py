"""What gathering costs: `python benchmarks/gathering.py [JOBS]`, without a log or a world.

Each job is told and gets through, and all of them are one group. `ns_per_event` is CPU time, `cost_to_a_tenth` the same to
that with a tenth of the jobs, and `cost_to_none` to that of the same events where nothing is gathered.
"""

from __future__ import annotations

import gc
import json
import sys
import time

from datatask.engine.core.fold import apply_all
from datatask.engine.core.state import State
from datatask.schema import events as e
from datatask.schema.definition import GatheredDef, In, PipelineDef, RepositoryDef, TaskDef

RULE = GatheredDef(base=In(leaf="done"), translator=In(leaf="told"))


def defined(gathers: bool) -> PipelineDef:
    """Return a pipeline of one task, which waits for all jobs; or of no task."""
    stored = [RepositoryDef(id=name, kind="benchmark", medium="native") for name in ("told", "done")]
    if not gathers:
        return PipelineDef(repositories=tuple(stored))
    gathered = RepositoryDef(id="all", kind="benchmark", medium="derived", derived=RULE)
    task = TaskDef(name="report", kind="benchmark", ready=In(leaf="all"))
    return PipelineDef(repositories=(*stored, gathered), tasks=(task,))


def seconds(jobs: int, *, gathers: bool) -> float:
    """Return the CPU seconds of an event."""
    state = State()
    apply_all(state, 1, [e.PipelineDefined(at=0, definition=defined(gathers), digest="", decider=1)])
    names = [f"job-{index:07}" for index in range(jobs)]
    events = [e.ValuePut(at=0, repository=leaf, job=job) for leaf in ("told", "done") for job in names]
    gc.collect()
    gc.disable()
    begin = time.process_time()
    apply_all(state, 2, events)
    took = time.process_time() - begin
    gc.enable()
    assert not gathers or state.members("all") == ["all"]
    return took / len(events)


def main(jobs: int) -> None:
    """Measure, and print one JSON object."""
    tenth, none, whole = (
        seconds(jobs // 10, gathers=True),
        seconds(jobs, gathers=False),
        seconds(jobs, gathers=True),
    )
    figures = {
        "jobs": jobs,
        "ns_per_event": round(whole * 1e9),
        "cost_to_a_tenth": round(whole / tenth, 2),
        "cost_to_none": round(whole / none, 2),
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000)
