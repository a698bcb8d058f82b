"""The main job of the README, whole: the example over this machine's standard library, by the command line."""

from __future__ import annotations

import ast
import hashlib
import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.long]

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "stdlib"
BROKEN = "example.unparsable.py"
SECONDS_MAX = 600


class Call(NamedTuple):
    """What a command printed and how it ended."""

    out: str
    err: str
    code: int
    seconds: float


class Example:
    """A copy of the example in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        shutil.copytree(
            EXAMPLE, folder / "stdlib", ignore=shutil.ignore_patterns(".datatask", "report", "__pycache__")
        )
        self.cwd = folder
        self.folder = folder / "stdlib"

    def shell(self, line: str) -> Call:
        """Type a line."""
        began = time.monotonic()
        done = subprocess.run(
            line, shell=True, cwd=self.cwd, capture_output=True, text=True, timeout=SECONDS_MAX
        )
        return Call(done.stdout, done.stderr, done.returncode, time.monotonic() - began)

    def call(self, *words: str) -> Call:
        """Call datatask on the example."""
        return self.shell(shlex.join([sys.executable, "-m", "datatask", "-p", "stdlib/pipeline.py", *words]))

    def json(self, *words: str) -> Any:
        """Return what a command prints as JSON."""
        done = self.call(*words, "--json")
        assert done.code in (0, 1), done
        return json.loads(done.out)

    def run(self) -> dict[str, Any]:
        """Run, and return the summary."""
        summary: dict[str, Any] = self.json("run", "--failures-ok")
        return summary

    def report(self) -> Path:
        """Return the newest report."""
        return max((self.folder / "report").glob("*.md"), key=lambda path: path.stat().st_mtime_ns)


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> tuple[Example, Call]:
    """The example after its first run, and what that printed."""
    example = Example(tmp_path_factory.mktemp("example"))
    return example, example.call("run", "--failures-ok")


@pytest.fixture
def example(first: tuple[Example, Call]) -> Example:
    return first[0]


def files(example: Example) -> dict[str, Path]:
    """Return every job and its file, found in another way than the example does."""
    found = {}
    lib = Path(os.path.realpath(os.__file__)).parent
    for name, folder in (("Lib", lib), ("example", example.folder / "odd")):
        for path in folder.rglob("*.py"):
            parts = path.relative_to(folder).parts
            away = {"__pycache__", "site-packages", "dist-packages"} & set(parts)
            if not away and not any("." in part for part in (*parts[:-1], path.stem)):
                found[".".join([name, *parts])] = path
    return found


def test_the_first_run_succeeds_and_says_where_the_report_is(first: tuple[Example, Call]) -> None:
    """It shows how it goes, ends with 0, prints the paths of report and chart, and lines to type."""
    example, run = first
    assert run.code == 0, run
    assert run.out.startswith("started: 4 tasks")
    assert f"output: report.texts: {example.report().relative_to(example.cwd)}" in run.out
    assert "output: report.charts: stdlib/report/" in run.out
    for verb in ("why measure", "trace", "log --job"):
        assert verb in run.out


def test_the_lines_that_it_prints_work_as_printed(first: tuple[Example, Call]) -> None:
    """Each can be typed into the same shell, and explains the failure that it names."""
    example, run = first
    printed = [line[line.index(" -m datatask") :] for line in run.out.splitlines() if " -m datatask" in line]
    assert len(printed) == 3
    for line in printed:
        done = example.shell(shlex.quote(sys.executable) + line)
        assert done.code == 0, done
        assert done.out.count("\n") > 2


def test_every_file_went_through_every_task(example: Example) -> None:
    """No file is lost between the tasks, and only unparsable ones have failed."""
    expected, tasks = files(example), example.json("status")["tasks"]
    unparsable = {job for job, path in expected.items() if not parses(path)}
    assert len(expected) >= 200
    assert tasks["checksum"]["succeeded"] == tasks["compare"]["succeeded"] == len(expected)
    assert tasks["measure"]["succeeded"] == len(expected) - len(unparsable)
    failed = example.json("runs", "--state", "failed")
    assert {run["job"] for run in failed} == unparsable
    assert BROKEN in unparsable


def parses(path: Path) -> bool:
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            ast.parse(path.read_bytes())
        except (SyntaxError, ValueError):
            return False
    return True


def test_the_results_are_right(example: Example) -> None:
    """Digests, counts and metrics of a sample equal what Python itself finds."""
    sample = sorted(files(example).items())[::150]
    for job, path in sample:
        printed = example.call("cat", "checksum.stdout", job).out.splitlines()
        assert printed[0].split() == [hashlib.sha256(path.read_bytes()).hexdigest(), str(path)]
        assert int(printed[1].split()[2]) == path.stat().st_size
        metrics = example.json("cat", "measure.metrics", job)["value"] if parses(path) else None
        if metrics is not None:
            tree = ast.parse(path.read_bytes())
            classes = sum(isinstance(node, ast.ClassDef) for node in ast.walk(tree))
            assert metrics["classes"] == classes
            assert metrics["lines"] == len(path.read_bytes().splitlines())


def test_copies_are_found(example: Example) -> None:
    """What is called a copy has the same bytes, and there are as many copies as digests repeat."""
    expected = files(example)
    digests = {hashlib.sha256(path.read_bytes()).digest() for path in expected.values()}
    copies = example.call("ls", "compare.copies").out.split()
    assert len(copies) == len(expected) - len(digests)
    for job in copies[:3]:
        of = example.json("cat", "compare.copies", job)["value"]["of"]
        assert expected[of].read_bytes() == expected[job].read_bytes()


def test_the_report_and_the_chart_can_be_looked_at(example: Example) -> None:
    """The report has all its parts and shows the chart; the chart is an image with bars."""
    text = example.report().read_text()
    for heading in (
        "Largest packages",
        "Longest functions",
        "Identical files",
        "Files that cannot be parsed",
    ):
        assert f"## {heading}" in text
    assert f"{len(files(example)):,} files" in text
    assert "`example/unparsable.py`" in text
    chart = example.report().with_suffix(".svg")
    assert f"]({chart.name})" in text
    image = ElementTree.fromstring(chart.read_text())
    assert image.tag.endswith("svg")
    assert len([part for part in image if part.tag.endswith("rect")]) > 20


def test_failures_can_be_listed_and_explained(example: Example) -> None:
    """`runs`, `why` and the exit code of a plain `run` tell of the file that cannot be parsed."""
    assert "SyntaxError" in example.call("why", "measure", BROKEN).out
    assert example.call("run").code == 1
    assert example.call("verify").code == 0


def test_a_second_run_has_nothing_to_do(example: Example) -> None:
    """It notices so in under a second, launches nothing and leaves the report alone."""
    before = example.report().stat().st_mtime_ns
    summary = example.run()
    assert summary["launched"] == 0
    assert summary["seconds"] < 1
    assert example.report().stat().st_mtime_ns == before


def test_zz_a_new_file_and_a_mended_one_are_all_that_is_run(example: Example) -> None:
    """A third run does only what is new; a retry of the mended file makes a new report. (Changes the example.)"""
    assert example.run()["launched"] == 0
    shutil.copy(Path(os.__file__).parent / "this.py", example.folder / "odd" / "same_as_this.py")
    (example.folder / "odd" / "unparsable.py").write_text("def half(): ...\n")
    assert example.run()["ended"] == {"succeeded": 4}
    assert example.json("cat", "compare.copies", "example.same_as_this.py")["value"]["of"] == "Lib.this.py"
    assert example.call("retry", "measure", BROKEN).code == 0
    assert example.run()["ended"] == {"succeeded": 2}
    assert "example/unparsable.py" not in example.report().read_text().partition("cannot be parsed\n")[2]
