"""`datatask.simulate`: from pipelines and from logs, into results and into logs that are like any other."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from datatask import (
    CallerError,
    History,
    InProcessSyncTask,
    LogMetadataRepository,
    Pipeline,
    RelatedItemRepository,
    Session,
    simulate,
    verify,
)
from datatask.adapters.log.reader import LogReader
from datatask.adapters.sim import worker
from datatask.adapters.sim.logged import Logged
from datatask.adapters.sim.machines import world_of
from datatask.adapters.sim.model import BEGINNING
from datatask.adapters.sim.modelling import changed, model_of
from datatask.adapters.sim.quick import Quick
from datatask.adapters.sim.recording import fitted
from datatask.adapters.sim.replication import Setup
from datatask.adapters.sim.result import Summary
from datatask.engine.core.effects import LogStep
from datatask.schema import codec
from datatask.schema import events as e
from datatask.simulation import (
    Arrivals,
    Empirical,
    Exponential,
    Lognormal,
    Machines,
    Result,
    Scenario,
    TaskScenario,
    Uniform,
    Weibull,
    durations_from_csv,
    inputs,
    results_json,
    simulate_inputs,
)
from tests.integration.simulate_kit import PLAIN, POOL, shop


async def never(job: str) -> None:
    raise AssertionError("a simulation runs no task's code")


def test_a_pipeline_of_equal_runs_takes_as_long_as_one_can_reckon() -> None:
    result = simulate(shop(), PLAIN)
    assert result.makespan == 40.0  # 80 runs of 2 s, four at once
    assert result.bottleneck == "all.cpu"
    (short,) = result.to_json()["scenarios"]
    assert short["utilisation"]["all.cpu"] == pytest.approx(1.0)
    assert short["makespan"] == {"mean": 40.0, "p50": 40.0, "p95": 40.0, "min": 40.0, "max": 40.0}
    assert set(short["tasks"]["cut"]) == {"runs", "wait_p50", "wait_p95", "service_p50"}


def test_twice_the_quota_takes_half_the_time_and_tells_who_waits_where() -> None:
    result = simulate(shop(), PLAIN.with_(quotas={"all": {"cpu": 8}}))
    assert result.makespan == 20.0
    assert simulate(shop(), PLAIN.with_(quotas={"all": {"cpu": "500"}})).bottleneck == "all.mem"
    free = simulate(shop(), PLAIN.with_(quotas={"all": {"cpu": 500, "mem": "500"}}))
    assert (free.makespan, free.bottleneck) == (4.0, "task cut")


def test_tables_say_what_ran_waited_and_was_used() -> None:
    result = simulate(shop(), PLAIN)
    runs = result.runs()
    assert (len(runs), runs[0]["task"], runs[0]["job"], runs[0]["state"]) == (
        80,
        "cut",
        "job-00",
        "succeeded",
    )
    assert max(runs.column("ended")) == 40.0
    assert result.tasks().column("runs") == [40, 40]
    used = [row["used"] for row in result.resources(4) if row["resource"] == "all.cpu"]
    assert used == pytest.approx([4.0] * 4)
    waiting = [row["waiting"] for row in result.queues(40) if row["task"] == "cut"]
    assert waiting[0] == pytest.approx(36.0)
    assert waiting[-1] == 0.0
    assert result.makespans().column("makespan") == [40.0]


def test_what_was_simulated_is_a_log_like_any_other(tmp_path: Path) -> None:
    path = tmp_path / "future.db"
    scenario = Scenario(
        jobs=25,
        arrivals=Arrivals("poisson", 2.0),
        tasks={
            "cut": TaskScenario(duration=Exponential(1.0), failure=0.3, attempts=3),
            "glue": TaskScenario(duration=Lognormal(1.0, 0.7), timeout=2.0),
        },
        seed=5,
    )
    result = simulate(shop(), scenario, write_log=path)
    assert result.summaries[0].runs == simulate(shop(), scenario).summaries[0].runs
    told = verify(path)
    assert told.ok
    history = History(path)
    try:
        status = history.status()
        assert status["tasks"]["cut"]["succeeded"] + status["tasks"]["cut"]["failed"] == 25
        assert len(history.runs()) == len(result.runs())
        assert {row["state"] for row in history.runs()} >= {"succeeded", "failed", "timed_out"}
        assert history.why("glue", "job-00").job == "job-00"
        assert history.trace("job-03").lanes
    finally:
        history.close()
    with pytest.raises(CallerError, match="a file already"):
        simulate(shop(), scenario, write_log=path)


def test_a_log_is_simulated_by_its_own_runs(tmp_path: Path) -> None:
    path = tmp_path / "past.db"
    slow = Scenario(
        jobs=60,
        tasks={
            "cut": TaskScenario(duration=Uniform(1.0, 3.0)),
            "glue": TaskScenario(duration=Weibull(1.0, 2.0)),
        },
        arrivals=Arrivals("even", 1.0),
    )
    past = simulate(shop(), slow, write_log=path)
    again = simulate(path, Scenario(own=True, arrivals=Arrivals("recorded")))
    assert again.makespan == pytest.approx(past.makespan, rel=1e-6)
    sampled = simulate(path, Scenario(arrivals=Arrivals("recorded"), replications=3))
    assert sampled.makespan == pytest.approx(past.makespan, rel=0.2)
    assert sampled.notes == [
        "cut: durations are those of 60 recorded runs",
        "glue: durations are those of 60 recorded runs",
    ]
    other = simulate(shop(), Scenario(jobs=500), log=path)
    assert other.summaries[0].runs == 1000


def test_a_log_goes_on_from_where_it_stands(tmp_path: Path) -> None:
    path = tmp_path / "half.db"
    half = PLAIN.with_(until=19.0, default=TaskScenario(duration=2.0, attempts=2))
    simulate(shop(), half, write_log=path)
    with History(path) as history:
        state = history.state()
        assert len(state.open_runs) == 4
        before = state.position
        rest = simulate_inputs(*inputs(shop(), path), PLAIN.with_(jobs=None), state=state)
        assert state.position == before
    assert rest.makespan == pytest.approx(22.0)  # four runs had begun at 18 s
    assert simulate(path, PLAIN.with_(jobs=None), present=True).makespan == rest.makespan
    more = simulate(path, PLAIN.with_(jobs=["new-1", "new-2"], replications=2), present=True, processes=1)
    assert more.makespan == pytest.approx(24.0)
    assert more.summaries[0].runs == rest.summaries[0].runs + 4
    hosts = [Machines("hosts", count=4, amounts={"cpu": 1})]
    assert simulate(path, PLAIN.with_(jobs=None, machines=hosts), present=True).makespan == rest.makespan
    wider = simulate(path, PLAIN.with_(jobs=None, quotas={"all": {"cpu": 8}}), present=True)
    assert wider.makespan < rest.makespan
    with pytest.raises(CallerError, match="only a log has a present"):
        simulate(shop(), PLAIN, present=True)
    with pytest.raises(CallerError, match="cannot be written"):
        simulate(path, PLAIN, present=True, write_log=tmp_path / "no.db")


def test_durations_follow_the_size_of_what_is_read_where_that_explains_them(tmp_path: Path) -> None:
    definition, _ = inputs(shop())
    scenario = Scenario(
        jobs=[f"j{index}" for index in range(20)],
        tasks={
            "cut": TaskScenario(duration={f"j{index}": 1.0 + index for index in range(20)}),
            "glue": TaskScenario(duration=1.0),
        },
    )
    path = tmp_path / "past.db"
    simulate(definition, scenario, write_log=path)
    _, recording = inputs(path)
    assert recording is not None
    record = recording.tasks["cut"]
    assert record.fit is None  # everything simulated is of one size
    record.sizes = {f"j{index}": 1000.0 * (1 + index) for index in range(20)}
    record.fit = fitted(record)
    assert record.fit is not None
    assert record.fit.seconds(5000.0) == pytest.approx(5.0)
    result = simulate_inputs(definition, recording, Scenario())
    took = {row["job"]: row["duration"] for row in result.runs() if row["task"] == "cut"}
    assert took["j7"] == pytest.approx(8.0)
    assert "follow the size" in result.notes[0]


def test_runs_that_make_jobs_fan_out_through_a_translator(tmp_path: Path) -> None:
    files, parts, whole = (LogMetadataRepository(name) for name in ("files", "parts", "whole"))
    split = InProcessSyncTask("split", LogMetadataRepository("split.done"), func=never)
    split.link("inp", files, is_input=True)
    split.link("out", parts, is_output=True)
    work = InProcessSyncTask("work", LogMetadataRepository("work.done"), func=never)
    work.link("part", parts, is_input=True)
    work.link("file", RelatedItemRepository(files, parts), is_input=True)
    work.link("out", whole, is_output=True)
    pipeline = Pipeline([split, work], Session(), log="memory:")
    scenario = Scenario(
        jobs=6,
        entries=["files"],
        default=TaskScenario(duration=1.0),
        tasks={"split": TaskScenario(duration=1.0, outputs=(), spawns={"parts": 5})},
    )
    path = tmp_path / "log.db"
    result = simulate(pipeline, scenario, write_log=path)
    assert result.tasks().column("runs") == [6, 30]
    assert verify(path).ok
    again = simulate(path)
    assert again.tasks().column("runs") == [6, 30]


def test_a_log_tells_how_often_runs_fail_and_how_long_those_take(tmp_path: Path) -> None:
    path = tmp_path / "past.db"
    cut = TaskScenario(duration=Uniform(1.0, 2.0), outcomes={"succeeded": 3, "failed": 1, "lost": 0.2})
    glue = TaskScenario(duration=3.0, timeout=2.0, outputs={"out": 0.5})
    simulate(shop(), Scenario(jobs=300, tasks={"cut": cut, "glue": glue}, seed=4), write_log=path)
    told = simulate(path, Scenario(jobs=1000, seed=1))
    runs = told.runs()
    shares = {
        state: runs.column("state").count(state) / len(runs) for state in ("failed", "timed_out", "lost")
    }
    assert 0.1 < shares["failed"] < 0.2
    assert 0.35 < shares["timed_out"] < 0.48
    assert 0.01 < shares["lost"] < 0.06
    assert {row["duration"] for row in runs if row["task"] == "glue"} == {2.0}
    own = simulate(path, Scenario(own=True, jobs=["job-000", "job-001", "newcomer"]))
    assert {row["job"] for row in own.runs()} == {"job-000", "job-001", "newcomer"}
    free = simulate(path, Scenario(jobs=50, tasks={"glue": TaskScenario(duration=1.0)}))
    assert {row["state"] for row in free.runs() if row["task"] == "glue"} == {"succeeded"}


def test_what_user_code_answered_is_answered_again(tmp_path: Path) -> None:
    raw, done = LogMetadataRepository("raw"), LogMetadataRepository("look.done")
    look = InProcessSyncTask("look", done, func=never, concurrency=1)
    look.link("inp", raw.map(lambda info: info, lambda job: True, name="good"), is_input=True)
    pipeline = Pipeline([look], Session(), log="memory:", priority=lambda *about: 0.0)
    path = tmp_path / "past.db"
    scenario = Scenario(jobs=5, default=TaskScenario(duration=1.0))
    assert simulate(pipeline, scenario, write_log=path).makespan == 5.0
    definition, recording = inputs(path)
    assert recording is not None
    assert recording.filters == {"good": {f"job-{index}": True for index in range(5)}}
    recording.filters["good"]["job-3"] = False
    recording.tasks["look"].priorities["job-4"] = 7.0
    runs = simulate_inputs(definition, recording, Scenario()).runs()
    assert runs.column("job") == ["job-4", "job-0", "job-1", "job-2"]


def test_replications_are_the_same_however_many_processes_work() -> None:
    scenario = Scenario(jobs=30, default=TaskScenario(duration=Exponential(1.0)), replications=4, seed=2)
    alone = simulate(shop(), scenario, processes=1)
    together = simulate(shop(), scenario, processes=2)
    assert alone.summaries == together.summaries
    assert len(set(alone.makespans().column("makespan"))) == 4
    given = Setup(changed(inputs(shop())[0], scenario), None, scenario, BEGINNING, None)
    assert asked_of_a_process(given) == {2: alone.summaries[2]}
    broken = given._replace(definition=None)  # type: ignore[arg-type]
    unsendable = given._replace(scenario=lambda: None)  # type: ignore[arg-type]
    assert asked_of_a_process(broken) == {}  # done here instead, which tells why
    assert asked_of_a_process(unsendable) == {}


def asked_of_a_process(given: Setup) -> dict[int, Summary]:
    """Return what a process of its own finds for the third replication."""
    found: dict[int, Summary] = {}
    worker._ask(given, [2], [], found)
    return found


def stepped(scenario: Scenario) -> tuple[Quick, Logged, list[LogStep]]:
    """Both simulators on one scenario, and the steps."""
    definition = changed(shop().declare().definition, scenario)
    quick = Quick(model_of(definition, None, scenario, 0), world_of(definition, scenario, 0))
    quick.run()
    steps: list[LogStep] = []
    logged = Logged(model_of(definition, None, scenario, 0), world_of(definition, scenario, 0), steps.append)
    logged.run()
    return quick, logged, steps


@pytest.mark.parametrize("seed", range(6))
def test_machines_that_fail_are_told_alike_with_and_without_events(seed: int) -> None:
    task = TaskScenario(duration=Exponential(2.0), failure=0.1, attempts=2, timeout=6.0)
    scenario = Scenario(jobs=40, default=task, machines=[POOL], arrivals=Arrivals("poisson", 1.0), seed=seed)
    quick, logged, _ = stepped(scenario)
    for column in ("run", "job", "attempt", "ready_at", "started_at", "ended_at", "outcome", "where"):
        assert getattr(quick.records, column) == getattr(logged.records, column), column
    assert quick.position == logged.position
    assert set(quick.records.where.values()) == {"nodes-0", "nodes-1", "nodes-2"}
    assert quick.records.outcome.count(2) > 0  # lost with their machines, and tried again


def test_machines_bind_where_the_quota_does_not() -> None:
    pool = Machines("hosts", count=2)
    result = simulate(shop(), PLAIN.with_(machines=[pool]))
    assert (result.makespan, result.bottleneck) == (80.0, "machines hosts")
    fast = simulate(shop(), PLAIN.with_(machines=[Machines("hosts", count=2, speed=2.0)]))
    assert fast.makespan == 40.0
    uneven = Machines("hosts", count=2, amounts=[{"cpu": 3}, {"cpu": 1}])
    where = simulate(shop(), PLAIN.with_(machines=[uneven])).runs().column("where")
    assert where.count("hosts-0") == 3 * where.count("hosts-1") == 60
    late = simulate(shop(), PLAIN.with_(machines=[Machines("hosts", count=40, start=100.0, latency=1.0)]))
    assert late.runs()[0]["started"] == 100.0


def test_outputs_are_filled_as_often_as_is_told() -> None:
    some = PLAIN.with_(jobs=400, tasks={"cut": TaskScenario(duration=1.0, outputs={"out": 0.25})})
    runs = simulate(shop(), some).tasks().column("runs")
    assert runs[0] == 400
    assert 60 < runs[1] < 140
    rare = PLAIN.with_(tasks={"cut": TaskScenario(duration=1.0, outcomes=["failed", "succeeded"])})
    assert 5 < simulate(shop(), rare).tasks().column("runs")[1] < 35


def test_durations_come_from_tables(tmp_path: Path) -> None:
    table = tmp_path / "durations.csv"
    table.write_text("task,job,seconds\ncut,job-0,5\ncut,job-1,7\nglue,job-0,1\nglue,job-1,1\n")
    told = durations_from_csv(table)
    tasks = {name: TaskScenario(duration=seconds) for name, seconds in told.items()}
    assert simulate(shop(), Scenario(jobs=2, tasks=tasks)).makespan == 8.0
    (tmp_path / "plain.csv").write_text("a,1\nb,2.5\n")
    assert durations_from_csv(tmp_path / "plain.csv") == {"": {"a": 1.0, "b": 2.5}}
    for text, said in [
        ("a,b,c,d\n", "durations.csv:1: 4 columns"),
        ("job,seconds\na,x\n", "durations.csv:2: 'x' is no number"),
        ("a,-1\n", "-1 seconds is no duration"),
        ("a/b,1\n", "not a job id"),
        ("a,1\na,2\n", "twice"),
        ("", "no durations"),
    ]:
        table.write_text(text)
        with pytest.raises(CallerError) as caught:
            durations_from_csv(table)
        assert said in str(caught.value)
    with pytest.raises(CallerError, match="cannot be read"):
        durations_from_csv(tmp_path / "none.csv")


GOLDEN = "f04f869404b096b7dae015b63cdf4bcee092d90d6125862d0b071ce7aa8ae464"


def test_a_seed_gives_the_same_events_for_ever() -> None:
    """If this fails, simulations of one seed differ between versions or machines: say so in the changelog, or mend it."""
    scenario = Scenario(
        jobs=30,
        arrivals=Arrivals("poisson", 1.5),
        tasks={
            "cut": TaskScenario(duration=Lognormal(1.5, 0.8), failure=0.2, attempts=3),
            "glue": TaskScenario(duration=Empirical((0.5, 1.0, 4.0)), timeout=3.5, latency=Weibull(0.2, 1.3)),
        },
        machines=[POOL],
        seed=11,
    )
    _, _, steps = stepped(scenario)
    digest = hashlib.sha256()
    for step in steps:
        for event in step.events:
            if not isinstance(event, e.LogCreated | e.EngineOpened | e.PipelineDefined):
                row = codec.encode(event)
                digest.update(
                    f"{type(event).__name__} {event.at} {event.task} {event.job} {event.run}".encode()
                )
                digest.update(row.payload or b"")
    assert digest.hexdigest() == GOLDEN


def test_the_same_seed_writes_the_same_chain(tmp_path: Path) -> None:
    heads = []
    for name in ("one.db", "two.db"):
        simulate(shop(), PLAIN, write_log=tmp_path / name)
        with LogReader(tmp_path / name) as reader:
            heads.append(reader.chain_at(reader.head))
    assert heads[0] == heads[1]


def test_several_results_are_one_document() -> None:
    results: list[Result] = [
        simulate(shop(), PLAIN.with_(name=f"cpu={cpus}", quotas={"all": {"cpu": cpus}})) for cpus in (2, 4)
    ]
    told = results_json(results)
    assert [each["name"] for each in told["scenarios"]] == ["cpu=2", "cpu=4"]
    assert (results_json([]), told["seed"]) == ({"scenarios": [], "seed": 0}, 0)
