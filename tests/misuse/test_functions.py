"""Functions that do harm: contained where they can be, told where they cannot, and never the end of the pipeline."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from datatask.schema.definition import INFRASTRUCTURE_ATTEMPTS
from tests.integration.cli_kit import Project
from tests.machine import with_peak

HARM = Path(__file__).with_name("harm.py")
GOOD = [f"good{number}" for number in range(6)]
KINDS = ("loop", "thread", "pool")
HARMLESS = [
    pytest.param(harm, kind, marks=[] if (at + turn) % 3 == 0 else pytest.mark.slow)
    for at, harm in enumerate(("prints", "forks", "changes", "clears", "ignores", "floods"))
    for turn, kind in enumerate(KINDS)
]
RUNS_MAX = 9
MEMORY_MB = 160


class Told:
    """What an engine did: exit codes of all that were needed, the largest memory in MB."""

    def __init__(self, project: Project, kind: str, megabytes: int = 64, lost: int = 2) -> None:
        self.project = project
        self.codes: list[int] = []
        self.stderr = ""
        environment = {
            **os.environ,
            "DATATASK_TEST_KIND": kind,
            "DATATASK_TEST_LOST": str(lost),
            "DATATASK_TEST_MEGABYTES": str(megabytes),
        }
        while len(self.codes) < RUNS_MAX and (not self.codes or self.codes[-1] not in (0, 1)):
            done = subprocess.run(
                with_peak(project.folder / "peak", sys.executable, "-m", "datatask", "run"), cwd=project.folder, env=environment,
                stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, timeout=120, check=False,
            )  # fmt: skip
            self.codes.append(done.returncode)
            self.stderr = done.stderr[-2000:]

    def state(self, job: str) -> tuple[str, str]:
        """Return the last state of the job in `act`, and the reason that is stored."""
        rows = self.project.ok(
            "query",
            f"SELECT state, coalesce(error, '') FROM runs WHERE task = 'act' AND job = '{job}' ORDER BY run",
            "--json",
        ).json["rows"]
        return tuple(rows[-1])


@pytest.fixture
def project(tmp_path: Path) -> Project:
    project = Project(tmp_path)
    shutil.copy(HARM, tmp_path / "pipeline.py")
    return project


def put(project: Project, *jobs: str) -> None:
    lines = "".join(json.dumps({"job": job, "n": 1}) + "\n" for job in (*GOOD, *jobs))
    (project.folder / "jobs.jsonl").write_text(lines)
    project.ok("inject", "act.numbers", "--from", "jobs.jsonl")


def all_else_went_on(project: Project) -> None:
    """The good ones are through both tasks, no run is open, and the log verifies."""
    made = {path.name for path in (project.folder / "files").iterdir()}
    assert set(GOOD) <= made
    shape: Any = project.ok("status", "--json").json["tasks"]["act"]
    assert shape["live"] == 0
    assert project.ok("replay", "--verify", "--json").json["divergences"] == []


@pytest.mark.parametrize(("harm", "kind"), HARMLESS)
def test_harm_that_is_nobodys_end(project: Project, kind: str, harm: str) -> None:
    put(project, harm)
    told = Told(project, kind)
    assert told.codes == [0], told.stderr
    assert told.state(harm) == ("succeeded", "")
    assert (project.folder / "files" / harm).read_text()
    all_else_went_on(project)


@pytest.mark.parametrize("kind", KINDS)
def test_a_function_that_deletes_its_input(project: Project, kind: str) -> None:
    """It is recorded with the run that did it; the run has what it wrote."""
    put(project, "deletes")
    told = Told(project, kind)
    assert told.codes == [0], told.stderr
    assert told.state("deletes") == ("succeeded", "")
    assert (project.folder / "files" / "deletes").read_text() == "without input"
    assert "deletes" not in project.ok("ls", "act.numbers").out.split()
    (deleted,) = [json.loads(line) for line in project.ok("log", "--kind", "ValueDeleted", "--json").lines]
    assert (deleted["job"], deleted["repository"]) == ("deletes", "numbers")
    assert deleted["run"]
    all_else_went_on(project)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("harm", ["hangs", "returns"])
def test_what_comes_after_its_time_counts_for_nothing(
    project: Project, kind: str, harm: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether it goes on for ever, or returns when it was cancelled: timed out, and nothing of it is kept."""
    monkeypatch.setenv("DATATASK_TEST_TIMEOUT", "2")
    put(project, harm)
    told = Told(project, kind)
    assert told.codes == [1], told.stderr
    state, why = told.state(harm)
    assert state == "timed_out"
    assert "its time was up" in why
    assert not (project.folder / "files" / harm).exists()
    assert harm not in project.ok("ls", "act.out").out.split()
    all_else_went_on(project)


@pytest.mark.parametrize("kind", KINDS)
def test_an_exception_that_cannot_travel(project: Project, kind: str) -> None:
    put(project, "raises")
    told = Told(project, kind)
    assert told.codes == [1], told.stderr
    state, why = told.state("raises")
    assert state == "failed"
    assert "unpicklable" in why
    all_else_went_on(project)


@pytest.mark.parametrize(
    "harm",
    ["dies", "closes", *(pytest.param(harm, marks=pytest.mark.soak) for harm in ("crashes", "aborts"))],
)
def test_a_worker_process_that_dies_takes_its_own_run_with_it(project: Project, harm: str) -> None:
    put(project, harm)
    told = Told(project, "pool")
    assert told.codes == [1], told.stderr
    state, why = told.state(harm)
    assert state == "lost"
    assert why
    all_else_went_on(project)
    assert "act" in project.call("why", "act", harm).out


@pytest.mark.parametrize(
    ("kind", "harm"),
    [
        ("loop", "dies"),
        *(pytest.param(kind, "crashes", marks=pytest.mark.soak) for kind in ("loop", "thread")),
    ],
)
def test_what_ends_the_engines_process_is_given_up_after_some_engines(
    project: Project, kind: str, harm: str
) -> None:
    """Nothing can contain it; each next `run` goes on, and after its budget the job is left alone."""
    put(project, harm)
    told = Told(project, kind)
    assert told.codes[-1] == 1, told.codes
    assert 1 < len(told.codes) <= RUNS_MAX
    state, why = told.state(harm)
    assert state == "lost"
    assert why
    given_up = [
        json.loads(line)["job"] for line in project.ok("log", "--kind", "RetriesExhausted", "--json").lines
    ]
    assert harm in given_up
    if beside := [
        job for job in given_up if job != harm
    ]:  # ran beside it each time, their ends not durable yet
        project.ok("retry", "act", *beside)
        Told(project, kind)
    all_else_went_on(project)


@pytest.mark.parametrize("kind", ["loop", "thread"])
def test_files_that_are_closed_under_the_engine(project: Project, kind: str) -> None:
    """Whatever comes of it: it ends, what was acknowledged stays, and the next `run` goes on."""
    put(project, "closes")
    told = Told(project, kind, lost=INFRASTRUCTURE_ATTEMPTS)
    assert told.codes[-1] in (0, 1), told.codes
    all_else_went_on(project)


def test_a_gigabyte_of_printing_takes_no_memory(project: Project) -> None:
    put(project, "prints")
    told = Told(project, "loop", megabytes=int(os.environ.get("DATATASK_SOAK_MEGABYTES", "96")))
    assert told.codes == [0]
    assert int((project.folder / "peak").read_text()) < MEMORY_MB << 20
