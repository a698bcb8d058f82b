"""Random pipelines, as hypothesis strategies: chains, fan-ins, and/or/not, derived leaves, views, quotas, retries."""

from __future__ import annotations

from hypothesis import strategies as st

from datatask.engine.core.expressions import leaves_of
from datatask.schema.definition import (
    All,
    Any,
    AnyExpr,
    FilteredDef,
    In,
    LinkDef,
    Medium,
    Not,
    PipelineDef,
    QuotaDef,
    RepositoryDef,
    RetryDef,
    TaskDef,
    TranslatedDef,
    view_id,
)
from datatask.schema.units import SECOND

JOBS = ("a", "b", "c", "d", "e")
STORED = ("r0", "r1", "r2", "r3")
DERIVED = ("f0", "x0")
TASKS = ("t0", "t1", "t2")
QUOTAS = ("q0", "q1")


def expressions(leaves: tuple[str, ...]) -> st.SearchStrategy[AnyExpr]:
    """Conditions over these leaves, up to a few levels deep."""
    leaf = st.sampled_from(leaves).map(lambda name: In(leaf=name))

    def deeper(part: st.SearchStrategy[AnyExpr]) -> st.SearchStrategy[AnyExpr]:
        parts = st.lists(part, max_size=3).map(tuple)
        return st.one_of(
            part.map(lambda p: Not(of=p)), parts.map(lambda p: All(of=p)), parts.map(lambda p: Any(of=p))
        )

    return st.recursive(leaf, deeper, max_leaves=5)


@st.composite
def repositories(draw: st.DrawFn) -> tuple[RepositoryDef, ...]:
    """Four stored ones, a `done` for each task, and mostly one filtered and one translated."""
    medium: st.SearchStrategy[Medium] = st.sampled_from(["native", "native", "foreign", "mirror"])
    found = [
        RepositoryDef(id=name, kind="test", medium=draw(medium), ephemeral=draw(st.integers(0, 9)) == 0)
        for name in STORED
    ]
    outside: st.SearchStrategy[Medium] = st.sampled_from(["native", "foreign"])
    found += [RepositoryDef(id=f"done-{task}", kind="test", medium=draw(outside)) for task in TASKS]
    filtered = FilteredDef(base=All(of=(In(leaf=draw(st.sampled_from(STORED))), draw(expressions(STORED)))))
    found.append(RepositoryDef(id="f0", kind="test", medium="derived", derived=filtered))
    translated = TranslatedDef(
        base=draw(expressions((*STORED, "f0", "done-t0"))),
        translator=All(of=(In(leaf=draw(st.sampled_from(STORED))), draw(expressions((*STORED, "f0"))))),
    )
    found.append(RepositoryDef(id="x0", kind="test", medium="derived", derived=translated))
    return tuple(found)


@st.composite
def tasks(draw: st.DrawFn, index: int) -> TaskDef:
    """A task: inputs and its own `done` as people write it, or any condition at all."""
    name, own = TASKS[index], f"done-{TASKS[index]}"
    views = tuple(view_id(task, view) for task in TASKS for view in ("live", "succeeded", "failed"))
    dones = tuple(f"done-{task}" for task in TASKS)
    source = draw(st.sampled_from((*STORED, *DERIVED, *dones[:index], *views[: 3 * index])))
    plain: AnyExpr = All(of=(In(leaf=source), Not(of=In(leaf=own))))
    free: AnyExpr = All(of=(In(leaf=source), draw(expressions((*STORED, *DERIVED, *views, *dones)))))
    ready: AnyExpr = draw(st.sampled_from([plain, plain, free, Any(of=(plain, free))]))
    output = draw(st.sampled_from(STORED))
    return TaskDef(
        name=name,
        kind="test",
        ready=ready,
        links=(
            LinkDef(name="input", expr=In(leaf=source), is_input=True, required_for_start=True),
            LinkDef(name="output", expr=In(leaf=output), is_output=True),
            LinkDef(name="done", expr=In(leaf=own), is_status=True, inhibits_start=True),
        ),
        quota=draw(st.sampled_from([None, *QUOTAS])),
        resources=draw(st.dictionaries(st.sampled_from(["cpu", "gpu"]), st.integers(0, 3), max_size=2)),
        concurrency=draw(st.sampled_from([None, None, 1, 2])),
        priority=draw(st.integers(0, 3)) == 0,
        retry=RetryDef(
            attempts=draw(st.integers(1, 3)),
            first=SECOND,
            jitter=0.5,
            on=("failed", "timed_out"),
            infrastructure_attempts=draw(st.integers(0, 2)),
        ),
        timeout=draw(st.sampled_from([None, 3 * SECOND])),
        repeat=draw(st.integers(0, 5)) == 0,
        disabled=draw(st.integers(0, 9)) == 0,
        done=draw(st.sampled_from([own, own, None])),
        pids=draw(st.sampled_from([None, None, "r3"])),
    )


@st.composite
def quotas(draw: st.DrawFn, name: str) -> QuotaDef:
    """Small limits, so that they bind."""
    return QuotaDef(
        name=name,
        limits=draw(st.dictionaries(st.sampled_from(["cpu", "gpu"]), st.integers(0, 6), max_size=2)),
        launches=draw(st.sampled_from([None, None, 0, 1, 3])),
        window=5 * SECOND,
        starvation_after=4 * SECOND,
    )


@st.composite
def pipelines(draw: st.DrawFn) -> PipelineDef:
    """A whole pipeline that is valid: every name that a condition or a task uses is declared."""
    return PipelineDef(
        repositories=draw(repositories()),
        tasks=tuple(draw(tasks(index)) for index in range(len(TASKS))),
        quotas=tuple(draw(quotas(name)) for name in QUOTAS),
    )


@st.composite
def variants(draw: st.DrawFn, pipeline: PipelineDef) -> PipelineDef:
    """Another definition for the same log: some tasks changed, perhaps one gone, perhaps other quotas or rules."""
    fresh = draw(pipelines())
    keep = draw(st.lists(st.booleans(), min_size=len(TASKS), max_size=len(TASKS)))
    chosen = [old if kept else new for old, new, kept in zip(pipeline.tasks, fresh.tasks, keep, strict=True)]
    gone = draw(st.sampled_from([None, None, *range(len(TASKS))]))
    remaining = [task for index, task in enumerate(chosen) if index != gone]
    views = (
        set() if gone is None else {view_id(TASKS[gone], view) for view in ("live", "succeeded", "failed")}
    )
    kept_tasks = tuple(task for task in remaining if not views & _mentioned(task.ready, task.links))
    derived = {
        repository.id: repository for repository in fresh.repositories if repository.derived is not None
    }
    rules = draw(st.booleans())
    return PipelineDef(
        repositories=tuple(derived.get(r.id, r) if rules else r for r in pipeline.repositories),
        tasks=kept_tasks,
        quotas=draw(st.sampled_from([pipeline.quotas, fresh.quotas])),
    )


def _mentioned(ready: AnyExpr, links: tuple[LinkDef, ...]) -> set[str]:
    return set(leaves_of(ready)).union(*(leaves_of(link.expr) for link in links))
