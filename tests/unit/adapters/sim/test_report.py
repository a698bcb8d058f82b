"""The page that tells why a simulation took so long."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path

import pytest

from datatask import (
    CallerError,
    simulate,
)
from datatask.adapters.sim.report import MARK, page, save
from datatask.simulation import Exponential, Scenario, TaskScenario, inputs
from tests.unit.sim_kit import chain


class _Page(HTMLParser):
    """Checks that tags match, and collects what is there."""

    VOID = frozenset(("meta", "rect", "line", "path"))

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.headings: list[str] = []
        self.addresses: list[str] = []
        self.tags: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href")]
        if tag not in ("meta",):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] in ("h2", "h3"):
            self.headings.append(data)


def test_a_report_shows_everything_and_needs_nothing_from_elsewhere(tmp_path: Path) -> None:
    definition, recording = inputs(chain(2))
    scenario = Scenario("<b>&now", jobs=50, default=TaskScenario(duration=Exponential(1)), replications=3)
    results = [simulate(definition, scenario), simulate(definition, scenario.with_(name="later", seed=1))]
    save(tmp_path / "report.html", results, definition, recording)
    text = (tmp_path / "report.html").read_text()
    found = _Page()
    found.feed(text)
    assert found.open == []
    assert found.addresses == []
    assert "script" not in found.tags
    assert "http" not in text
    assert found.headings.count("Critical path") == 2
    for heading in (
        "<b>&now", "later", "How long each scenario takes", "Makespan", "Tasks", "Utilisation over time", "Jobs that wait",
        "Runs by resource",
    ):  # fmt: skip
        assert heading in found.headings, heading
    assert "<b>" not in text
    assert "Relieving it (" in text


def test_a_report_of_what_cannot_go_on_says_so() -> None:
    definition, recording = inputs(chain())
    scenario = Scenario(jobs=3, entries=[], default=TaskScenario(duration=1))
    text = page([simulate(definition, scenario)], definition, recording)
    assert "Nothing ran." in text


def test_a_report_is_written_over_an_earlier_one_and_over_nothing_else(tmp_path: Path) -> None:
    definition, recording = inputs(chain())
    results = [simulate(definition, Scenario(jobs=1, default=TaskScenario(duration=1)))]
    path = tmp_path / "report.html"
    for _ in range(2):
        save(path, results, definition, recording)
    assert path.read_text().startswith(MARK)
    path.write_text("my thesis")
    with pytest.raises(CallerError, match="this file is no report"):
        save(path, results, definition, recording)
    assert path.read_text() == "my thesis"
    with pytest.raises(CallerError, match="No such file"):
        save(tmp_path / "no" / "report.html", results, definition, recording)
