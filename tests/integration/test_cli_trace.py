"""`trace` and `History.trace`: a job's way through the tasks, from logs that an engine wrote."""

from __future__ import annotations

import itertools
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest

from datatask.adapters.history.history import History
from tests.integration.cli_kit import Project

RETRIES = """
import asyncio

import datatask

session = datatask.Session()
numbers = datatask.LogMetadataRepository("numbers")
owners = datatask.LogMetadataRepository("owners")
doubled = datatask.LogMetadataRepository("doubled")
tries = {}

double = datatask.InProcessSyncTask("double", datatask.LogMetadataRepository("done"), retry=datatask.Retry(2, 0.01))
double.link("numbers", numbers, is_input=True)
double.link("doubled", doubled, is_output=True)


@double
async def run_double(job, numbers, doubled):
    tries[job] = tries.get(job, 0) + 1
    await asyncio.sleep(0.001)  # it is seen running
    if job == "bad" or tries[job] == 1:
        raise ValueError("not yet")
    await doubled.dump(job, {"n": 2})


tell = datatask.InProcessSyncTask("tell", datatask.LogMetadataRepository("told"))
tell.link("owners", owners, is_input=True)
tell.link("doubled", datatask.RelatedItemRepository(doubled, owners, name="doubled_of"), required_for_start=True)


@tell
async def run_tell(job, owners):
    pass


pipeline = datatask.Pipeline([double, tell], session, [])
"""


@pytest.fixture
def project(tmp_path: Path) -> Project:
    """A number that is doubled in the second attempt, one that never is, and an owner who waits for the first."""
    project = Project(tmp_path, RETRIES)
    project.ok("inject", "tell.owners", "ada", stdin=b"good")
    for job in ("good", "bad"):
        project.ok("inject", "double.numbers", job, stdin=b"n: 1")
    assert project.call("run").code == 1
    return project


def _phases(spans: list[dict[str, Any]]) -> list[str]:
    return [span["phase"] for span in spans]


def test_attempts_and_their_outcomes(project: Project) -> None:
    """A retried job: ready, a failed run, the wait, a run that succeeded; with runs, attempts and errors."""
    (found,) = project.ok("trace", "good", "--json").json
    spans = found["timeline"]["double"]
    runs = [span for span in spans if span["phase"] == "running"]
    assert [(run["attempt"], run["outcome"]) for run in runs] == [(1, "failed"), (2, "succeeded")]
    assert runs[0]["error"] == "ValueError: not yet"
    assert spans[0]["phase"] == "ready"
    assert "retrying" in _phases(spans)
    assert (spans[-1]["phase"], spans[-1]["outcome"], spans[-1]["ended_at"]) == ("ended", "succeeded", None)


def test_spans_follow_each_other_without_gaps(project: Project) -> None:
    """From the first appearance to the end each moment is in one span of a lane."""
    for found in project.ok("trace", "good", "bad", "ada", "--json").json:
        for spans in found["timeline"].values():
            for before, after in itertools.pairwise(spans):
                assert before["ended_at"] == after["began_at"]
            assert [span["ended_at"] for span in spans].count(None) == (1 if spans else 0)


def test_a_translated_job_waits_for_the_other_one(project: Project) -> None:
    """`ada` stands for `good`: she waits until that is doubled, although no event in between is hers."""
    (found,) = project.ok("trace", "ada", "--json").json
    (good,) = project.ok("trace", "good", "--json").json
    waiting = found["timeline"]["tell"][0]
    assert waiting["phase"] == "waiting"
    assert waiting["ended_at"] == good["timeline"]["double"][-1]["began_at"]
    assert found["timeline"]["tell"][-1]["outcome"] == "succeeded"
    assert found["timeline"]["double"] == []


def test_piped_text_is_pydatatasks_unless_asked(project: Project) -> None:
    """Piped, the lines of links stay alone; --timeline adds the spans."""
    plain = project.ok("trace", "good").out
    assert plain.splitlines()[:2] == ["double", "double.numbers good"]
    more = project.ok("trace", "good", "--timeline").out
    assert more.startswith(plain)
    assert "attempt 2" in more
    assert project.ok("trace", "good", "--no-timeline").out == plain


def test_as_of_an_earlier_position(project: Project) -> None:
    """--at leaves out what came later: the open span is what the job was in then."""
    (found,) = project.ok("trace", "good", "--json").json
    run = next(span for span in found["timeline"]["double"] if span["phase"] == "running")
    (then,) = project.ok("trace", "good", "--at", str(run["position"]), "--json").json
    last = then["timeline"]["double"][-1]
    assert (last["phase"], last["run"], last["outcome"], last["ended_at"]) == (
        "running",
        run["run"],
        None,
        None,
    )


def test_cancelled_while_it_waited(project: Project) -> None:
    """A job that was taken out of the queue has ended, cancelled, without a run."""
    project.ok("pause", "double")
    project.ok("inject", "double.numbers", "late", stdin=b"n: 1")
    project.ok("cancel", "double", "late")
    (found,) = project.ok("trace", "late", "--json").json
    spans = found["timeline"]["double"]
    assert _phases(spans) == ["ready", "ended"]
    assert (spans[-1]["outcome"], spans[-1]["run"]) == ("cancelled", None)


def test_drawn_as_svg(project: Project) -> None:
    """--svg writes a picture beside the text; `-` prints nothing else; unknown jobs are told."""
    project.ok("trace", "good", "bad", "--svg", "way.svg")
    assert ET.fromstring((project.folder / "way.svg").read_text()).get("role") == "img"
    assert ET.fromstring(project.ok("trace", "good", "--svg", "-").out).get("role") == "img"
    refused = project.call("trace", "nobody", "--svg", "-")
    assert (refused.code, refused.out) == (2, "")
    assert "there is no job nobody" in refused.err


def test_a_changed_definition_is_followed(project: Project) -> None:
    """A job whose life spans two definitions is drawn under both."""
    text = (project.folder / "pipeline.py").read_text()
    (project.folder / "pipeline.py").write_text(text.replace("Retry(2, 0.01)", "Retry(3, 0.01)"))
    assert project.call("run").code in (0, 1)
    (found,) = project.ok("trace", "good", "--json").json
    assert found["timeline"]["double"][-1]["outcome"] == "succeeded"


def test_as_a_function(project: Project) -> None:
    """`History.trace` gives the same as JSON, text and a picture for notebooks."""
    with History(project.log) as history:
        line = history.trace("good")
        assert line.to_json()["tasks"]["double"]["spans"]
        assert "attempt 2" in str(line)
        assert line._repr_svg_().startswith("<svg")
        with pytest.raises(LookupError, match="no job nobody"):
            history.trace("nobody")
