"""Checkpoints: a state goes to bytes and back, equal states to equal bytes."""

from __future__ import annotations

import sys
from types import FrameType

import msgspec
import pytest

from datatask.engine.core.checkpoints import Image, dump, fingerprint, load
from datatask.engine.core.decide import decide
from datatask.engine.core.fold import apply_all
from datatask.engine.core.state import State
from datatask.schema import events as e
from datatask.schema.definition import QuotaDef, RetryDef
from datatask.schema.errors import LogDamagedError
from datatask.schema.units import SECOND
from tests.unit.core_kit import T0, VALUE, Desk, folded, pipeline, task

LIMITED = QuotaDef(name="q", limits={"cpu": 4}, launches=9)


def busy() -> Desk:
    """A desk with something of everything: waiting, running, retrying, pending, intended, paused."""
    first = task(
        "t", "a", "b", quota="q", resources={"cpu": 1}, retry=RetryDef(attempts=3, first=100 * SECOND)
    )
    desk = Desk(
        pipeline(
            first, task("p", "a", priority=True), task("u", "b"), quotas=(LIMITED,), media={"b": "foreign"}
        )
    )
    desk.sync("b", ("old", "v1"))
    desk.put("a", *(f"j{index}" for index in range(9)))
    desk.decide()
    for spec in desk.specs():
        desk.started(spec.run)
    desk.ended(desk.specs()[0].run, "failed")
    desk.put("b", "new")
    for one in desk.reactor.evaluations.due(desk.now, 2):
        desk.reactor.evaluations.evaluated([(one, 1.5, None)], desk.now)
    desk.take()
    desk.ask(e.TaskPaused(at=desk.now, task="u", request="r1"))
    return desk


def test_there_and_back_is_the_same_bytes() -> None:
    """A loaded state dumps to what it was loaded from."""
    body = dump(busy().state)
    assert dump(load(body)) == body


def test_amounts_of_memory_may_be_large() -> None:
    """64 GiB in billionths need more than 64 bits."""
    much = 64 * 1024**3 * 10**9
    quota = QuotaDef(name="q", limits={"mem": 3 * much})
    desk = Desk(pipeline(task("t", "a", quota="q", resources={"mem": much}), quotas=(quota,)))
    desk.put("a", "j1", "j2")
    desk.decide()
    again = load(dump(desk.state))
    assert again.quotas["q"].used == {"mem": 2 * much}
    assert again.quotas["q"].limits == {"mem": 3 * much}
    assert [run.resources for run in again.open_runs.values()] == [{"mem": much}] * 2
    assert dump(again) == dump(desk.state)


def test_replay_has_the_same_fingerprint() -> None:
    """Live, replayed, and gone on with from a checkpoint in the middle: one fingerprint."""
    desk = busy()
    live = fingerprint(desk.state)
    assert fingerprint(folded(desk.events)) == live
    middle = load(dump(folded(desk.events[:20])))
    apply_all(middle, 21, desk.events[20:])
    assert fingerprint(middle) == live


def test_loaded_state_decides_the_same() -> None:
    """Queues, retries, quotas and windows go on where they were."""
    desk = busy()
    loaded = load(dump(desk.state))
    for later in (0, 60 * SECOND, 200 * SECOND):
        assert decide(loaded, desk.now + later) == decide(desk.state, desk.now + later)


def test_one_event_more_is_another_fingerprint() -> None:
    """Nothing that matters is left out, the position included."""
    desk = busy()
    before = fingerprint(desk.state)
    desk.ask(e.TaskResumed(at=desk.now, task="u"))
    assert fingerprint(desk.state) != before


def test_empty_state() -> None:
    """The state before the first event is a state."""
    assert load(dump(State())).position == 0


def test_other_fold_version_is_refused() -> None:
    """A checkpoint of another version, or no checkpoint at all, says what to do."""
    image = msgspec.msgpack.decode(dump(State()), type=Image)
    image.version = 999
    with pytest.raises(LogDamagedError, match="fold version 999"):
        load(msgspec.msgpack.encode(image))
    with pytest.raises(LogDamagedError, match="leave the checkpoint out"):
        load(b"nonsense")


def test_a_checkpoint_of_many_jobs_has_no_step_for_each_leaf() -> None:
    """Bulk, not leaf by leaf: a job more, in 21 leaves, costs a handful of calls."""

    def calls(count: int) -> int:
        desk = Desk(pipeline(*(task(f"t{index}", f"r{index}") for index in range(4))))
        state, made = desk.state, 0
        puts = [e.ValuePut(at=T0, repository="r0", job=f"job-{n}", value=VALUE) for n in range(count)]
        apply_all(state, state.position + 1, puts)

        def called(frame: FrameType, event: str, argument: object) -> None:
            nonlocal made
            made += 1

        sys.setprofile(called)
        try:
            loaded = load(dump(state))
        finally:
            sys.setprofile(None)
        assert len(loaded.tasks["t0"].queue) == count
        return made

    few, many = calls(2_000), calls(20_000)
    assert many - few < 6 * 18_000
