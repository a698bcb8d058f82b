"""The result of a simulation: a `Summary` of each replication, tables for notebooks, and the documented JSON.

In: the records of replications, and the definition they were made under. Out: summaries of plain numbers, small enough
to travel between processes; `Table`s, made on request. Times are seconds since the simulation began.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import repeat
from typing import Any

from datatask.adapters.history.shapes import Table
from datatask.adapters.sim.model import OUTCOMES, SUCCEEDED, Records
from datatask.adapters.sim.scenario import Scenario
from datatask.schema.definition import PipelineDef, TaskDef
from datatask.schema.resources import UNLIMITED_LAUNCHES
from datatask.schema.units import SECOND

POINTS = 200
RUN_COLUMNS = (
    "run",
    "task",
    "job",
    "attempt",
    "state",
    "ready",
    "decided",
    "started",
    "ended",
    "wait",
    "duration",
    "where",
)


@dataclass
class Result:
    """One scenario, simulated; `notes` name the source of durations where there was a choice.

    `summaries` has one entry a replication, `records` the runs of the first one (None where they were not kept).
    `stuck` says, a line each, which jobs wait for what at its end, where it could not go on.
    """

    scenario: Scenario
    definition: PipelineDef
    begin: int
    summaries: list[Summary]
    records: Records | None = None
    names: Sequence[str] = ()
    notes: list[str] = field(default_factory=list)

    @property
    def stuck(self) -> tuple[str, ...]:
        """What the first replication ended on, where it could not go on."""
        return self.summaries[0].stuck

    @property
    def makespan(self) -> float:
        """The mean over replications, in seconds."""
        return sum(each.makespan for each in self.summaries) / len(self.summaries)

    @property
    def bottleneck(self) -> str:
        """What bound most often."""
        return str(in_short(self.summaries, "")["bottleneck"])

    def to_json(self) -> dict[str, Any]:
        """Return the object of `simulate --json` for this one scenario."""
        return results_json([self])

    def makespans(self) -> Table:
        """Return a row for each replication."""
        rows = [(each.replication, each.makespan, each.runs, each.bottleneck) for each in self.summaries]
        return Table(("replication", "makespan", "runs", "bottleneck"), rows)

    def tasks(self) -> Table:
        """Return a row for each task of the first replication: runs, waits and services in seconds."""
        columns = (
            "task",
            "runs",
            "succeeded",
            "failed",
            "wait_mean",
            "wait_p50",
            "wait_p95",
            "wait_max",
            "service_mean",
            "service_p50",
            "service_p95",
        )
        rows = [
            (name, *(getattr(task, column) for column in columns[1:]))
            for name, task in self.summaries[0].tasks.items()
        ]
        return Table(columns, rows)

    def runs(self) -> Table:
        """Return a row for each run of the first replication, in the order in which they ended."""
        records, tasks, begin = self._records(), [task.name for task in self.definition.tasks], self.begin
        return Table(
            RUN_COLUMNS,
            (
                (
                    records.run[index],
                    tasks[records.task[index]],
                    self.names[records.job[index]],
                    records.attempt[index],
                    OUTCOMES[records.outcome[index]],
                    (records.ready_at[index] - begin) / SECOND,
                    (records.decided_at[index] - begin) / SECOND,
                    (records.started_at[index] - begin) / SECOND,
                    (records.ended_at[index] - begin) / SECOND,
                    (records.started_at[index] - records.ready_at[index]) / SECOND,
                    (records.ended_at[index] - records.started_at[index]) / SECOND,
                    records.where.get(index, ""),
                )
                for index in range(len(records))
            ),
        )

    def resources(self, points: int = POINTS) -> Table:
        """Return the use of each limit over time: the mean in each of a number of equal spans."""
        rows = []
        records = self._records()
        for quota in self.definition.quotas:
            for name, limit in quota.limits.items():
                weights = [
                    [
                        request.get(name, 0) / SECOND if task.quota == quota.name else 0.0
                        for request in task.requests
                    ]
                    for task in self.definition.tasks
                ]
                used = self._levels(records.decided_at, records.ended_at, weights, points)
                rows += [(at, f"{quota.name}.{name}", level, limit / SECOND) for at, level in used]
        for index, task in enumerate(self.definition.tasks):
            if task.concurrency:
                one = [[float(index == other)] for other in range(len(self.definition.tasks))]
                used = self._levels(records.decided_at, records.ended_at, one, points)
                rows += [
                    (at, f"{task.name}.concurrency", level, float(task.concurrency)) for at, level in used
                ]
        return Table(("at", "resource", "used", "limit"), rows)

    def queues(self, points: int = POINTS) -> Table:
        """Return the length of each task's queue over time: the mean in each of a number of equal spans."""
        rows = []
        records = self._records()
        for index, task in enumerate(self.definition.tasks):
            one = [[float(index == other)] for other in range(len(self.definition.tasks))]
            waiting = self._levels(records.ready_at, records.decided_at, one, points)
            rows += [(at, task.name, level) for at, level in waiting]
        return Table(("at", "task", "waiting"), rows)

    def _levels(
        self, since: array[int], until: array[int], weights: list[list[float]], points: int
    ) -> list[tuple[float, float]]:
        """Return the mean level in each span, of what counts between two times with the weight of its task, or attempt."""
        records = self._records()
        end = max(records.ended_at, default=self.begin)
        width = max((end - self.begin) / points, 1.0)
        whole, part = [0.0] * (points + 2), [0.0] * (points + 2)
        spent = spent_of(self.definition, records)
        for task, first, last, before in zip(records.task, since, until, spent, strict=False):
            own = weights[task]
            weight = own[min(before, len(own) - 1)]
            if weight:
                for at, sign in ((first, weight), (last, -weight)):
                    place = max(0, at - self.begin) / width  # it may have begun before
                    span = min(int(place), points)
                    part[span] += sign * (span + 1 - place)
                    whole[span + 1] += sign
        levels, level = [], 0.0
        for span in range(points):
            level += whole[span]
            levels.append((span * width / SECOND, max(0.0, level + part[span])))
        return levels

    def _records(self) -> Records:
        assert self.records is not None, "the runs were not kept"
        return self.records


def results_json(results: Sequence[Result]) -> dict[str, Any]:
    """Return the object of `simulate --json`."""
    scenarios = [in_short(result.summaries, result.scenario.name) for result in results]
    return {"scenarios": scenarios, "seed": results[0].scenario.seed if results else 0}


@dataclass(frozen=True)
class TaskSummary:
    """The runs of one task; `wait` is from being ready (a retry: due) to the start, `service` from there to the end."""

    runs: int
    succeeded: int
    failed: int
    wait_mean: float
    wait_p50: float
    wait_p95: float
    wait_max: float
    service_mean: float
    service_p50: float
    service_p95: float


@dataclass(frozen=True)
class Summary:
    """One replication; `utilisation` is by resource, `stuck` says by task what holds how many jobs at the end."""

    replication: int
    jobs: int
    runs: int
    makespan: float
    events: int
    utilisation: dict[str, float] = field(default_factory=dict)
    tasks: dict[str, TaskSummary] = field(default_factory=dict)
    bottleneck: str = ""
    stuck: tuple[str, ...] = ()


def quantile(ordered: Sequence[float], share: float) -> float:
    """Return the nearest-rank quantile of ordered values, 0 where there are none."""
    if not ordered:
        return 0.0
    return ordered[min(len(ordered) - 1, max(0, -(-int(share * 10_000) * len(ordered) // 10_000) - 1))]


def spent_of(definition: PipelineDef, records: Records) -> Iterable[int]:
    """Return, for each run, how many attempts before it count; for ever 0 where that makes no difference."""
    if not any(task.later for task in definition.tasks):
        return repeat(0)
    found, spent = array("H"), dict[tuple[int, int], int]()
    for task, job, attempt, outcome in zip(
        records.task, records.job, records.attempt, records.outcome, strict=True
    ):
        before = 0 if attempt == 1 else spent.get((task, job), 0)
        found.append(before)
        spent[task, job] = before + (OUTCOMES[outcome] != "lost")
    return found


def summed_up(
    definition: PipelineDef,
    records: Records,
    begin: int,
    *,
    replication: int,
    jobs: int,
    events: int,
    machines: dict[str, tuple[float, float]],
) -> Summary:
    """Return the numbers of one replication; `machines` are (busy, available) machine-seconds by pool."""
    end = max(records.ended_at, default=begin)
    makespan = (end - begin) / SECOND
    waits: list[array[int]] = [array("q") for _ in definition.tasks]
    services: list[array[int]] = [array("q") for _ in definition.tasks]
    held = [[0] * len(task.requests) for task in definition.tasks]
    succeeded = [0] * len(definition.tasks)
    for task, ready, decided, started, ended, outcome, before in zip(
        records.task,
        records.ready_at,
        records.decided_at,
        records.started_at,
        records.ended_at,
        records.outcome,
        spent_of(definition, records),
        strict=False,
    ):
        waits[task].append(started - ready)
        services[task].append(ended - started)
        held[task][min(before, len(held[task]) - 1)] += ended - max(decided, begin)
        succeeded[task] += outcome == SUCCEEDED or outcome == len(OUTCOMES) - 1
    tasks = {
        task.name: _task(waits[index], services[index], succeeded[index])
        for index, task in enumerate(definition.tasks)
    }
    used = _used(definition, held, tasks, makespan)
    for pool, (busy, available) in machines.items():
        used[f"machines {pool}"] = busy / available if available > 0 else 0.0
    return Summary(
        replication,
        jobs,
        len(records),
        makespan,
        events,
        used,
        tasks,
        _bottleneck(definition, tasks, used),
    )


def _task(waits: array[int], services: array[int], succeeded: int) -> TaskSummary:
    count = len(waits)
    if not count:
        return TaskSummary(0, 0, 0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0)
    wait, service = sorted(waits), sorted(services)
    return TaskSummary(
        count,
        succeeded,
        count - succeeded,
        sum(wait) / count / SECOND,
        quantile(wait, 0.5) / SECOND,
        quantile(wait, 0.95) / SECOND,
        wait[-1] / SECOND,
        sum(service) / count / SECOND,
        quantile(service, 0.5) / SECOND,
        quantile(service, 0.95) / SECOND,
    )


def _used(
    definition: PipelineDef, held: list[list[int]], tasks: dict[str, TaskSummary], makespan: float
) -> dict[str, float]:
    """Return how much of each limit was in use, as a share of the whole time."""
    found: dict[str, float] = {}
    for quota in definition.quotas:
        for name, limit in quota.limits.items():
            taken = sum(
                request.get(name, 0) * long
                for index, task in enumerate(definition.tasks)
                if task.quota == quota.name
                for request, long in zip(task.requests, held[index], strict=True)
            )
            if limit and makespan:
                found[f"{quota.name}.{name}"] = taken / SECOND / limit / makespan
        if quota.launches and quota.launches < UNLIMITED_LAUNCHES and makespan:
            runs = sum(tasks[task.name].runs for task in definition.tasks if task.quota == quota.name)
            windows = max(1.0, makespan / (quota.window / SECOND))
            found[f"{quota.name}.launches"] = min(1.0, runs / quota.launches / windows)
    for index, task in enumerate(definition.tasks):
        if task.concurrency and makespan:
            found[f"{task.name}.concurrency"] = sum(held[index]) / SECOND / task.concurrency / makespan
    return found


def _bottleneck(definition: PipelineDef, tasks: dict[str, TaskSummary], used: dict[str, float]) -> str:
    """Return the fullest limit that tasks waited for; where none waited, the task that took longest."""
    waited = {task.name for task in definition.tasks if tasks[task.name].wait_mean > 0}
    asked = {
        name: share
        for name, share in used.items()
        if any(_asks(task, name) for task in definition.tasks if task.name in waited)
    }
    if asked:
        return max(sorted(asked), key=lambda name: asked[name])
    ran = {name: task.service_mean for name, task in tasks.items() if task.runs}
    return f"task {max(sorted(ran), key=lambda name: ran[name])}" if ran else ""


def _asks(task: TaskDef, resource: str) -> bool:
    own = [
        f"{task.quota}.{name}"
        for request in task.requests
        for name, amount in request.items()
        if amount and task.quota
    ]
    own += [f"{task.quota}.launches"]
    return resource in own or resource == f"{task.name}.concurrency" or resource.startswith("machines ")


def in_short(summaries: Sequence[Summary], name: str) -> dict[str, object]:
    """Return a scenario in the shape of `simulate --json`."""
    spans = sorted(each.makespan for each in summaries)
    first = summaries[0]
    bottlenecks = [each.bottleneck for each in summaries]
    return {
        "name": name,
        "jobs": first.jobs,
        "replications": len(summaries),
        "makespan": {
            "mean": _mean(spans),
            "p50": quantile(spans, 0.5),
            "p95": quantile(spans, 0.95),
            "min": spans[0],
            "max": spans[-1],
        },
        "utilisation": {
            resource: _mean([each.utilisation.get(resource, 0.0) for each in summaries])
            for resource in first.utilisation
        },
        "tasks": {
            task: {
                "runs": _mean([each.tasks[task].runs for each in summaries]),
                "wait_p50": _mean([each.tasks[task].wait_p50 for each in summaries]),
                "wait_p95": _mean([each.tasks[task].wait_p95 for each in summaries]),
                "service_p50": _mean([each.tasks[task].service_p50 for each in summaries]),
            }
            for task in first.tasks
        },
        "bottleneck": max(sorted(set(bottlenecks)), key=bottlenecks.count),
        "stuck": list(first.stuck),
    }


def _mean(numbers: Iterable[float]) -> float:
    those = list(numbers)
    return sum(those) / len(those) if those else 0.0
