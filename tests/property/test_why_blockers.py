"""Up to six blockers at once, of every kind: all are told, what is proposed works, and brute force finds nothing smaller."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from datatask.engine.explain.why import explain
from datatask.schema import events as e
from datatask.schema.definition import All, FilteredDef, Not, PipelineDef, QuotaDef
from datatask.schema.units import SECOND
from tests.property.bruteforce import smaller_set
from tests.property.whatif import CopiedState, launches
from tests.unit.core_kit import Desk, leaf, pipeline, repository, task

CPU = {"cpu": SECOND}
DATA = ("lacks a", "lacks b", "filtered", "inhibited", "done", "upstream runs", "process of upstream")
OTHERS = ("engine", "paused", "adapter", "quota", "concurrency", "rate")
SETS_MAX = 30_000
blockers = st.sets(st.sampled_from(DATA + OTHERS), max_size=6)


def definition() -> PipelineDef:
    """`t` wants a, b and what a filter lets through of c; `up` inhibits while it runs; `other` uses the same quota."""
    ready = All(
        of=(
            *(leaf(name) for name in ("a", "b", "chosen")),
            *(Not(of=leaf(name)) for name in ("stop", "done-t", "live(up)", "pids")),
        )
    )
    tasks = (
        task("t", "a", ready=ready, quota="q", resources=CPU, concurrency=1),
        task("up", "ua", pids="pids"),
        task("other", "oa", quota="q", resources=CPU),
    )
    chosen = repository("chosen", "derived", derived=FilteredDef(base=leaf("c")))
    stored = tuple(repository(name) for name in ("a", "b", "c", "stop", "pids"))
    quota = QuotaDef(name="q", limits={"cpu": 9 * SECOND}, launches=9, window=60 * SECOND)
    return pipeline(*tasks, quotas=(quota,), repositories=(*stored, chosen))


def answer(desk: Desk, **values: bool) -> None:
    """Let the filter answer for these jobs."""
    found = desk.reactor.evaluations.due(desk.now, 9)
    desk.reactor.evaluations.evaluated([(one, values[one.job], None) for one in found], desk.now)
    desk.take()


def blocked(kinds: set[str]) -> Desk:
    """A desk on which these hold the job x back."""
    desk = Desk(definition())
    desk.put("oa", "m")
    if "upstream runs" in kinds or "process of upstream" in kinds:
        desk.put("ua", "x")
    if "concurrency" in kinds:
        desk.put("c", "n")
        answer(desk, n=True)
        desk.put("a", "n")
        desk.put("b", "n")
    desk.decide()
    if "process of upstream" in kinds:
        (run,) = [spec.run for spec in desk.specs() if spec.task == "up"]
        desk.started(run)
    quota = desk.state.quotas["q"]
    used = quota.used["cpu"]
    limits = {"cpu": used if "quota" in kinds else used + SECOND}
    launched = len(quota.recent) if "rate" in kinds else 9
    desk.ask(e.QuotaChanged(at=desk.now, quota="q", limits=limits, launches=launched))
    for name, kind in (("a", "lacks a"), ("b", "lacks b")):
        if kind not in kinds:
            desk.put(name, "x")
    desk.put("c", "x")
    answer(desk, x="filtered" not in kinds)
    for name, kind in (("stop", "inhibited"), ("done-t", "done")):
        if kind in kinds:
            desk.put(name, "x")
    if "paused" in kinds:
        desk.ask(e.TaskPaused(at=desk.now, task="t"))
    return desk


@given(blockers)
def test_all_blockers_are_told_and_the_smallest_set_lifts_them(kinds: set[str]) -> None:
    """Every kind shows as a condition that does not hold or as a hold, and nothing else does."""
    desk = blocked(kinds)
    away = frozenset({"t"} if "adapter" in kinds else ())
    surroundings = {"engine_alive": "engine" not in kinds, "unavailable": away}
    found = explain(desk.state, "t", "x", desk.now, **surroundings)  # type: ignore[arg-type]
    assert {hold.what for hold in found.held_by} == kinds & set(OTHERS)
    lacking = {condition.repository for condition in found.conditions if not condition.satisfied}
    assert lacking == {
        name
        for name, reasons in {
            "a": {"lacks a"},
            "b": {"lacks b"},
            "chosen": {"filtered"},
            "stop": {"inhibited"},
            "done-t": {"done"},
            "live(up)": {"upstream runs", "process of upstream"},
            "pids": {"process of upstream"},
        }.items()
        if reasons & kinds
    }
    assert len(found.changes) <= len(kinds)
    copy = CopiedState(desk.state, desk.now, away, engine_alive="engine" not in kinds)
    assert launches(copy, found.changes, "t", "x"), found
    counts: Counter[str] = Counter()
    smaller = smaller_set(desk.state, found, desk.now, most=SETS_MAX, counts=counts, **surroundings)  # type: ignore[arg-type]
    assert smaller is None, found
    assert not counts["too many sets"]
