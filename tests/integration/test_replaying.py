"""Replaying: to any point, verified (each broken promise told with what was expected), in halves, and step by step."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

import datatask
from datatask.adapters.cli import progress_bar
from datatask.adapters.history.history import History
from datatask.adapters.history.verify import fold
from datatask.adapters.history.verify.fold import OtherHalf
from datatask.adapters.log.reader import LogReader
from datatask.engine.core.checkpoints import fingerprint
from datatask.schema import events as e
from datatask.schema.definition import QuotaDef
from datatask.schema.units import SECOND
from tests.integration.cli_kit import Project
from tests.property.logs import write_log
from tests.unit.core_kit import Desk, pipeline, task

Batches = list[tuple[e.Event, ...]]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A log of two tasks and four jobs."""
    project = Project(tmp_path_factory.mktemp("finished"))
    project.put(a=1, b=2)
    project.ok("run")
    project.put(c=3, d=4)
    project.ok("run")
    return project


def life() -> Batches:
    """Batches of a small life: two jobs of a task under a quota, decided, started, ended; one is tried again."""
    shop = task("t0", "a", "b", quota="q", resources={"cpu": 1})
    desk = Desk(pipeline(shop, quotas=(QuotaDef(name="q", limits={"cpu": 2}),)))
    desk.put("a", "j0")
    desk.put("a", "j1")
    desk.now += SECOND
    desk.decide()
    one, other = desk.state.open_runs
    for run in (one, other):
        desk.now += SECOND
        desk.started(run)
    desk.ended(one)
    desk.ended(other, "failed")
    return [(desk.events[0],), *desk.batches]


def told(path: Path, batches: Batches) -> list[tuple[int, str]]:
    write_log(path, batches)
    found = datatask.replay(path, verify=True)
    assert found.chain == "ok"
    for one in found.divergences:
        assert one.to_json().keys() == {"position", "what", "expected", "recorded", "remedy"}
        assert one.expected != one.recorded
    return [(one.position, one.what) for one in found.divergences]


def first(batches: Batches, kind: type[e.Event]) -> tuple[int, int, int]:
    """Return (batch, place in it, position) of the first event of a kind."""
    position = 0
    for number, batch in enumerate(batches):
        for place, event in enumerate(batch):
            position += 1
            if isinstance(event, kind):
                return number, place, position
    raise AssertionError(kind)


def otherwise(batches: Batches, kind: type[e.Event], **fields: object) -> int:
    """Change fields of the first event of a kind; return its position."""
    number, place, position = first(batches, kind)
    batch = list(batches[number])
    batch[place] = msgspec.structs.replace(batch[place], **fields)
    batches[number] = tuple(batch)
    return position


def missing_decision(batches: Batches) -> tuple[int, str]:
    number, _, position = first(batches, e.DecisionRound)
    batches[number] = batches[number][:-1]
    del batches[number + 1 :]
    return position, "decision missing: t0 j1"


def extra_decision(batches: Batches) -> tuple[int, str]:
    number, place, position = first(batches, e.LaunchDecided)
    again = msgspec.structs.replace(batches[number][place], job="j7")
    batches[number] = (*batches[number], again)
    del batches[number + 1 :]
    return position + 2, "decision extra: t0 j7"


def twice(batches: Batches) -> tuple[int, str]:
    number, place, position = first(batches, e.LaunchDecided)
    forced = msgspec.structs.replace(batches[number][place], origin="forced", over_quota=True, attempt=2)
    batches.insert(number + 1, (forced,))
    del batches[number + 2 :]
    return position + len(batches[number]) - 1, "t0 j0: open run"


def over_quota(batches: Batches) -> tuple[int, str]:
    number, _, position = first(batches, e.LaunchDecided)
    forced = e.LaunchDecided(at=batches[number][0].at, task="t0", job="j9", episode=1, attempt=1, origin="forced",
                             resources={"cpu": 1})  # fmt: skip
    batches.insert(number + 1, (forced,))
    del batches[number + 2 :]
    return position + len(batches[number]) - 1, "t0 j9: q.cpu"


def written_behind_the_end(batches: Batches) -> tuple[int, str]:
    number, place, position = first(batches, e.RunEnded)
    batch = list(batches[number])
    done = next(event for event in batch if isinstance(event, e.ValuePut))
    batch.remove(done)
    batches[number] = (*batch, done)
    return position - place + len(batch), f"what run {done.run} wrote"


def ended_twice(batches: Batches) -> tuple[int, str]:
    number, place, position = first(batches, e.RunEnded)
    end = batches[number][place]
    batches.insert(number + 1, (msgspec.structs.replace(end),))
    del batches[number + 2 :]
    return position + len(batches[number]) - place, f"RunEnded of run {end.run}"


def fact_of_no_run(batches: Batches) -> tuple[int, str]:
    position = otherwise(batches, e.RunStarted, run=3)
    return position, "RunStarted of run 3"


def time_goes_back(batches: Batches) -> tuple[int, str]:
    return otherwise(batches, e.RunStarted, at=5), "time"


def cause_behind(batches: Batches) -> tuple[int, str]:
    position = otherwise(batches, e.RunStarted, cause=4000)
    return position, "cause"


def another_priority(batches: Batches) -> tuple[int, str]:
    return otherwise(batches, e.LaunchDecided, priority=7), "t0 j0: priority"


def another_attempt(batches: Batches) -> tuple[int, str]:
    return otherwise(batches, e.LaunchDecided, attempt=3), "t0 j0: episode and attempt"


def another_input(batches: Batches) -> tuple[int, str]:
    return otherwise(batches, e.LaunchDecided, inputs={"input": 2}), "t0 j0: inputs"


def another_state(batches: Batches) -> tuple[int, str]:
    return otherwise(batches, e.DecisionRound, state=2), "the state decided on"


def another_count(batches: Batches) -> tuple[int, str]:
    return otherwise(batches, e.DecisionRound, decisions=9), "decisions of the round"


def another_constraint(batches: Batches) -> tuple[int, str]:
    return otherwise(batches, e.DecisionRound, constraints={"t0": "bound"}), "constraints"


def epoch_again(batches: Batches) -> tuple[int, str]:
    batches.append((msgspec.structs.replace(batches[1][0], at=batches[-1][-1].at),))
    return sum(map(len, batches)), "epoch"


def no_engine(batches: Batches) -> tuple[int, str]:
    number, _, position = first(batches, e.DecisionRound)
    batches.insert(number, (e.EngineClosed(at=batches[number][0].at, epoch=1),))
    otherwise(batches, e.DecisionRound, state=position)
    del batches[number + 2 :]
    return position + 1, "a round while"


def another_definition(batches: Batches) -> tuple[int, str]:
    return otherwise(batches, e.PipelineDefined, digest="0" * 64), "definition"


def cannot_follow(batches: Batches) -> tuple[int, str]:
    return otherwise(batches, e.ValuePut, repository="nowhere"), "the event"


WRONGS: list[Callable[[Batches], tuple[int, str]]] = [
    missing_decision, extra_decision, twice, over_quota, written_behind_the_end, ended_twice, fact_of_no_run,
    time_goes_back, cause_behind, another_priority, another_attempt, another_input, another_state, another_count,
    another_constraint, epoch_again, no_engine, another_definition, cannot_follow,
]  # fmt: skip


def test_a_good_life_is_clean(tmp_path: Path) -> None:
    assert told(tmp_path / "log.db", life()) == []


@pytest.mark.parametrize("wrong", WRONGS, ids=lambda wrong: wrong.__name__)
def test_each_broken_promise_is_told_where_it_stands(
    tmp_path: Path, wrong: Callable[[Batches], tuple[int, str]]
) -> None:
    """A log whose chain holds and that says what no engine would have done."""
    batches = life()
    expected = wrong(batches)
    assert expected in told(tmp_path / "log.db", batches)


def test_rounds_of_a_decider_that_is_not_shipped_are_checked_for_admissibility_only(tmp_path: Path) -> None:
    batches = life()
    otherwise(batches, e.DecisionRound, decider=99, constraints={"t0": "its own"})
    assert told(tmp_path / "log.db", batches) == []
    assert any("decider 99" in line for line in datatask.verify(tmp_path / "log.db").rests_on)


# --- as a function ----------------------------------------------------------------------------------


def test_to_a_position_a_time_and_an_age(finished: Project) -> None:
    """`at` is what History takes, and gives a batch boundary."""
    whole = datatask.replay(finished.log)
    assert whole.ok
    middle = datatask.replay(finished.log, at=whole.head // 2)
    assert middle.head in range(whole.head // 2, whole.head)
    assert datatask.replay(finished.log, at="-1h").head == 0
    assert datatask.replay(finished.log, at="2099-01-01").head == whole.head
    with History(finished.log) as history:
        assert fingerprint(history.state(middle.head)) == fingerprint(middle.state)


def test_the_shape_and_the_words(finished: Project) -> None:
    found = datatask.replay(finished.log, verify=True)
    shape = found.to_json()
    assert shape == {**finished.ok("replay", "--verify", "--json").json, "seconds": shape["seconds"]}
    assert repr(found).startswith(f"<Replayed sqlite:///{finished.log}: {found.events} events in ")
    assert repr(found).endswith("ok>")


def test_somebody_may_watch(finished: Project) -> None:
    seen: list[tuple[int, int]] = []
    found = datatask.replay(
        finished.log, verify=True, progress=lambda done, total: seen.append((done, total))
    )
    assert seen[-1] == (found.head, found.head)


class Bar:
    """What a bar is told."""

    def __init__(self) -> None:
        self.told: list[object] = []

    def start(self) -> None:
        self.told.append("start")

    def add_task(self, what: str, total: int) -> int:
        self.told.append(what)
        return 1

    def update(self, task: int, completed: int, total: int) -> None:
        self.told.append((completed, total))

    def stop(self) -> None:
        self.told.append("stop")


def test_a_bar_is_drawn_on_a_terminal_only(finished: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """On stderr, so that what is printed stays what it is; piped there is none."""
    assert finished.ok("replay", "--verify").err == ""
    monkeypatch.setattr(progress_bar, "is_terminal", lambda stream=None: True)
    monkeypatch.setattr(progress_bar, "BAR_AFTER_SECONDS", 0.0)
    bar = Bar()
    monkeypatch.setattr(progress_bar, "_bar", lambda output: bar)
    found = finished.ok("replay", "--verify", "--json").json
    assert bar.told[0] == "start"
    assert bar.told[1:] == ["replaying", (found["head"], found["head"]), "stop"]


def test_against_another_definition(finished: Project) -> None:
    """The same log as the other definition differs in nothing; one without a task does."""
    assert datatask.replay(finished.log, against=finished.log).differences == ()
    with LogReader(finished.log) as reader:
        state = fold.verified(reader, reader.head).state
    less = msgspec.structs.replace(state.definition, tasks=state.definition.tasks[:1])
    assert datatask.replay(finished.log, against=less).differences


@pytest.mark.parametrize("fails", [False, True])
def test_two_processes_find_what_one_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: bool
) -> None:
    """In halves, in one go, and when the other process fails: the same divergences and the same state."""
    batches = life()
    another_priority(batches)
    fact_of_no_run_at = otherwise(batches, e.RunEnded, task="t9")
    write_log(tmp_path / "log.db", batches)
    with LogReader(tmp_path / "log.db") as reader:
        alone = fold.verified(reader, reader.head, processes=1)
        monkeypatch.setattr(fold, "TWO_FROM", 1)
        if fails:
            monkeypatch.setattr(OtherHalf, "result", lambda half: None)
        both = fold.verified(reader, reader.head, processes=2)
    assert both.divergences == alone.divergences
    assert {one.position for one in alone.divergences} >= {fact_of_no_run_at}
    assert fingerprint(both.state) == fingerprint(alone.state)


# --- step by step -----------------------------------------------------------------------------------


def step(project: Project, *commands: str, at: str | None = None) -> list[str]:
    options = ["--at", at] if at is not None else []
    return project.ok("replay", "--step", *options, stdin="\n".join(commands).encode()).lines


def test_next_and_batch_show_what_they_change(finished: Project) -> None:
    lines = step(finished, "until kind ValuePut", "batch", "where")
    put = next(number for number, line in enumerate(lines) if "ValuePut numbers a" in line)
    assert "  a enters numbers" in lines[put:]
    assert "  a enters the queue of double" in lines[put:]
    assert "  members of numbers: 0 -> 1" in lines[put:]
    assert "  waiting for double: 0 -> 1" in lines[put:]
    assert lines[-1].startswith("behind position ")


def test_walking_to_a_run_and_back(finished: Project) -> None:
    """`until`, `goto` back, and the state there is the one that folding gives."""
    lines = step(finished, "until kind RunEnded", "event", "goto 5", "why double a", "status", "quit", "next")
    assert any(" RunEnded double " in line for line in lines)
    assert any(line.startswith('{"position":') for line in lines)
    back = next(number for number, line in enumerate(lines) if line.startswith("behind position 5 of"))
    assert lines[back + 1].startswith("double a at 5: ")
    assert "double.numbers 0" in lines or "double.numbers 1" in lines


def test_from_a_point_to_the_head(finished: Project) -> None:
    head = datatask.replay(finished.log).head
    lines = step(finished, "next 3", "next", at=str(head - 1))
    assert lines[-1] == f"this is the head, position {head}"
    assert step(finished, "next 100000")[-1] == f"this is the head, position {head}"


def test_help_and_wrong_commands(finished: Project) -> None:
    """`help` lists every command; a wrong one is one line with the remedy, and 2."""
    shown = "\n".join(step(finished, "help"))
    for name in ("next", "batch", "goto", "until", "event", "changed", "why", "status", "where", "quit"):
        assert f"\n{name}" in f"\n{shown}"
    for wrong in ("jump", "goto", "goto 99999", "next x", "until kind Nothing", "until colour red", "why nobody a",
                  "event 0", "obey next", '"'):  # fmt: skip
        refused = finished.call("replay", "--step", stdin=wrong.encode())
        assert refused.code == 2, (wrong, refused)
        assert len(refused.err.splitlines()) == 1
    assert finished.call("replay", "--step", "--json").code == 2
