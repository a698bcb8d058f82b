"""`lineage` and `History.lineage`: what runs read and wrote, within a job and across jobs."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from datatask.adapters.history.history import History
from datatask.schema import events as e
from tests.integration.cli_kit import Project

ACROSS = """
import datatask

session = datatask.Session()
numbers = datatask.LogMetadataRepository("numbers")
doubled = datatask.LogMetadataRepository("doubled")
owners = datatask.LogMetadataRepository("owners")
parts = datatask.LogMetadataRepository("parts")
sums = datatask.LogBlobRepository("sums")
bills = datatask.LogMetadataRepository("bills")

double = datatask.InProcessSyncTask("double", datatask.LogMetadataRepository("doubled.done"))
double.link("numbers", numbers, is_input=True)
double.link("doubled", doubled, is_output=True)
double.link("parts", parts, is_output=True)


@double
async def run_double(job, numbers, doubled, parts):
    n = (await numbers.info(job))["n"]
    await doubled.dump(job, {"n": 2 * n})
    for index in range(n):
        await parts.dump(f"{job}-{index}", {"of": job})  # values of other jobs


bill = datatask.InProcessSyncTask("bill", datatask.LogMetadataRepository("bill.done"))
bill.link("owner", owners, is_input=True)
bill.link("doubled", datatask.RelatedItemRepository(doubled, owners, name="doubled_of"), is_input=True)
bill.link("bills", bills, is_output=True)


@bill
async def run_bill(job, owner, doubled, bills):
    await bills.dump(job, {"n": (await doubled.info(job))["n"]})


total = datatask.InProcessSyncTask("total", datatask.LogMetadataRepository("total.done"))
total.link("start", datatask.LogMetadataRepository("start"), is_input=True)
total.link("doubled", doubled)
total.link("sums", sums, is_output=True)


@total
async def run_total(job, start, doubled, sums):
    n = 0
    for name in (await start.info(job))["of"]:
        n += (await doubled.info(name))["n"]  # values of other jobs
    async with await sums.open(job, "w") as stream:
        await stream.write(str(n))


pipeline = datatask.Pipeline([double, bill, total], session, [])
"""


@pytest.fixture
def project(tmp_path: Path) -> Project:
    """Two numbers doubled into parts; Ada is billed for the first; a total reads both."""
    project = Project(tmp_path, ACROSS)
    project.ok("inject", "bill.owner", "ada", stdin=b"one")
    project.ok("inject", "double.numbers", "one", stdin=b"n: 1")
    project.ok("inject", "double.numbers", "two", stdin=b"n: 2")
    assert project.ok("run")
    project.ok("inject", "total.start", "all", stdin=b"of: [one, two]")
    assert project.ok("run")
    return project


def _named(shape: dict[str, Any]) -> set[str]:
    return {f"{value['repository']} {value['job']}" for value in shape["values"]} | {
        f"run {run['task']} {run['job']}" for run in shape["runs"]
    }


def test_what_came_from_a_value_across_jobs(project: Project) -> None:
    """Downstream of one number: its double and parts, the bill of who stands for it, the total that read it."""
    shape = project.ok("lineage", "one@double.numbers", "--down", "--json").json
    assert _named(shape) == {
        "numbers one",
        "run double one",
        "doubled one",
        "doubled.done one",
        "parts one-0",
        "run bill ada",
        "bills ada",
        "bill.done ada",
        "run total all",
        "sums all",
        "total.done all",
    }
    assert (shape["whole"], shape["cut"]) == (True, False)


def test_what_a_value_came_from_across_jobs(project: Project) -> None:
    """Upstream of the total: what it was started with, both doubles, both numbers; nothing that came after."""
    shape = project.ok("lineage", "all@sums", "--up", "--json").json
    assert _named(shape) == {
        "sums all",
        "run total all",
        "start all",
        "doubled one",
        "doubled two",
        "run double one",
        "run double two",
        "numbers one",
        "numbers two",
    }


def test_decided_on_and_really_read(project: Project) -> None:
    """Each edge says whether the run was decided on the value, read it, or both."""
    shape = project.ok("lineage", "all", "--up", "--json").json
    where = {value["position"]: value["repository"] for value in shape["values"]}
    total = next(run["run"] for run in shape["runs"] if run["task"] == "total")
    found = {
        (where[read["position"]], read["link"], read["decided"], read["read"])
        for read in shape["reads"]
        if read["run"] == total
    }
    assert found == {("start", "start", True, True), ("doubled", None, False, True)}


def test_the_index_alone_says_what_it_leaves_out(project: Project) -> None:
    """Without a look through the log readers of other jobs are missing, and that is said; relations are not missing."""
    shape = project.ok("lineage", "one@numbers", "--down", "--index", "--json").json
    assert not shape["whole"]
    assert "run bill ada" in _named(shape)
    assert "run total all" not in _named(shape)
    assert "--whole looks through the log" in project.ok("lineage", "one@numbers", "--index").out


def test_values_are_told_by_position_and_digest(project: Project) -> None:
    """A document's digest is that of its stored JSON, a blob's that of its bytes."""
    shape = project.ok("lineage", "all", "--json").json
    values = {value["repository"]: value for value in shape["values"]}
    assert values["sums"]["digest"] == hashlib.sha256(b"6").hexdigest()
    one = project.ok("lineage", "one@numbers", "--json").json["values"][0]
    assert one["digest"] == hashlib.sha256(b'{"n":1}').hexdigest()
    assert one["actor"].endswith("datatask inject")
    assert one["position"] in {row["position"] for row in _log(project, "--job", "one")}


def _log(project: Project, *filters: str) -> list[dict[str, Any]]:
    import json

    return [json.loads(line) for line in project.ok("log", *filters, "--json").lines]


def test_a_value_that_was_replaced_keeps_its_lineage(project: Project) -> None:
    """What came from the wrong value is found by its position, or by a time; what came from the right one is apart."""
    wrong = project.ok("lineage", "one@numbers", "--json").json["start"]
    before = _log(project)[-1]["position"]
    project.ok("inject", "double.numbers", "one", stdin=b"n: 0")
    project.ok("retry", "double", "one")
    assert project.ok("run")
    again = project.ok("lineage", "one@numbers", "--at", str(before), "--down", "--json").json
    assert again["start"] == wrong
    shape = project.ok("lineage", "--position", str(wrong[0]), "--down", "--json").json
    assert "run total all" in _named(shape)
    assert [run["run"] for run in shape["runs"] if run["task"] == "double"] == [
        run["run"] for run in again["runs"] if run["task"] == "double"
    ]
    assert not shape["values"][0]["current"]
    right = project.ok("lineage", "one@numbers", "--down", "--json").json
    assert right["start"] != wrong
    assert "run total all" not in _named(right)


def test_depth_counts_runs(project: Project) -> None:
    """--depth 1 is what the value's own readers wrote; 0 is the value alone."""
    near = project.ok("lineage", "one@numbers", "--down", "--depth", "1", "--json").json
    assert [run["task"] for run in near["runs"]] == ["double"]
    alone = project.ok("lineage", "one@numbers", "--down", "--depth", "0", "--json").json
    assert _named(alone) == {"numbers one"}


def test_a_limit_is_kept_and_said(project: Project) -> None:
    """With --limit the nearest come first, and both forms say that there is more."""
    shape = project.ok("lineage", "one@numbers", "--down", "--limit", "3", "--json").json
    assert (len(shape["values"]) + len(shape["runs"]), shape["cut"]) == (3, True)
    assert shape["values"][0]["position"] == shape["start"][0]
    assert "cut after 3 values and runs" in project.ok("lineage", "one", "--limit", "3").out


def test_as_a_tree(project: Project) -> None:
    """Text is a tree: what stands below came from what stands above it."""
    lines = project.ok("lineage", "one@numbers", "--down").lines
    assert lines[0] == "downstream:"
    assert re.fullmatch(r"  numbers one @\d+ sha256:[0-9a-f]{12} injected by .*: datatask inject", lines[1])
    assert re.fullmatch(r"  └─ run \d+ double one: succeeded, [\d:.TZ-]+ \(read as numbers\)", lines[2])
    assert any(re.search(r"run \d+ total all: .*\(read\)$", line) for line in lines)
    both = project.ok("lineage", "one@doubled").lines
    assert both.index("upstream:") < both.index("downstream:")


def test_as_graphviz(project: Project) -> None:
    """--dot: a node a value and a run, an edge a read and a write, and nothing that is not quoted."""
    shape = project.ok("lineage", "one", "--json").json
    text = project.ok("lineage", "one", "--dot").out
    assert text.startswith("digraph lineage {")
    assert text.count("[shape=") == len(shape["values"]) + len(shape["runs"])
    assert text.count("->") == len(shape["reads"]) + len(shape["writes"])


def test_the_start_may_be_any_event_of_a_run(project: Project) -> None:
    """--position takes a value, a decision, or what happened in a run."""
    ended = next(row for row in _log(project, "--kind", "RunEnded", "--job", "one"))
    shape = project.ok("lineage", "--position", str(ended["position"]), "--json").json
    assert shape["start"] == [ended["run"]]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "one start is needed"),
        (("one", "--position", "5"), "one start is needed"),
        (("nobody",), "there is no job nobody"),
        (("one@nowhere",), "there is no repository nowhere"),
        (("one@owners",), "has had no value in owners"),
        (("--position", "1"), "about no value and no run"),
        (("--position", "9999"), "there is no event at position 9999"),
        (("../x",), "is not a job id"),
    ],
)
def test_a_start_that_is_none_is_told(project: Project, arguments: tuple[str, ...], words: str) -> None:
    """One line on stderr, exit code 2."""
    result = project.call("lineage", *arguments)
    assert (result.code, result.out) == (2, "")
    assert words in result.err
    assert result.err.count("\n") == 1


def test_as_a_function(project: Project) -> None:
    """`History.lineage` gives the same, and a notebook shows the tree."""
    with History(project.log) as history:
        found = history.lineage("one@numbers", direction="down")
        assert found.to_json() == project.ok("lineage", "one@numbers", "--down", "--json").json
        assert found._repr_html_().startswith("<pre>downstream:")
        assert "total all" in str(found)


def test_every_value_and_run_agrees_with_a_plain_reading_of_the_log(project: Project) -> None:
    """The slow twin: edges from every event of the log, followed naively, give the same sets from every value."""
    with History(project.log) as history:
        events = dict(history.reader.read())
        below: dict[int, set[int]] = {}
        for position, event in events.items():
            if isinstance(event, e.LaunchDecided):
                _edges(below, event.inputs.values(), position)
            elif isinstance(event, e.RunEnded):
                _edges(below, (event.reads or {}).values(), event.run)
            elif isinstance(event, e.ValuePut) and event.run is not None:
                _edges(below, [event.run], position)
        for position, event in events.items():
            if isinstance(event, e.ValuePut | e.LaunchDecided):
                found = history.lineage(position, direction="down")
                assert {*found.values, *found.runs} == _closure(below, position), position
                up = history.lineage(position, direction="up")
                assert all(position in _closure(below, node) for node in {*up.values, *up.runs})


def _edges(below: dict[int, set[int]], sources: Iterable[int], target: int) -> None:
    for source in sources:
        below.setdefault(source, set()).add(target)


def _closure(below: dict[int, set[int]], start: int) -> set[int]:
    found = {start}
    queue = [start]
    for node in queue:
        fresh = below.get(node, set()) - found
        found |= fresh
        queue += sorted(fresh)
    return found
