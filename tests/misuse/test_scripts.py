"""Scripts that do harm, in processes of their own: each ends as it should, with a reason, and all others go on."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.integration.cli_kit import Project
from tests.machine import command_of

PIPELINE = """
import datatask
from datatask import FileRepository, LocalLinuxManager, LogMetadataRepository, ProcessTask, Resources

harm = ProcessTask(
    "harm", LocalLinuxManager("misuse", "{base}"), None, Resources(), LogMetadataRepository("pids"),
    {script!r}, done=LogMetadataRepository("done"), stdout=FileRepository("out", name="out"), timeout=6, grace=1,
    concurrency=20,
)
harm.link("inputs", FileRepository("inputs", name="inputs"), is_input=True)
harm.link("words", LogMetadataRepository("words"))
pipeline = datatask.Pipeline([harm], datatask.Session(), [])
"""
SCRIPT = """#!/bin/bash
{% if job == "renders" %}{{ words.nothing.at.all }}{% endif %}
case {{ job }} in
  closes) for fd in $(seq 0 255); do eval "exec $fd>&-"; done 2>/dev/null; exit 0;;
  changes) cd /; umask 777;;
  deletes) rm -- "{{ inputs }}";;
  forks) (trap '' HUP; sleep 300) & ;;
  dies) kill -9 $$;;
  exits) exit 7;;
  prints) head -c 64M /dev/zero; exit 0;;
  endless) while :; do sleep 0.2; done;;
  returns) trap 'sleep 0.1; echo late; exit 0' TERM; while :; do sleep 0.1; done;;
  ignores) trap '' TERM INT HUP; while :; do sleep 0.2; done;;
  clears) exec env -i /bin/echo bare;;
esac
echo fine
"""
ENDS = {
    "good": ("succeeded", ""),
    "closes": ("succeeded", ""),
    "changes": ("succeeded", ""),
    "deletes": ("succeeded", ""),
    "forks": ("succeeded", ""),
    "clears": ("succeeded", ""),
    "prints": ("succeeded", ""),
    "dies": ("failed", "SIGKILL"),
    "exits": ("failed", "7"),
    "endless": ("timed_out", "its time was up"),
    "returns": ("timed_out", "its time was up"),
    "ignores": ("timed_out", "its time was up"),
    "renders": ("refused", "nothing"),
}


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """All of them at once, run to the end."""
    folder = tmp_path_factory.mktemp("scripts")
    project = Project(folder, PIPELINE.format(base=folder / "base", script=SCRIPT))
    (folder / "inputs").mkdir()
    for job in ENDS:
        (folder / "inputs" / job).write_text(job)
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "datatask", "run"],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    assert time.monotonic() - began < 40
    assert "Traceback" not in done.stderr
    return project


@pytest.mark.parametrize("job", ENDS)
def test_a_script(project: Project, job: str) -> None:
    rows = project.ok(
        "query", f"SELECT state, coalesce(error, '') FROM runs WHERE job = '{job}' ORDER BY run", "--json"
    ).json["rows"]
    state, why = rows[-1]
    expected, reason = ENDS[job]
    assert (state, reason in why) == (expected, True), why
    assert len(rows) == 1
    if expected != "succeeded":
        assert project.call("why", "harm", job).out


def test_all_else_went_on(project: Project) -> None:
    out = project.folder / "out"
    assert (out / "good").read_text() == "fine\n"
    assert (out / "changes").read_text() == "fine\n"
    assert (out / "clears").read_text() == "bare\n"
    assert (out / "prints").stat().st_size == 64 << 20
    assert project.ok("status", "--json").json["tasks"]["harm"]["live"] == 0
    assert project.ok("replay", "--verify", "--json").json["divergences"] == []


def test_the_input_that_was_deleted_is_gone_and_nothing_else(project: Project) -> None:
    project.call("run")
    events = [json.loads(line) for line in project.ok("log", "--kind", "ValueDeleted", "--json").lines]
    assert [event["job"] for event in events if event["repository"] == "inputs"] == ["deletes"]
    left = {path.name for path in (project.folder / "inputs").iterdir()}
    assert left == ENDS.keys() - {"deletes"}


def test_what_forked_is_not_left(project: Project) -> None:
    mine = str(project.folder / "base")
    left = [
        process.name
        for process in Path("/proc").glob("[0-9]*")
        if _leads(process / "cwd").startswith(mine) and b"sleep" in command_of(process)
    ]
    assert left == []


def _leads(path: Path) -> str:
    try:
        return str(path.readlink())
    except OSError:
        return ""
