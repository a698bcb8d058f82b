"""One replication: a model stepped to its end, and summed up.

In: what all replications of a simulation have in common (`Given`), and a replication's number. Out: its summary and the
records of its runs. `spreading` hands replications to other processes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from datatask.adapters.log.columns import collector_off
from datatask.adapters.sim.logged import Logged
from datatask.adapters.sim.machines import world_of
from datatask.adapters.sim.model import Model, Records
from datatask.adapters.sim.modelling import model_of
from datatask.adapters.sim.opening import opened
from datatask.adapters.sim.quick import Quick
from datatask.adapters.sim.recorded import Recording
from datatask.adapters.sim.scenario import Scenario
from datatask.adapters.sim.settling import settle
from datatask.adapters.sim.summary import Summary, summed_up
from datatask.adapters.sim.writing import written
from datatask.engine.core.moves import is_simple
from datatask.engine.core.state import State
from datatask.engine.core.why import explain_all
from datatask.schema.definition import PipelineDef
from datatask.schema.errors import CallerError


class Given(NamedTuple):
    """What all replications have in common."""

    definition: PipelineDef
    recording: Recording | None
    scenario: Scenario
    begin: int
    present: bytes | None


class Simulated(NamedTuple):
    """One replication."""

    summary: Summary
    records: Records
    names: Sequence[str]


def simulated(given: Given, replication: int, place: Path | None = None) -> Simulated:
    """Simulate one replication; with a `place` its history is written there."""
    definition, recording, scenario, begin, present = given
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
            raise CallerError(
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
        return Simulated(replace(summary, stuck=stuck), simulator.records, names)


def _is_quick(model: Model) -> bool:
    """Whether the definition needs no event to be made."""
    if model.present is not None or any(profile.spawns for profile in model.profiles):
        return False
    return is_simple(opened(model)[0])


def _stuck(simulator: Quick | Logged) -> tuple[str, ...]:
    """Return, a line for each reason, which jobs still wait where nothing is due any more."""
    if not simulator.finished:
        return ()
    if isinstance(simulator, Quick):
        if not any(len(lane.line) for lane in simulator.lanes):
            return simulator.world.stuck()
        settle(simulator)
    return simulator.world.stuck() + stuck_in(simulator.state, simulator.now)


def stuck_in(state: State, now: int) -> tuple[str, ...]:
    """Return, a line for each task and reason, which jobs are in line and cannot go on."""
    told = []
    for task in state.tasks.values():
        if len(task.queue) or task.awaiting:
            for group in explain_all(state, task.name, now, engine_alive=True):
                jobs = ", ".join(group.sample[:3]) + (", …" if group.count > 3 else "")
                told.append(f"{task.name}: {group.count} jobs ({jobs}) wait: {group.explain}")
    return tuple(told)
