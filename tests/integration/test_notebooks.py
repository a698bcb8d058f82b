"""A session as in a notebook: cells that define, open, run and ask; what each shows, by IPython's own display machinery."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from IPython.core.formatters import DisplayFormatter
from IPython.core.interactiveshell import InteractiveShell

DEFINE = """
import datatask
source, target = datatask.LogMetadataRepository("in"), datatask.LogMetadataRepository("<b>out</b>")
double = datatask.InProcessSyncTask("double", datatask.LogMetadataRepository("double.done"))
double.link("inp", source, is_input=True)
double.link("out", target, is_output=True)
@double
async def _(job, inp, out):
    await out.dump(job, 2 * await inp.info(job))
box = datatask.ResourceManager(datatask.Resources.parse(4, "1GiB", **{"g<i>": 1}), name="box")
double.resource_manager, double.job_resources = box, datatask.Resources.parse(1, "1MB")
pipeline = datatask.Pipeline([double], datatask.Session(), [box], log=LOG)
"""
RUN = """
async with pipeline:
    await pipeline.put("in", JOB, 21)
    await pipeline.run()
"""


@pytest.fixture
def shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """IPython's shell, as a kernel has it."""
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    kind: Any = InteractiveShell
    made = kind(user_ns={"LOG": str(tmp_path / "log.db")})
    made.history_manager.enabled = False
    yield made
    made.reset(new_session=False)


def cell(shell: Any, code: str) -> Any:
    """Execute a cell; return its value."""
    result = shell.run_cell(code)
    result.raise_error()
    return result.result


def shown(value: Any) -> dict[str, Any]:
    """Return what a notebook shows of a value, by MIME type."""
    formatter: Any = DisplayFormatter()
    data, _ = formatter.format(value)
    return dict(data)


class Tags(HTMLParser):
    """The tags and the text of a piece of HTML."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append(tag)

    def handle_data(self, data: str) -> None:
        self.text += data


def test_a_notebook_session(shell: Any) -> None:
    """Cells open the pipeline again and again; all that is asked is shown richly, and names are text, never markup."""
    cell(shell, DEFINE)
    for job in ("one", "two"):
        shell.user_ns["JOB"] = job
        cell(shell, RUN)
    cell(shell, "history = datatask.History(LOG)")

    status = shown(cell(shell, "history.status()"))
    html = Tags(status["text/html"])
    assert html.tags.count("table") == 3
    assert "b" not in html.tags
    assert "i" not in html.tags
    assert "double.out<b>out</b>2" in html.text
    assert "boxg<i>01" in html.text
    assert "double.inp   in           2" in status["text/plain"]
    assert json.loads(json.dumps(cell(shell, "history.status()")))["tasks"]["double"]["succeeded"] == 2

    runs = shown(cell(shell, "history.runs()"))
    assert Tags(runs["text/html"]).tags.count("tr") == 3
    assert "succeeded" in runs["text/plain"]

    why = shown(cell(shell, "history.why('double', 'one')"))
    assert "double" in Tags(why["text/html"]).text
    assert why["text/plain"].startswith("double")

    trace = shown(cell(shell, "history.trace('one')"))
    ElementTree.fromstring(trace["image/svg+xml"])
    assert "running" in trace["text/plain"]

    graph = cell(shell, "pipeline.graph()")
    drawn = ElementTree.fromstring(shown(graph)["image/svg+xml"])
    texts = {"".join(node.itertext()) for node in drawn.iter("{http://www.w3.org/2000/svg}text")}
    assert texts == {"doubledouble", "inin", "<b>out</b><b>out</b>", "double.donedouble.done"}
    assert "double -> <b>out</b> (out)" in str(graph).splitlines()
    assert len(list(drawn.iter("{http://www.w3.org/2000/svg}path"))) == graph.number_of_edges() == 4
    cell(shell, "history.close()")


def test_an_empty_log_is_shown_too(shell: Any) -> None:
    """Without tasks, runs and links there is still something to see."""
    cell(shell, "import datatask; pipeline = datatask.Pipeline([], datatask.Session(), [], log=LOG)")
    cell(shell, "async with pipeline: await pipeline.run()")
    cell(shell, "history = datatask.History(LOG)")
    assert " at " in shown(cell(shell, "history.status()"))["text/plain"]
    assert "<table>" in shown(cell(shell, "history.runs()"))["text/html"]
    ElementTree.fromstring(shown(cell(shell, "pipeline.graph()"))["image/svg+xml"])
    assert str(cell(shell, "pipeline.graph()")) == "no links"
    cell(shell, "history.close()")
