"""Parameters from the command line and the environment: in functions, in templates, in other processes, in the log."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.integration.cli_kit import Project
from tests.unmeasured import plain_environment

PIPELINE = """
import datatask

threshold = datatask.Parameter("threshold", 0.5, help="the least score", least=0, most=1)
label = datatask.Parameter("label", "plain")
given = datatask.LogMetadataRepository("given")
out = datatask.LogMetadataRepository("out")
text = datatask.LogBlobRepository("text")

keep = datatask.InProcessSyncTask("keep", datatask.LogMetadataRepository("kept"))
keep.link("given", given, is_input=True)
keep.link("out", out, is_output=True)

@keep
async def run_keep(job, given, out, threshold):
    await out.dump(job, {"over": (await given.info(job)) >= threshold, "label": label.value})

write = datatask.ProcessTask(
    "write", datatask.LocalLinuxManager("app", "RUNS"), None, datatask.Resources.parse(1, "1Mi"),
    pids=datatask.LogMetadataRepository("pids"), template="echo {{ label | sh }} {{ threshold }}",
    done=datatask.LogMetadataRepository("written"), stdout=text,
)
write.link("given", given, is_input=True)

pipeline = datatask.Pipeline([keep, write], datatask.Session(), parameters=[threshold, label])

if __name__ == "__main__":
    datatask.main(pipeline)
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    for name in ("THRESHOLD", "LABEL"):  # set by `--set`: put back afterwards
        monkeypatch.delenv(f"DATATASK_SET_{name}", raising=False)
        monkeypatch.setenv(f"DATATASK_SET_{name}", "")
        monkeypatch.delenv(f"DATATASK_SET_{name}")
    project = Project(tmp_path, PIPELINE.replace("RUNS", str(tmp_path / "runs")))
    project.ok("inject", "keep.given", "a", stdin=b"0.6")
    return project


def test_values_reach_functions_and_templates_and_are_recorded(project: Project) -> None:
    choice = ["--set", "threshold=0.7", "--set", "label=two words"]
    planned = project.ok("plan", *choice)
    assert "parameter threshold = 0.7 (default 0.5): the least score" in planned.lines
    assert "definition: changed parameter threshold (value)" in planned.lines
    project.ok("run", *choice)
    assert project.ok("cat", "keep.out", "a").out == "over: false\nlabel: two words\n"
    assert project.ok("cat", "write.stdout", "a").out == "two words 0.7\n"
    found = project.ok(
        "query", "select payload from events where kind = 'PipelineDefined' order by position desc limit 1"
    )
    assert '"value":0.7' in found.out
    shape = project.ok("plan", "--json", *choice).json
    assert shape["parameters"][0] == {
        "name": "threshold",
        "value": 0.7,
        "default": 0.5,
        "help": "the least score",
    }
    assert shape["definition"] == []


def test_a_command_that_puts_something_keeps_the_recorded_values(project: Project) -> None:
    project.ok("run", "--set", "threshold=0.7")
    before = project.ok("log", "--kind", "PipelineDefined", "--json").lines
    project.ok("inject", "keep.given", "b", stdin=b"0.1")
    assert project.ok("log", "--kind", "PipelineDefined", "--json").lines == before


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["threshold=much"], "threshold=much is not a number"),
        (["threshold=2"], "threshold=2.0 is more than 1"),
        (["treshold=0.7"], "there is no parameter treshold"),
        (["threshold"], "'threshold' sets nothing"),
    ],
)
def test_what_does_not_fit_is_refused(project: Project, words: list[str], told: str) -> None:
    result = project.call("plan", *(part for word in words for part in ("--set", word)))
    assert result.code == 2
    assert told in result.err


def test_a_set_that_nothing_reads_is_noted(project: Project) -> None:
    assert "--set changed nothing" in project.ok("--set", "threshold=0.7", "runs").err


def test_a_parameter_that_no_pipeline_lists_is_refused(project: Project) -> None:
    file = project.folder / "pipeline.py"
    file.write_text(file.read_text().replace("parameters=[threshold, label]", "parameters=[label]"))
    result = project.call("plan")
    assert result.code == 2
    assert "does not list the parameter threshold" in result.err


def test_a_script_takes_them_too(project: Project) -> None:
    """`python pipeline.py run --set …`, where the objects are made before the arguments are read."""
    for environment, options, label in (
        ({}, ["--set", "label=x"], "x"),
        ({"DATATASK_SET_LABEL": "y"}, [], "y"),
    ):
        subprocess.run(
            [sys.executable, "pipeline.py", "run", *options], cwd=project.folder, check=True, timeout=60,
            env={**plain_environment(), **environment}, capture_output=True,
        )  # fmt: skip
        assert f"label: {label}" in project.ok("cat", "keep.out", "a").out
        project.ok("rm", "keep.done", "a")
