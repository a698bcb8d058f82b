"""Each cause of waiting by a small life of its own: what it is put down to, from when to when, and what is told of it."""

from __future__ import annotations

from typing import Any

import pytest

from datatask.engine.waits.intervals import EXACT_MAX, Episode, Spread
from datatask.engine.waits.ledger import Ledger
from datatask.schema import events as e
from datatask.schema.definition import All, FilteredDef, Not, QuotaDef, RetryDef
from datatask.schema.messages import Noticed, Write
from datatask.schema.units import DAY, SECOND
from tests.unit.core_kit import T0, VALUE, Desk, folded, leaf, pipeline, repository, task
from tests.unit.engine.waits.ledger_kit import episodes, later, life, told


def test_an_ordinary_life_is_a_round_a_start_and_a_run() -> None:
    """From the put to the end: waiting for the round, for the start, running; with the positions that begin each."""
    desk = Desk(pipeline(task("t", "a", "b")))
    put = desk.state.position + 1
    desk.put("a", "x")
    later(desk, 4)
    run = life(desk)
    (episode,) = episodes(desk)
    assert told(desk) == [("priority", 4), ("adapter", 1), ("running", 2)]
    assert [one.began for one in episode.intervals] == [put, run, run + 1]
    assert [one.ended for one in episode.intervals] == [run, run + 1, desk.state.position]
    assert (episode.number, episode.outcome, episode.open) == (1, "succeeded", False)
    assert (episode.began, episode.ended) == (put, desk.state.position)
    assert [one.run for one in episode.intervals] == [None, run, run]


def test_upstream_is_the_latest_to_arrive_and_who_made_it() -> None:
    """Of two repositories that are missing the one that arrives last is named, with the run that wrote it."""
    both = All(of=(leaf("a"), leaf("b"), leaf("c"), Not(of=leaf("done-t"))))
    extra = task("up", "source", "c")
    desk = Desk(pipeline(task("t", "a", ready=both), extra, repositories=(repository("b"),)))
    desk.put("a", "x")
    later(desk)
    desk.put("b", "x")
    later(desk)
    desk.put("source", "x")
    (decided,) = desk.decide()
    run = desk.events.index(decided) + 1
    desk.started(run)
    later(desk)
    desk.ended(run, "succeeded", Write(repository="c", job="x", value=VALUE))
    later(desk)
    (episode,) = [one for one in episodes(desk) if one.task == "t"]
    first = episode.intervals[0]
    assert (first.cause, first.nanoseconds, first.repository, first.run) == ("upstream", 3 * SECOND, "c", run)
    assert first.detail == f"c by run {run} of up"


def test_what_is_still_missing_is_named() -> None:
    desk = Desk(
        pipeline(task("t", "a", ready=All(of=(leaf("a"), leaf("b")))), repositories=(repository("b"),))
    )
    desk.put("a", "x")
    later(desk)
    (episode,) = episodes(desk, at=desk.now)
    (only,) = episode.intervals
    assert (only.cause, only.detail, only.ended, episode.open) == ("upstream", "b", None, True)


def test_upstream_comes_before_an_inhibitor() -> None:
    """Both hold: it is upstream; when only the inhibitor is left, it is that, by name."""
    ready = All(of=(leaf("a"), leaf("b"), Not(of=leaf("stop"))))
    desk = Desk(pipeline(task("t", "a", ready=ready), repositories=(repository("b"), repository("stop"))))
    desk.put("stop", "x")
    later(desk)
    desk.put("a", "x")
    later(desk, 2)
    desk.put("b", "x")
    later(desk, 3)
    desk.delete("stop", "x")
    later(desk)
    life(desk)
    assert told(desk)[:3] == [("upstream", 2), ("inhibitor", 3), ("priority", 1)]
    (episode,) = episodes(desk)
    assert [one.repository for one in episode.intervals[:2]] == ["b", "stop"]


def test_evaluation_of_a_filter_and_what_it_refuses() -> None:
    """A filter being asked is evaluation; what it refuses waits for nothing."""
    kept = repository("kept", "derived", derived=FilteredDef(base=leaf("a")))
    desk = Desk(pipeline(task("t", "kept"), repositories=(repository("a"), kept)))
    desk.put("a", "x", "y")
    later(desk, 2)
    found = desk.reactor.evaluations.due(desk.now, 8)
    desk.reactor.evaluations.evaluated([(one, one.job == "x", None) for one in found], desk.now)
    desk.take()
    later(desk)
    life(desk)
    assert told(desk)[:2] == [("evaluation", 2), ("priority", 1)]
    (refused,) = episodes(desk, "y")
    assert [(one.cause, one.repository) for one in refused.intervals] == [("evaluation", "kept")]
    assert refused.outcome == "ceased"


def test_a_priority_is_evaluated_even_while_the_task_is_paused() -> None:
    desk = Desk(pipeline(task("t", "a", priority=True)))
    desk.ask(e.TaskPaused(at=desk.now, task="t"))
    desk.put("a", "x")
    later(desk)
    desk.reactor.evaluations.evaluated(
        [(one, 1.0, None) for one in desk.reactor.evaluations.due(desk.now, 8)], desk.now
    )
    desk.take()
    later(desk, 2)
    desk.ask(e.TaskResumed(at=desk.now, task="t"))
    later(desk)
    life(desk)
    assert told(desk)[:3] == [("evaluation", 1), ("pause", 2), ("priority", 1)]


def test_backoff_ends_by_time_and_a_pause_comes_before_it() -> None:
    """Retries are one episode; the backoff ends when it is due, without an event."""
    retry = RetryDef(attempts=2, first=10 * SECOND, jitter=0.0)
    desk = Desk(pipeline(task("t", "a", retry=retry)))
    desk.put("a", "x")
    (decided,) = desk.decide()
    run = desk.events.index(decided) + 1
    desk.started(run)
    later(desk)
    desk.ended(run, "failed")
    scheduled = desk.state.position
    later(desk, 3)
    desk.ask(e.TaskPaused(at=desk.now, task="t"))
    later(desk, 2)
    desk.ask(e.TaskResumed(at=desk.now, task="t"))
    later(desk, 7)
    life(desk)
    assert told(desk) == [
        ("running", 1), ("backoff", 3), ("pause", 2), ("backoff", 5), ("priority", 2), ("adapter", 1), ("running", 2),
    ]  # fmt: skip
    (episode,) = episodes(desk)
    assert episode.intervals[1].began == scheduled
    assert episode.intervals[1].run == run


@pytest.mark.parametrize(
    ("quota", "cause", "detail"),
    [
        (QuotaDef(name="q", limits={"cpu": 5}), "quota", "q.cpu"),
        (QuotaDef(name="q", limits={"cpu": 99}, launches=1, window=9 * SECOND), "rate", "q"),
    ],
)
def test_a_round_that_is_bound_names_what_binds_it(quota: QuotaDef, cause: str, detail: str) -> None:
    """Who waits behind the one that was launched waits for the quota, from the round that said so."""
    desk = Desk(pipeline(task("t", "a", quota="q", resources={"cpu": 5}), quotas=(quota,)))
    desk.put("a", "w")
    desk.put("a", "x")
    later(desk)
    (run,) = [desk.events.index(one) + 1 for one in desk.decide()]
    desk.started(run)
    later(desk, 8)
    desk.ended(run)
    later(desk)
    desk.decide()
    (episode,) = episodes(desk)
    assert [(one.cause, one.nanoseconds // SECOND) for one in episode.intervals] == [
        ("priority", 1),
        (cause, 9),
    ]
    assert episode.intervals[1].detail == detail


@pytest.mark.parametrize(("more", "bound", "cause"), [({}, 1, "priority"), ({"concurrency": 1}, 9, "quota")])
def test_places_in_line(more: dict[str, Any], bound: int, cause: str) -> None:
    """A full round is a matter of the order; a task's own concurrency is a quota."""
    desk = Desk(pipeline(task("t", "a", **more)))
    desk.put("a", "w", "x")
    desk.decide(bound=bound)
    later(desk, 5)
    assert told(desk, at=desk.now) == [(cause, 5)]


def test_a_runner_that_takes_nothing_is_the_adapter() -> None:
    desk = Desk(pipeline(task("t", "a")))
    desk.put("a", "x")
    desk.reactor.unavailable = {"t"}
    desk.decide()
    later(desk, 5)
    assert told(desk, at=desk.now) == [("adapter", 5)]


def test_an_engine_that_died_is_down_from_its_last_sign_of_life() -> None:
    """Also while a run is open; and what bound its rounds binds nobody any more."""
    desk = Desk(pipeline(task("t", "a", concurrency=1), task("u", "b")))
    desk.put("b", "x")
    desk.put("a", "w", "x")
    desk.decide()
    later(desk)
    desk.put("b", "z")
    batches = desk.batches
    later(desk, 6)
    after = Desk(desk.definition, [*desk.events])
    after.now = desk.now
    opened = e.EngineOpened(at=desk.now, version="1", host="h", pid=1, boot="b", epoch=2)
    after.batches = [*batches, (opened,)]
    after.events = [desk.events[0]]
    later(desk, 2)
    assert told(after, at=desk.now) == [("quota", 1), ("engine down", 6), ("priority", 2)]
    assert told(after, "u", at=desk.now) == [("adapter", 1), ("engine down", 6), ("adapter", 2)]


def test_a_closed_engine_and_then_an_unlisted_store() -> None:
    """Down from the closing on; then observing until the store has been listed."""
    desk = Desk(pipeline(task("t", "a"), media={"a": "foreign"}))
    desk.sync("a", ("x", "v1"))
    later(desk)
    desk.reactor.close(desk.now)
    desk.take()
    later(desk, 3)
    desk.reactor.open(
        e.EngineOpened(at=desk.now, version="1", host="h", pid=1, boot="b", epoch=2), desk.definition
    )
    desk.take()
    later(desk, 2)
    desk.sync("a", ("x", "v1"))
    later(desk)
    life(desk)
    assert told(desk)[:4] == [("priority", 1), ("engine down", 3), ("observing", 2), ("priority", 1)]


def test_collecting_until_foreign_stores_have_followed() -> None:
    desk = Desk(pipeline(task("t", "a", "b"), media={"b": "foreign"}))
    desk.sync("b")
    desk.put("a", "x")
    (decided,) = desk.decide()
    run = desk.events.index(decided) + 1
    desk.started(run)
    later(desk, 2)
    desk.ended(run, "succeeded", Write(repository="b", job="x", value=VALUE))
    later(desk, 3)
    for effect in desk.store_writes():
        desk.wrote(effect)
    assert told(desk) == [("running", 2), ("collecting", 3)]


def test_collecting_as_a_runner_tells_it() -> None:
    desk = Desk(pipeline(task("t", "a")))
    desk.put("a", "x")
    (decided,) = desk.decide()
    run = desk.events.index(decided) + 1
    desk.started(run)
    later(desk, 2)
    desk.reactor.runs.fact(Noticed(run, "collecting"), desk.now)
    desk.take()
    later(desk, 3)
    desk.ended(run)
    assert told(desk) == [("running", 2), ("collecting", 3)]


def test_a_pause_does_not_hold_what_runs() -> None:
    desk = Desk(pipeline(task("t", "a")))
    desk.put("a", "x")
    (decided,) = desk.decide()
    desk.started(desk.events.index(decided) + 1)
    desk.ask(e.TaskPaused(at=desk.now, task="t"))
    later(desk, 2)
    assert told(desk, at=desk.now) == [("running", 2)]


# --- sums -------------------------------------------------------------------------------------------


def test_a_wait_over_midnight_counts_for_both_days() -> None:
    desk = Desk(pipeline(task("t", "a")))
    desk.now = 3 * DAY - 2 * SECOND
    desk.put("a", "x")
    later(desk, 5)
    life(desk)
    (episode,) = episodes(desk, None, by_day=True, by_host=True)
    assert episode.sums == {
        ("priority", 2, "here"): 2 * SECOND,
        ("priority", 3, "here"): 3 * SECOND,
        ("adapter", 3, "here"): SECOND,
        ("running", 3, "here"): 2 * SECOND,
    }


def test_from_a_base_episodes_begin_there() -> None:
    """A log whose beginning was cut off: who waits there has waited since then, who has been done has not."""
    desk = Desk(pipeline(task("t", "a")))
    desk.put("a", "w")
    life(desk)
    desk.put("a", "x")
    later(desk, 5)
    before = len(desk.batches)
    desk.put("a", "y")
    base = folded([desk.events[0], *(event for batch in desk.batches[:before] for event in batch)])
    found: list[Episode] = []
    waits = Ledger(base, found.append)
    for batch in desk.batches[before:]:
        waits.take(e.Batch(waits.state.position + 1, batch))
    waits.finish()
    assert sorted((one.job, one.start) for one in found) == [("x", base.at), ("y", base.at + 5 * SECOND)]


def test_since_leaves_out_what_was_before() -> None:
    desk = Desk(pipeline(task("t", "a")))
    desk.put("a", "w")
    life(desk)
    desk.put("a", "x")
    later(desk, 5)
    life(desk)
    (episode,) = episodes(desk, None, since=T0 + 6 * SECOND)
    assert (episode.job, episode.sums["priority", 0, ""], episode.start) == ("x", 2 * SECOND, T0 + 6 * SECOND)


def test_spreads_are_exact_while_they_are_few_and_close_when_they_are_many() -> None:
    """Percentiles by nearest rank; beyond the bound within half a percent, and in bounded memory."""
    spread = Spread()
    assert spread.quantile(0.5) == 0
    values = [number**3 for number in range(1, 2 * EXACT_MAX)]
    for value in values[:100]:
        spread.add(value)
    assert [spread.quantile(share) for share in (0.5, 0.95, 1.0)] == [50**3, 95**3, 100**3]
    for value in values[100:]:
        spread.add(value)
    for share in (0.01, 0.5, 0.95, 0.999):
        exact = sorted(values)[-(-len(values) * int(share * 1000) // 1000) - 1]
        assert spread.quantile(share) == pytest.approx(exact, rel=0.005)
    assert (spread.count, spread.total, spread.largest) == (len(values), sum(values), max(values))
