"""Foreign stores in the reactor: intents and their recovery, observations, listings, losses that nobody believes."""

from __future__ import annotations

import pytest

from datatask.engine.audit.consistency import check
from datatask.engine.core.effects import Finished, LookAgain
from datatask.schema import events as e
from datatask.schema.definition import FilteredDef, PipelineDef, RetryDef, TranslatedDef
from datatask.schema.errors import CallerError
from datatask.schema.messages import Adopted, Write
from tests.unit.core_kit import VALUE, Desk, folded, kinds, leaf, pipeline, repository, task

FOREIGN = pipeline(task("t", "a", "b"), media={"b": "foreign", "done-t": "foreign"})


def output(**content: object) -> Write:
    """What a run of `t` wrote for `x`."""
    return Write(repository="b", job="x", **(content or {"value": VALUE}))  # type: ignore[arg-type]


def known(desk: Desk) -> None:
    """List every foreign store: it holds what the log says."""
    for name, one in desk.state.leaves.items():
        if one.definition.medium == "foreign":
            desk.sync(name, *((job, "v1") for job in desk.state.members(name)))


def collecting(definition: PipelineDef = FOREIGN, *writes: Write) -> Desk:
    """A desk at which the one run of `t` is over and its outputs are on their way."""
    desk = Desk(definition)
    known(desk)
    desk.put("a", "x")
    desk.decide()
    desk.ended(desk.specs()[0].run, "succeeded", *(writes or (output(),)))
    return desk


def test_foreign_outputs_are_intended_written_then_settled() -> None:
    """Intents first, each with its content; the run ends in one batch when all stores have followed."""
    desk = collecting()
    assert kinds(desk.events)[-2:] == ["StoreWriteIntended", "StoreWriteIntended"]
    assert [one.settles is not None for one in desk.events[-2:] if isinstance(one, e.StoreWriteIntended)] == [
        False,
        True,
    ]
    first, second = desk.store_writes()
    assert desk.wrote(first) == []
    assert desk.state.members("live(t)") == ["x"]
    assert kinds(desk.wrote(second)) == ["ValuePut", "ValuePut", "RunEnded"]
    assert desk.state.intents == {}


def test_crash_between_any_two_steps_ends_the_run_once() -> None:
    """Wherever the log is cut, a new engine brings the run to exactly one end, with its output stored."""
    desk = collecting()
    for effect in desk.store_writes():
        desk.wrote(effect)
    boundaries = [1]
    for batch in desk.batches:
        boundaries.append(boundaries[-1] + len(batch))
    for durable in boundaries[1:]:
        again = desk.crashed(durable)
        specs = [spec for found in again.reactor.runs.recoverable().values() for spec in found]
        again.reactor.redo(again.now)
        again.take()
        for spec in specs:
            again.reactor.runs.fact(Adopted(spec.run, {}), again.now)
            again.ended(spec.run, "succeeded", output())
        known(again)
        again.put("a", "x")
        again.decide()
        for spec in again.specs():
            again.ended(spec.run, "succeeded", output())
        while writes := again.store_writes():
            for effect in writes:
                again.wrote(effect)
        assert kinds(again.events).count("RunEnded") == 1
        assert again.state.members("b") == ["x"]
        assert again.state.members("succeeded(t)") == ["x"]
        assert check(again.state) == []


def test_content_outside_the_log_is_asked_of_the_runner_again() -> None:
    """An intent without its content cannot be redone: the runner accounts for the run instead."""
    desk = collecting(FOREIGN, output(data=b"bytes"))
    again = desk.crashed()
    assert [spec.job for specs in again.reactor.runs.recoverable().values() for spec in specs] == ["x"]
    again.reactor.redo(again.now)
    assert again.take() == []


def test_change_asked_for_is_redone_after_a_crash() -> None:
    """A put into a foreign store that was intended is carried out by the next engine."""
    desk = Desk(FOREIGN)
    desk.put("b", "x")
    again = desk.crashed()
    again.reactor.redo(again.now)
    again.take()
    (effect,) = again.store_writes()
    assert effect.write.job == "x"
    assert kinds(again.wrote(effect)) == ["ValuePut"]
    assert any(isinstance(effect, Finished) for effect in again.effects)


def test_two_writers_of_one_value_do_not_confuse_recovery() -> None:
    """A person's put into a run's output does not settle the run's own intent."""
    desk = collecting()
    mine, done = desk.store_writes()
    desk.put("b", "x")
    (theirs,) = desk.store_writes()
    desk.wrote(theirs)
    again = desk.crashed()
    again.reactor.redo(again.now)
    again.take()
    assert {effect.write.repository for effect in again.store_writes() if effect.run is not None} == {
        "b",
        "done-t",
    }
    desk.wrote(mine)
    assert "RunEnded" in kinds(desk.wrote(done))
    assert desk.state.intents == {}


def test_output_that_cannot_be_stored_fails_the_run() -> None:
    """A success whose output the store refused is none, and its `done` says so."""
    desk = collecting()
    first, second = desk.store_writes()
    desk.wrote(first, error="disk full")
    desk.wrote(second)
    (done,) = desk.store_writes()
    assert b'"success":false' in bytes(done.write.value)
    (*_, ended) = desk.wrote(done)
    assert isinstance(ended, e.RunEnded)
    assert (ended.outcome, ended.error.message if ended.error else "") == (
        "failed",
        "cannot store b x: disk full",
    )


def test_output_that_cannot_be_stored_is_tried_again_by_the_policy() -> None:
    """What `done` had said already is taken back, so that the retry is not inhibited."""
    definition = pipeline(
        task("t", "a", "b", retry=RetryDef(attempts=2)), media={"b": "foreign", "done-t": "foreign"}
    )
    desk = collecting(definition)
    first, second = desk.store_writes()
    desk.wrote(second)
    desk.wrote(first, error="disk full")
    (back,) = desk.store_writes()
    assert (back.write.op, back.write.repository) == ("delete", "done-t")
    assert kinds(desk.wrote(back))[-2:] == ["RunEnded", "RetryScheduled"]


def test_observation_in_an_output_of_an_open_run_is_settled_with_it() -> None:
    """What a pod writes by itself appears together with its end, not before."""
    desk = Desk(pipeline(task("t", "a", "b"), task("u", "b"), media={"b": "foreign"}))
    desk.sync("b")
    desk.put("a", "x")
    desk.decide()
    desk.reactor.stores.observed("b", "x", Write(repository="b", job="x", version="v1"), desk.now)
    assert desk.take() == []
    batch = desk.ended(desk.specs()[0].run)
    assert kinds(batch) == ["ValuePut", "ValuePut", "RunEnded"]
    assert batch[0].run == desk.specs()[0].run
    assert desk.launched() == ["u:x"]


def test_observation_while_collecting_is_not_lost() -> None:
    """What a store tells between a run's end at its target and its end in the log belongs to the run."""
    definition = pipeline(task("t", "a", "b"), media={"b": "foreign", "done-t": "foreign"})
    desk = Desk(definition)
    known(desk)
    desk.put("a", "x")
    desk.decide()
    desk.ended(desk.specs()[0].run)
    desk.reactor.stores.observed("b", "x", Write(repository="b", job="x", version="v1"), desk.now)
    (done,) = desk.store_writes()
    desk.wrote(done)
    assert desk.state.members("b") == ["x"]


def test_echo_of_our_own_write_is_dropped() -> None:
    """The store tells what we wrote: same version, no event."""
    desk = Desk(FOREIGN)
    desk.sync("b")
    desk.put("b", "x")
    (effect,) = desk.store_writes()
    echo = Write(repository="b", job="x", version="v1")
    desk.reactor.stores.observed("b", "x", echo, desk.now)
    assert desk.take() == []
    desk.wrote(effect, "v1")
    desk.reactor.stores.observed("b", "x", echo, desk.now)
    assert desk.take() == []
    desk.reactor.stores.observed("b", "x", Write(repository="b", job="x", version="v2"), desk.now)
    assert kinds(desk.take()) == ["ValuePut"]


@pytest.mark.parametrize(
    ("heard", "looks"), [(["v1"], 0), (["v9", "v1"], 0), (["v1", "v9"], 1), (["v1", None], 1)]
)
def test_a_store_is_looked_at_again_only_for_what_is_not_our_own_write(
    heard: list[str | None], looks: int
) -> None:
    """While a write of ours is under way, the last version heard is either its own echo or somebody else's doing."""
    desk = Desk(FOREIGN)
    known(desk)
    desk.put("b", "x")
    (effect,) = desk.store_writes()
    for version in heard:
        seen = None if version is None else Write(repository="b", job="x", version=version)
        desk.reactor.stores.observed("b", "x", seen, desk.now)
    assert desk.take() == []
    desk.wrote(effect, "v1")
    assert [effect for effect in desk.effects if isinstance(effect, LookAgain)] == [
        LookAgain("b", "x")
    ] * looks


def test_listing_changes_nothing_that_is_younger_than_it() -> None:
    """What was put or deleted after a listing began is left alone, in both directions."""
    desk = Desk(FOREIGN)
    desk.sync("b", ("old", "v"), ("gone", "v"))
    began = desk.state.position
    listing = [Write(repository="b", job=job, version="v") for job in ("old", "gone")]
    desk.delete("b", "gone")
    desk.put("b", "new")
    for effect in desk.store_writes():
        desk.wrote(effect)
    assert desk.reactor.stores.listed("b", listing, desk.now, began, desk.now)
    assert desk.take() == []
    assert desk.state.members("b") == ["old", "new"]


def test_mass_loss_is_held_until_a_person_believes_it() -> None:
    """More than 100 and a tenth vanished at once: nothing is deleted, and tasks that read it wait."""
    desk = Desk(pipeline(task("t", "f"), media={"f": "foreign"}))
    desk.sync("f", *((f"j{index}", "v") for index in range(300)))
    for _ in range(2):
        assert not desk.reactor.stores.listed("f", [], desk.now, desk.state.position, desk.now)
    assert kinds(desk.take()) == ["ObservationHeld"]
    assert desk.decide() == []
    assert desk.state.tasks["t"].constraint == "observing: f"
    assert desk.reactor.stores.listed("f", [], desk.now, desk.state.position, desk.now, believe=True)
    assert desk.state.members("f") == []
    assert not desk.state.leaves["f"].held


def test_small_loss_is_believed() -> None:
    """A hundred files deleted by hand are deleted."""
    desk = Desk(pipeline(task("t", "f"), media={"f": "foreign"}))
    desk.sync("f", *((f"j{index}", "v") for index in range(300)))
    desk.sync("f", *((f"j{index}", "v") for index in range(200)))
    assert len(desk.state.members("f")) == 200


def test_failed_change_is_forgotten_and_observations_go_on() -> None:
    """A store that refused for good leaves nothing that would hide what it tells later."""
    desk = Desk(FOREIGN)
    desk.sync("b", ("x", "v1"))
    desk.put("b", "x")
    (effect,) = desk.store_writes()
    desk.wrote(effect, None, "read-only")
    desk.reactor.stores.observed("b", "x", Write(repository="b", job="x", version="v2"), desk.now)
    assert kinds(desk.take()) == ["ValuePut"]


def test_what_follows_from_others_cannot_be_written() -> None:
    """A view or derived leaf refuses by name, and leaves no ticket behind."""
    desk = Desk(FOREIGN)
    with pytest.raises(CallerError, match="live"):
        desk.put("live(t)", "x")
    assert desk.take() == []


def test_ephemeral_store_starts_anew_with_one_event() -> None:
    """A new engine empties it at once, whatever it held."""
    definition = pipeline(task("t", "a"), repositories=(repository("a", "mirror", ephemeral=True),))
    desk = Desk(definition)
    desk.put("a", "x", "y")
    again = desk.crashed()
    assert kinds(again.events).count("RepositoryReset") == 1
    assert again.state.members("a") == []


DERIVED = pipeline(
    task("t", "f"),
    repositories=(repository("a"), repository("b"), repository("f", "derived", derived=FilteredDef(base=leaf("a"))),
                  repository("x", "derived", derived=TranslatedDef(base=leaf("b"), translator=leaf("a")))),
)  # fmt: skip


def test_filter_is_asked_once_per_value() -> None:
    """A job is in a filtered leaf when the base has it and the answer for its present value was yes."""
    desk = Desk(DERIVED)
    desk.put("a", "j")
    wanted = {one.key.what: one for one in desk.reactor.evaluations.due(desk.now, 10)}
    desk.reactor.evaluations.evaluated([(wanted["filter"], True, None)], desk.now)
    desk.take()
    assert desk.state.members("f") == ["j"]
    desk.put("a", "j")
    (again,) = [one for one in desk.reactor.evaluations.due(desk.now, 10) if one.key.what == "filter"]
    assert again.position == desk.state.position
    desk.reactor.evaluations.evaluated([(again, False, None)], desk.now)
    desk.take()
    assert desk.state.members("f") == []


def test_stale_answer_is_not_taken() -> None:
    """An answer about a value that has changed meanwhile is logged, and waited for anew."""
    desk = Desk(DERIVED)
    desk.put("a", "j")
    (stale,) = [one for one in desk.reactor.evaluations.due(desk.now, 10) if one.key.what == "filter"]
    desk.put("a", "j")
    desk.reactor.evaluations.evaluated([(stale, True, None)], desk.now)
    desk.take()
    assert desk.state.members("f") == []
    assert any(key.what == "filter" for key in desk.state.pending)


def test_translated_leaf_follows_its_target() -> None:
    """A job is a member as long as the job that it stands for is in the base."""
    desk = Desk(DERIVED)
    desk.put("a", "j", "k")
    answers = [
        (one, "target", None)
        for one in desk.reactor.evaluations.due(desk.now, 10)
        if one.key.what == "translation"
    ]
    desk.reactor.evaluations.evaluated(answers, desk.now)
    desk.take()
    assert desk.state.members("x") == []
    desk.put("b", "target")
    assert desk.state.members("x") == ["j", "k"]
    desk.delete("a", "k")
    assert desk.state.members("x") == ["j"]
    desk.delete("b", "target")
    assert desk.state.members("x") == []


def test_changed_rule_is_worked_out_for_the_jobs_there() -> None:
    """A derived leaf whose base is another one in the new definition does not keep old members."""
    desk = Desk(DERIVED)
    desk.put("a", "j")
    desk.reactor.evaluations.evaluated(
        [
            (one, True if one.key.what == "filter" else None, None)
            for one in desk.reactor.evaluations.due(desk.now, 9)
        ],
        desk.now,
    )
    desk.take()
    assert desk.state.members("f") == ["j"]
    others = tuple(one for one in DERIVED.repositories if one.id != "f")
    desk.definition = pipeline(
        task("t", "f"),
        repositories=(*others, repository("f", "derived", derived=FilteredDef(base=leaf("b")))),
    )
    assert desk.crashed().state.members("f") == []


def test_rename_keeps_members_history_and_what_is_under_way() -> None:
    """Under its new name a task goes on where it was, an intended write included."""
    desk = collecting()
    renamed = pipeline(task("s", "a", "c", done="done-t"), media={"c": "foreign", "done-t": "foreign"}, repositories=(
        repository("done-t", "foreign"), repository("done-s")))  # fmt: skip
    at = desk.now
    events = [
        *desk.events,
        e.EngineOpened(at=at, version="1", host="h", pid=1, boot="b", epoch=2),
        e.Renamed(at=at, what="repository", old="b", new="c"),
        e.Renamed(at=at, what="task", old="t", new="s"),
        e.PipelineDefined(at=at, definition=renamed, digest=renamed.digest(), decider=1),
    ]
    state = folded(events)
    (run,) = state.open_runs.values()
    assert run.task == "s"
    assert set(run.intents) == {("c", 0), ("done-t", 0)}
    again = Desk(renamed, events)
    again.reactor.redo(again.now)
    again.take()
    for effect in again.store_writes():
        again.wrote(effect)
    assert again.state.members("c") == ["x"]
    assert again.state.members("succeeded(s)") == ["x"]
