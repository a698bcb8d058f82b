"""What `why` says to type, typed into a shell: the job runs then. And what it says to wait for, where that is enough."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.integration.cli_kit import PIPELINE, Project
from tests.unmeasured import plain_environment

POOL = (
    'InProcessSyncTask("double", done)\n'
    "double.resource_manager = datatask.ResourceManager(datatask.Resources.parse(1, '1Gi'), name='pool')\n"
    "double.job_resources = datatask.Resources.parse({cpu}, '{mem}')"
)


def pooled(cpu: float, mem: str) -> str:
    return PIPELINE.replace('InProcessSyncTask("double", done)', POOL.format(cpu=cpu, mem=mem))


def said(project: Project, word: str, task: str = "double", job: str = "a") -> str:
    """Return the line of `why` that begins with a word; empty where there is none."""
    found = [line.strip() for line in project.ok("why", task, job).lines]
    return next((line.removeprefix(f"{word}: ") for line in found if line.startswith(f"{word}: ")), "")


def typed(project: Project, line: str) -> None:
    """Type a line into a shell that finds this datatask."""
    environment = plain_environment() | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    done = subprocess.run(
        ["bash", "-c", line], cwd=project.folder, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, (line, done.stderr)


def runs(project: Project) -> int:
    return len(project.ok("runs", "--task", "double", "--job", "a", "--state", "succeeded", "--json").json)


def test_no_engine(tmp_path: Path) -> None:
    project = Project(tmp_path)
    project.put(a=1)
    line = said(project, "type")
    assert line.endswith(" run")
    typed(project, line)
    assert runs(project) == 1


def test_a_job_that_is_done(tmp_path: Path) -> None:
    project = Project.after_a_run(tmp_path)
    line = said(project, "type")
    assert " retry double a && " in line
    typed(project, line)
    assert runs(project) == 2


def test_a_paused_task_and_a_cancelled_job(tmp_path: Path) -> None:
    project = Project(tmp_path)
    project.put(a=1)
    project.ok("pause", "double")
    project.ok("cancel", "double", "a")
    line = said(project, "type")
    assert " resume double" in line
    typed(project, line)
    assert runs(project) == 1


@pytest.mark.parametrize(
    ("cpu", "mem", "limits"),
    [
        (3, "1Mi", " quota pool cpu=3 "),
        (0.5, "3Gi", " quota pool mem=3Gi "),
        (1.25, "1Mi", " quota pool cpu=1.25 "),
    ],
)
def test_a_limit_is_raised_as_far_as_needed(tmp_path: Path, cpu: float, mem: str, limits: str) -> None:
    project = Project(tmp_path, pooled(cpu, mem))
    project.put(a=1)
    project.call("run")
    line = said(project, "type")
    assert limits in line
    typed(project, line)
    assert runs(project) == 1


def test_what_ends_by_itself_is_waited_for(tmp_path: Path) -> None:
    """A run that has what the job needs, and the time until a retry."""
    project = Project(tmp_path, pooled(1, "1Mi"))
    project.ok("inject", "double.numbers", "slow", stdin=b'{"n": 1, "seconds": 3600}')
    with project.engine():
        while not (found := project.ok("runs", "--state", "running", "--json").json):
            time.sleep(0.05)
        project.put(a=1)
        assert said(project, "wait") == f"until run {found[0]['run']} ends"
        assert " quota pool cpu=2" in said(project, "type")


@pytest.mark.parametrize("named", [("-p", "a place/pipeline.py"), ("--log", "a place/.datatask/log.db")])
def test_elsewhere_the_pipeline_and_its_log_are_named(tmp_path: Path, named: tuple[str, str]) -> None:
    """From another folder, and a place with a space in its name."""
    (tmp_path / "a place").mkdir()
    project = Project(tmp_path / "a place")
    project.put(a=1)
    project.ok("pause", "double")
    environment = plain_environment()
    why = [sys.executable, "-m", "datatask", *named, "why", "double", "a"]
    out = subprocess.run(
        why, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    ).stdout
    (line,) = [line.strip().removeprefix("type: ") for line in out.splitlines() if "type: " in line]
    done = subprocess.run(["bash", "-c", line], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, (line, done.stderr)
    assert runs(project) == 1
