"""The quick simulator and the one that makes every event tell one story, whatever the pipeline; and what it tells verifies."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from datatask.adapters.sim.logged import Logged
from datatask.adapters.sim.model import BEGINNING, Fate, Model, Names, Plain, Profile
from datatask.adapters.sim.quick import Quick
from datatask.adapters.sim.replication import folded_state
from datatask.engine.audit.consistency import check, rederive
from datatask.engine.audit.invariants import Checker, decisions_of
from datatask.engine.core.checkpoints import fingerprint
from datatask.engine.core.effects import LogStep
from datatask.engine.core.fold import apply_all
from datatask.engine.core.state import State
from datatask.engine.replay.batches import is_simple
from datatask.schema import events as e
from datatask.schema.definition import (
    All,
    Any,
    AnyExpr,
    In,
    LinkDef,
    Not,
    PipelineDef,
    QuotaDef,
    RepositoryDef,
    RetryDef,
    TaskDef,
)
from datatask.schema.units import SECOND
from tests.property.pipelines import pipelines

FATES = (
    Fate("succeeded"),
    Fate("timed_out", message="out of time"),
    Fate("lost", message="gone"),
    Fate("failed", exit_code=1, message="no"),
    Fate("cancelled", message="stopped"),
)
INSTEAD = {"f0": "r0", "x0": "r1"}
COLUMNS = (
    "run",
    "task",
    "job",
    "attempt",
    "ready_at",
    "decided_at",
    "started_at",
    "ended_at",
    "outcome",
    "where",
)


def plain(expr: AnyExpr) -> AnyExpr:
    """The same condition over stored leaves."""
    match expr:
        case In(leaf=leaf):
            return In(leaf=INSTEAD.get(leaf, leaf))
        case Not(of=part):
            return Not(of=plain(part))
        case All(of=parts):
            return All(of=tuple(plain(part) for part in parts))
        case Any(of=parts):
            return Any(of=tuple(plain(part) for part in parts))


def simple(pipeline: PipelineDef) -> PipelineDef:
    """The pipeline without what has to be evaluated."""
    replace = msgspec.structs.replace

    def link(one: LinkDef) -> LinkDef:
        return replace(one, expr=plain(one.expr))

    tasks = tuple(
        replace(task, ready=plain(task.ready), links=tuple(link(one) for one in task.links), priority=False)
        for task in pipeline.tasks
    )
    stored = tuple(one for one in pipeline.repositories if one.derived is None)
    return replace(pipeline, repositories=stored, tasks=tasks)


def trying_again(pipeline: PipelineDef, *reasons: str) -> PipelineDef:
    """The pipeline with tasks that are tried again for these reasons alone."""
    replace = msgspec.structs.replace
    tasks = (replace(task, retry=replace(task.retry, on=reasons)) for task in pipeline.tasks)
    return replace(pipeline, tasks=tuple(tasks))


def model(
    pipeline: PipelineDef, seed: int, *, jobs: int = 9, until: int = 1 << 62, grain: int = SECOND
) -> Model:
    """A model of a few jobs, that come in threes, whose times often coincide."""
    profiles = []
    for index, task in enumerate(pipeline.tasks):
        chance = Random(seed * 10 + index)
        outputs = tuple(link.expr.leaf for link in task.links if link.is_output and isinstance(link.expr, In))
        profiles.append(
            Profile(
                task.name,
                duration=lambda chance=chance: int(chance.random() * 5) * grain,  # type: ignore[misc]
                fate=lambda chance=chance: chance.choice((0, 0, 0, 0, 2, 3, 4)),  # type: ignore[misc]
                latency=(lambda chance=chance: int(chance.random() * 2) * grain) if seed % 3 == 0 else None,  # type: ignore[misc]
                fates=FATES,
                fills=(outputs, ()),
                fill=lambda chance=chance: int(chance.random() < 0.2),  # type: ignore[misc]
            )
        )
    begin = BEGINNING
    arrivals = [(begin + first * SECOND // 3, first, 3) for first in range(0, jobs, 3)]
    return Model(
        pipeline,
        tuple(profiles),
        Names(count=jobs),
        iter(arrivals),
        ("r0", "r2"),
        chance=Random(seed).random,
        until=begin + until if until < 1 << 60 else until,
        runs_max=60,
    )


@given(pipelines(), st.integers(0, 1 << 20), st.sampled_from([2, 7, 1 << 62]))
def test_both_simulators_tell_one_story(pipeline: PipelineDef, seed: int, seconds: int) -> None:
    pipeline = simple(pipeline)
    if seed % 3 == 1:
        pipeline = trying_again(pipeline, "exit 1")
    until = seconds * SECOND if seconds < 100 else seconds
    quick = Quick(model(pipeline, seed, until=until), Plain())
    quick.run()
    logged = Logged(model(pipeline, seed, until=until), Plain(), lambda step: None)
    assert is_simple(logged.state)
    logged.run()
    for column in COLUMNS:
        assert getattr(quick.records, column) == getattr(logged.records, column), column
    assert quick.position == logged.position
    settled = folded_state(quick)
    for run in settled.open_runs.values():  # what a run reads may have been written anew while it ran
        run.inputs = logged.state.open_runs[run.run].inputs
    assert fingerprint(settled) == fingerprint(logged.state)


def agree(make: Callable[[], Model]) -> Quick:
    """Both simulators on a model; the quick one, which has told the same."""
    quick, logged = Quick(make(), Plain()), Logged(make(), Plain(), lambda step: None)
    quick.run()
    logged.run()
    for column in COLUMNS:
        assert getattr(quick.records, column) == getattr(logged.records, column), column
    assert fingerprint(folded_state(quick)) == fingerprint(logged.state)
    return quick


def work(
    name: str, ready: AnyExpr, *, cores: int = 1, attempts: int = 1, seconds: int = 1, quota: bool = True
) -> TaskDef:
    """A task that reads r0, takes cores of one quota, and writes its own done entries."""
    own = In(leaf=f"done-{name}")
    return TaskDef(
        name=name,
        kind="test",
        ready=All(of=(In(leaf="r0"), ready, Not(of=own))),
        links=(LinkDef(name="done", expr=own, is_status=True, inhibits_start=True),),
        quota="all" if quota else None,
        resources={"cpu": cores * SECOND, "gpu": 0},
        retry=RetryDef(attempts=attempts, first=2 * SECOND),
        done=f"done-{name}",
    )


def several(*tasks: TaskDef, cores: int = 4, launches: int | None = None) -> PipelineDef:
    """A pipeline of such tasks."""
    stored = ("r0", "r2", *(task.done or "" for task in tasks))
    quota = QuotaDef(
        name="all",
        limits={"cpu": cores * SECOND},
        launches=launches,
        window=5 * SECOND,
        starvation_after=3 * SECOND,
    )
    return PipelineDef(
        repositories=tuple(RepositoryDef(id=name, kind="test", medium="native") for name in stored),
        tasks=tasks,
        quotas=(quota,),
    )


ALWAYS = In(leaf="r2")
CROWDED = {
    "more than a round launches": several(work("a", ALWAYS, quota=False), work("b", ALWAYS, quota=False)),
    "more than a round launches, of one quota": several(work("a", ALWAYS), work("b", ALWAYS), cores=5_000),
    "one that is large waits for long": several(
        work("small", ALWAYS), work("large", ALWAYS, cores=3), work("whole", ALWAYS, cores=4)
    ),
    "two exclude each other": several(
        work("a", Not(of=In(leaf="live(b)"))), work("b", Not(of=In(leaf="live(a)"))), cores=40
    ),
    "a task waits for success, another for failure": several(
        work("a", ALWAYS, attempts=2), work("b", In(leaf="succeeded(a)")), work("c", In(leaf="failed(a)"))
    ),
    "retries and newcomers in one line": several(
        work("a", ALWAYS, attempts=3), work("b", ALWAYS, attempts=3)
    ),
    "few launches in a window": several(work("a", ALWAYS), work("b", ALWAYS, cores=2), launches=7),
}


@pytest.mark.parametrize("case", CROWDED)
@pytest.mark.parametrize("seed", [0, 1])
def test_both_simulators_agree_where_many_wait(case: str, seed: int) -> None:
    pipeline = CROWDED[case]
    jobs = 2_400 if "round" in case else 120
    quick = agree(lambda: many(pipeline, seed, jobs))
    assert len(quick.records) >= jobs
    assert quick.finished


def many(pipeline: PipelineDef, seed: int, jobs: int) -> Model:
    """All jobs at once, and no end before the end."""
    made = model(pipeline, seed, grain=SECOND // 4)
    made.names, made.arrivals = Names(count=jobs), iter([(BEGINNING, 0, jobs)])
    made.runs_max = 1 << 40
    return made


@given(pipelines(), st.integers(0, 1 << 20))
def test_what_is_simulated_keeps_every_invariant(pipeline: PipelineDef, seed: int) -> None:
    steps: list[LogStep] = []
    logged = Logged(model(pipeline, seed), Plain(), steps.append)
    logged.run()
    state, checker = State(), Checker()
    for step in steps:
        found = checker.before(state, step.events)
        if isinstance(step.events[0], e.DecisionRound):
            found += rederive(state, step.events[0], decisions_of(step.events))
        assert not found
        apply_all(state, step.first, step.events)
        assert not checker.after(state)
    assert not check(state)
    assert fingerprint(state) == fingerprint(logged.state)
