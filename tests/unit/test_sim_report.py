"""Why a simulation took so long, and the page that tells it."""

from __future__ import annotations

import random
from html.parser import HTMLParser
from pathlib import Path

import pytest

from datatask import (
    CallerError,
    InProcessSyncTask,
    LogMetadataRepository,
    Pipeline,
    ResourceManager,
    Resources,
    Session,
    simulate,
)
from datatask.adapters.sim.bottleneck import relieve
from datatask.adapters.sim.charts import LANES_MAX, Bar, histogram, lanes
from datatask.adapters.sim.critical import critical_path, in_sum, path_table
from datatask.adapters.sim.report import MARK, page, save
from datatask.adapters.sim.result import Result
from datatask.simulation import Arrivals, Exponential, Machines, Scenario, TaskScenario, inputs


def chain(concurrency: int | None = None) -> Pipeline:
    """Two tasks, one after the other."""
    inp, mid, out = (LogMetadataRepository(name) for name in ("inp", "mid", "out"))
    made = []
    for name, source, target in (("fetch", inp, mid), ("crunch", mid, out)):
        task = InProcessSyncTask(name, LogMetadataRepository(f"{name}_done"), concurrency=concurrency)
        task.link("source", source, is_input=True)
        task.link("target", target, is_output=True)
        made.append(task)
    return Pipeline(made, Session(), [ResourceManager(Resources.parse(4, "1Gi"))])


def lengths(result: Result) -> dict[str, float]:
    """Return the seconds of the critical path by what, after checking that it has no gap."""
    steps = critical_path(result)
    at = 0.0
    for step in steps:
        assert step.begin == pytest.approx(at)
        at = step.end
    assert at == pytest.approx(result.makespan)
    found: dict[str, float] = {}
    for step in steps:
        found[step.what] = found.get(step.what, 0.0) + step.seconds
    return found


def test_a_job_alone_is_its_own_critical_path() -> None:
    scenario = Scenario(
        jobs=1, tasks={"fetch": TaskScenario(duration=3), "crunch": TaskScenario(duration=5, latency=2)}
    )
    result = simulate(chain(), scenario)
    steps = critical_path(result)
    assert [(step.what, step.task, step.seconds) for step in steps] == [
        ("running", "fetch", 3.0),
        ("starting", "crunch", 2.0),
        ("running", "crunch", 5.0),
    ]
    assert in_sum(steps) == {"running crunch": 5.0, "running fetch": 3.0, "starting crunch": 2.0}
    assert path_table(steps)[0] == {
        "from": 0.0,
        "to": 3.0,
        "seconds": 3.0,
        "what": "running",
        "task": "fetch",
        "job": "job-0",
    }


def test_where_runs_wait_for_room_the_path_goes_through_those_that_had_it() -> None:
    """Ten runs of 3 seconds one after another: nothing but running."""
    result = simulate(
        chain(1),
        Scenario(jobs=10, tasks={"fetch": TaskScenario(duration=3), "crunch": TaskScenario(duration=1)}),
    )
    assert lengths(result) == {"running": pytest.approx(31.0)}
    assert len(critical_path(result)) == 11


def test_a_path_begins_where_its_job_arrives() -> None:
    result = simulate(
        chain(), Scenario(jobs=3, arrivals=Arrivals("even", 0.01), default=TaskScenario(duration=1))
    )
    assert lengths(result)["running"] == pytest.approx(2.0)
    assert lengths(result)["arriving"] == pytest.approx(result.makespan - 2.0)


@pytest.mark.parametrize("seed", range(6))
def test_the_steps_add_up_to_the_makespan(seed: int) -> None:
    """With chance in everything: durations, failures, retries, arrivals, machines."""
    rng = random.Random(seed)
    scenario = Scenario(
        jobs=60,
        arrivals=Arrivals("poisson", rng.choice([0.5, 5.0])),
        default=TaskScenario(
            duration=Exponential(rng.choice([0.5, 3.0])),
            failure=0.2,
            attempts=3,
            latency=rng.choice([0.0, 0.3]),
        ),
        machines=[Machines(count=3, mtbf=50.0, repair=5.0)] if seed % 2 else [],
        seed=seed,
    )
    assert sum(lengths(simulate(chain(rng.choice([2, None, 15])), scenario)).values()) > 0


def test_relieving_the_bottleneck_is_simulated() -> None:
    """Twice the places halve the time; then the other task binds."""
    definition, recording = inputs(chain(2))
    scenario = Scenario(
        jobs=100, tasks={"fetch": TaskScenario(duration=1), "crunch": TaskScenario(duration=4)}
    )
    result = simulate(definition, scenario)
    relief = relieve(definition, recording, result)
    assert relief is not None
    assert relief.change == "crunch.concurrency 2 → 4"
    assert relief.before == result.makespan
    assert relief.saved == pytest.approx(0.5, abs=0.02)


def test_relieving_machines() -> None:
    definition, recording = inputs(chain(None))
    scenario = Scenario(
        jobs=100, default=TaskScenario(duration=1), machines=[Machines("nodes", 2, speed=[1, 1])]
    )
    relief = relieve(definition, recording, simulate(definition, scenario))
    assert relief is not None
    assert relief.change == "machines nodes 2 → 4"
    assert relief.saved == pytest.approx(0.5, abs=0.02)


def test_where_nothing_binds_nothing_can_be_relieved() -> None:
    definition, recording = inputs(chain(None))
    assert (
        relieve(
            definition, recording, simulate(definition, Scenario(jobs=1, default=TaskScenario(duration=1)))
        )
        is None
    )


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


def test_lanes_stay_small_however_many_runs_there_are() -> None:
    """What is narrower than a pixel is joined; too many at a time are told."""
    many = lanes((Bar(n / 100, (n + 1) / 100, 0, "run") for n in range(100_000)), 1000.0, "runs")
    assert len(many) < 300_000
    assert "runs</title>" in many
    crowd = lanes((Bar(0.0, 1.0, 0, f"run {n}") for n in range(LANES_MAX + 7)), 1.0, "runs")
    assert "7 more runs at the same time are not shown" in crowd


def test_a_histogram_of_equal_values_has_one_bar() -> None:
    assert histogram([2.0, 2.0, 2.0], "three").count("<rect") == 1
