"""What `why` proposes works, nothing in it is superfluous, and no smaller change of data would do."""

from __future__ import annotations

from itertools import combinations

from hypothesis import given

from datatask.engine.core.conditions import holds
from datatask.engine.core.remedies import changed, smallest
from datatask.engine.core.state import State
from datatask.engine.core.why import Change, Explanation, explain, explain_all
from datatask.schema.definition import PipelineDef, leaves_of
from tests.property.pipelines import STORED
from tests.property.test_state import families, lives, small
from tests.property.whatif import WhatIf, launches
from tests.property.world import Action, World


def cases(world: World, *, engine_alive: bool) -> list[tuple[str, str, Explanation]]:
    """Explain every task of the definition in force for every job."""
    return [
        (
            task.name,
            job,
            explain(
                world.state,
                task.name,
                job,
                world.now,
                engine_alive=engine_alive,
                unavailable=frozenset(world.reactor.unavailable),
            ),
        )
        for task in world.state.definition.tasks
        for job in world.state.jobs
    ]


def looks_at_views(state: State, task: str) -> bool:
    """A put may open an episode elsewhere and so clear a view: such conditions are not foreseen."""
    names = leaves_of(state.tasks[task].definition.ready)
    return any("(" in name for name in names)


def foreseen(change: Change) -> bool:
    """What user code will say, or how a run that has ended leaves things, cannot be told beforehand."""
    return not (change.op == "evaluate" and change.explain) and not (change.op == "wait_for" and change.run)


def competes(state: State, task: str, found: Explanation) -> bool:
    """What the same put, ended run or listing lets other tasks of the quota launch is not foreseen."""
    quota = state.tasks[task].definition.quota
    shared = sum(1 for other in state.definition.tasks if other.quota == quota)
    elsewhere = any(
        change.op in ("put", "delete", "set_filter", "end_run", "observe", "recover")
        for change in found.changes
    )
    return quota is not None and shared > 1 and elsewhere


@given(families(), lives, small)
def test_proposed_changes_launch(
    family: tuple[PipelineDef, list[PipelineDef]], life: list[Action], alive: int
) -> None:
    """After all proposed changes the next round launches the job; leave one out, and it does not."""
    world = World(*family)
    for action in life:
        world.act(action)
    for task, job, found in cases(world, engine_alive=alive > 3):
        if looks_at_views(world.state, task):
            continue

        def tried(*changes: object, task: str = task, job: str = job) -> bool:
            unavailable = frozenset(world.reactor.unavailable)
            return launches(
                WhatIf(world.state, world.now, unavailable, engine_alive=alive > 3),
                changes,
                task,
                job,  # type: ignore[arg-type]
            )

        if any(not foreseen(change) for change in found.changes) or competes(world.state, task, found):
            continue
        assert tried(*found.changes), found
        if not any(hold.what == "priority" for hold in found.held_by):
            for left_out in found.changes:
                assert not tried(*(change for change in found.changes if change is not left_out)), (
                    found,
                    left_out,
                )


@given(families(), lives)
def test_data_changes_are_fewest(family: tuple[PipelineDef, list[PipelineDef]], life: list[Action]) -> None:
    """Brute force over memberships of stored leaves finds nothing smaller than what is proposed."""
    world = World(*family)
    for action in life:
        world.act(action)
    state = world.state
    for task in state.definition.tasks:
        if not set(leaves_of(task.ready)) <= {
            *STORED,
            *(r.id for r in state.definition.repositories if r.derived is None),
        }:
            continue
        for index in range(len(state.jobs)):
            members = {leaf.id for leaf in state.leaves.values() if state.masks[index] & leaf.bit}
            way = smallest(state, task.ready, index)
            fewest = _fewest(task.ready, members)
            assert (None if way is None else len(changed(state, way))) == fewest


def _fewest(expr: object, members: set[str]) -> int | None:
    leaves = leaves_of(expr)  # type: ignore[arg-type]
    for size in range(len(leaves) + 1):
        if any(holds(expr, members ^ set(flipped)) for flipped in combinations(leaves, size)):  # type: ignore[arg-type]
            return size
    return None


@given(families(), lives)
def test_groups_count_every_waiting_job_once(
    family: tuple[PipelineDef, list[PipelineDef]], life: list[Action]
) -> None:
    """The groups of `why TASK` are disjoint, and all that is queued is in them."""
    world = World(*family)
    for action in life:
        world.act(action)
    for task in world.state.definition.tasks:
        groups = explain_all(world.state, task.name, world.now, engine_alive=True)
        state = world.state.tasks[task.name]
        waiting = (
            len(state.queue) + len(state.awaiting) + sum(1 for own in state.episodes.values() if not own.run)
        )
        assert sum(group.count for group in groups if group.what not in ("upstream", "inhibitor")) == waiting
        named = [job for group in groups for job in group.sample]
        assert len(named) == len(set(named))
