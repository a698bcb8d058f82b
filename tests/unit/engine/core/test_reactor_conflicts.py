"""Conflicts in the reactor: who wrote over what, what follows, and what a replay makes of it."""

from __future__ import annotations

import msgspec
import pytest

from datatask.engine.api.policies import Retry
from datatask.engine.core.checkpoints import dump, fingerprint, load
from datatask.engine.core.retry import CONFLICTS_MAX, NextAttempt, NoRetry, after_ending
from datatask.engine.core.tasks import CONTENDING, Episode
from datatask.engine.explain.why import explain
from datatask.schema import events as e
from datatask.schema.definition import In, LinkDef, PipelineDef, RetryDef, TaskDef
from datatask.schema.errors import CallerError
from datatask.schema.messages import Adopted, Ended, Write
from datatask.schema.units import SECOND
from tests.unit.core_kit import VALUE, Desk, kinds, pipeline, running, task

KEY = "k"


def adds(desk: Desk, *, over: int | None = None, repository: str = "b", **more: object) -> Write:
    """What a run wrote over a key that it read when the log was at `over` (now, by default)."""
    seen = desk.state.position if over is None else over
    return Write(repository=repository, job=KEY, value=VALUE, over=seen, **more)  # type: ignore[arg-type]


def again(desk: Desk, batch: list[e.Event]) -> int:
    """Let the time of a retry come, and return the next run."""
    (scheduled,) = [one for one in batch if isinstance(one, e.RetryScheduled)]
    desk.now = max(desk.now, scheduled.not_before)
    desk.decide()
    return desk.specs()[-1].run


def end_of(batch: list[e.Event]) -> e.RunEnded:
    """Return the end that a batch tells."""
    return next(one for one in batch if isinstance(one, e.RunEnded))


def test_the_second_of_two_in_one_turn_is_in_conflict() -> None:
    """Nothing of it stands, its retry is no attempt of the user's, and it says who was first."""
    desk = Desk(pipeline(task("t", "a", "b")))
    first, second = running(desk, "x", "y")
    seen = desk.state.position
    ending = e.Ending(outcome="succeeded")
    desk.reactor.runs.fact(Ended(first, ending, (adds(desk, over=seen),)), desk.now)
    position = desk.state.position
    batch = desk.ended(
        second, "succeeded", adds(desk, over=seen), Write(repository="b", job="y", value=VALUE)
    )
    assert kinds(batch) == ["ValuePut", "ValuePut", "RunEnded", "RunEnded", "RetryScheduled"]
    assert [one.run for one in batch] == [first, first, first, second, second]
    ended = batch[3]
    assert isinstance(ended, e.RunEnded)
    assert (ended.outcome, ended.final) == ("conflicted", False)
    assert ended.error is not None
    assert f"key k of b was overwritten at position {position - 2} by run {first} of t" in ended.error.message
    assert ended.detail == {"again": f"conflict 1 of {CONFLICTS_MAX}"}
    third = again(desk, batch)
    assert end_of(desk.ended(third, "succeeded", adds(desk))).final


def test_absence_is_read_too_and_a_deletion_is_a_change() -> None:
    """Who found nothing is in conflict with who made it, and who found it with who deleted it."""
    desk = Desk(pipeline(task("t", "a", "b")))
    one, two = running(desk, "x", "y")
    seen = desk.state.position
    desk.put("b", KEY)
    assert end_of(desk.ended(one, "succeeded", adds(desk, over=seen))).outcome == "conflicted"
    seen = desk.state.position
    desk.delete("b", KEY)
    ended = end_of(desk.ended(two, "succeeded", adds(desk, over=seen)))
    assert ended.error is not None
    assert "was deleted at position" in ended.error.message


def test_a_person_or_the_world_that_came_in_between_is_named() -> None:
    desk = two_stores()
    one, two = running(desk, "x", "y")
    seen = desk.state.position
    desk.reactor.tickets.change(
        [Write(repository="b", job=KEY, value=VALUE)], desk.now, actor="ada@lab: datatask inject"
    )
    ended = end_of(desk.ended(one, "succeeded", adds(desk, over=seen)))
    assert ended.error is not None
    assert " by ada@lab: datatask inject, after this run had read it" in ended.error.message
    desk.reactor.stores.observed("f", KEY, Write(repository="f", job=KEY, version="7"), desk.now)
    ended = end_of(desk.ended(two, "succeeded", adds(desk, over=seen, repository="f", over_version="")))
    assert ended.error is not None
    assert " from outside, after this run had read it" in ended.error.message


def test_a_run_is_not_in_conflict_with_what_it_never_read() -> None:
    """A blind write, and a change of something else."""
    desk = Desk(pipeline(task("t", "a", "b")))
    (run,) = running(desk, "x")
    seen = desk.state.position
    desk.put("b", "other")
    desk.put("b", "blind")
    writes = adds(desk, over=seen), Write(repository="b", job="blind", value=VALUE)
    assert end_of(desk.ended(run, "succeeded", *writes)).outcome == "succeeded"


@pytest.mark.parametrize("outcome", ["timed_out", "cancelled", "lost"])
def test_a_run_that_was_stopped_or_lost_ends_as_that_without_what_is_stale(outcome: e.Outcome) -> None:
    desk = Desk(pipeline(task("t", "a", "b")))
    (run,) = running(desk, "x")
    seen = desk.state.position
    desk.put("b", KEY)
    batch = desk.ended(run, outcome, adds(desk, over=seen), Write(repository="b", job="x", value=VALUE))
    assert end_of(batch).outcome == outcome
    assert "was overwritten" in (end_of(batch).detail or {})["conflict"]
    assert [one.job for one in batch if isinstance(one, e.ValuePut) and one.repository == "b"] == ["x"]


def test_conflicts_that_are_allowed_are_none() -> None:
    desk = Desk(pipeline(task("t", "a", "b", conflicts="allow")))
    (run,) = running(desk, "x")
    seen = desk.state.position
    desk.put("b", KEY)
    assert end_of(desk.ended(run, "succeeded", adds(desk, over=seen))).outcome == "succeeded"


def test_conflicts_use_up_no_attempts_and_have_an_end() -> None:
    """The user's attempts are counted without them; a job that is in conflict for ever is given up."""
    retry = RetryDef(attempts=2)
    assert isinstance(
        after_ending(retry, Episode(1, 0.0, attempt=7, conflicts=6), "failed", 0, 0.5), NextAttempt
    )
    assert after_ending(retry, Episode(1, 0.0, attempt=8, conflicts=6), "failed", 0, 0.5) == NoRetry(
        "user", 8
    )
    waits = [
        after_ending(retry, Episode(1, 0.0, attempt=n + 1, conflicts=n), "conflicted", 0, 0.5)
        for n in range(15)
    ]
    assert [one.not_before for one in waits if isinstance(one, NextAttempt)][:3] == [
        SECOND // 100,
        SECOND // 50,
        SECOND // 25,
    ]
    assert waits[-1] == NextAttempt(30 * SECOND, 16, "conflict", 15)
    many = Episode(1, 0.0, attempt=CONFLICTS_MAX + 1, conflicts=CONFLICTS_MAX)
    assert after_ending(retry, many, "conflicted", 0, 0.5) == NoRetry("conflict", CONFLICTS_MAX + 1)


def test_jobs_that_were_in_conflict_again_and_again_run_one_at_a_time() -> None:
    """Also after a checkpoint; a newcomer is not held up."""
    desk = Desk(pipeline(task("t", "a", "b", concurrency=15)))
    runs = running(desk, "x", "y", "z")
    for _ in range(CONTENDING):
        seen = desk.state.position
        desk.put("b", KEY)
        batches = [desk.ended(run, "succeeded", adds(desk, over=seen)) for run in runs]
        desk.now += 60 * SECOND
        desk.decide()
        assert all(end_of(batch).outcome == "conflicted" for batch in batches)
        runs = sorted(desk.state.open_runs)
    assert len(runs) == 1
    desk.put("a", "new")
    desk.decide()
    assert len(desk.state.open_runs) == 2
    assert desk.state.tasks["t"].next_retry() is None
    copied = load(dump(desk.state))
    assert fingerprint(copied) == fingerprint(desk.state)
    assert copied.tasks["t"].contending == 1
    desk.ended(runs[0], "succeeded", adds(desk))
    desk.decide()
    assert len(desk.state.open_runs) == 2, "the next of them"


def two_stores() -> Desk:
    """Runs that write to the log and to a folder."""
    links = (*task("t", "a", "b").links, LinkDef(name="file", expr=In(leaf="f"), is_output=True))
    both = msgspec.structs.replace(task("t", "a", "b"), links=links)
    return Desk(pipeline(both, media={"f": "foreign"}))


def test_what_still_travels_to_its_store_counts_as_written() -> None:
    """A second run is in conflict with a file that is on its way, and with what goes with it into the log."""
    desk = two_stores()
    one, two, three = running(desk, "x", "y", "z")[:3]
    seen = desk.state.position
    desk.ended(
        one, "succeeded", adds(desk, over=seen), adds(desk, over=seen, repository="f", over_version="1")
    )
    assert one in desk.reactor.runs.ends.collecting
    ended = end_of(desk.ended(two, "succeeded", adds(desk, over=seen)))
    assert ended.error is not None
    assert f"being overwritten by run {one}" in ended.error.message
    ended = end_of(desk.ended(three, "succeeded", adds(desk, over=seen, repository="f", over_version="1")))
    assert ended.error is not None
    assert f"key k of f is being overwritten by run {one}" in ended.error.message


def test_who_overwrites_unread_what_is_on_its_way_comes_last() -> None:
    """It is as if the run whose file travels had written before it."""
    desk = two_stores()
    (one,) = running(desk, "x")[:1]
    seen = desk.state.position
    desk.ended(
        one, "succeeded", adds(desk, over=seen), adds(desk, over=seen, repository="f", over_version="1")
    )
    desk.put("b", KEY)
    position = desk.state.position
    (work,) = desk.store_writes()
    batch = desk.wrote(work, "2")
    assert end_of(batch).outcome == "succeeded"
    assert [(one.repository, one.job) for one in batch if isinstance(one, e.ValuePut)][:1] == [("f", KEY)]
    assert desk.state.leaves["b"].positions[desk.state.job_index[KEY]] == position


def test_what_was_on_its_way_when_the_engine_died_is_on_its_way_again() -> None:
    """A new engine's runs are in conflict with it until it is recorded; what others wrote after it was compared stands."""
    for overwritten in (False, True):
        desk = two_stores()
        one, two = running(desk, "x", "y")
        seen = desk.state.position
        file = adds(desk, over=seen, repository="f", over_version="1")
        desk.ended(one, "succeeded", adds(desk, over=seen), file)
        if overwritten:
            desk.put("b", KEY)
        desk = desk.crashed()
        seen = desk.state.position
        desk.reactor.redo(desk.now)
        desk.take()
        if not overwritten:
            ended = end_of(desk.ended(two, "succeeded", adds(desk, over=seen)))
            assert ended.error is not None
            assert f"being overwritten by run {one}" in ended.error.message
        (work,) = desk.store_writes()
        batch = desk.wrote(work, "2")
        assert end_of(batch).outcome == "succeeded"
        assert ("b" in [put.repository for put in batch if isinstance(put, e.ValuePut)]) is not overwritten


def test_a_store_that_has_another_version_by_then_undoes_the_success() -> None:
    """Its refusal as a conflict ends the run so; nothing goes into the log."""
    desk = two_stores()
    (one,) = running(desk, "x")[:1]
    seen = desk.state.position
    desk.ended(
        one, "succeeded", adds(desk, over=seen), adds(desk, over=seen, repository="f", over_version="1")
    )
    (work,) = desk.store_writes()
    batch = desk.wrote(work, None, error="key k of f has been changed by another", conflict=True)
    assert kinds(batch) == ["RunEnded", "RetryScheduled"]
    assert end_of(batch).outcome == "conflicted"


def lost(desk: Desk, run: int, seconds: float) -> list[e.Event]:
    """Lose a run that has been up for so long."""
    desk.now += int(seconds * SECOND)
    return desk.ended(run, "lost")


def test_lost_runs_that_made_progress_begin_a_new_row() -> None:
    """The budget is for runs in a row that come to nothing; how much is used is in the events."""
    retry = RetryDef(infrastructure_attempts=2, progress=60 * SECOND)
    desk = Desk(pipeline(task("t", "a", retry=retry)))
    (run,) = running(desk, "x")
    spent = []
    for seconds in (1, 1, 60, 59, 61, 1):
        batch = lost(desk, run, seconds)
        (scheduled,) = [one for one in batch if isinstance(one, e.RetryScheduled)]
        spent.append(scheduled.spent)
        assert (end_of(batch).detail or {})["again"] == f"infrastructure {scheduled.spent} of 2"
        run = again(desk, batch)
        desk.started(run)
    assert spent == [1, 2, 1, 2, 1, 2]
    assert fingerprint(load(dump(desk.state))) == fingerprint(desk.state)
    assert kinds(lost(desk, run, 1))[-1] == "RetriesExhausted"


def test_time_without_an_engine_is_no_progress() -> None:
    """A run of an engine that is gone counts until that one's last sign of life, unless it was found alive."""
    for adopted in (False, True):
        desk = Desk(pipeline(task("t", "a", retry=RetryDef(progress=60 * SECOND))))
        (run,) = running(desk, "x")
        batch = lost(desk, run, 1)
        run = again(desk, batch)
        desk.started(run)
        desk = desk.crashed(later=3600 * SECOND)
        if adopted:
            desk.reactor.runs.fact(Adopted(run, {}), desk.now)
            desk.take()
        (scheduled,) = [one for one in lost(desk, run, 1) if isinstance(one, e.RetryScheduled)]
        assert scheduled.spent == (1 if adopted else 2)


def test_why_tells_what_the_attempts_are_paid_from() -> None:
    """While a job waits for its next attempt: conflicts, lost runs, and whose run it waits for."""
    desk = Desk(pipeline(task("t", "a", "b", concurrency=15)))
    runs = running(desk, "x", "y")
    for _ in range(CONTENDING):
        seen = desk.state.position
        desk.put("b", KEY)
        batches = [desk.ended(run, "succeeded", adds(desk, over=seen)) for run in runs]
        found = explain(desk.state, "t", "x", desk.now, engine_alive=True)
        assert "were in conflict, which uses up none of the 1 attempts" in found.held_by[0].explain
        desk.now += 60 * SECOND
        desk.decide()
        runs = sorted(desk.state.open_runs)
    assert batches
    (run,) = runs
    waits = "y" if desk.state.jobs[desk.state.open_runs[run].job] == "x" else "x"
    found = explain(desk.state, "t", waits, desk.now, engine_alive=True)
    assert f"waits for run {run}, which was in conflict as often" in found.held_by[0].explain
    assert [one.op for one in found.changes] in (["end_run"], ["retry"])
    desk.ended(run, "lost")
    desk.decide()
    found = explain(desk.state, "t", "y" if waits == "x" else "x", desk.now, engine_alive=True)
    assert "1 of 5 lost runs in a row are run again; 3 runs were in conflict" in found.held_by[0].explain


def test_a_budget_that_is_none_is_refused() -> None:
    """`Retry` takes a number of runs and a time."""
    assert Retry(infrastructure_attempts=0, progress_after=None).to_def().progress is None
    assert Retry(attempts=3).to_def() == RetryDef(attempts=3, first=SECOND, factor=1.0, longest=SECOND)
    for wrong in (-1, True, "3", 1.5):
        with pytest.raises(CallerError, match="infrastructure_attempts"):
            Retry(infrastructure_attempts=wrong)  # type: ignore[arg-type]
    with pytest.raises(CallerError, match="progress_after"):
        Retry(progress_after=-1)


def test_an_engine_leaves_a_sign_of_progress_for_the_next_one() -> None:
    """Else nothing in the log would tell how long a run had been up when its engine died."""
    desk = Desk(pipeline(task("t", "a", retry=RetryDef(progress=60 * SECOND))))
    desk.reactor.runs.deadlines.tells_progress = True
    (run,) = running(desk, "x")
    assert desk.reactor.runs.deadlines.next() is None, "no run was lost before"
    run = again(desk, lost(desk, run, 1))
    desk.started(run)
    assert desk.reactor.runs.deadlines.next() == desk.now + 60 * SECOND
    desk.now += 60 * SECOND
    desk.reactor.runs.stop_overdue(desk.now)
    (sign,) = desk.take()
    assert isinstance(sign, e.RunObserved)
    assert (sign.phase, desk.reactor.runs.deadlines.next()) == ("progress", None)
    desk = desk.crashed(later=3600 * SECOND)
    (scheduled,) = [one for one in lost(desk, run, 0) if isinstance(one, e.RetryScheduled)]
    assert scheduled.spent == 1


def test_a_definition_without_the_later_fields_is_the_same_one() -> None:
    """What an old log says of a pipeline is equal to what is declared today, digest and all."""
    old = b'{"name":"p","tasks":[{"name":"t","kind":"T","ready":{"op":"in","leaf":"a"},"retry":{"attempts":3}}]}'
    plain = TaskDef(name="t", kind="T", ready=task("t", "a").links[0].expr, retry=RetryDef(attempts=3))
    decoded = msgspec.json.decode(old, type=PipelineDef)
    assert decoded == PipelineDef(name="p", tasks=(plain,))
    assert decoded.digest() == PipelineDef(name="p", tasks=(plain,)).digest()
    assert msgspec.json.encode(decoded) == old
