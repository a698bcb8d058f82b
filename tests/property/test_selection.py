"""Rounds under a selection, in any life: what they launch is chosen, and finding few among many changes nothing."""

from __future__ import annotations

from fnmatch import fnmatchcase

import pytest
from hypothesis import given

from datatask.engine.core import selection as selecting
from datatask.engine.core.decide import decide
from datatask.engine.core.expressions import evaluate
from datatask.engine.core.selection import Chosen
from datatask.engine.core.state import State
from datatask.schema import events as e
from datatask.schema.definition import AnyExpr, PipelineDef, Selection
from tests.property.test_state import families, lives
from tests.property.world import Action, World


def is_chosen(state: State, jobs: AnyExpr | None, job: str) -> bool:
    """Whether a selection's condition holds for a job, from the words alone: the slow twin of `Chosen`."""

    def known(leaf: str) -> bool:
        if leaf in state.leaves:
            return state.contains(leaf, job)
        return fnmatchcase(job, leaf.removeprefix("job(").removesuffix(")"))

    return jobs is None or evaluate(jobs, known) is True


def held_to(world: World, selection: Selection) -> None:
    """Decide a round in both ways and compare it with what the selection says."""
    state = world.state
    found = decide(state, world.now, selection=selection)
    assert found == decide(state, world.now, selection=selection, members=False)
    assert selection.left is None or len(found.decisions) <= selection.left
    for one in found.decisions:
        assert one.task in (selection.tasks or state.tasks)
        assert is_chosen(state, selection.jobs, one.job)
    if selection.jobs is not None:
        chosen = Chosen(state, selection.jobs)
        for index, job in enumerate(state.jobs):
            assert (index in chosen) is is_chosen(state, selection.jobs, job)
    for task in state.tasks.values():
        if not found.constraints and not task.retries and not task.contenders:
            queued = {state.jobs[job] for _, _, job in task.queue.entries()}
            launched = {one.job for one in found.decisions if one.task == task.name}
            assert launched == queued or selection.left == 0


@pytest.mark.parametrize("few", [(8, 64), (0, 0), (1000, 0)], ids=["short", "walked", "few"])
@given(families(), lives)
def test_rounds_launch_what_is_chosen(
    few: tuple[int, int], family: tuple[PipelineDef, list[PipelineDef]], life: list[Action]
) -> None:
    world = World(*family)
    before = selecting.FEW, selecting.SHORT
    try:
        selecting.FEW, selecting.SHORT = few[0], few[1]
        for action in life:
            world.act(action)
            if world.selection is not None:
                held_to(world, world.selection)
    finally:
        selecting.FEW, selecting.SHORT = before


@given(families(), lives)
def test_the_state_has_the_selection_that_is_in_force(
    family: tuple[PipelineDef, list[PipelineDef]], life: list[Action]
) -> None:
    """What a reader of the log takes for the selection is what the engine would decide under now."""
    world = World(*family)
    for action in life:
        world.act(action)
        last = next(
            (b[0] for b in reversed(world.batches) if isinstance(b[0], e.DecisionRound | e.EngineOpened)),
            None,
        )
        if isinstance(last, e.DecisionRound):
            expected = None if last.selection is None else last.selection.after(last.decisions)
            assert world.state.selection == expected
        else:
            assert world.state.selection is None
