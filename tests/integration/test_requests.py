"""What attempts take: functions and processes that get more the second time, in the log, `why`, plans and simulations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from datatask import (
    CallerError,
    History,
    InProcessMetadataRepository,
    InProcessSyncTask,
    LocalLinuxManager,
    LogBlobRepository,
    Pipeline,
    ProcessTask,
    ResourceManager,
    Resources,
    Retry,
    Session,
    simulate,
)
from datatask.schema.units import NANO
from datatask.simulation import Constant, Scenario, TaskScenario
from tests.integration.pipeline_kit import documents

GROWING = [Resources.parse(1, "1MiB"), Resources.parse(2, "2MiB"), Resources.parse(3, "4MiB")]


def taken(log: Path) -> list[tuple[int, float]]:
    """Return attempt and cores of each run, in order."""
    with History(log) as history:
        return [
            (event.attempt, event.resources["cpu"] / NANO)  # type: ignore[attr-defined]
            for _, event in history.events(kind="LaunchDecided")
        ]


async def fails_twice(job: str, tries: Any) -> None:
    count = await tries.info(job) if await tries.contains(job) else 0
    raise ValueError(f"attempt {count}")


def growing(box: ResourceManager, attempts: int) -> tuple[InProcessSyncTask, Any]:
    """A task whose attempts fail and ask for more each time, and its input."""
    task = InProcessSyncTask(
        "f",
        documents("done"),
        func=fails_twice,
        retry=Retry(attempts, backoff=0.01),
        resource_manager=box,
        resources=GROWING,
    )
    tries = documents("tries")
    task.link("tries", tries, is_input=True)
    return task, tries


async def test_a_functions_attempts_take_more_and_more(tmp_path: Path) -> None:
    """The last one of the list repeats; a full quota holds back the large attempt, and lets others pass."""
    box = ResourceManager(Resources.parse(3, "8MiB"), name="box")
    task, tries = growing(box, attempts=4)
    async with Pipeline([task], Session(), [box], log=tmp_path / "log.db") as pipe:
        await pipe.put(tries, "a", 1)
        await pipe.run(timeout=100)
    assert taken(tmp_path / "log.db") == [(1, 1), (2, 2), (3, 3), (4, 3)]


async def test_an_attempt_that_never_fits_is_told(tmp_path: Path) -> None:
    """`why` says what the next attempt asks for, and the limit that would do."""
    box = ResourceManager(Resources.parse(2, "8MiB"), name="box")
    task, tries = growing(box, attempts=3)
    async with Pipeline([task], Session(), [box], log=tmp_path / "log.db") as pipe:
        await pipe.put(tries, "a", 1)
        assert (await pipe.run(timeout=100)).exit_code == 6
    assert taken(tmp_path / "log.db") == [(1, 1), (2, 2)]
    with History(tmp_path / "log.db") as history:
        why = history.why("f", "a")
        (held,) = [one for one in why.held_by if one.what == "infeasible"]
        assert held.explain == "it asks for 3 cores, box grants 2 in all"
        (change,) = [one for one in why.changes if one.op == "raise_quota"]
        assert change.limits is not None
        assert change.limits["cpu"] == 3 * NANO


async def test_a_scripts_attempts_are_told_what_they_have(tmp_path: Path) -> None:
    """In the template as `request`, and by the limit that holds them to it."""
    box = ResourceManager(Resources.parse(8, "8GiB"), name="box")
    source, printed = documents("in"), LogBlobRepository("printed")
    sizes = [Resources.parse(1, "300MiB"), Resources.parse(1, "600MiB")]
    task = ProcessTask(
        "p",
        LocalLinuxManager("app", tmp_path / "runs"),
        box,
        sizes,
        InProcessMetadataRepository(),
        "#!/bin/sh\necho {{ request.mem }} $(ulimit -v)\ntest {{ request.mem }} -gt 400000000\n",
        stdout=printed,
        done=documents("p.done"),
        retry=Retry(3, backoff=0.01),
        enforce="ulimit",
    )
    task.link("inp", source, is_input=True)
    async with Pipeline([task], Session(), [box], log=tmp_path / "log.db") as pipe:
        await pipe.put(source, "a", 1)
        assert (await pipe.run(timeout=100)).exit_code == 0
        async with printed.open("a", "rb") as stream:
            assert await stream.read() == b"%d %d\n" % (600 << 20, 600 << 10)
    with History(tmp_path / "log.db") as history:
        memory = [event.resources["mem"] for _, event in history.events(kind="LaunchDecided")]  # type: ignore[attr-defined]
    assert memory == [(300 << 20) * NANO, (600 << 20) * NANO]


def test_simulations_count_what_each_attempt_takes() -> None:
    """Two jobs whose second attempts take the whole quota go one after another then."""
    box = ResourceManager(Resources.parse(2, "1GiB"), name="box")
    task = InProcessSyncTask(
        "f",
        documents("done"),
        func=fails_twice,
        retry=Retry(2, backoff=0.0, jitter=0.0),
        resource_manager=box,
        resources=[Resources(cpu=1), Resources(cpu=2)],
    )
    task.link("tries", documents("tries"), is_input=True)
    pipe = Pipeline([task], Session(), [box], log="memory:")
    scenario = Scenario(jobs=2, default=TaskScenario(duration=Constant(10.0), failure=1.0))
    told = simulate(pipe, scenario)
    assert told.summaries[0].makespan == pytest.approx(30.0, abs=0.01)
    assert told.summaries[0].utilisation["box.cpu"] == pytest.approx(1.0, abs=0.01)
    levels = [row["used"] for row in told.resources(points=3) if row["resource"] == "box.cpu"]
    assert levels == pytest.approx([2.0, 2.0, 2.0], abs=0.01)


def test_what_is_no_list_of_resources_is_refused() -> None:
    """With what to pass."""
    box = ResourceManager(Resources.parse(2, "1GiB"))
    for wrong in ([], [1], "many", [Resources(cpu=1), None]):
        with pytest.raises(CallerError, match=r"resources"):
            InProcessSyncTask("f", documents("done"), resource_manager=box, resources=wrong)  # type: ignore[arg-type]
