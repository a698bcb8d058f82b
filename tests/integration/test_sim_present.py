"""A simulation that goes on from the middle of a history comes to the end that the history had."""

from __future__ import annotations

from pathlib import Path

import pytest

from datatask import (
    FileRepository,
    History,
    LocalLinuxManager,
    LogMetadataRepository,
    Pipeline,
    ProcessTask,
    ResourceManager,
    Resources,
    Session,
    YamlMetadataFileRepository,
    simulate,
)
from datatask.engine.api.repositories import Repository
from datatask.simulation import (
    Empirical,
    Machines,
    Result,
    Scenario,
    TaskScenario,
    critical_path,
    inputs,
    simulate_inputs,
)

JOBS = [f"j{number}" for number in range(8)]
CUT = {job: 1.0 + number % 4 for number, job in enumerate(JOBS)}
SECOND = 1e9


def no_manager() -> LocalLinuxManager:
    raise AssertionError("a simulation asks no manager")


def shop(folder: Path) -> Pipeline:
    """Two tasks in a chain with places for three; what they make, and whether it is done, is kept outside of the log."""
    quota = ResourceManager(Resources.parse(3, 10, None), name="all")
    raw: Repository = LogMetadataRepository("raw")
    half, whole = FileRepository(folder / "half"), FileRepository(folder / "whole")
    tasks = []
    for name, source, target in (("cut", raw, half), ("glue", half, whole)):
        done = YamlMetadataFileRepository(folder / f"{name}.done", extension=".yaml")
        pids = LogMetadataRepository(f"{name}.pids")
        task = ProcessTask(name, no_manager, quota, Resources.parse(1, 1), pids, "exit 1", done=done)
        task.link("inp", source, is_input=True)
        task.link("out", target, is_output=True)
        tasks.append(task)
    return Pipeline(tasks, Session(), log="memory:")


PLAIN = Scenario(
    jobs=JOBS,
    tasks={
        "cut": TaskScenario(duration=CUT, latency=0.25),
        "glue": TaskScenario(duration=3.5, latency=0.5),
    },
)
NODES = Machines("nodes", 3, latency=0.25)


def lives(result: Result) -> set[tuple[object, ...]]:
    """Return all runs with their times, in nanoseconds."""
    begin = result.begin
    return {
        (
            *(row[name] for name in ("task", "job", "attempt", "state")),
            *(begin + round(row[when] * SECOND) for when in ("decided", "started", "ended")),
        )
        for row in result.runs()
    }


@pytest.mark.parametrize(
    "scenario",
    [
        PLAIN,
        PLAIN.with_(
            tasks={"cut": TaskScenario(duration=CUT, timeout=2.5, attempts=1), "glue": PLAIN.of("glue")}
        ),
        PLAIN.with_(machines=[NODES]),
    ],
    ids=["plain", "timeouts", "machines"],
)
def test_from_anywhere_it_goes_on_as_it_went(tmp_path: Path, scenario: Scenario) -> None:
    """Every open run, also one that has not begun, that is being stopped, or whose end is being written."""
    whole = simulate(shop(tmp_path), scenario, write_log=tmp_path / "whole.db")
    truth = lives(whole)
    with History(tmp_path / "whole.db") as history:
        definition, recording = inputs(shop(tmp_path), history)
        for position in range(20, history.head, 3):
            state = history.state(position)
            rest = simulate_inputs(definition, recording, scenario.with_(jobs=None), state=state)
            told = lives(rest)
            assert {run for run in truth if int(str(run[-1])) > state.at} <= told <= truth, position
            assert not rest.stuck


def test_a_run_that_is_long_already_goes_on_as_the_few_that_are_as_long(tmp_path: Path) -> None:
    """One run in five hundred takes 100 s; who is still at it after 40 s is one of those."""
    path = tmp_path / "log.db"
    slow = Scenario(jobs=["j"], default=TaskScenario(duration=100.0), until=40.0)
    simulate(shop(tmp_path), slow, write_log=path)
    seen = Empirical((1.0,) * 499 + (100.0,))
    left = Scenario(tasks={"cut": TaskScenario(duration=seen), "glue": TaskScenario(duration=1.0)})
    with History(path) as history:
        state = history.state()
        definition, recording = inputs(shop(tmp_path), history)
        rest = simulate_inputs(definition, recording, left, state=state, now=state.at + round(40 * SECOND))
    assert rest.makespan == pytest.approx(61.0)


def test_a_run_that_outlives_all_that_were_seen_ends_at_once(tmp_path: Path) -> None:
    path = tmp_path / "log.db"
    simulate(shop(tmp_path), PLAIN.with_(jobs=["j0"], until=0.5), write_log=path)
    with History(path) as history:
        state = history.state()
        made = inputs(shop(tmp_path), history)
        rest = simulate_inputs(*made, PLAIN.with_(jobs=None), state=state, now=state.at + round(60 * SECOND))
    assert rest.makespan == pytest.approx(4.0)  # only the second task's latency and duration


def test_what_was_going_on_already_counts_from_the_beginning(tmp_path: Path) -> None:
    """Nothing is used more than there is, and the critical path begins at the beginning."""
    path = tmp_path / "log.db"
    simulate(shop(tmp_path), PLAIN.with_(until=3.1), write_log=path)
    with History(path) as history:
        state = history.state()
        assert state.open_runs
        later = state.at + round(0.1 * SECOND)
        rest = simulate_inputs(
            *inputs(shop(tmp_path), history), PLAIN.with_(jobs=None), state=state, now=later
        )
    assert 0.8 < rest.summaries[0].utilisation["all.cpu"] <= 1.0
    assert all(row["used"] <= row["limit"] + 1e-6 for row in rest.resources())
    steps = critical_path(rest)
    assert (steps[0].begin, steps[-1].end) == pytest.approx((0.0, rest.makespan))
