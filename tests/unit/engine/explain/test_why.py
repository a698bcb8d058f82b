"""`why` tells all that holds a job back at once, cites positions, and proposes the least that would let it run."""

from __future__ import annotations

from typing import Any

import pytest

from datatask.engine.explain.explanations import Explanation
from datatask.engine.explain.why import explain, explain_all
from datatask.schema import events as e
from datatask.schema.definition import All, FilteredDef, In, Not, QuotaDef, RetryDef, Selection, job_leaf
from datatask.schema.definition import Any as AnyOf
from datatask.schema.errors import UnknownNameError
from datatask.schema.units import SECOND
from tests.unit.core_kit import Desk, leaf, pipeline, repository, task


def why(desk: Desk, name: str, job: str, **more: Any) -> Explanation:
    """Explain with an engine alive."""
    more.setdefault("engine_alive", True)
    return explain(desk.state, name, job, desk.now, **more)


def holds(found: Explanation) -> list[str]:
    """Return what holds the job."""
    return [hold.what for hold in found.held_by]


def ops(found: Explanation) -> list[str]:
    """Return what is proposed."""
    return [change.op for change in found.changes]


def test_json_has_the_documented_shape() -> None:
    """Field by field as the command line promises."""
    desk = Desk(pipeline(task("t", "a")))
    desk.put("a", "x")
    desk.put("done-t", "x")
    at = desk.state.position
    assert why(desk, "t", "x").to_json() == {
        "task": "t",
        "job": "x",
        "ready": False,
        "at_position": at,
        "conditions": [
            {
                "link": "input",
                "repository": "a",
                "needs": "present",
                "is": "present",
                "since": at - 1,
                "satisfied": True,
                "explain": f"x is in a since position {at - 1}",
            },
            {
                "link": "done",
                "repository": "done-t",
                "needs": "absent",
                "is": "present",
                "since": at,
                "satisfied": False,
                "explain": f"x is in done-t since position {at}",
            },
        ],
        "held_by": [],
        "changes": [{"op": "delete", "repository": "done-t", "job": "x"}],
        "launching": False,
        "tree": {
            "op": "and",
            "holds": False,
            "of": [
                {"op": "in", "holds": True, "repository": "a", "since": at - 1},
                {
                    "op": "not",
                    "holds": False,
                    "of": [{"op": "in", "holds": True, "repository": "done-t", "since": at}],
                },
            ],
        },
        "events": [],
    }


def test_nothing_holds_what_the_next_round_launches() -> None:
    """Ready, nothing in the way, nothing to change."""
    desk = Desk(pipeline(task("t", "a")))
    desk.put("a", "x")
    found = why(desk, "t", "x")
    assert (found.ready, found.held_by, found.changes) == (True, [], [])


def test_everything_is_told_at_once() -> None:
    """Data, pause, quota, engine: each with its own change, not one after the other."""
    quota = QuotaDef(name="q", limits={"cpu": 2 * SECOND})
    desk = Desk(pipeline(task("t", "a", quota="q", resources={"cpu": 2 * SECOND}), quotas=(quota,)))
    desk.put("a", "x")
    (decided,) = desk.decide()
    run = desk.specs()[0].run
    desk.ask(e.TaskPaused(at=desk.now, task="t"))
    paused = desk.state.position
    desk.put("a", "y")
    desk.put("done-t", "y")
    found = why(desk, "t", "y", engine_alive=False)
    assert holds(found) == ["engine", "paused", "quota"]
    assert ops(found) == ["start_engine", "resume", "delete", "raise_quota"]
    assert f"(position {paused})" in found.held_by[1].explain
    assert f"run {run} (t {decided.job}: 2 cores)" in found.held_by[2].explain
    assert found.changes[3].limits == {"cpu": 4 * SECOND}


def test_what_the_run_under_way_leaves_out_is_told() -> None:
    """By task, by job and by limit; without an engine any run may come."""
    desk = Desk(pipeline(task("t", "a"), task("u", "b")))
    desk.put("a", "x", "y")
    named = In(leaf=job_leaf("x"))
    for selection, word in (
        (Selection(tasks=("u",)), "only u"),
        (Selection(jobs=named), "only jobs in job(x)"),
        (Selection(left=0), "limit"),
    ):
        desk.decide(selection=selection)
        found = why(desk, "t", "y")
        assert (holds(found)[0], ops(found)[0]) == ("unselected", "run")
        assert word in found.held_by[0].explain
        groups = explain_all(desk.state, "t", desk.now, engine_alive=True)
        assert ("unselected", True) in [(group.what, "y" in group.sample) for group in groups]
        assert "unselected" not in holds(why(desk, "t", "y", engine_alive=False))


def test_since_is_the_deletion_of_what_is_absent() -> None:
    """What has left is told with when; what never was, too."""
    desk = Desk(pipeline(task("t", "a"), task("u", "b")))
    desk.put("a", "x")
    desk.delete("a", "x")
    gone = desk.state.position
    (condition, _) = why(desk, "t", "x").conditions
    assert (condition.is_, condition.since) == ("absent", gone)
    assert why(desk, "u", "x").conditions[0].explain == "x is not in b and has never been"


def test_running_job_is_live() -> None:
    """The open run is named; ending it would open the job anew."""
    desk = Desk(pipeline(task("t", "a")))
    desk.put("a", "x")
    desk.decide()
    run = desk.specs()[0].run
    desk.started(run)
    found = why(desk, "t", "x")
    assert (holds(found), found.ready) == (["live"], False)
    assert found.held_by[0].explain == f"run {run} (attempt 1, position {run}) is running on here"
    assert [(change.op, change.run) for change in found.changes] == [("end_run", run)]


def test_waiting_for_a_retry_says_until_when() -> None:
    """Between two attempts time is the only thing that is missing."""
    desk = Desk(pipeline(task("t", "a", retry=RetryDef(attempts=2, first=30 * SECOND, jitter=0.0))))
    desk.put("a", "x")
    desk.decide()
    desk.ended(desk.specs()[0].run, "failed")
    found = why(desk, "t", "x")
    assert holds(found) == ["retry"]
    assert found.to_json()["changes"] == [{"op": "wait_until", "until": "1970-01-01T00:17:10Z"}]
    desk.now += 30 * SECOND
    assert why(desk, "t", "x").held_by == []


def test_one_wait_serves_retry_and_rate() -> None:
    """What time heals is healed by one wait, the longer one."""
    quota = QuotaDef(name="q", limits={}, launches=1, window=60 * SECOND)
    retry = RetryDef(attempts=2, first=30 * SECOND, jitter=0.0)
    desk = Desk(pipeline(task("t", "a", quota="q", retry=retry), quotas=(quota,)))
    desk.put("a", "x")
    desk.decide()
    desk.ended(desk.specs()[0].run, "failed")
    found = why(desk, "t", "x")
    assert holds(found) == ["retry", "rate"]
    assert [(change.op, change.until) for change in found.changes] == [("wait_until", "1970-01-01T00:17:40Z")]


@pytest.mark.parametrize("cancelled", [True, False])
def test_no_new_occasion_is_explained(cancelled: bool) -> None:
    """Conditions that have held ever since are the same occasion: a person may ask for another one."""
    desk = Desk(pipeline(task("t", "a", done=None)))
    desk.put("a", "x")
    if cancelled:
        desk.ask(e.CancelRequested(at=desk.now, task="t", job="x"))
    else:
        desk.decide()
        desk.ended(desk.specs()[0].run)
    found = why(desk, "t", "x")
    assert (holds(found), ops(found)) == (["cancelled" if cancelled else "claimed"], ["retry"])
    assert ("cancelled while it waited" in found.held_by[0].explain) is cancelled


def test_infeasible_names_both_amounts() -> None:
    """Asked for more than the whole quota grants: told, with what would do."""
    desk = Desk(
        pipeline(
            task("t", "a", quota="q", resources={"cpu": 8_000_000_000}),
            quotas=(QuotaDef(name="q", limits={"cpu": 4_000_000_000}),),
        )
    )
    desk.put("a", "x")
    found = why(desk, "t", "x")
    assert [hold.explain for hold in found.held_by] == ["it asks for 8 cores, q grants 4 in all"]
    assert found.changes[0].limits == {"cpu": 8_000_000_000}


def test_concurrency_counts_who_comes_first() -> None:
    """Raising the task's own limit must make room for those ahead, too."""
    desk = Desk(pipeline(task("t", "a", concurrency=1)))
    desk.put("a", "x", "y", "z")
    desk.decide()
    found = why(desk, "t", "z")
    assert holds(found) == ["concurrency"]
    assert (ops(found), found.changes[0].concurrency) == (["raise_concurrency"], 3)


def test_priority_is_told_where_others_take_what_is_free() -> None:
    """There is room for one, and this is not the first."""
    desk = Desk(pipeline(task("t", "a", concurrency=1)))
    desk.put("a", "x", "y")
    found = why(desk, "t", "y")
    assert (holds(found), ops(found)) == (["priority"], ["raise_priority"])
    assert found.held_by[0].explain == "1 waiting jobs come first, 1 of them in t"


def test_unknown_store_adapter_and_disabled_task() -> None:
    """What surrounds the job is told like the rest."""
    desk = Desk(pipeline(task("t", "f", disabled=True), media={"f": "foreign"}))
    desk.sync("f", ("x", "v"))
    again = desk.crashed()
    found = why(again, "t", "x", unavailable=frozenset({"t"}))
    assert holds(found) == ["disabled", "adapter", "observing"]
    assert ops(found) == ["enable", "recover", "observe"]


def test_pending_evaluation_is_told_with_its_error() -> None:
    """User code that has not answered, or failed, holds the job by name."""
    desk = Desk(pipeline(task("t", "a", priority=True)))
    desk.put("a", "x")
    since = desk.state.position
    assert (
        why(desk, "t", "x").held_by[0].explain
        == f"the priority of t is to be evaluated (since position {since})"
    )
    (one,) = desk.reactor.evaluations.due(desk.now, 1)
    desk.reactor.evaluations.evaluated([(one, None, "ZeroDivisionError")], desk.now)
    assert "ZeroDivisionError; again at 1970-01-01T00:16:45Z" in why(desk, "t", "x").held_by[0].explain


def test_filter_that_said_no_is_a_change_of_its_own() -> None:
    """The base has the job, its filter does not want it."""
    filtered = repository("f", "derived", derived=FilteredDef(base=leaf("a")))
    desk = Desk(pipeline(task("t", "f"), repositories=(repository("a"), filtered)))
    desk.put("a", "x")
    (one,) = desk.reactor.evaluations.due(desk.now, 1)
    desk.reactor.evaluations.evaluated([(one, False, None)], desk.now)
    found = why(desk, "t", "x").to_json()
    assert found["changes"] == [{"op": "set_filter", "repository": "f", "job": "x", "outcome": "true"}]


def test_custom_condition_is_told_in_words_and_by_its_least_change() -> None:
    """Parts of a custom `ready=` are conditions of their own; of the alternatives the shorter one is proposed."""
    ready = All(of=(leaf("a"), AnyOf(of=(All(of=(leaf("b"), leaf("c"))), Not(of=leaf("d"))))))
    stored = tuple(repository(name) for name in "abcd")
    desk = Desk(pipeline(task("t", "a", ready=ready), repositories=stored))
    desk.put("a", "x")
    desk.put("d", "x")
    found = why(desk, "t", "x")
    assert [condition.link for condition in found.conditions] == ["input", "ready"]
    assert found.conditions[1].repository == "((b and c) or not d)"
    assert found.conditions[1].explain.endswith("; b: absent, c: absent, d: present")
    assert [(change.op, change.repository) for change in found.changes] == [("delete", "d")]


def test_upstream_success_is_waited_for() -> None:
    """A view of another task is changed by that task only."""
    good = task("good", "succeeded(t)", ready=All(of=(leaf("succeeded(t)"), Not(of=leaf("done-good")))))
    desk = Desk(pipeline(task("t", "a"), good))
    desk.put("a", "x")
    desk.decide()
    desk.ended(desk.specs()[0].run, "failed")
    found = why(desk, "good", "x")
    assert found.conditions[0].since == desk.specs()[0].run
    assert [(change.op, change.task, change.outcome) for change in found.changes] == [
        ("wait_for", "t", "succeeded")
    ]


def test_job_that_was_never_seen() -> None:
    """It is nowhere; what would make it ready is proposed all the same."""
    desk = Desk(pipeline(task("t", "a")))
    found = why(desk, "t", "nobody", engine_alive=False)
    assert [condition.satisfied for condition in found.conditions] == [False, True]
    assert ops(found) == ["start_engine", "put"]


def test_unknown_task_is_refused_with_the_names_there_are() -> None:
    """A misspelt task is the caller's mistake."""
    desk = Desk(pipeline(task("t", "a")))
    with pytest.raises(UnknownNameError, match="use one of: t"):
        why(desk, "T", "x")
    with pytest.raises(UnknownNameError, match="use one of: t"):
        explain_all(desk.state, "T", desk.now, engine_alive=True)


def test_groups_tell_how_many_wait_for_what() -> None:
    """All waiting jobs of a task, by reason, with a few names; what is done does not wait."""
    ready = All(of=(leaf("a"), leaf("b"), Not(of=leaf("stop")), Not(of=leaf("done-t"))))
    stored = tuple(repository(name) for name in ("a", "b", "stop"))
    one = task("t", "a", ready=ready, concurrency=1, retry=RetryDef(attempts=2, first=100 * SECOND))
    desk = Desk(pipeline(one, repositories=stored))
    desk.put("a", *(f"j{index}" for index in range(20)))
    desk.put("b", *(f"j{index}" for index in range(12)))
    desk.put("stop", "j2", "j3")
    desk.put("done-t", "j0", "j1")
    desk.decide()
    groups = explain_all(desk.state, "t", desk.now, engine_alive=True)
    assert [(group.what, group.count) for group in groups] == [
        ("upstream", 8),
        ("concurrency", 7),
        ("inhibitor", 2),
    ]
    assert groups[0].explain == "not yet in b"
    assert groups[0].sample == ["j12", "j13", "j14", "j15", "j16"]
    desk.ended(desk.specs()[0].run, "failed")
    groups = explain_all(desk.state, "t", desk.now, engine_alive=True)
    assert ("retry", 1) in [(group.what, group.count) for group in groups]
