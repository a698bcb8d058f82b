"""A selection: which tasks, which jobs, how many launches; each test's claim is one rule."""

from __future__ import annotations

from datatask.engine.audit.consistency import rederive
from datatask.engine.core.checkpoints import dump, load
from datatask.engine.core.decide import decide
from datatask.engine.core.fold import apply_all
from datatask.engine.core.selection import Chosen, named
from datatask.engine.core.state import State
from datatask.schema import events as e
from datatask.schema.definition import All, In, Not, RetryDef, Selection, job_leaf
from datatask.schema.units import SECOND
from tests.unit.core_kit import Desk, pipeline, task


def by_name(pattern: str) -> In:
    """Jobs of these names."""
    return In(leaf=job_leaf(pattern))


def test_tasks_that_are_not_chosen_launch_nothing() -> None:
    desk = Desk(pipeline(task("t", "a"), task("u", "a")))
    desk.put("a", "x")
    found = decide(desk.state, desk.now, selection=Selection(tasks=("u",)))
    assert [(one.task, one.job) for one in found.decisions] == [("u", "x")]
    assert found.recorded == {"t": "unselected"}


def test_jobs_are_chosen_by_membership_and_by_name() -> None:
    desk = Desk(pipeline(task("t", "a"), task("u", "b")))
    desk.put("a", "lab-1", "lab-2", "home-1")
    desk.put("b", "lab-1")
    wanted = Selection(tasks=("t",), jobs=All(of=(by_name("lab-?"), Not(of=In(leaf="b")))))
    assert desk.launched(selection=wanted) == ["t:lab-2"]
    assert desk.launched(selection=Selection(tasks=("t",), jobs=by_name("home-1"))) == ["t:home-1"]
    assert desk.launched() == ["u:lab-1", "t:lab-1"] or desk.launched() == []


def test_a_limit_counts_launches_over_rounds() -> None:
    """What is left is in the state, as of the last round."""
    desk = Desk(pipeline(task("t", "a")))
    desk.put("a", "x", "y", "z")
    assert desk.launched(selection=Selection(left=2)) == ["t:x", "t:y"]
    assert desk.state.selection == Selection(left=0)
    found = decide(desk.state, desk.now, selection=desk.state.selection)
    assert (found.decisions, found.recorded, found.wake_at) == ([], {"t": "limit"}, None)


def test_a_retry_of_a_job_that_is_not_chosen_is_not_waited_for() -> None:
    desk = Desk(pipeline(task("t", "a", retry=RetryDef(attempts=3, first=SECOND, jitter=0.0))))
    desk.put("a", "x", "y")
    for one in desk.decide():
        desk.ended(desk.state.open_runs[one_of(desk, one.job)].run, "failed")
    chosen = Selection(jobs=by_name("y"))
    assert decide(desk.state, desk.now, selection=Selection(jobs=by_name("z"))).wake_at is None
    assert decide(desk.state, desk.now, selection=chosen).wake_at == desk.now + SECOND
    desk.now += SECOND
    assert desk.launched(selection=chosen) == ["t:y"]


def one_of(desk: Desk, job: str) -> int:
    """The open run of a job."""
    return next(run.run for run in desk.state.open_runs.values() if desk.state.jobs[run.job] == job)


def test_a_recorded_round_is_decided_again_under_its_selection() -> None:
    desk = Desk(pipeline(task("t", "a"), task("u", "a")))
    desk.put("a", "x", "y")
    before = load(dump(desk.state))
    launched = desk.decide(selection=Selection(tasks=("u",), jobs=by_name("y"), left=5))
    (record,) = [event for event in desk.events if isinstance(event, e.DecisionRound)]
    assert [(one.task, one.job) for one in launched] == [("u", "y")]
    assert rederive(before, record, launched) == []
    assert record.selection == Selection(tasks=("u",), jobs=by_name("y"), left=5)


def test_a_checkpoint_has_the_selection_and_is_as_ever_without() -> None:
    desk = Desk(pipeline(task("t", "a")))
    plain = dump(desk.state)
    desk.put("a", "x")
    desk.decide(selection=Selection(jobs=by_name("y")))
    assert load(dump(desk.state)).selection == Selection(jobs=by_name("y"))
    assert load(plain).selection is None
    assert dump(load(plain)) == plain


def test_a_selection_ends_with_its_engine() -> None:
    desk = Desk(pipeline(task("t", "a")))
    desk.decide(selection=Selection(tasks=("t",)))
    assert desk.state.selection == Selection(tasks=("t",))
    desk.reactor.close(desk.now)
    desk.take()
    again = State()
    apply_all(again, 1, desk.events)
    assert desk.state.selection is again.selection is None


def test_a_round_is_recorded_where_another_selection_begins() -> None:
    desk = Desk(pipeline(task("t", "a")))
    desk.decide(selection=Selection(tasks=("t",)))
    desk.decide(selection=Selection(tasks=("t",)))
    desk.decide()
    rounds = [event.selection for event in desk.events if isinstance(event, e.DecisionRound)]
    assert rounds == [Selection(tasks=("t",)), None]


def test_names_are_matched_as_jobs_appear() -> None:
    desk = Desk(pipeline(task("t", "a")))
    desk.put("a", "lab-1", "home")
    assert list(named(desk.state, job_leaf("lab-*"))) == [0]
    desk.put("a", "lab-2")
    assert list(named(desk.state, job_leaf("lab-*"))) == [0, 2]
    assert list(named(desk.state, job_leaf("nowhere"))) == list(named(desk.state, "no leaf")) == []


def test_a_repository_that_is_not_there_has_no_members() -> None:
    """A selection that was recorded under another definition."""
    desk = Desk(pipeline(task("t", "a")))
    desk.put("a", "x")
    assert 0 not in Chosen(desk.state, In(leaf="gone"))
    assert 0 in Chosen(desk.state, Not(of=In(leaf="gone")))
