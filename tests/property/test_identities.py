"""Identities of resources, in any life: never two runs on one, and what is given out is what the log alone says."""

from __future__ import annotations

import msgspec
from hypothesis import given

from datatask.engine.audit.consistency import check, rederive
from datatask.engine.audit.invariants import Checker
from datatask.engine.core.checkpoints import dump, load
from datatask.engine.core.fold import apply_all
from datatask.engine.core.state import State
from datatask.schema import events as e
from datatask.schema.definition import PipelineDef
from datatask.schema.units import NANO
from tests.property.test_bulk import in_bulk
from tests.property.test_state import families, lives, small
from tests.property.world import Action, World, refold

Held = dict[tuple[str, str, str], int]
"""(quota, resource, identity) -> the run that has it."""


def listed(pipeline: PipelineDef) -> PipelineDef:
    """Return the pipeline with graphics cards that have names, two or three in each quota, and asked for one by one."""
    names = {"q0": ("a", "b", "c"), "q1": ("0", "1")}
    return msgspec.structs.replace(
        pipeline,
        quotas=tuple(
            msgspec.structs.replace(
                quota,
                limits={"cpu": 9, "gpu": len(names[quota.name]) * NANO},
                launches=None,
                identities={"gpu": names[quota.name]},
                variables={"gpu": "GPU"},
            )
            for quota in pipeline.quotas
        ),
        tasks=tuple(
            msgspec.structs.replace(
                task, resources={"gpu": (1 + index % 2) * NANO}, quota=task.quota or "q0", disabled=False
            )
            for index, task in enumerate(pipeline.tasks)
        ),
    )


def told_by(batches: list[tuple[e.Event, ...]]) -> Held:
    """Return who has what, from the events alone: the slow twin. Fails where two runs have one."""
    held: Held = {}
    quota_of: dict[str, str] = {}
    position = 0
    for batch in batches:
        for event in batch:
            position += 1
            if isinstance(event, e.PipelineDefined):
                quota_of |= {task.name: task.quota or "" for task in event.definition.tasks}
            elif isinstance(event, e.LaunchDecided):
                for part, own in event.identities.items():
                    for identity in own:
                        key = (quota_of[event.task or ""], part, identity)
                        assert key not in held, f"{key} of run {held.get(key)} was given to run {position}"
                        held[key] = position
            elif isinstance(event, e.RunEnded):
                held = {key: run for key, run in held.items() if run != event.run}
    return held


def given_out(state: State) -> set[tuple[str, str, str]]:
    """Return what the incremental state takes for given out."""
    return {
        (name, part, identity)
        for name, quota in state.quotas.items()
        for part, own in quota.held.items()
        for identity in own
    }


@given(families(), lives)
def test_never_two_runs_have_one_identity(
    family: tuple[PipelineDef, list[PipelineDef]], life: list[Action]
) -> None:
    """Across crashes and other definitions; each launch has as many as it takes, and nothing else is given out."""
    world = World(listed(family[0]), [listed(variant) for variant in family[1]])
    for action in life:
        world.act(action)
        assert given_out(world.state) == told_by(world.batches).keys()
        assert not [
            one for one in check(world.state) if "identit" in one.what or "runs that have" in one.what
        ]
    for event in world.events():
        if isinstance(event, e.LaunchDecided) and not event.over_quota:
            assert len(event.identities.get("gpu", ())) == event.resources.get("gpu", 0) // NANO


@given(families(), lives, small)
def test_what_is_given_out_is_the_same_however_it_is_read(
    family: tuple[PipelineDef, list[PipelineDef]], life: list[Action], size: int
) -> None:
    """Event by event, by columns, from a checkpoint; and a recorded round gives the same ones again."""
    world = World(listed(family[0]), [listed(variant) for variant in family[1]])
    for action in life:
        world.act(action)
    live = given_out(world.state)
    again = refold(world.batches)
    bulk = State()
    in_bulk(bulk, world.events(), [size + 1, 3])
    assert given_out(again) == given_out(load(dump(again))) == given_out(bulk) == live
    assert dump(bulk) == dump(again) == dump(load(dump(again)))
    state, checker = State(), Checker()
    for batch in world.batches:
        found = checker.before(state, batch)
        if isinstance(batch[0], e.DecisionRound):
            found += rederive(state, batch[0], [one for one in batch if isinstance(one, e.LaunchDecided)])
        assert found == []
        apply_all(state, state.position + 1, batch)
        assert checker.after(state) == []
