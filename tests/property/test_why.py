"""What `why` tells is true and never empty, what it proposes works, and nothing smaller does."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from itertools import combinations

import pytest
from hypothesis import HealthCheck, given, settings

from datatask.engine.core.checkpoints import dump
from datatask.engine.core.decide import decide
from datatask.engine.core.define import start_condition
from datatask.engine.core.expressions import holds, leaves_of
from datatask.engine.explain.explanations import Explanation, Node
from datatask.engine.explain.fixes import changed_by, plans_for
from datatask.engine.explain.what_if import WhatIf
from datatask.engine.explain.why import explain, explain_all
from datatask.schema import definition as d
from datatask.schema import events as e
from tests.property.bruteforce import smaller_set
from tests.property.pipelines import STORED
from tests.property.test_state import families, lives, small
from tests.property.whatif import CopiedState, launches
from tests.property.world import Action, World

Family = tuple[d.PipelineDef, list[d.PipelineDef]]
STRANGER = "stranger"
SETS_MAX = 600
SETS_MAX_SOAK = 20_000
STATES = 100_000
STATES_A_LIFE = 16
"""At least."""


def lived(family: Family, life: list[Action]) -> World:
    """Return the world after a life."""
    world = World(*family)
    for action in life:
        world.act(action)
    return world


def cases(world: World, alive: bool) -> Iterator[Explanation]:
    """Explain every task of the definition in force for every job, and for one that the log has never seen."""
    away = frozenset(world.reactor.unavailable)
    for task in world.state.definition.tasks:
        for job in (*world.state.jobs, STRANGER):
            yield explain(world.state, task.name, job, world.now, engine_alive=alive, unavailable=away)


def what_if(world: World, alive: bool) -> CopiedState:
    """Return a copy of the state, which knows the stranger too."""
    copy = CopiedState(world.state, world.now, frozenset(world.reactor.unavailable), engine_alive=alive)
    copy.state.intern(STRANGER)
    return copy


def unreachable(found: Explanation) -> bool:
    """Whether no set of changes was found."""
    return any(hold.what == "unreachable" for hold in found.held_by)


# --- what is proposed -------------------------------------------------------------------------------


@given(families(), lives, small)
def test_proposed_changes_launch_the_job_and_are_all_needed(
    family: Family, life: list[Action], alive: int
) -> None:
    """Made on a copy of the state, in their order, the next round launches the job; leave one out, and it does not."""
    world = lived(family, life)
    away = frozenset(world.reactor.unavailable)
    trial = WhatIf(world.state, world.now, engine_alive=alive > 3, unavailable=away)
    for found in cases(world, alive > 3):
        if unreachable(found):
            continue
        assert launches(what_if(world, alive > 3), found.changes, found.task, found.job), found
        for left_out in found.changes:
            trial.reset(*(change for change in found.changes if change is not left_out))
            assert not trial.launches(found.task, trial.state.intern(found.job)), (found, left_out)


@given(families(), lives, small)
def test_no_smaller_set_launches_the_job(family: Family, life: list[Action], alive: int) -> None:
    """Brute force over all sets of changes that could matter finds none with fewer, nor any where none was found."""
    compare(lived(family, life), alive > 3, SETS_MAX, Counter())


def compare(world: World, alive: bool, most: int, counts: Counter[str]) -> None:
    """Look for smaller sets than those proposed."""
    away = frozenset(world.reactor.unavailable)
    for found in cases(world, alive):
        surroundings = {"engine_alive": alive, "unavailable": away, "most": most, "counts": counts}
        assert smaller_set(world.state, found, world.now, **surroundings) is None, found  # type: ignore[arg-type]


@given(families(), lives)
def test_data_changes_are_fewest(family: Family, life: list[Action]) -> None:
    """Brute force over memberships of stored leaves finds nothing smaller than what is proposed."""
    state = lived(family, life).state
    stored = {*STORED, *(r.id for r in state.definition.repositories if r.derived is None)}
    for task in state.definition.tasks:
        if not set(leaves_of(task.ready)) <= stored:
            continue
        for index in range(len(state.jobs)):
            members = {leaf.id for leaf in state.leaves.values() if state.masks[index] & leaf.bit}
            way = next(iter(plans_for(state, task.ready, index)), None)
            fewest = _fewest(task.ready, members)
            assert (None if way is None else len(changed_by(state, way))) == fewest


def _fewest(expr: d.AnyExpr, members: set[str]) -> int | None:
    leaves = leaves_of(expr)
    for size in range(len(leaves) + 1):
        if any(holds(expr, members ^ set(flipped)) for flipped in combinations(leaves, size)):
            return size
    return None


# --- what is told -----------------------------------------------------------------------------------


@given(families(), lives, small)
def test_every_job_that_is_not_running_gets_a_true_answer(
    family: Family, life: list[Action], alive: int
) -> None:
    """What holds is told if and only if the next round does not launch the job, and each part of it is so."""
    world = lived(family, life)
    before = dump(world.state)
    check_answers(world, alive > 3)
    assert dump(world.state) == before


def check_answers(world: World, alive: bool) -> int:
    """Hold every answer against the state and the log; return how many there were."""
    state, events = world.state, world.events()
    away = frozenset(world.reactor.unavailable)
    decided = decide(state, world.now, unavailable=away).decisions if alive else []
    launched = {(launch.task, launch.job) for launch in decided}
    count = 0
    for found in cases(world, alive):
        count += 1
        assert found.launching is ((found.task, found.job) in launched), found
        assert repr(found).startswith(f"{found.task} {found.job}: ")
        if found.launching:
            assert (found.held_by, found.changes, found.ready) == ([], [], True), found
            continue
        assert found.held_by or not found.tree.holds, found
        assert found.changes or unreachable(found), found
        check_conditions(world, found, events)
        check_holds(world, found, alive, events)
    return count


def check_conditions(world: World, found: Explanation, events: list[e.Event]) -> None:
    """Each condition and each node of the tree is as the memberships are, and cites an event about it."""
    state, index = world.state, world.state.job_index.get(found.job)
    mask = 0 if index is None else state.masks[index]
    members = {leaf.id for leaf in state.leaves.values() if mask & leaf.bit}
    expr = start_condition(state.tasks[found.task].definition)
    assert found.tree.holds is holds(expr, members)
    assert found.tree.holds is all(condition.satisfied for condition in found.conditions)
    for condition in found.conditions:
        assert condition.satisfied is (condition.needs == condition.is_)
    nodes = [(found.tree, found.job)]
    while nodes:
        node, job = nodes.pop()
        job = node.job or job
        nodes += [(part, job) for part in node.of]
        if node.op == "in":
            check_leaf(world, node, job, events)


def check_leaf(world: World, node: Node, job: str, events: list[e.Event]) -> None:
    """The membership is so, and a stored one since the very event that the log has last about it."""
    leaf = world.state.leaves[node.repository]
    assert node.holds is world.state.contains(leaf.id, job)
    if leaf.definition.derived is None and node.since is not None:
        event = events[node.since - 1]
        assert event.repository == leaf.id or isinstance(event, e.Renamed | e.PipelineDefined), (node, event)
        if isinstance(event, e.ValuePut | e.ValueDeleted):
            assert (event.job, isinstance(event, e.ValuePut)) == (job, node.holds)


def check_holds(world: World, found: Explanation, alive: bool, events: list[e.Event]) -> None:
    """Each hold is so: what it says can be read off the state, and the event that it cites is of the right kind."""
    state, task = world.state, world.state.tasks[found.task]
    index = state.job_index.get(found.job, -1)
    episode, told = task.episodes.get(index), {hold.what: hold for hold in found.held_by}
    running = episode is not None and episode.run != 0
    assert ("live" in told) is running
    assert ("engine" in told) is not alive
    assert ("paused" in told) is (task.paused != 0)
    assert ("disabled" in told) is task.definition.disabled
    assert ("adapter" in told) is (found.task in world.reactor.unavailable)
    assert ("observing" in told) is any(not leaf.synced for leaf in task.reads)
    between = episode is not None and not running and (episode.not_before or 0) > world.now
    assert ("retry" in told) is (between and found.tree.holds)
    for what, kind in (("paused", e.TaskPaused), ("live", e.LaunchDecided), ("disabled", e.PipelineDefined)):
        if what in told:
            assert isinstance(events[(told[what].since or 0) - 1], kind)
    if {"claimed", "cancelled", "occasion"} & told.keys():
        assert found.tree.holds
        assert not running
        assert index not in task.queue
    if "evaluation" in told and not found.tree.holds:
        assert state.pending
    for hold in found.held_by:
        for user in hold.runs:
            run = state.open_runs[user.run]
            assert (run.task, state.jobs[run.job]) == (user.task, user.job)
        for part, amount in hold.amounts.items():
            own = state.open_runs[episode.run] if running and episode is not None else None
            freed = own.resources.get(part, 0) if own is not None and own.quota == hold.quota else 0
            quota = state.quotas[hold.quota]
            assert round(amount.used * 1e9) == quota.used.get(part, 0) - freed
            assert amount.used + amount.needed > amount.limit


# --- groups -----------------------------------------------------------------------------------------


@given(families(), lives, small)
def test_groups_count_every_waiting_job_once_and_agree_with_its_own_answer(
    family: Family, life: list[Action], alive: int
) -> None:
    """No job is in two groups, all that is queued is in one, and each is where its own explanation puts it."""
    check_groups(lived(family, life), alive > 3)


DATA = {"upstream", "inhibitor", "filter", "translation", "condition"}


def check_groups(world: World, alive: bool) -> None:
    """Hold the groups of each task against the explanations of the jobs in them."""
    away = frozenset(world.reactor.unavailable)
    surroundings = {"engine_alive": alive, "unavailable": away}
    for task in world.state.definition.tasks:
        groups = explain_all(world.state, task.name, world.now, **surroundings)  # type: ignore[arg-type]
        state = world.state.tasks[task.name]
        named = {job: group.what for group in groups for job in group.sample}
        assert len(named) == sum(group.count for group in groups)
        queued = {*(entry[2] for entry in state.queue.entries()), *state.awaiting}
        queued |= {job for job, own in state.episodes.items() if not own.run}
        assert {world.state.jobs[job] for job in queued} <= named.keys()
        for job, what in named.items():
            found = explain(world.state, task.name, job, world.now, **surroundings)  # type: ignore[arg-type]
            assert found.launching is (what == "next"), (what, found)
            holds_told = {hold.what for hold in found.held_by}
            if what in DATA or (what == "evaluation" and not found.tree.holds):
                assert not found.tree.holds, (what, found)
            elif what != "next":
                assert what in holds_told, (what, found)


# --- for hours --------------------------------------------------------------------------------------


@pytest.mark.soak
def test_100_000_states() -> None:
    """A true answer for every job after every single action of long lives; the groups and smaller sets now and then."""
    counts: Counter[str] = Counter()

    @settings(
        max_examples=STATES // STATES_A_LIFE,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        database=None,
    )
    @given(families(), lives, small)
    def look(family: Family, life: list[Action], alive: int) -> None:
        if counts["states"] < STATES:
            look_at_every_step(family, life, alive > 3, counts)

    look()
    print(dict(counts))
    assert counts["states"] >= STATES


def look_at_every_step(family: Family, life: list[Action], alive: bool, counts: Counter[str]) -> None:
    """Live a life and check the answers after every action, groups after every fifth, and one state by brute force."""
    world = World(*family)
    counts["lives"] += 1
    for action in life:
        world.act(action)
        counts["states"] += 1
        counts["answers"] += check_answers(world, alive)
        if counts["states"] % 5 == 0:
            check_groups(world, alive)
    if counts["lives"] % 5 == 0:
        compare(world, alive, SETS_MAX_SOAK, counts)
