"""`decide`: order, limits, windows, reservations; each test's claim is one rule of the design."""

from __future__ import annotations

import msgspec
import pytest

from datatask.engine.audit.consistency import rederive
from datatask.engine.core.decide import constraint_on, decide
from datatask.engine.core.quotas import Constraint
from datatask.schema import events as e
from datatask.schema.definition import All, In, Not, QuotaDef, RetryDef
from datatask.schema.units import SECOND
from tests.unit.core_kit import Desk, leaf, pipeline, task


def quota(**limits: int) -> QuotaDef:
    """The quota `q`."""
    return QuotaDef(name="q", limits=limits)


def test_order_is_that_of_becoming_ready_over_all_tasks() -> None:
    """Without priorities the job that has been ready longest goes first, whichever task it is of."""
    desk = Desk(pipeline(task("t", "a"), task("u", "b")))
    desk.put("b", "x")
    desk.put("a", "y", "z")
    desk.put("b", "w")
    assert desk.launched() == ["u:x", "t:y", "t:z", "u:w"]


def test_fan_out_of_one_job_is_ordered_by_task() -> None:
    """One put makes a job ready for several tasks at one position: the pipeline's order of tasks decides."""
    desk = Desk(pipeline(task("u", "a"), task("t", "a"), task("s", "a")))
    desk.put("a", "x")
    assert desk.launched() == ["u:x", "t:x", "s:x"]


def test_larger_priority_goes_first_whenever_it_was_ready() -> None:
    """A priority is known once per episode, and orders across tasks."""
    desk = Desk(pipeline(task("t", "a", priority=True), task("u", "a")))
    desk.put("a", "x", "y")
    found = desk.reactor.evaluations.due(desk.now, 10)
    desk.reactor.evaluations.evaluated(
        [(one, {"x": -1.0, "y": 5.0}[one.job], None) for one in found], desk.now
    )
    desk.take()
    decided = desk.decide()
    assert [f"{one.task}:{one.job}" for one in decided] == ["t:y", "u:x", "u:y", "t:x"]
    assert decided[0].priority == 5.0


def test_job_waits_until_its_priority_is_known() -> None:
    """No launch before user code has said the priority; an error holds the job."""
    desk = Desk(pipeline(task("t", "a", priority=True)))
    desk.put("a", "x")
    assert desk.launched() == []
    (one,) = desk.reactor.evaluations.due(desk.now, 10)
    desk.reactor.evaluations.evaluated([(one, None, "boom")], desk.now)
    assert desk.launched() == []
    assert desk.reactor.evaluations.retry_at() == desk.now + 5 * SECOND
    assert desk.reactor.evaluations.due(desk.now, 10) == []
    desk.now += 5 * SECOND
    (again,) = desk.reactor.evaluations.due(desk.now, 10)
    desk.reactor.evaluations.evaluated([(again, 1.0, None)], desk.now)
    assert desk.launched() == ["t:x"]


def test_what_does_not_fit_is_passed_over() -> None:
    """Work-conserving: a big job at the head does not hold a small one of another task."""
    big = task("big", "a", quota="q", resources={"cpu": 3})
    small = task("small", "b", quota="q", resources={"cpu": 1})
    desk = Desk(pipeline(big, small, quotas=(quota(cpu=4),)))
    desk.put("b", "s0", "s1")
    assert desk.launched() == ["small:s0", "small:s1"]
    desk.put("a", "x")
    desk.put("b", "s2")
    assert desk.launched() == ["small:s2"]
    assert desk.state.tasks["big"].constraint == "quota: q.cpu"


def test_starved_job_reserves_only_what_it_lacks() -> None:
    """After `starvation_after` the oldest passed over keeps others off the dimension that it lacks."""
    big = task("big", "a", quota="q", resources={"cpu": 3, "gpu": 1})
    cpu = task("cpu", "b", quota="q", resources={"cpu": 1})
    gpu = task("gpu", "c", quota="q", resources={"gpu": 1})
    desk = Desk(pipeline(big, cpu, gpu, quotas=(quota(cpu=4, gpu=2),)))
    desk.put("b", "b0", "b1")
    assert desk.launched() == ["cpu:b0", "cpu:b1"]
    desk.put("a", "x")
    desk.now += 61 * SECOND
    desk.put("b", "b2")
    desk.put("c", "c0")
    assert desk.launched() == ["gpu:c0"]
    desk.ended(desk.specs()[0].run)
    desk.ended(desk.specs()[1].run)
    assert desk.launched() == ["big:x", "cpu:b2"]


def test_infeasible_never_reserves() -> None:
    """A request larger than the limit is held and told, and keeps nobody off."""
    giant = task("giant", "a", quota="q", resources={"cpu": 9})
    small = task("small", "b", quota="q", resources={"cpu": 1})
    desk = Desk(pipeline(giant, small, quotas=(quota(cpu=4),)))
    desk.put("a", "x")
    desk.now += 1000 * SECOND
    desk.put("b", "s0", "s1", "s2", "s3")
    assert desk.launched() == [f"small:s{index}" for index in range(4)]
    assert desk.state.tasks["giant"].constraint == "infeasible: q.cpu"


def test_launch_window_opens_exactly_when_the_oldest_leaves_it() -> None:
    """With two launches a minute the third goes at the nanosecond at which the first is a minute old."""
    limited = QuotaDef(name="q", limits={}, launches=2, window=60 * SECOND)
    desk = Desk(pipeline(task("t", "a", quota="q"), quotas=(limited,)))
    desk.put("a", "x", "y", "z")
    begin = desk.now
    assert desk.launched() == ["t:x", "t:y"]
    desk.now = begin + 60 * SECOND - 1
    found = decide(desk.state, desk.now)
    assert (found.decisions, found.wake_at) == ([], begin + 60 * SECOND)
    assert found.recorded == {"t": "rate: q"}
    desk.now = begin + 60 * SECOND
    assert desk.launched() == ["t:z"]


def test_raised_window_counts_what_was_launched_before() -> None:
    """Raising the limit allows the difference, not the new limit anew."""
    limited = QuotaDef(name="q", limits={}, launches=2, window=60 * SECOND)
    desk = Desk(pipeline(task("t", "a", quota="q"), quotas=(limited,)))
    desk.put("a", *(f"j{index}" for index in range(9)))
    assert len(desk.decide()) == 2
    for launches, more in ((5, 3), (1, 0), (6, 1)):
        desk.ask(e.QuotaChanged(at=desk.now, quota="q", limits={}, launches=launches))
        assert len(desk.decide()) == more


def test_no_launches_at_all_is_infeasible() -> None:
    """A window of zero launches never opens, and asks for no wake-up."""
    closed = QuotaDef(name="q", limits={}, launches=0)
    desk = Desk(pipeline(task("t", "a", quota="q"), quotas=(closed,)))
    desk.put("a", "x")
    found = decide(desk.state, desk.now)
    assert (found.decisions, found.wake_at, found.recorded) == ([], None, {"t": "infeasible: q.launches"})


def test_concurrency_counts_open_runs_and_this_round() -> None:
    """A task's own limit holds over rounds and within one."""
    desk = Desk(pipeline(task("t", "a", concurrency=2)))
    desk.put("a", "x", "y", "z")
    assert desk.launched() == ["t:x", "t:y"]
    desk.ended(desk.specs()[0].run)
    assert desk.launched() == ["t:z"]


def test_bound_ends_a_round_and_says_so() -> None:
    """A round decides at most `bound` launches; the rest is the next round's."""
    desk = Desk(pipeline(task("t", "a")))
    desk.put("a", *(f"j{index}" for index in range(5)))
    found = decide(desk.state, desk.now, bound=3)
    assert [one.job for one in found.decisions] == ["j0", "j1", "j2"]
    assert found.recorded == {"t": "bound"}


def test_paused_disabled_unavailable_and_unknown_launch_nothing() -> None:
    """Each closes a task, and is named."""
    tasks = (task("p", "a"), task("d", "a", disabled=True), task("u", "a"), task("o", "f"))
    desk = Desk(pipeline(*tasks, media={"f": "foreign"}))
    desk.put("a", "x")
    desk.ask(e.TaskPaused(at=desk.now, task="p"))
    found = decide(desk.state, desk.now, unavailable={"u"})
    assert found.decisions == []
    assert found.recorded == {"p": "paused", "d": "disabled", "u": "adapter"}
    desk.sync("f", ("x", "v"))
    assert desk.launched() == ["u:x", "o:x"]


def test_unlisted_store_holds_the_task_that_reads_it() -> None:
    """Not before it is known: what another engine knew must be listed again."""
    desk = Desk(pipeline(task("t", "f"), media={"f": "foreign"}))
    desk.sync("f", ("x", "v"))
    again = desk.crashed()
    assert again.launched() == []
    assert again.state.tasks["t"].constraint == "observing: f"
    again.sync("f", ("x", "v"))
    assert again.launched() == ["t:x"]


def test_launch_that_inhibits_another_task_is_heeded_within_the_round() -> None:
    """Two tasks that exclude each other by `live` never run for one job at once."""
    first = task("t", "a", ready=All(of=(leaf("a"), Not(of=leaf("done-t")), Not(of=leaf("live(u)")))))
    second = task("u", "a", ready=All(of=(leaf("a"), Not(of=leaf("done-u")), Not(of=leaf("live(t)")))))
    desk = Desk(pipeline(first, second))
    desk.put("a", "x", "y")
    assert desk.launched() == ["t:x", "t:y"]
    desk.ended(desk.specs()[0].run)
    assert desk.launched() == ["u:x"]


def test_retry_waits_for_its_time_and_keeps_its_place() -> None:
    """A due retry takes the place of its episode: before jobs that became ready later."""
    desk = Desk(pipeline(task("t", "a", concurrency=1, retry=RetryDef(attempts=2, first=10 * SECOND))))
    desk.put("a", "x", "y", "z")
    assert desk.launched() == ["t:x"]
    desk.ended(desk.specs()[0].run, "failed")
    assert decide(desk.state, desk.now).wake_at == desk.now + 10 * SECOND
    assert desk.launched() == ["t:y"]
    desk.now += 10 * SECOND
    desk.ended(desk.specs()[1].run)
    (decided,) = desk.decide()
    assert (decided.job, decided.attempt, decided.episode) == ("x", 2, 1)


def test_inputs_are_the_positions_that_will_be_read() -> None:
    """A launch pins, per input link, the value it was decided on."""
    desk = Desk(pipeline(task("t", "a")))
    desk.put("a", "x")
    desk.put("a", "x")
    (decided,) = desk.decide()
    assert decided.inputs == {"input": desk.state.position - 2}


def test_deciding_changes_nothing() -> None:
    """The same state and time give the same round, as often as one asks."""
    desk = Desk(pipeline(task("t", "a", quota="q", resources={"cpu": 1}), quotas=(quota(cpu=2),)))
    desk.put("a", "x", "y", "z")
    assert decide(desk.state, desk.now) == decide(desk.state, desk.now)


@pytest.mark.parametrize("drop", [True, False])
def test_rederive_tells_missing_and_extra(drop: bool) -> None:
    """A round that was tampered with does not pass."""
    desk = Desk(pipeline(task("t", "a")))
    desk.put("a", "x", "y")
    state = desk.state
    found = decide(state, desk.now)
    record = e.DecisionRound(
        at=desk.now, state=state.position, now=desk.now, bound=1000, mode="run", decider=1, decisions=2
    )
    assert rederive(state, record, found.decisions) == []
    other = msgspec.structs.replace(found.decisions[0], job="z")
    told = found.decisions[1:] if drop else [*found.decisions, other]
    (wrong,) = rederive(state, record, told)
    if drop:
        assert wrong == (state.position + 1, "decision missing: t x", "launch of t x, episode 1.1", None, "")
    else:
        assert wrong == (state.position + 4, "decision extra: t z", None, "launch of t z, episode 1.1", "")


def test_constraint_on_names_what_binds_a_single_launch() -> None:
    """What a person's launch is measured by is what a round is measured by."""
    desk = Desk(pipeline(task("t", "a", quota="q", resources={"cpu": 2}), quotas=(quota(cpu=3),)))
    desk.put("a", "x")
    assert constraint_on(desk.state, desk.state.tasks["t"], desk.now) is None
    desk.decide()
    assert constraint_on(desk.state, desk.state.tasks["t"], desk.now) == Constraint("quota", "q", "cpu")


def test_condition_names_are_leaves() -> None:
    """The kit's `leaf` is a membership."""
    assert leaf("a") == In(leaf="a")
