"""One log under two definitions: the same one never differs, another one differs as a slow evaluation says."""

from __future__ import annotations

import itertools
from collections import defaultdict

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from datatask.engine.compare.definitions import Comparison, certain
from datatask.engine.core.checkpoints import dump
from datatask.engine.core.expressions import leaves_of
from datatask.engine.core.state import State
from datatask.schema import events as e
from datatask.schema.definition import (
    VIEW_NAMES,
    All,
    Any,
    AnyExpr,
    FilteredDef,
    Not,
    PipelineDef,
    TranslatedDef,
    view_id,
)
from tests.property.pipelines import pipelines, variants
from tests.property.test_state import lives
from tests.property.twin import Twin
from tests.property.world import Action, World

Sets = dict[tuple[str, str], set[str]]
"""(task, what) -> jobs"""


def lived(pipeline: PipelineDef, life: list[Action]) -> list[e.Batch]:
    world = World(pipeline, [])
    for action in life:
        world.act(action)
    found, first = [], 1
    for events in world.batches:
        found.append(e.Batch(first, events))
        first += len(events)
    return found


def compared(definition: PipelineDef, batches: list[e.Batch]) -> Comparison:
    comparison = Comparison(definition)
    for batch in batches:
        comparison.take(batch)
    return comparison


@given(pipelines(), lives)
def test_the_same_definition_makes_no_difference(pipeline: PipelineDef, life: list[Action]) -> None:
    """Nothing differs, nothing is skipped, and both states are equal to the last bit."""
    comparison = compared(pipeline, lived(pipeline, life))
    assert comparison.differences() == []
    assert comparison.skipped == {}
    assert dump(comparison.here) == dump(comparison.there)


@given(pipelines(), lives, st.integers(0, 15))
def test_from_a_base_in_the_middle_the_same_definition_makes_no_difference(
    pipeline: PipelineDef, life: list[Action], where: int
) -> None:
    """A log whose beginning is archived is compared from the base on."""
    batches = lived(pipeline, life)
    cut = max(2, len(batches) * where // 15)
    base = compared(pipeline, batches[:cut]).here
    comparison = Comparison(pipeline, base=base)
    for batch in batches[cut:]:
        comparison.take(batch)
    assert comparison.differences() == []


def complete(definition: PipelineDef) -> PipelineDef:
    """Leave out tasks that look at the views of tasks that are not there."""
    views = {view_id(task.name, view) for task in definition.tasks for view in VIEW_NAMES}
    leaves = views | {leaf.id for leaf in definition.repositories}
    kept = tuple(
        task
        for task in definition.tasks
        if leaves.issuperset(leaves_of(All(of=(task.ready, *(link.expr for link in task.links)))))
    )
    if kept == definition.tasks:
        return definition
    return complete(msgspec.structs.replace(definition, tasks=kept))


@st.composite
def changed(draw: st.DrawFn) -> tuple[PipelineDef, PipelineDef]:
    """A pipeline, and one with other tasks or quotas on the same repositories."""
    first = draw(pipelines())
    other = draw(variants(first))
    return first, complete(msgspec.structs.replace(other, repositories=first.repositories))


@given(changed(), lives)
def test_another_definition_differs_as_a_slow_evaluation_says(
    two: tuple[PipelineDef, PipelineDef], life: list[Action]
) -> None:
    """Ready and blocked jobs, ever and at the end, and the first position: recomputed for every job each time."""
    recorded, other = two
    batches = lived(recorded, life)
    comparison = compared(other, batches)
    sound(comparison, batches)
    slow = Slow(recorded, other)
    for batch in batches:
        slow.batch(batch)
    found = {
        (one.task, one.what): one for one in comparison.differences() if one.what in ("ready", "blocked")
    }
    assert {key: set(one.jobs) for key, one in found.items()} == slow.ever
    assert {key: one.now for key, one in found.items() if one.now} == {k: v for k, v in slow.now.items() if v}
    assert {key: one.first_position for key, one in found.items()} == slow.first


def sound(comparison: Comparison, batches: list[e.Batch]) -> None:
    """What is told is about what there is, with reasons, and no job is both unknown and blocked."""
    names = {task.name for task in comparison.definition.tasks}
    launched = {
        event.job for batch in batches for event in batch.events if isinstance(event, e.LaunchDecided)
    }
    now: dict[str, set[tuple[str | None, str]]] = defaultdict(set)
    for one in comparison.differences():
        if one.what == "only_in":
            assert (one.task in names) is (one.where == "there")
            continue
        assert one.task in names
        assert one.jobs
        assert one.now <= set(one.jobs)
        assert one.first_position == min(one.jobs.values())
        assert all(entry["explain"] for entry in one.sample)
        assert (one.what, one.where) != ("launched", "here") or set(one.jobs) <= launched
        now[one.what] |= {(one.task, job) for job in one.now}
    assert not now["blocked"] & now["unknown"]


@st.composite
def with_other_rules(draw: st.DrawFn) -> tuple[PipelineDef, PipelineDef]:
    first = draw(pipelines())
    return first, complete(draw(variants(first)))


@given(with_other_rules(), lives)
def test_a_certain_answer_is_right_whatever_the_missing_ones_are(
    two: tuple[PipelineDef, PipelineDef], life: list[Action]
) -> None:
    """Yes and no hold under every way in which user code may still answer; tried one by one, up to three answers."""
    recorded, other = two
    batches = lived(recorded, life)
    comparison = compared(other, batches)
    sound(comparison, batches)
    state = comparison.there
    missing = [tuple(key) for key in state.pending if key.what in ("filter", "translation")][:3]
    choices = [[True, False] if key[0] == "filter" else [None, *range(len(state.jobs))] for key in missing]
    ways = [dict(zip(missing, way, strict=True)) for way in itertools.product(*choices)]
    for task in other.tasks:
        for job in range(len(state.jobs)):
            answer = certain(state, task.ready, job, lambda *key: key in missing)
            if answer is not None:
                assert {slowly(state, task.ready, job, way) for way in ways} == {answer}


def slowly(state: State, expr: AnyExpr, job: int, answers: dict[tuple[object, ...], object]) -> bool:
    """Whether a condition holds, given the answers that were missing."""
    match expr:
        case Not(of=part):
            return not slowly(state, part, job, answers)
        case All(of=parts):
            return all(slowly(state, part, job, answers) for part in parts)
        case Any(of=parts):
            return any(slowly(state, part, job, answers) for part in parts)
    leaf = state.leaves[expr.leaf]
    rule, present = leaf.definition.derived, state.masks[job] & leaf.bit != 0
    if isinstance(rule, FilteredDef):
        says = answers.get(("filter", leaf.id, job), present)
        return bool(says) and slowly(state, rule.base, job, answers)
    if isinstance(rule, TranslatedDef):
        assert leaf.derived is not None
        target = answers.get(("translation", leaf.id, job), leaf.derived.forward.get(job))
        stands = target is not None and slowly(state, rule.translator, job, answers)
        return stands and slowly(state, rule.base, target, answers)  # type: ignore[arg-type]
    return present


class Slow:
    """Two slow states, fed by hand; every task and job looked at after every batch."""

    def __init__(self, recorded: PipelineDef, other: PipelineDef) -> None:
        self.definitions = recorded, other
        self.twins = Twin(), Twin()
        self.limits: tuple[dict[str, e.QuotaChanged], dict[str, e.QuotaChanged]] = {}, {}
        self.runs: set[int] = set()
        self.ever: Sets = defaultdict(set)
        self.now: Sets = defaultdict(set)
        self.first: dict[tuple[str, str], int] = {}

    def batch(self, batch: e.Batch) -> None:
        here, there = self.twins
        for position, event in enumerate(batch.events, batch.first):
            here.apply(position, event)
            if self._is_there(event):
                if isinstance(event, e.PipelineDefined):
                    event = msgspec.structs.replace(event, definition=self.definitions[1])
                if isinstance(event, e.LaunchDecided):
                    self.runs.add(position)
                there.apply(position, event)
            if isinstance(event, e.QuotaChanged):
                for limits in self.limits:
                    limits[event.quota] = event
        if not there.tasks:
            return
        for task in self.definitions[1].tasks:
            known = task.name in here.tasks
            for job in dict.fromkeys((*here.jobs, *there.jobs)):
                is_here = known and self._can_start(0, task.name, job)
                is_there = self._can_start(1, task.name, job)
                for what, differs in (
                    ("ready", is_there and not is_here),
                    ("blocked", is_here and not is_there),
                ):
                    key = (task.name, what)
                    (self.now[key].add if differs else self.now[key].discard)(job)
                    if differs:
                        self.ever[key].add(job)
                        self.first.setdefault(key, batch.last)

    def _is_there(self, event: e.Event) -> bool:
        names = {task.name for task in self.definitions[1].tasks}
        if isinstance(event, e.LaunchDecided):
            return event.task in names
        if event.run is not None and not isinstance(
            event, e.ValuePut | e.ValueDeleted | e.StoreWriteIntended
        ):
            return event.run in self.runs or isinstance(event, e.LateFact)
        return event.task is None or event.task in names or event.repository is not None

    def _can_start(self, which: int, task: str, job: str) -> bool:
        declared = next(one for one in self.definitions[which].tasks if one.name == task)
        if (task, job) not in self.twins[which].waiting or declared.disabled:
            return False
        if declared.quota is None:
            return True
        quota = next(one for one in self.definitions[which].quotas if one.name == declared.quota)
        said = self.limits[which].get(quota.name)
        limits, launches = (quota.limits, quota.launches) if said is None else (said.limits, said.launches)
        enough = all(amount <= limits.get(part, 0) for part, amount in declared.resources.items())
        return enough and launches != 0
