"""The state that a quick simulation stands for: what folding its events would have given, made from its columns."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyroaring import BitMap

from datatask.engine.core.decide import inputs_of
from datatask.engine.core.situations import RUNNING
from datatask.engine.core.state import State
from datatask.engine.core.tasks import Episode, OpenRun

if TYPE_CHECKING:
    from datatask.adapters.sim.quick import Quick


def settle(quick: Quick) -> State:
    """Make the state exact and return it; the simulation cannot go on."""
    state, model = quick.state, quick.model
    arrived = quick.arrived
    quick.choosing.settle()
    state.jobs = [model.names[job] for job in range(arrived)]
    state.job_index = {name: job for job, name in enumerate(state.jobs)}
    places = quick.places[:arrived]
    state.masks = [place.mask for place in places]
    for leaf in state.leaves.values():
        bit = leaf.bit
        leaf.load(BitMap([job for job, mask in enumerate(state.masks) if mask & bit]))
    for lane in quick.lanes:
        task = lane.task
        for job, position, _ in lane.line.entries():
            task.queue.push(job, 0.0, position)
        task.episodes = dict(lane.between)
        task.retries = list(lane.retries)
        task.open_runs = lane.open_runs
        task.constraint = quick.recorded.get(task.name, "")
    for number, run in sorted(quick.open.items()):
        task = quick.lanes[run.task].task
        assert places[run.job].marks[run.task] == RUNNING
        task.episodes[run.job] = Episode(run.ready, 0.0, run.attempt, run.lost, number, forgiven=run.forgiven)
        state.open_runs[number] = OpenRun(
            number,
            task.name,
            run.job,
            task.episode_count[run.job],
            run.attempt,
            run.decided_at,
            "derived",
            task.definition.resources,
            task.definition.quota,
            inputs_of(state, task, run.job),
            epoch=0 if state.engine is None else state.engine.epoch,
            started_at=run.started_at or None,
            handle={} if run.started_at else None,
            where=run.where,
            stopping="timeout" if run.stopping else None,
        )
    state.position, state.at = quick.position, quick.last_at
    return state
