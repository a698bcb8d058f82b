"""Where episodes of waiting begin and end."""

from __future__ import annotations

from datatask.schema import events as e
from datatask.schema.definition import All, FilteredDef, Not, TranslatedDef
from datatask.schema.definition import Any as Or
from datatask.schema.messages import Write
from datatask.schema.units import SECOND
from tests.unit.core_kit import T0, VALUE, Desk, leaf, pipeline, repository, task
from tests.unit.engine.waits.ledger_kit import episodes, later, life, told


def test_a_second_episode_begins_when_the_mark_of_the_first_goes() -> None:
    """Between the end of a run and the next occasion nothing waits, although the input is still there."""
    desk = Desk(pipeline(task("t", "a")))
    desk.put("a", "x")
    life(desk)
    later(desk, 100)
    desk.delete("done-t", "x")
    later(desk, 3)
    life(desk)
    assert [(one.number, one.end - one.start) for one in episodes(desk)] == [(1, 3 * SECOND), (2, 6 * SECOND)]


def test_a_job_that_leaves_waits_no_more_and_begins_anew() -> None:
    """It leaves all that the task reads: the episode has ceased; when it comes back the next one begins."""
    desk = Desk(
        pipeline(task("t", "a", ready=All(of=(leaf("a"), leaf("b")))), repositories=(repository("b"),))
    )
    desk.put("a", "x")
    later(desk, 2)
    desk.delete("a", "x")
    later(desk, 50)
    desk.put("b", "x")
    later(desk, 3)
    desk.put("a", "x")
    later(desk)
    found = episodes(desk, at=desk.now)
    assert [(one.outcome, one.end - one.start) for one in found] == [("ceased", 2 * SECOND), ("", 4 * SECOND)]


def test_what_was_ready_and_is_so_no_more_goes_on_in_the_next_episode() -> None:
    """The conditions cease before a run: that episode ends, and as the job still waits the next begins there."""
    desk = Desk(
        pipeline(task("t", "a", ready=All(of=(leaf("a"), leaf("b")))), repositories=(repository("b"),))
    )
    desk.put("a", "x")
    desk.put("b", "x")
    later(desk, 2)
    desk.delete("b", "x")
    later(desk, 3)
    desk.put("b", "x")
    later(desk)
    found = episodes(desk, at=desk.now)
    assert [(one.number, one.outcome, one.end - one.start) for one in found] == [
        (1, "ceased", 2 * SECOND),
        (2, "", 4 * SECOND),
    ]
    assert [one.cause for one in found[1].intervals] == ["upstream", "priority"]


def test_a_job_marked_as_done_does_not_wait() -> None:
    desk = Desk(pipeline(task("t", "a")))
    desk.put("done-t", "x")
    desk.put("a", "x")
    later(desk, 9)
    assert episodes(desk, at=desk.now) == []
    desk.delete("done-t", "x")
    later(desk, 2)
    assert told(desk, at=desk.now) == [("priority", 2)]


def test_what_its_own_output_inhibits_has_been_done_and_waits_no_more() -> None:
    """There is no mark but the output; only when the job appears anew does it wait for that to go."""
    desk = Desk(pipeline(task("t", "a", "b", ready=All(of=(leaf("a"), Not(of=leaf("b")))), done=None)))
    desk.put("a", "x")
    (decided,) = desk.decide()
    run = desk.events.index(decided) + 1
    desk.started(run)
    later(desk)
    desk.ended(run, "succeeded", Write(repository="b", job="x", value=VALUE))
    later(desk, 50)
    assert len(episodes(desk, at=desk.now)) == 1
    desk.delete("a", "x")
    desk.put("a", "x")
    later(desk, 2)
    assert [(one.cause, one.nanoseconds) for one in episodes(desk, at=desk.now)[1].intervals] == [
        ("inhibitor", 2 * SECOND)
    ]


def test_who_stands_for_another_job_waits_for_what_that_one_lacks() -> None:
    """Its own appearance counts, first for the translation, then for the repository that the other is not in."""
    stands = repository("stands", "derived", derived=TranslatedDef(base=leaf("b"), translator=leaf("a")))
    desk = Desk(pipeline(task("t", "stands"), repositories=(repository("a"), repository("b"), stands)))
    desk.put("a", "x")
    later(desk)
    desk.reactor.evaluations.evaluated(
        [(one, "y", None) for one in desk.reactor.evaluations.due(desk.now, 8)], desk.now
    )
    desk.take()
    later(desk, 2)
    desk.put("b", "y")
    later(desk, 3)
    assert told(desk, at=desk.now) == [("evaluation", 1), ("upstream", 2), ("priority", 3)]
    (episode,) = episodes(desk, at=desk.now)
    assert episode.intervals[1].repository == "stands"


def test_a_lost_mark_is_an_occasion_though_something_else_is_missing() -> None:
    ready = All(of=(leaf("a"), leaf("b"), Not(of=leaf("done-t"))))
    desk = Desk(pipeline(task("t", "a", ready=ready), repositories=(repository("b"),)))
    desk.put("done-t", "x")
    desk.put("a", "x")
    later(desk, 9)
    desk.delete("done-t", "x")
    later(desk, 2)
    assert told(desk, at=desk.now) == [("upstream", 2)]


def test_a_new_value_of_what_a_filter_refused_is_waited_for_again() -> None:
    kept = repository("kept", "derived", derived=FilteredDef(base=leaf("a")))
    desk = Desk(pipeline(task("t", "kept"), repositories=(repository("a"), kept)))
    for answer in (False, True):
        desk.put("a", "x")
        later(desk)
        found = desk.reactor.evaluations.due(desk.now, 8)
        desk.reactor.evaluations.evaluated([(one, answer, None) for one in found], desk.now)
        desk.take()
        later(desk, 5)
    spans = [[(one.cause, one.nanoseconds // SECOND) for one in each.intervals] for each in episodes(desk)]
    assert spans == [[("evaluation", 1)], [("evaluation", 1)]]
    assert told(desk, at=desk.now, since=T0 + 6 * SECOND) == [("evaluation", 1), ("priority", 5)]


def test_an_appearance_that_takes_the_job_out_of_a_derived_repository_counts() -> None:
    """What follows from a change happens within it; the job is in `b` anew all the same."""
    kept = repository("kept", "derived", derived=FilteredDef(base=All(of=(leaf("a"), Not(of=leaf("b"))))))
    other = task("t", "b", ready=All(of=(leaf("b"), leaf("c"))))
    desk = Desk(pipeline(task("u", "kept"), other, repositories=(repository("a"), kept, repository("c"))))
    desk.put("a", "x")
    desk.reactor.evaluations.evaluated(
        [(one, True, None) for one in desk.reactor.evaluations.due(desk.now, 8)], desk.now
    )
    desk.take()
    later(desk)
    desk.put("b", "x")
    later(desk, 2)
    assert told(desk, at=desk.now) == [("upstream", 2)]


def test_who_cancels_ends_the_episode() -> None:
    desk = Desk(pipeline(task("t", "a")))
    desk.put("a", "x")
    later(desk, 2)
    desk.ask(e.CancelRequested(at=desk.now, task="t", job="x"))
    later(desk, 5)
    desk.ask(e.RetryRequested(at=desk.now, task="t", job="x"))
    later(desk, 1)
    found = episodes(desk, at=desk.now)
    assert [(one.outcome, one.end - one.start) for one in found] == [("cancelled", 2 * SECOND), ("", SECOND)]


def test_a_job_that_a_changed_definition_reads_begins_to_wait_then() -> None:
    """Nobody read `a` before; a task that is gone leaves nobody waiting."""
    first = pipeline(task("t", "b"), repositories=(repository("a"),))
    desk = Desk(first)
    desk.put("a", "x")
    desk.put("b", "y")
    later(desk, 5)
    second = pipeline(task("u", "a"), repositories=(repository("b"), repository("done-t")))
    desk.reactor.open(e.EngineOpened(at=desk.now, version="1", host="h", pid=1, boot="b", epoch=2), second)
    desk.take()
    later(desk, 2)
    (new,) = episodes(desk, at=desk.now)
    (old,) = episodes(desk, "y", at=desk.now)
    assert (new.task, new.end - new.start) == ("u", 2 * SECOND)
    assert (old.task, old.outcome, old.open) == ("t", "ceased", False)


def test_an_alternative_that_lacks_nothing_more_than_an_inhibitor() -> None:
    """Of alternatives that all fail each tells what it lacks, and upstream comes first."""
    ready = Or(of=(All(of=(leaf("a"), Not(of=leaf("stop")))), All(of=(leaf("a"), leaf("b")))))
    desk = Desk(pipeline(task("t", "a", ready=ready), repositories=(repository("b"), repository("stop"))))
    desk.put("stop", "x")
    desk.put("a", "x")
    later(desk, 2)
    assert told(desk, at=desk.now) == [("upstream", 2)]
