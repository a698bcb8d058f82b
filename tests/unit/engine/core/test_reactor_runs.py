"""A run's life in the reactor: starts, ends, retries, stops, and facts that come late, twice or never."""

from __future__ import annotations

import msgspec
import pytest

from datatask.engine.core.effects import ForgetRun, StartRun, StopRun
from datatask.engine.core.retry import MACHINES_MAX, NextAttempt, NoRetry, after_ending, backoff
from datatask.engine.core.tasks import Episode
from datatask.engine.explain.why import explain
from datatask.schema import events as e
from datatask.schema.definition import All, Not, QuotaDef, RetryDef
from datatask.schema.errors import RunOpenError, UnknownNameError
from datatask.schema.messages import Adopted, Ended, Noticed, Reachable, Resized, Unreachable, Write
from datatask.schema.units import SECOND
from tests.unit.core_kit import VALUE, Desk, kinds, leaf, pipeline, running, task


def output(job: str = "x") -> Write:
    """What a run of `t` wrote."""
    return Write(repository="b", job=job, value=VALUE)


def forced(job: str = "x", name: str = "t") -> e.LaunchDecided:
    """A launch on a person's word."""
    return e.LaunchDecided(at=0, task=name, job=job, episode=0, attempt=0, origin="forced")


def test_run_starts_once_its_decision_is_durable() -> None:
    """`StartRun` rides on the batch that holds its decision, under the run's identity."""
    desk = Desk(pipeline(task("t", "a", "b")))
    desk.put("a", "x")
    desk.reactor.decide(desk.now, "run")
    (step,) = desk.reactor.take()
    assert kinds(list(step.events)) == ["DecisionRound", "LaunchDecided"]
    (start,) = step.effects
    assert isinstance(start, StartRun)
    assert start.spec.identity == f"u.1.{desk.state.position}"


def test_end_is_one_batch_done_before_it() -> None:
    """Outputs, then `done`, then `RunEnded`, whole; and the runner may forget."""
    desk = Desk(pipeline(task("t", "a", "b")))
    (run,) = running(desk, "x")
    batch = desk.ended(run, "succeeded", output())
    assert desk.batches[-1] == tuple(batch)
    assert [(type(one).__name__, one.repository) for one in batch] == [
        ("ValuePut", "b"),
        ("ValuePut", "done-t"),
        ("RunEnded", None),
    ]
    assert {one.run for one in batch} == {run}
    assert ForgetRun("t", run) in desk.effects
    assert desk.state.members("succeeded(t)") == ["x"]
    assert desk.state.members("live(t)") == []


@pytest.mark.parametrize("outcome", ["failed", "timed_out", "refused"])
def test_failure_is_a_failure_downstream(outcome: e.Outcome) -> None:
    """The views tell success from failure, and `done` says which it was."""
    desk = Desk(pipeline(task("t", "a", "b")))
    (run,) = running(desk, "x")
    batch = desk.ended(run, outcome)
    assert desk.reactor.state.members("failed(t)") == ["x"]
    (done,) = [one for one in batch if isinstance(one, e.ValuePut)]
    assert msgspec.json.decode(done.value)["success"] is False


def test_retry_keeps_the_episode_and_holds_back_inhibiting_entries() -> None:
    """A failed attempt that is tried again leaves no status entry; its other outputs are kept."""
    status = Write(repository="done-t", job="x", value=VALUE)
    desk = Desk(pipeline(task("t", "a", "b", retry=RetryDef(attempts=2, first=SECOND, jitter=0.0))))
    (run,) = running(desk, "x")
    batch = desk.ended(run, "failed", output(), status)
    assert kinds(batch) == ["ValuePut", "RunEnded", "RetryScheduled"]
    assert [one.final for one in batch if isinstance(one, e.RunEnded)] == [False]
    assert desk.state.members("failed(t)") == []
    desk.now += SECOND
    (again,) = desk.decide()
    assert (again.episode, again.attempt) == (1, 2)
    batch = desk.ended(desk.specs()[-1].run, "failed")
    assert kinds(batch) == ["ValuePut", "RunEnded", "RetriesExhausted"]
    assert desk.reactor.state.members("failed(t)") == ["x"]


def test_lost_runs_have_a_budget_of_their_own() -> None:
    """Trouble of the infrastructure does not use up the user's attempts."""
    desk = Desk(pipeline(task("t", "a", retry=RetryDef(attempts=1, infrastructure_attempts=2))))
    (run,) = running(desk, "x")
    for attempt in (2, 3):
        batch = desk.ended(run, "lost")
        (scheduled,) = [one for one in batch if isinstance(one, e.RetryScheduled)]
        assert (scheduled.attempt, scheduled.budget) == (attempt, "infrastructure")
        desk.now = scheduled.not_before
        desk.decide()
        run = desk.specs()[-1].run
    assert kinds(desk.ended(run, "lost")) == ["ValuePut", "RunEnded", "RetriesExhausted"]


def machine_ended(desk: Desk, run: int) -> e.RetryScheduled:
    """The machine was stopped under a run: what follows, when the next one is launched."""
    desk.reactor.runs.fact(Ended(run, e.Ending(outcome="lost", detail={e.MACHINE: "stopped"})), desk.now)
    (scheduled,) = [one for one in desk.take() if isinstance(one, e.RetryScheduled)]
    return scheduled


def test_what_the_machine_ends_uses_up_no_budget() -> None:
    """Neither the user's nor that of the infrastructure, after pauses that grow; what was lost else still counts."""
    desk = Desk(pipeline(task("t", "a", retry=RetryDef(attempts=1, infrastructure_attempts=2))))
    (run,) = running(desk, "x")
    pauses = []
    for attempt in range(2, 14):
        scheduled = machine_ended(desk, run)
        assert (scheduled.attempt, scheduled.budget, scheduled.spent) == (attempt, "machine", 0)
        pauses.append(scheduled.not_before - desk.now)
        if attempt == 4:
            found = explain(desk.state, "t", "x", desk.now, engine_alive=True)
            assert "3 lost before that count no more" in found.held_by[0].explain
        desk.now = scheduled.not_before
        desk.decide()
        run = desk.specs()[-1].run
    assert pauses[:7] == sorted(pauses[:7])
    assert pauses[0] < SECOND
    assert 50 * SECOND < pauses[-1] < 70 * SECOND
    for spent in (1, 2):
        batch = desk.ended(run, "lost")
        (scheduled,) = [one for one in batch if isinstance(one, e.RetryScheduled)]
        assert (scheduled.budget, scheduled.spent) == ("infrastructure", spent)
        desk.now = scheduled.not_before
        desk.decide()
        run = desk.specs()[-1].run
        scheduled = machine_ended(desk, run)
        assert (scheduled.budget, scheduled.spent) == ("machine", spent)
        desk.now = scheduled.not_before
        desk.decide()
        run = desk.specs()[-1].run
    (exhausted,) = [one for one in desk.ended(run, "lost") if isinstance(one, e.RetriesExhausted)]
    assert exhausted.budget == "infrastructure"


def test_the_machine_may_end_a_run_only_so_often() -> None:
    """A job under which machines go down again and again is given up by and by; a stopped one is not run again."""
    retry, many = RetryDef(), Episode(1, 0.0, attempt=MACHINES_MAX + 1, infrastructure=MACHINES_MAX)
    assert after_ending(retry, many, "lost", 0, 0.5, machine=True) == NoRetry("machine", MACHINES_MAX + 1)
    assert after_ending(
        retry, Episode(1, 0.0, attempt=1), "lost", 0, 0.5, stopped=True, machine=True
    ) == NoRetry("", 1)
    lost = Episode(1, 0.0, attempt=4, infrastructure=3)
    assert after_ending(retry, lost, "lost", 0, 0.5, progress=True, machine=True) == NextAttempt(
        SECOND // 10, 5, "machine", 0
    )


def test_backoff_grows_and_is_spread() -> None:
    """First, then by the factor, up to the longest, plus or minus the jitter."""
    assert [backoff(SECOND, 2.0, 5 * SECOND, n, 0.0, 0.5) / SECOND for n in range(4)] == [1, 2, 4, 5]
    assert backoff(SECOND, 2.0, 5 * SECOND, 0, 0.1, 0.0) == 0.9 * SECOND
    assert backoff(SECOND, 2.0, 5 * SECOND, 10_000, 0.0, 0.5) == 5 * SECOND


def test_settling_is_a_pure_function_of_the_policy() -> None:
    """Which outcomes are tried again is declared; a stopped run is not."""
    retry = RetryDef(attempts=3, on=("failed",))
    episode = Episode(1, 0.0, attempt=1)
    assert isinstance(after_ending(retry, episode, "failed", 0, 0.5), NextAttempt)
    assert after_ending(retry, episode, "timed_out", 0, 0.5) == NoRetry()
    assert after_ending(retry, episode, "lost", 0, 0.5, stopped=True) == NoRetry("", 1)
    assert after_ending(retry, Episode(1, 0.0, attempt=3), "failed", 0, 0.5) == NoRetry("user", 3)


def test_condition_that_ceased_during_a_run_ends_the_episode() -> None:
    """With its input gone a failed run is not tried again; the input's return opens a new episode."""
    desk = Desk(pipeline(task("t", "a", retry=RetryDef(attempts=5, first=SECOND))))
    (run,) = running(desk, "x")
    desk.delete("a", "x")
    desk.ended(run, "failed")
    desk.now += 100 * SECOND
    assert desk.decide() == []
    desk.put("a", "x")
    (decided,) = desk.decide()
    assert (decided.episode, decided.attempt) == (2, 1)


def test_no_relaunch_without_a_new_occasion() -> None:
    """A task without `done` runs once as long as its conditions hold; `repeat` opts in."""
    for repeat, more in ((False, 0), (True, 1)):
        desk = Desk(pipeline(task("t", "a", done=None, repeat=repeat)))
        (run,) = running(desk, "x")
        desk.put("a", "x")
        desk.ended(run)
        assert len(desk.decide()) == more


def test_late_and_doubled_facts_change_nothing() -> None:
    """What is told about a run that has ended is kept, and has no effect."""
    desk = Desk(pipeline(task("t", "a", "b")))
    (run,) = running(desk, "x")
    desk.started(run)
    assert kinds(desk.events).count("RunStarted") == 1
    desk.ended(run)
    masks = list(desk.state.masks)
    assert kinds(desk.ended(run, "failed", output())) == ["LateFact"]
    assert kinds(desk.started(run)) == ["LateFact"]
    desk.reactor.runs.fact(Noticed(run, "gone"), desk.now)
    assert desk.take() == []
    desk.reactor.runs.fact(Ended(10_000, e.Ending(outcome="lost")), desk.now)
    assert kinds(desk.take()) == ["LateFact"]
    assert desk.state.masks == masks


def test_end_before_start_is_an_end() -> None:
    """A run whose start was never told ends all the same."""
    desk = Desk(pipeline(task("t", "a", "b")))
    desk.put("a", "x")
    desk.decide()
    assert "RunEnded" in kinds(desk.ended(desk.specs()[0].run))


def test_silence_keeps_the_run_open() -> None:
    """`RunUnreachable` is told once, holds the quota, and ends with the first sign of life."""
    desk = Desk(pipeline(task("t", "a", concurrency=1)))
    (run,) = running(desk, "x")
    desk.put("a", "y")
    for _ in range(2):
        desk.reactor.runs.fact(Unreachable(run), desk.now)
    assert kinds(desk.take()) == ["RunUnreachable"]
    assert desk.decide() == []
    desk.reactor.runs.fact(Reachable(run), desk.now)
    desk.reactor.runs.fact(Reachable(run), desk.now)
    assert kinds(desk.take()) == ["RunReachable"]


def test_a_run_holds_what_it_takes_by_now() -> None:
    """What is decided next is decided on that; its end frees it."""
    small = task("t", "a", quota="q", resources={"cpu": 1})
    desk = Desk(pipeline(small, quotas=(QuotaDef(name="q", limits={"cpu": 3}),)))
    (run,) = running(desk, "x")
    for _ in range(2):
        desk.reactor.runs.fact(Resized(run, {"cpu": 3, "gpu": 1}), desk.now)
    assert kinds(desk.take()) == ["RunResized"]
    assert desk.state.quotas["q"].used == {"cpu": 3, "gpu": 1}
    desk.put("a", "y")
    assert desk.decide() == []
    desk.reactor.runs.fact(Resized(run, {"cpu": 2}), desk.now)
    assert len(desk.decide()) == 1
    desk.ended(run)
    assert desk.state.quotas["q"].used == {"cpu": 1}


def test_timeout_stops_a_run_once() -> None:
    """It counts from the recorded start, in engine time, and ends in `timed_out`, which may be tried again."""
    desk = Desk(pipeline(task("t", "a", timeout=10 * SECOND, retry=RetryDef(attempts=2))))
    (run,) = running(desk, "x")
    assert desk.reactor.runs.deadlines.next() == desk.now + 10 * SECOND
    desk.now += 10 * SECOND - 1
    desk.reactor.runs.stop_overdue(desk.now)
    assert desk.take() == []
    desk.now += 1
    for _ in range(2):
        desk.reactor.runs.stop_overdue(desk.now)
    (stop,) = desk.take()
    assert isinstance(stop, e.StopDecided)
    assert stop.reason == "timeout"
    assert StopRun("t", run, "timeout", 10 * SECOND) in desk.effects
    assert "RetryScheduled" in kinds(desk.ended(run, "timed_out"))


def test_timeout_survives_a_crash() -> None:
    """The deadline is that of the recorded start, whoever watches."""
    desk = Desk(pipeline(task("t", "a", timeout=10 * SECOND)))
    running(desk, "x")
    assert desk.crashed().reactor.runs.deadlines.next() == desk.now + 10 * SECOND


def test_cancelled_while_running_does_not_run_again() -> None:
    """Neither at once nor on a retry: the episode is over, until its conditions arise anew."""
    desk = Desk(pipeline(task("t", "a", "b", retry=RetryDef(attempts=3))))
    (run,) = running(desk, "x")
    stop, effect = desk.reactor.runs.stop(desk.state.open_runs[run], "cancelled", desk.now)
    desk.reactor.tickets.ask([e.CancelRequested(at=desk.now, task="t", job="x"), stop], [effect])
    desk.take()
    assert kinds(desk.ended(run, "cancelled")) == ["RunEnded"]
    assert desk.decide() == []
    desk.ask(e.RetryRequested(at=desk.now, task="t", job="x"))
    assert desk.launched() == ["t:x"]


def test_cancelled_while_waiting_does_not_start() -> None:
    """It is taken from the queue; deleting and putting its input is a new occasion."""
    desk = Desk(pipeline(task("t", "a")))
    desk.put("a", "x")
    desk.ask(e.CancelRequested(at=desk.now, task="t", job="x"))
    assert desk.decide() == []
    desk.delete("a", "x")
    desk.put("a", "x")
    assert desk.launched() == ["t:x"]


def test_cancelled_between_attempts_is_not_tried_again() -> None:
    """The scheduled attempt falls away."""
    desk = Desk(pipeline(task("t", "a", retry=RetryDef(attempts=3, first=SECOND))))
    (run,) = running(desk, "x")
    desk.ended(run, "failed")
    desk.ask(e.CancelRequested(at=desk.now, task="t", job="x"))
    desk.now += 100 * SECOND
    assert desk.decide() == []


def test_retry_requested_between_attempts_starts_a_new_episode_now() -> None:
    """A person's word does not wait for the backoff."""
    desk = Desk(pipeline(task("t", "a", retry=RetryDef(attempts=3, first=100 * SECOND))))
    (run,) = running(desk, "x")
    desk.ended(run, "failed")
    desk.ask(e.RetryRequested(at=desk.now, task="t", job="x"))
    (decided,) = desk.decide()
    assert (decided.episode, decided.attempt) == (2, 1)


def test_deleted_from_live_stops_and_opens_anew() -> None:
    """As in pydatatask: the run is stopped and the job starts over."""
    desk = Desk(pipeline(task("t", "a", "b")))
    (run,) = running(desk, "x")
    stop, effect = desk.reactor.runs.stop(desk.state.open_runs[run], "deleted", desk.now)
    desk.reactor.tickets.ask([stop], [effect])
    desk.take()
    desk.ended(run, "cancelled")
    (decided,) = desk.decide()
    assert (decided.episode, decided.attempt) == (2, 1)


def test_the_end_wins_over_a_stop_that_raced_it() -> None:
    """A process that had succeeded before the stop reached it has succeeded."""
    desk = Desk(pipeline(task("t", "a", "b")))
    (run,) = running(desk, "x")
    stop, effect = desk.reactor.runs.stop(desk.state.open_runs[run], "cancelled", desk.now)
    desk.reactor.tickets.ask([stop], [effect])
    desk.take()
    assert "done-t" in [one.repository for one in desk.ended(run, "succeeded")]
    assert desk.state.members("succeeded(t)") == ["x"]


def test_two_open_runs_of_a_job_are_impossible() -> None:
    """A forced launch beside an open run is refused, and names it."""
    desk = Desk(pipeline(task("t", "a", "b")))
    (run,) = running(desk, "x")
    with pytest.raises(RunOpenError, match=f"run {run}"):
        desk.reactor.launch(forced())
    assert desk.take() == []
    with pytest.raises(UnknownNameError, match="use one of: t"):
        desk.reactor.launch(forced(name="nope"))


def test_forced_launch_of_a_job_that_is_not_ready() -> None:
    """It runs in an episode of its own, and leaves the job as unready as it was."""
    desk = Desk(pipeline(task("t", "a", "b")))
    desk.reactor.launch(forced())
    (decided,) = [one for one in desk.take() if isinstance(one, e.LaunchDecided)]
    assert (decided.episode, decided.attempt, decided.inputs) == (1, 1, {})
    desk.ended(desk.specs()[0].run)
    assert desk.decide() == []


@pytest.mark.parametrize("outcome", ["failed", "lost"])
def test_a_forced_run_that_fails_is_over_where_only_force_would_launch_it_again(outcome: e.Outcome) -> None:
    """A retry would wait for conditions that do not hold, and nobody would hear of the failure."""
    desk = Desk(pipeline(task("t", "a", "b", retry=RetryDef(attempts=3))))
    desk.reactor.launch(forced())
    desk.take()
    told = desk.ended(desk.specs()[0].run, outcome)
    assert not any(isinstance(one, e.RetryScheduled) for one in told)
    assert [one.final for one in told if isinstance(one, e.RunEnded)] == [True]
    assert desk.reactor.state.members("failed(t)") == ["x"]


def test_direct_launch_of_a_waiting_job_takes_it_from_the_queue() -> None:
    """The waiting episode is the one that it runs in."""
    desk = Desk(pipeline(task("t", "a", "b")))
    desk.put("a", "x")
    desk.reactor.launch(forced())
    (decided,) = [one for one in desk.take() if isinstance(one, e.LaunchDecided)]
    assert decided.episode == 1
    assert desk.decide() == []


def test_paused_task_lets_what_runs_go_on() -> None:
    """Pausing holds launches only."""
    desk = Desk(pipeline(task("t", "a", "b")))
    (run,) = running(desk, "x")
    desk.ask(e.TaskPaused(at=desk.now, task="t"))
    desk.put("a", "y")
    desk.ended(run)
    assert desk.decide() == []
    desk.ask(e.TaskResumed(at=desk.now, task="t"))
    assert desk.launched() == ["t:y"]


def test_removed_task_starts_nothing_more_and_its_run_ends() -> None:
    """A task that is gone from the definition stays until its open runs have ended."""
    both = pipeline(task("t", "a", "b"), task("u", "a"))
    desk = Desk(both)
    running(desk, "x", "y")
    desk.put("a", "z")
    desk.definition = pipeline(task("u", "a"), repositories=both.repositories)
    again = desk.crashed()
    assert {spec.task for spec in desk.specs()} == {"t", "u"}
    assert again.launched() == ["u:z"]
    for run in [number for number, run in again.state.open_runs.items() if run.task == "t"]:
        again.reactor.runs.fact(Adopted(run, {}), again.now)
        again.ended(run)
    assert again.state.tasks["t"].open_runs == 0


def test_views_are_links() -> None:
    """A task may wait for another one's success, or for its failure."""
    good = task("good", "succeeded(t)", ready=All(of=(leaf("succeeded(t)"), Not(of=leaf("done-good")))))
    bad = task("bad", "failed(t)", ready=All(of=(leaf("failed(t)"), Not(of=leaf("done-bad")))))
    desk = Desk(pipeline(task("t", "a", "b"), good, bad))
    first, second = running(desk, "x", "y")
    desk.ended(first, "succeeded")
    desk.ended(second, "failed")
    assert desk.launched() == ["good:x", "bad:y"]
