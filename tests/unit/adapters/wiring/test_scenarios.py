"""Scenarios from YAML, tables and a command line: what is meant, and what is refused with its place."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from datatask import CallerError
from datatask.adapters.sim.distributions import Empirical, Exponential, Lognormal, Uniform, Weibull
from datatask.adapters.sim.scenario import Arrivals, Machines, Scenario, TaskScenario
from datatask.adapters.wiring.scenarios import scenario_of, scenarios_from_yaml, varied

WHOLE = """
jobs: 1000
arrivals: {poisson: 2.5}
entries: [numbers]
default: {duration: 1}
tasks:
  fetch: {duration: {lognormal: {median: 3m, sigma: 0.5}}, failure: 0.01, retry: {attempts: 3}}
  crunch:
    duration: {uniform: [1, 5]}
    latency: {exponential: 2}
    outputs: {out: 0.5}
    spawns: {parts: 3}
    resources: {cpu: 2, mem: 4Gi}
    timeout: 1h
quotas: {cluster: {cpu: 16, launches: 10}}
machines:
  - {name: nodes, count: 4, amounts: {cpu: 8}, start: {weibull: [30, 1.5]}, mtbf: 1d, repair: 10m, speed: [1, 1, 2, 2]}
replications: 20
seed: 7
until: 2d
own: true
"""


def load(folder: Path, text: str) -> dict[str, Scenario]:
    """Return the scenarios of a file with this text."""
    path = folder / "plan.yaml"
    path.write_text(text)
    return {scenario.name: scenario for scenario in scenarios_from_yaml(path)}


def test_everything_that_a_scenario_has(tmp_path: Path) -> None:
    (plan,) = load(tmp_path, WHOLE).values()
    assert plan == Scenario(
        name="plan",
        jobs=1000,
        arrivals=Arrivals("poisson", 2.5),
        entries=["numbers"],
        default=TaskScenario(duration=1.0),
        tasks={
            "fetch": TaskScenario(duration=Lognormal(180, 0.5), failure=0.01, attempts=3),
            "crunch": TaskScenario(
                duration=Uniform(1, 5),
                latency=Exponential(2),
                outputs={"out": 0.5},
                spawns={"parts": 3},
                resources={"cpu": 2, "mem": "4Gi"},
                timeout=3600.0,
            ),
        },
        quotas={"cluster": {"cpu": 16, "launches": 10}},
        machines=(
            Machines(
                "nodes", 4, {"cpu": 8}, start=Weibull(30, 1.5), mtbf=86400.0, repair=600.0, speed=[1, 1, 2, 2]
            ),
        ),
        replications=20,
        seed=7,
        until=172800.0,
        own=True,
    )


def test_named_scenarios_share_what_stands_above_them(tmp_path: Path) -> None:
    """Mappings are joined; a distribution takes the place of another one."""
    found = load(
        tmp_path,
        """
tasks:
  fetch: {duration: {uniform: [1, 2]}, failure: 0.1}
quotas: {cluster: {cpu: 8}}
scenarios:
  as it is:
  larger: {quotas: {cluster: {cpu: 64}}}
  faster: {tasks: {fetch: {duration: {exponential: 1}}}}
""",
    )
    assert list(found) == ["as it is", "larger", "faster"]
    assert found["as it is"].quotas == {"cluster": {"cpu": 8}}
    assert found["larger"].quotas == {"cluster": {"cpu": 64}}
    assert found["larger"].tasks == found["as it is"].tasks
    assert found["faster"].tasks["fetch"] == TaskScenario(duration=Exponential(1), failure=0.1)


def test_a_task_that_says_something_of_its_own_keeps_the_default_for_the_rest(tmp_path: Path) -> None:
    (plan,) = load(
        tmp_path,
        "default: {duration: 5, failure: 0.1}\ntasks: {fetch: {duration: 1}, crunch: {concurrency: 2}}",
    ).values()
    assert plan.tasks["fetch"] == TaskScenario(duration=1.0, failure=0.1)
    assert plan.tasks["crunch"] == TaskScenario(duration=5.0, failure=0.1, concurrency=2)


def test_durations_by_job_here_and_in_a_table(tmp_path: Path) -> None:
    (tmp_path / "times.csv").write_text("job,seconds\na,10\nb,90\n")
    found = load(
        tmp_path,
        """
tasks:
  listed: {duration: {jobs: {a: 1, b: 2m}}}
  table: {duration: {table: times.csv}}
  seen: {duration: {empirical: [1, 2s, 500ms]}}
""",
    )["plan"].tasks
    assert found["listed"].duration == {"a": 1.0, "b": 120.0}
    assert found["table"].duration == {"a": 10.0, "b": 90.0}
    assert found["seen"].duration == Empirical((1.0, 2.0, 0.5))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("tasks: {fetch: {durations: 3}}", "scenario plan: tasks.fetch: durations is not known here; use one of: dur"),
        ("tasks: {fetch: {duration: -3}}", "scenario plan: tasks.fetch.duration: the duration -3 is negative"),
        ("tasks: {fetch: {duration: -3m}}", "the duration -3m is negative"),
        ("tasks: {fetch: {duration: soon}}", "scenario plan: tasks.fetch.duration: 'soon' is no duration; write"),
        ("tasks: {fetch: {duration: .nan}}", "is no duration"),
        ("tasks: {fetch: {duration: {uniform: [5, 1]}}}", "plan: tasks.fetch.duration: uniform: high 1 is below low 5"),
        ("tasks: {fetch: {duration: {uniform: 5}}}", "tasks.fetch.duration.uniform: has 1 numbers; uniform needs 2"),
        ("tasks: {fetch: {duration: {weibull: {scale: 5}}}}", "tasks.fetch.duration.weibull: lacks shape"),
        ("tasks: {fetch: {duration: {gauss: [5, 1]}}}", "tasks.fetch.duration: has no distribution gauss; use one of"),
        ("tasks: {fetch: {duration: {jobs: {a: x}}}}", "tasks.fetch.duration.jobs.a: 'x' is no duration"),
        ("machines: [{number: 0}]", "scenario plan: machines[0]: number is not known here"),
        ("tasks: {fetch: {retry: {times: 3}}}", "scenario plan: tasks.fetch.retry: times is not known here"),
        ("tasks: {fetch: {latency: {gauss: 5}}}", "tasks.fetch.latency: has no distribution gauss; use one of"),
        ("tasks: {fetch: {duration: {table: no.csv}}}", "no.csv: the table cannot be read: No such file"),
        ("tasks: {fetch: {failure: 2}}", "scenario plan: fetch: failure is 2; give a share between 0 and 1"),
        ("tasks: {fetch: {failure: often}}", "scenario plan: tasks.fetch.failure: 'often' is no number"),
        ("tasks: [fetch]", "scenario plan: tasks: ['fetch'] is no mapping of names"),
        ("quotas: {q: {cpu: [1]}}", "scenario plan: quotas.q.cpu: [1] is no amount; write such as 16, 500m or 4Gi"),
        ("jobs: many", "scenario plan: jobs: 'many' is no whole number"),
        ("jobs: -1", "scenario plan: -1 jobs cannot be simulated"),
        ("arrivals: sometimes", "scenario plan: arrivals: jobs cannot arrive 'sometimes'; use at_once"),
        ("arrivals: {even: 0}", "scenario plan: arrivals: arrivals: 0 jobs a second never come"),
        ("arrivals: {even: 1, poisson: 2}", "scenario plan: arrivals: is not one way of arriving"),
        ("machines: [{count: 0}]", "scenario plan: machines machines: there are 0 of them"),
        ("machines: {count: 3}", "scenario plan: machines: {'count': 3} is no list"),
        ("own: 3", "scenario plan: own: 3 is no truth value; write true or false"),
        ("scenarios: {}", "plan.yaml: scenarios: no scenario is named"),
        ("scenarios: [a]", "plan.yaml: scenarios: ['a'] is no mapping of names"),
        ("- a", "plan.yaml: ['a'] is no mapping of names"),
        ("jobs: [", "plan.yaml, line 2, column 1: not YAML"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named_with_its_place(tmp_path: Path, text: str, told: str) -> None:
    with pytest.raises(CallerError) as caught:
        load(tmp_path, text + "\n")
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)


def test_machines_that_differ(tmp_path: Path) -> None:
    text = "machines: [{name: hosts, count: 2, amounts: [{cpu: 8}, {cpu: 32, mem: 64Gi}], speed: [1, 1.5]}]"
    assert load(tmp_path, text)["plan"].machines == (
        Machines("hosts", 2, [{"cpu": 8}, {"cpu": 32, "mem": "64Gi"}], speed=[1, 1.5]),
    )


def test_a_table_of_several_tasks_gives_each_its_own(tmp_path: Path) -> None:
    (tmp_path / "times.csv").write_text("fetch,a,1\na.b,a,5\n")
    tree = "tasks: {fetch: {duration: {table: times.csv}}, a.b: {duration: {table: times.csv}}}"
    found = load(tmp_path, tree)["plan"].tasks
    assert [found[name].duration for name in ("fetch", "a.b")] == [{"a": 1.0}, {"a": 5.0}]
    with pytest.raises(CallerError, match=r"has no durations of other; it has those of fetch, a\.b"):
        load(tmp_path, "tasks: {other: {duration: {table: times.csv}}}")


def test_what_varies_is_tried_in_every_combination() -> None:
    found = varied({"base": {"quotas": {"q": {"cpu": 1}}}}, ["quota.q.cpu=8,16", "fetch.retry.attempts=1,4"])
    assert list(found) == [
        "quota.q.cpu=8, fetch.retry.attempts=1",
        "quota.q.cpu=8, fetch.retry.attempts=4",
        "quota.q.cpu=16, fetch.retry.attempts=1",
        "quota.q.cpu=16, fetch.retry.attempts=4",
    ]
    last = scenario_of(found["quota.q.cpu=16, fetch.retry.attempts=4"], "last")
    assert last.quotas == {"q": {"cpu": 16}}
    assert last.tasks == {"fetch": TaskScenario(attempts=4)}


def test_several_scenarios_that_vary_keep_their_names() -> None:
    assert list(varied({"a": {}, "b": {}}, ["jobs=1,2"])) == [
        "a, jobs=1",
        "a, jobs=2",
        "b, jobs=1",
        "b, jobs=2",
    ]
    assert list(varied({"a": {}, "b": {}}, [])) == ["a", "b"]


@pytest.mark.parametrize(
    ("place", "field", "expected"),
    [
        ("jobs=5", "jobs", 5),
        ("until=90", "until", 90.0),
        ("default.duration=2m", "default", TaskScenario(duration=120.0)),
        ("arrivals.poisson=2.5", "arrivals", Arrivals("poisson", 2.5)),
        ("quotas.q.mem=4Gi", "quotas", {"q": {"mem": "4Gi"}}),
        ("a.b.concurrency=3", "tasks", {"a.b": TaskScenario(concurrency=3)}),
        ("t.duration=5m", "tasks", {"t": TaskScenario(duration=300.0)}),
        ("t.resources.cpu=2", "tasks", {"t": TaskScenario(resources={"cpu": 2})}),
        ("machines.nodes.count=9", "machines", (Machines("nodes", 9),)),
    ],
)
def test_places_that_can_vary(place: str, field: str, expected: Any) -> None:
    (tree,) = varied({"s": {"machines": [{"name": "nodes"}]}}, [place]).values()
    assert getattr(scenario_of(tree, "s"), field) == expected


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("quota.q.cpu", "'quota.q.cpu' does not say what varies; write PLACE=VALUE,VALUE"),
        ("quota.q.cpu=8,,9", "does not say what varies"),
        ("=8", "does not say what varies"),
        ("jobs=8,8", "'jobs=8,8' has a value twice"),
        ("colour=blue", "colour is nothing that can vary"),
        ("machines.none.count=2", "there are no machines none"),
        ("jobs=" + ",".join(map(str, range(10_001))), "10,001 combinations are too many"),
    ],
)
def test_what_cannot_vary_is_refused(text: str, told: str) -> None:
    with pytest.raises(CallerError) as caught:
        varied({"s": {}}, [text])
    assert told in str(caught.value)
    assert "--vary" in str(caught.value)


def test_the_file_that_the_documents_show_is_one(tmp_path: Path) -> None:
    text = (Path(__file__).parents[4] / "docs" / "simulation.md").read_text()
    (tmp_path / "plans.yaml").write_text(text.split("```yaml\n")[1].split("```")[0])
    (tmp_path / "durations.csv").write_text("job,seconds\nj1,3\n")
    names = [scenario.name for scenario in scenarios_from_yaml(tmp_path / "plans.yaml")]
    assert names == ["as it is", "twice the cpu", "spot machines"]
