"""Any line of a command may raise what a machine may raise there: it is told in one line, and nothing is lost.

A sample of points by a seed that is printed; `DATATASK_TEST_SEED` replays one. All commands of the table are tried, with 200
points each where soak tests run.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from datatask.adapters.cli.commands import COMMANDS
from tests.integration.cli_kit import PIPELINE, Project
from tests.integration.faults_kit import CALLS, POINTS, POINTS_SOAKING, Stage, seed, tried

TEXT = PIPELINE.replace(
    "session, [])", 'session, [datatask.ResourceManager(datatask.Resources.parse(4, "1Gi"))])'
)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project in which jobs are done, failed, waiting; a task is paused."""
    folder = tmp_path_factory.mktemp("base")
    project = Project(folder, TEXT)
    (folder / "some.csv").write_text("job,n\nc1,1\nc2,2\n")
    project.put(a=1, b=2)
    (folder / "bad.jsonl").write_text('{"job": "bad", "m": 1}\n')
    project.ok("inject", "double.numbers", "--from", "bad.jsonl")
    assert project.call("run").code == 1
    project.put(w1=1, w2=2)
    project.ok("pause", "shout")
    return folder


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    """A stage for this module."""
    stage = Stage(tmp_path_factory.mktemp("stage"))
    with stage.process:
        yield stage


@pytest.fixture(scope="module")
def paused(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same, and nothing runs by itself when an engine is up: what a command has changed stays so."""
    folder = tmp_path_factory.mktemp("paused")
    shutil.copytree(base, folder, dirs_exist_ok=True)
    Project(folder, TEXT).ok("pause", "double")
    return folder


def test_each_command_is_tried() -> None:
    """A new command is a line in CALLS."""
    assert {argv[0] for argv, _ in CALLS.values()} == set(COMMANDS)


@pytest.mark.long
@pytest.mark.scaled
@pytest.mark.parametrize("part", range(2))
def test_a_sample_of_points(stage: Stage, base: Path, part: int) -> None:
    """A few points of some commands, others each time."""
    number = seed()
    print(f"DATATASK_TEST_SEED={number}")
    chance = random.Random(f"{number} {part}")
    for name in chance.sample(sorted(CALLS), 3):
        found = tried(stage, base, name, POINTS, chance)
        assert not found, "\n".join(found)


@pytest.mark.soak
@pytest.mark.parametrize("name", sorted(CALLS))
def test_many_points(stage: Stage, base: Path, name: str) -> None:
    """Each command, at many points."""
    number = seed()
    print(f"DATATASK_TEST_SEED={number}")
    found = tried(stage, base, name, POINTS_SOAKING, random.Random(f"{number} {name}"))
    assert not found, "\n".join(found)


@pytest.mark.long
@pytest.mark.scaled
def test_a_sample_beside_an_engine(stage: Stage, paused: Path) -> None:
    """Commands ask the engine that is at work; it goes on, and does what it is asked once."""
    number = seed()
    print(f"DATATASK_TEST_SEED={number}")
    chance = random.Random(f"{number} beside")
    for name in chance.sample(sorted(CALLS), 2):
        found = tried(stage, paused, name, POINTS, chance, beside=True)
        assert not found, "\n".join(found)


@pytest.mark.soak
@pytest.mark.parametrize("name", sorted(CALLS))
def test_many_points_beside_an_engine(stage: Stage, paused: Path, name: str) -> None:
    """Each command, at many points, with an engine at work."""
    number = seed()
    print(f"DATATASK_TEST_SEED={number}")
    found = tried(stage, paused, name, POINTS_SOAKING, random.Random(f"{number} {name}"), beside=True)
    assert not found, "\n".join(found)
