"""Attempts that take different amounts, in any life: as many as there is room for, each what its number says, and the same again."""

from __future__ import annotations

import msgspec
from hypothesis import given

from datatask.engine.audit.consistency import rederive
from datatask.engine.audit.invariants import Checker
from datatask.engine.core.decide import decide
from datatask.engine.core.fold import apply_all
from datatask.engine.core.state import State
from datatask.schema import events as e
from datatask.schema.definition import PipelineDef
from tests.property.test_state import families, lives
from tests.property.world import Action, World


def varied(pipeline: PipelineDef) -> PipelineDef:
    """Return the pipeline with tasks whose attempts take more and more, or less, of small quotas."""
    later = (({"cpu": 3}, {"cpu": 1, "gpu": 1}), ({"cpu": 2},), ())
    return msgspec.structs.replace(
        pipeline,
        quotas=tuple(
            msgspec.structs.replace(quota, limits={"cpu": 4, "gpu": 1}, launches=None)
            for quota in pipeline.quotas
        ),
        tasks=tuple(
            msgspec.structs.replace(
                task,
                resources={"cpu": 1 + index % 2},
                later=later[index % 3],
                quota=task.quota or "q0",
                disabled=False,
                retry=msgspec.structs.replace(task.retry, attempts=4, first=0),
            )
            for index, task in enumerate(pipeline.tasks)
        ),
    )


def spent_before(batches: list[tuple[e.Event, ...]]) -> dict[int, int]:
    """Return, for each run, how many attempts of its episode came before it and count: the slow twin, from the events alone."""
    found: dict[int, int] = {}
    counts: dict[tuple[str, str], int] = {}
    position = 0
    for batch in batches:
        for event in batch:
            position += 1
            key = (event.task or "", event.job or "")
            if isinstance(event, e.LaunchDecided):
                if event.attempt == 1:
                    counts[key] = 0
                found[position] = counts[key]
                counts[key] += 1
            elif isinstance(event, e.RetryScheduled) and event.budget in (
                "infrastructure",
                "machine",
                "conflict",
            ):
                counts[key] -= 1
    return found


@given(families(), lives)
def test_each_attempt_takes_what_its_number_says(
    family: tuple[PipelineDef, list[PipelineDef]], life: list[Action]
) -> None:
    world = World(varied(family[0]), [varied(variant) for variant in family[1]])
    for action in life:
        world.act(action)
        _nothing_fits(world)
    spent = spent_before(world.batches)
    state, checker = State(), Checker()
    for batch in world.batches:
        found = checker.before(state, batch)
        if isinstance(batch[0], e.DecisionRound):
            found += rederive(state, batch[0], [one for one in batch if isinstance(one, e.LaunchDecided)])
        assert found == []
        for position, event in enumerate(batch, state.position + 1):
            if isinstance(event, e.LaunchDecided):
                definition = state.tasks[event.task or ""].definition
                assert event.resources == definition.request(spent[position])
        apply_all(state, state.position + 1, batch)
        assert checker.after(state) == []


def _nothing_fits(world: World) -> None:
    """After a round nobody waits who could go: held back is only what has no room, or what is kept for others."""
    state, now = world.state, world.now
    found = decide(state, now)
    left = {name: quota.copy() for name, quota in state.quotas.items()}
    running = {name: task.open_runs for name, task in state.tasks.items()}
    launched = set()
    for one in found.decisions:
        task = state.tasks[one.task or ""]
        launched.add((one.task, one.job))
        running[task.name] += 1
        left[task.definition.quota or ""].use(one.resources)
    oldest = min((state.time_of(position) for task in state.tasks.values() for _, position, _ in task.queue.entries()), default=now)  # fmt: skip
    starved = any(
        now - min([oldest, *(state.time_of(own.position) for task in state.tasks.values() for own in task.episodes.values())])
        >= quota.definition.starvation_after
        for quota in state.quotas.values()
    )  # fmt: skip
    if starved:
        return
    for task in state.tasks.values():
        quota = left[task.definition.quota or ""]
        limit = task.definition.concurrency
        if (
            task.paused
            or any(not leaf.synced for leaf in task.reads)
            or (limit is not None and running[task.name] >= limit)
        ):
            continue
        for _, _, job in [*task.due(now, 100), *task.queue.entries()]:
            if (task.name, state.jobs[job]) not in launched and not any(
                view.followed or task.seen for view in (task.live,)
            ):
                assert quota.shortfall(task.request(job)) is not None, (task.name, state.jobs[job])
