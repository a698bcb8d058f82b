"""The smallest set of changes, by hand: competitors, runs that keep entries, occasions that never began, one wait for all."""

from __future__ import annotations

from typing import Any

import pytest

from datatask.engine.core.checkpoints import dump
from datatask.engine.core.decide import decide
from datatask.engine.explain.explanations import Explanation, lines
from datatask.engine.explain.what_if import WhatIf
from datatask.engine.explain.why import explain, explain_all
from datatask.schema import events as e
from datatask.schema.definition import All, FilteredDef, Not, QuotaDef, RetryDef, TranslatedDef
from datatask.schema.definition import Any as AnyOf
from datatask.schema.units import SECOND
from tests.unit.core_kit import Desk, leaf, pipeline, repository, task

CPU = {"cpu": SECOND}


def why(desk: Desk, name: str, job: str, **more: Any) -> Explanation:
    """Explain with an engine alive; what is proposed is tried, too."""
    found = explain(desk.state, name, job, desk.now, engine_alive=True, **more)
    what_if = WhatIf(desk.state, desk.now, unavailable=more.get("unavailable", frozenset()))
    what_if.reset(*found.changes)
    assert what_if.launches(name, what_if.state.intern(job)) or not found.changes
    return found


def ops(found: Explanation) -> list[str]:
    """Return what is proposed."""
    return [change.op for change in found.changes]


def shared(limit: int) -> Desk:
    """Two tasks of one quota that the same value makes ready; t0 comes first."""
    quota = QuotaDef(name="q", limits={"cpu": limit * SECOND})
    first, second = (task(name, "a", quota="q", resources=CPU) for name in ("t0", "t1"))
    return Desk(pipeline(first, second, quotas=(quota,)))


def test_a_put_that_lets_another_task_take_the_quota_is_foreseen() -> None:
    """With room for one, the value alone would only start the other task."""
    found = why(shared(1), "t1", "x")
    assert ops(found) == ["put", "raise_priority"]
    assert ops(why(shared(2), "t1", "x")) == ["put"]
    assert ops(why(shared(1), "t0", "x")) == ["put"]


def test_a_limit_is_raised_for_the_job_alone_where_that_will_do() -> None:
    """With room for the other task, too, its run of the job would begin and take the outcome away that the job waits for."""
    quota = QuotaDef(name="q", limits={"cpu": 0})
    before = task("before", "a", quota="q", resources={"cpu": 3 * SECOND})
    after = task("after", "succeeded(before)", quota="q", resources={"cpu": 2 * SECOND})
    beside = task("beside", "b", quota="q", resources={"cpu": 2 * SECOND})
    desk = Desk(pipeline(before, after, beside, quotas=(quota,)))
    desk.put("a", "x")
    for name, proposed in (("after", ["wait_for", "raise_quota"]), ("beside", ["put", "raise_quota"])):
        found = why(desk, name, "x")
        assert ops(found) == proposed
        assert found.changes[-1].limits == {"cpu": 2 * SECOND}


def test_the_end_of_a_run_that_frees_a_slot_and_a_quota_is_one_change() -> None:
    """Raising two limits would be two."""
    quota = QuotaDef(name="q", limits=CPU)
    desk = Desk(
        pipeline(
            task("t", "a", quota="q", resources=CPU, concurrency=1, retry=RetryDef(attempts=1)),
            quotas=(quota,),
        )
    )
    desk.put("a", "x")
    desk.decide()
    desk.put("a", "y")
    found = why(desk, "t", "y")
    assert [hold.what for hold in found.held_by] == ["concurrency", "quota"]
    assert [(change.op, change.job) for change in found.changes] == [("end_run", "x")]


def test_an_entry_of_a_running_process_is_the_runs_own() -> None:
    """Deleting it would be no honest advice: the engine keeps it as long as the process lives."""
    runs = task("runs", "a", pids="pids")
    waits = task("waits", "a", ready=All(of=(leaf("a"), Not(of=leaf("pids")))), done=None)
    desk = Desk(pipeline(runs, waits, repositories=(repository("pids"),)))
    desk.ask(e.TaskPaused(at=desk.now, task="waits"))
    desk.put("a", "x")
    desk.decide()
    run = desk.specs()[0].run
    desk.started(run)
    found = why(desk, "waits", "x")
    assert [(change.op, change.run) for change in found.changes] == [("resume", None), ("end_run", run)]
    own = why(desk, "runs", "x")
    assert ops(own) == ["end_run"]


def test_a_condition_made_only_of_not_has_not_begun_for_a_job_seen_first() -> None:
    """It holds from the start, nothing makes it begin: told, and a retry is what helps."""
    only_not = task("t", "a", ready=Not(of=leaf("stop")), done=None)
    desk = Desk(pipeline(only_not, repositories=(repository("stop"),)))
    for job in ("x", "nobody"):
        if job == "x":
            desk.put("a", "x")
        found = why(desk, "t", job)
        assert (found.ready, [hold.what for hold in found.held_by]) == (True, ["occasion"])
        assert ops(found) == ["retry"]


def test_a_job_never_seen_is_told_as_one_that_is_nowhere() -> None:
    """The same holds, conditions and changes as for a job that the log knows only by name."""
    quota = QuotaDef(name="q", limits={})
    filtered = repository("f", "derived", derived=FilteredDef(base=leaf("a")))
    desk = Desk(
        pipeline(
            task("t", "f", quota="q", resources=CPU),
            task("u", "b"),
            quotas=(quota,),
            repositories=(repository("a"), filtered),
        )
    )
    desk.put("b", "known")
    unseen, seen = why(desk, "t", "stranger"), why(desk, "t", "known")
    assert unseen.tree == seen.tree
    assert ops(unseen) == ops(seen) == ["put", "set_filter", "raise_quota"]
    assert [hold.what for hold in unseen.held_by] == ["infeasible"]
    assert "stranger" not in desk.state.job_index


def test_who_uses_the_quota_and_since_when() -> None:
    """The open runs with what they hold, as values."""
    desk = shared(1)
    desk.put("a", "x")
    desk.decide()
    (hold,) = why(desk, "t1", "x").held_by
    assert (hold.what, hold.quota, hold.more) == ("quota", "q", 0)
    assert (hold.amounts["cpu"].needed, hold.amounts["cpu"].used, hold.amounts["cpu"].limit) == (1, 1, 1)
    (user,) = hold.runs
    assert (user.run, user.task, user.job) == (desk.specs()[0].run, "t0", "x")
    assert (user.amounts, user.since) == ({"cpu": 1}, "1970-01-01T00:16:40Z")


def test_what_is_kept_for_a_starving_job_is_told() -> None:
    """There would be room, but for the one that has waited for too long."""
    quota = QuotaDef(name="q", limits={"cpu": 4 * SECOND}, starvation_after=10 * SECOND)
    large = task("large", "a", quota="q", resources={"cpu": 4 * SECOND})
    little = task("little", "b", quota="q", resources=CPU)
    desk = Desk(pipeline(large, little, quotas=(quota,)))
    desk.put("b", "early")
    desk.decide()
    desk.put("a", "big")
    since = desk.state.position
    desk.now += 11 * SECOND
    desk.put("b", "late")
    found = why(desk, "little", "late")
    (hold,) = found.held_by
    assert (hold.what, hold.since) == ("reserved", since)
    assert "for large big, which has waited longest" in hold.explain
    assert len(found.changes) == 1
    groups = explain_all(desk.state, "little", desk.now, engine_alive=True)
    assert [(group.what, group.count) for group in groups] == [("reserved", 1)]


def test_a_wait_is_long_enough_for_backoff_and_window_together() -> None:
    """One wait, verified by deciding then."""
    quota = QuotaDef(name="q", limits={}, launches=1, window=60 * SECOND)
    retry = RetryDef(attempts=2, first=30 * SECOND, jitter=0.0)
    desk = Desk(pipeline(task("t", "a", quota="q", retry=retry), quotas=(quota,)))
    desk.put("a", "x")
    desk.decide()
    desk.ended(desk.specs()[0].run, "failed")
    found = why(desk, "t", "x")
    assert [hold.until for hold in found.held_by] == ["1970-01-01T00:17:10Z", "1970-01-01T00:17:40Z"]
    (change,) = found.changes
    assert change.at is not None
    assert decide(desk.state, change.at).decisions
    assert not decide(desk.state, change.at - 1).decisions


def test_a_translation_that_is_missing_is_told_and_proposed() -> None:
    """It stands for nothing: user code is to name a job."""
    rule = TranslatedDef(base=leaf("b"), translator=leaf("a"))
    translated = repository("x", "derived", derived=rule)
    desk = Desk(pipeline(task("t", "x"), repositories=(repository("a"), repository("b"), translated)))
    desk.put("a", "k")
    waiting = why(desk, "t", "k")
    assert waiting.tree.of[0].answer == "pending"
    (one,) = desk.reactor.evaluations.due(desk.now, 1)
    desk.reactor.evaluations.evaluated([(one, None, None)], desk.now)
    found = why(desk, "t", "k")
    assert (found.tree.of[0].answer, ops(found)) == ("none", ["set_translation"])
    assert "its translation is missing" in found.conditions[0].explain
    groups = explain_all(desk.state, "t", desk.now, engine_alive=True)
    assert [(group.what, group.sample) for group in groups] == [("translation", ["k"])]


def test_an_answer_that_another_change_undoes_is_proposed_once_after_it() -> None:
    """What has to be put takes the job out of the filter, and with that its translation away: that is asked for again."""
    both = All(of=(leaf("r3"), leaf("r2")))
    filtered = repository("f", "derived", derived=FilteredDef(base=All(of=(leaf("r0"), Not(of=both)))))
    rule = TranslatedDef(base=Not(of=leaf("b")), translator=All(of=(leaf("r3"), leaf("f"))))
    stored = [repository(name) for name in ("r0", "r2", "r3", "b")]
    translated = repository("x", "derived", derived=rule)
    desk = Desk(pipeline(task("t", "x"), repositories=(*stored, filtered, translated)))
    desk.put("r0", "k")
    desk.put("r2", "k")
    (one,) = desk.reactor.evaluations.due(desk.now, 1)
    desk.reactor.evaluations.evaluated([(one, True, None)], desk.now)
    assert ops(why(desk, "t", "k")) == ["put", "delete", "set_filter", "set_translation"]


def test_a_condition_on_its_own_outcome_is_unreachable_and_said_to_be() -> None:
    """A new occasion clears what it waits for: no set of changes helps, and that is told."""
    desk = Desk(pipeline(task("t", "a", ready=All(of=(leaf("a"), leaf("succeeded(t)"))))))
    desk.put("a", "x")
    found = why(desk, "t", "x")
    assert found.changes == []
    assert found.held_by[-1].what == "unreachable"
    assert "the outcome of its own runs" in found.held_by[-1].explain


def test_the_tree_is_told_in_words_down_to_its_leaves() -> None:
    """Parts of a custom condition, one a line, each with where it stands."""
    ready = All(of=(leaf("a"), AnyOf(of=(All(of=(leaf("b"), leaf("c"))), Not(of=leaf("d"))))))
    stored = tuple(repository(name) for name in "abcd")
    desk = Desk(pipeline(task("t", "a", ready=ready), repositories=stored))
    desk.put("a", "x")
    desk.put("d", "x")
    at = desk.state.position
    assert lines(why(desk, "t", "x"))[2:] == [
        f"  NOT ready: needs present in ((b and c) or not d), is absent, since position {at}",
        "      NOT all of these",
        "        NOT in b",
        "        NOT in c",
        f"      NOT not in d, since position {at}",
        "  to let it run: delete x from d",
    ]


def test_a_double_negation_is_told_as_what_it_says() -> None:
    """Wherever it stands in the condition."""
    inner = AnyOf(of=(Not(of=Not(of=Not(of=leaf("b")))), leaf("c")))
    stored = tuple(repository(name) for name in "abc")
    desk = Desk(pipeline(task("t", "a", ready=All(of=(leaf("a"), inner))), repositories=stored))
    desk.put("b", "x")
    assert lines(why(desk, "t", "x"))[3:5] == [
        f"      NOT not in b, since position {desk.state.position}",
        "      NOT in c",
    ]


@pytest.mark.parametrize("count", [3, 1500])
def test_groups_tell_who_is_next_and_who_comes_after(count: int) -> None:
    """One slot: the first is launched, the others come after it, whatever their number."""
    desk = Desk(pipeline(task("t", "a", concurrency=1)))
    desk.put("a", *(f"j{index:04}" for index in range(count)))
    groups = explain_all(desk.state, "t", desk.now, engine_alive=True)
    assert [(group.what, group.count) for group in groups] == [("priority", count - 1), ("next", 1)]
    assert groups[1].sample == ["j0000"]
    desk.ask(e.CancelRequested(at=desk.now, task="t", job="j0001"))
    told = {group.what: group for group in explain_all(desk.state, "t", desk.now, engine_alive=True)}
    assert told["cancelled"].sample == ["j0001"]


def test_asking_changes_nothing() -> None:
    """Whatever is tried is tried on an overlay of the state."""
    desk = shared(1)
    desk.put("a", "x", "y")
    desk.decide()
    before = dump(desk.state)
    for name in ("t0", "t1"):
        for job in ("x", "y", "z"):
            why(desk, name, job)
    assert dump(desk.state) == before
