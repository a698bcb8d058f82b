"""One replication: a model stepped to its end and summed up, by `quick` where the definition allows.

In: the common setup of all replications, and a replication's number. Out: its summary and the records of its runs; of a
quick simulation also the state that folding its events would have given. `worker` runs replications in other
processes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from pyroaring import BitMap

from datatask.adapters.log.columns import collector_off
from datatask.adapters.sim.logged import Logged, opened, written
from datatask.adapters.sim.machines import world_of
from datatask.adapters.sim.model import Model, Records
from datatask.adapters.sim.modelling import model_of
from datatask.adapters.sim.quick import Quick
from datatask.adapters.sim.recording import Recording
from datatask.adapters.sim.result import Summary, summed_up
from datatask.adapters.sim.scenario import Scenario
from datatask.engine.core.decide import inputs_of
from datatask.engine.core.state import State
from datatask.engine.core.tasks import Episode, OpenRun
from datatask.engine.explain.why import explain_all
from datatask.engine.replay.batches import is_simple
from datatask.engine.replay.transitions import RUNNING
from datatask.schema.definition import PipelineDef
from datatask.schema.errors import NotPossibleError


def folded_state(quick: Quick) -> State:
    """Make the state exact and return it; the simulation cannot go on."""
    state, model = quick.state, quick.model
    arrived = quick.arrived
    quick.rounds.settle()
    state.jobs = [model.names[job] for job in range(arrived)]
    state.job_index = {name: job for job, name in enumerate(state.jobs)}
    places = quick.job_states[:arrived]
    state.masks = [place.mask for place in places]
    for leaf in state.leaves.values():
        bit = leaf.bit
        leaf.load(BitMap([job for job, mask in enumerate(state.masks) if mask & bit]))
    for task in state.tasks.values():
        task.constraint = quick.recorded[task.name].text if task.name in quick.recorded else ""
        task.open_runs = 0
    for number, run in sorted(quick.open.items()):
        task = quick.lanes[run.task].task
        task.open_runs += 1
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


class Setup(NamedTuple):
    """The inputs that all replications of a simulation have in common."""

    definition: PipelineDef
    recording: Recording | None
    scenario: Scenario
    begin: int
    present: bytes | None


class Replication(NamedTuple):
    """One replication."""

    summary: Summary
    records: Records
    names: Sequence[str]


def replicate(setup: Setup, replication: int, place: Path | None = None) -> Replication:
    """Simulate one replication; with a `place` its history is written there."""
    definition, recording, scenario, begin, present = setup
    model = model_of(definition, recording, scenario, replication, present, begin)
    world = world_of(definition, scenario, replication)
    with collector_off():
        simulator: Quick | Logged
        if place is not None:
            simulator = written(place, model, world)
        elif _is_quick(model):
            simulator = Quick(model, world)
            simulator.run()
        else:
            simulator = Logged(model, world, lambda step: None)
            simulator.run()
        events, stuck = simulator.position, _stuck(simulator)
        if len(simulator.records) >= model.runs_max:
            raise NotPossibleError(
                f"{len(simulator.records):,} runs and no end",
                where=f"scenario {scenario.name}",
                remedy="a loop in the pipeline makes jobs ready again and again: give `until`",
            )
        summary = summed_up(
            definition,
            simulator.records,
            model.begin,
            replication=replication,
            jobs=len(model.names),
            events=events,
            machines=world.busy(simulator.now),
        )
        names: Sequence[str] = simulator.state.jobs if isinstance(simulator, Logged) else model.names
        return Replication(replace(summary, stuck=stuck), simulator.records, names)


def _is_quick(model: Model) -> bool:
    """Whether the definition needs no event to be made."""
    if model.present is not None or any(profile.spawns for profile in model.profiles):
        return False
    if any(task.later for task in model.definition.tasks):
        return False
    return is_simple(opened(model)[0])


def _stuck(simulator: Quick | Logged) -> tuple[str, ...]:
    """Return, a line for each reason, which jobs still wait where nothing is due any more."""
    if not simulator.finished:
        return ()
    if isinstance(simulator, Quick):
        if not any(len(lane.queue) for lane in simulator.lanes):
            return simulator.world.stuck()
        folded_state(simulator)
    return simulator.world.stuck() + stuck_in(simulator.state, simulator.now)


def stuck_in(state: State, now: int) -> tuple[str, ...]:
    """Return, a line for each task and reason, which jobs are in line and cannot go on."""
    lines = []
    for task in state.tasks.values():
        if len(task.queue) or task.awaiting:
            for group in explain_all(state, task.name, now, engine_alive=True):
                jobs = ", ".join(group.sample[:3]) + (", …" if group.count > 3 else "")
                lines.append(f"{task.name}: {group.count} jobs ({jobs}) wait: {group.explain}")
    return tuple(lines)
